"""Depth to space: a transposed convolution as one convolution whose features are the pixels of a block.

The dual of `space_to_depth`, and `subpixel` at once: with the input dilated by `d`, the `d` outputs between two inputs
meet the same inputs with different taps. Those taps become features of one convolution of the input itself, of which
each position gives a block of `d` outputs along each axis.

Cost: the products, times `ceil(k / d) * d / k` along each axis for the zeros that complete the last taps, and a pass
over the output. One convolution however large `d` is, where `subpixel` makes one for each phase.
Error: that of the convolution that serves the rewritten problem.
Source: Shi et al., arXiv:1609.07009, section 2.2.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import jax.numpy as jnp
from jax import Array

from convjax._core.geometry import Geometry, Work
from convjax._core.primitive import convolve
from convjax._core.spec import ConvSpec, Shape


def supports(spec: ConvSpec, lhs: Any, rhs: Any, platform: str) -> str | None:
    """None where this algorithm can serve, else the reason why not, in words for a user."""
    if all(dilation == 1 for dilation in spec.lhs_dilation):
        return "the input is not dilated: a block would be one pixel"
    for lhs_dilation, stride, rhs_dilation in zip(spec.lhs_dilation, spec.strides, spec.rhs_dilation, strict=True):
        if lhs_dilation > 1 and (stride > 1 or rhs_dilation > 1):
            return (
                f"input dilation {lhs_dilation} with stride {stride} and kernel dilation {rhs_dilation}: the taps do "
                "not fall into blocks"
            )
    return None


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The convolution that gives whole blocks.

    Attributes:
      spec: of one output position for each block.
      kernel: its taps along each axis.
      crop: outputs of the first block that come before the first one wanted.
    """

    spec: ConvSpec
    kernel: Shape
    crop: Shape


def blocks(spec: ConvSpec, lhs: Shape, rhs: Shape) -> Blocks:
    """Blocks begin where all their outputs meet the same inputs: one output behind an input."""
    padding, kernel, crop = [], [], []
    for i, (dilation, out) in enumerate(zip(spec.lhs_dilation, spec.out_space(lhs, rhs), strict=True)):
        lo, hi = spec.padding[i]
        taps = -(-rhs[i] // dilation)
        before = (dilation - 1 - lo) % dilation
        if dilation > 1:
            lo = (lo + before) // dilation
            hi = -(-(out + before) // dilation) + taps - 1 - lhs[1 + i] - lo
        padding.append((lo, hi))
        kernel.append(taps)
        crop.append(before)
    plain = spec.auto(padding=tuple(padding), lhs_dilation=(1,) * spec.ndim)
    return Blocks(plain, tuple(kernel), tuple(crop))


def work(g: Geometry) -> Work:
    made, factor = blocks(g.spec, g.lhs, g.rhs), math.prod(g.spec.lhs_dilation)
    part = Geometry(made.spec, g.lhs, (*made.kernel, g.rhs[-2], g.rhs[-1] * factor), g.dtype)
    return Work("depth_to_space", 0, part.elements[1] + 2 * part.elements[2], 1, ((1, part),))


def run(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    made, out = blocks(spec, lhs.shape, rhs.shape), spec.out_space(lhs.shape, rhs.shape)
    y = convolve(lhs, to_features(rhs, made.kernel, spec.lhs_dilation, spec.groups), made.spec)
    y = to_space(y, spec.lhs_dilation, spec.groups)
    return y[(slice(None), *(slice(first, first + size) for first, size in zip(made.crop, out, strict=True)))]


def to_features(rhs: Array, taps: Shape, block: Shape, groups: int) -> Array:
    """`(*taps, I, groups * prod(block) * J)`: of each `block` taps every output has its own, the first the last."""
    n = len(block)
    missing = [(0, t * d - k) for t, d, k in zip(taps, block, rhs.shape, strict=False)]
    cut = itertools.chain.from_iterable(zip(taps, block, strict=True))
    features = rhs.shape[-1] // groups
    grid = jnp.pad(rhs, [*missing, (0, 0), (0, 0)]).reshape(*cut, rhs.shape[-2], groups, features)
    grid = jnp.flip(grid, range(1, 2 * n, 2)).transpose(*range(0, 2 * n, 2), 2 * n, 2 * n + 1, *range(1, 2 * n, 2), -1)
    return grid.reshape(*taps, rhs.shape[-2], -1)


def to_space(y: Array, block: Shape, groups: int) -> Array:
    """`(batch, *space, groups * prod(block) * J)` as `(batch, *(space * block), groups * J)`."""
    n = len(block)
    batch, *space, features = y.shape
    grid = y.reshape(batch, *space, groups, *block, features // (groups * math.prod(block)))
    pixels = itertools.chain.from_iterable((1 + i, 2 + n + i) for i in range(n))
    grid = grid.transpose(0, *pixels, 1 + n, 2 + 2 * n)
    return grid.reshape(batch, *(size * d for size, d in zip(space, block, strict=True)), -1)
