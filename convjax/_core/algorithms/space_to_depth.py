"""Space to depth: a strided convolution as one of stride 1 with `prod(strides)` times the channels.

A matrix unit starves on the 3 channels of an image. Blocks of `stride` pixels become one pixel of so many more
channels, and the kernel is cut into the same blocks, its last ones filled with zeros.

Cost: the products, times `ceil(k / stride) * stride / k` along each axis for the zeros, and a pass over the input.
Error: that of the convolution that serves the rewritten problem.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from convjax._core.geometry import Geometry, Work
from convjax._core.primitive import convolve
from convjax._core.spec import ConvSpec


def supports(spec: ConvSpec, lhs: Any, rhs: Any, platform: str) -> str | None:
    """None where this algorithm can serve, else the reason why not, in words for a user."""
    if all(stride == 1 for stride in spec.strides):
        return "no stride: a block would be one pixel"
    if any(dilation != 1 for dilation in spec.lhs_dilation):
        return "the input is dilated: sub-pixel phases serve that"
    for stride, dilation in zip(spec.strides, spec.rhs_dilation, strict=True):
        if stride > 1 and dilation > 1:
            return f"stride {stride} with kernel dilation {dilation}: the taps do not fall into blocks"
    return None


def work(g: Geometry) -> Work:
    spec, factor = g.spec, math.prod(g.spec.strides)
    blocks = [-(-taps // stride) for taps, stride in zip(g.kernel, spec.strides, strict=True)]
    space = [o + (b - 1) * d for o, b, d in zip(g.out, blocks, spec.rhs_dilation, strict=True)]
    deep = spec.auto(strides=(1,) * spec.ndim, padding=((0, 0),) * spec.ndim)
    lhs, rhs = (g.lhs[0], *space, g.lhs[-1] * factor), (*blocks, g.rhs[-2] * factor, g.rhs[-1])
    return Work("space_to_depth", 0, 2 * math.prod(lhs), 1, ((1, Geometry(deep, lhs, rhs, g.dtype)),))


def run(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    n, out = spec.ndim, spec.out_space(lhs.shape, rhs.shape)
    blocks = [-(-taps // stride) for taps, stride in zip(rhs.shape[:n], spec.strides, strict=True)]
    padding = [(0, 0, 0)]
    for i, (lo, _) in enumerate(spec.padding):
        length = (out[i] - 1 + (blocks[i] - 1) * spec.rhs_dilation[i] + 1) * spec.strides[i]
        padding.append((lo, length - lhs.shape[1 + i] - lo, 0))
    padded = lax.pad(lhs, jnp.zeros((), lhs.dtype), [*padding, (0, 0, 0)])
    missing = [(0, block * stride - taps) for block, stride, taps in zip(blocks, spec.strides, rhs.shape, strict=False)]
    whole = jnp.pad(rhs, [*missing, (0, 0), (0, 0)])
    deep = spec.auto(strides=(1,) * n, padding=((0, 0),) * n)
    return convolve(to_depth(padded, 1, spec.strides, spec.feature_groups), to_depth(whole, 0, spec.strides, 1), deep)


def to_depth(x: Array, first: int, strides: tuple[int, ...], groups: int) -> Array:
    """Move the offset within a block of pixels into the features that follow the spatial axes, group by group."""
    n = len(strides)
    leading, space, trailing = x.shape[:first], x.shape[first : first + n], x.shape[first + n + 1 :]
    cut = itertools.chain.from_iterable((size // stride, stride) for size, stride in zip(space, strides, strict=True))
    grid = x.reshape(*leading, *cut, groups, -1, *trailing)
    order = [*range(first), *range(first, first + 2 * n, 2), first + 2 * n, *range(first + 1, first + 2 * n, 2)]
    grid = grid.transpose(*order, *range(first + 2 * n + 1, grid.ndim))
    coarse = tuple(size // stride for size, stride in zip(space, strides, strict=True))
    return grid.reshape(*leading, *coarse, -1, *trailing)
