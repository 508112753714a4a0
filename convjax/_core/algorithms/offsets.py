"""One running sum per output position: the kernel gradient of depthwise and narrow-group convolutions.

The kernel gradient is a convolution whose kernel is as large as its input (the cotangent) and whose output is a few
positions wide (the kernel). Each of these offsets is the sum of a product of two arrays that are as large as the
problem. How XLA reduces depends on its version (jax 0.10.1: 5 ms where 0.12 takes 20), how it multiplies and adds does
not: so a scan over blocks of the cotangent adds the product of each block with the input, shifted by every offset, to a
sum of the block's shape, and only the last of these sums are reduced.
Cost: offsets x input elements multiply-adds, both operands read once, the sums kept in cache.
Error: below that of direct summation in the accumulation dtype, as each element of a block has its own sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from convjax._core.arrange import block_counts, block_shape, exchanged, group_sizes, pad_space, split_axis, unravel
from convjax._core.dtypes import accumulator, output_dtype
from convjax._core.geometry import Geometry, Work
from convjax._core.spec import ConvSpec

MAX_CHANNELS_PER_GROUP = 8  # of the convolution whose gradient this is; more were not measured
UNROLLED_OFFSETS = 64  # sums carried by a scan; more are mapped over, each pass reading the operands anew
# Of the cotangent, one image row of 3x3 128 @56: chosen from 2^12 to 2^16 on a loaded machine (2^16 took 1.4 to 2x).
BLOCK_ELEMENTS = 2**13


def supports(spec: ConvSpec, lhs: Any, rhs: Any, platform: str) -> str | None:
    """None where this algorithm can serve, else the reason why not, in words for a user."""
    if spec.ndim == 0:
        return "no spatial axis: there is one offset, a matrix product"
    batch, *_ = group_sizes(spec, lhs.shape, rhs.shape)
    if batch > MAX_CHANNELS_PER_GROUP:
        return f"{batch} rows of output a group: a matrix product is cheaper above {MAX_CHANNELS_PER_GROUP}"
    return None


def work(g: Geometry) -> Work:
    tiles = -(-g.elements[1] // BLOCK_ELEMENTS)
    passes = -(-g.positions * g.batch // UNROLLED_OFFSETS)
    kind = "offsets" if g.is_kernel_gradient else "offsets, forward"
    kind += ", thin" if g.rhs[-1] < 16 else "" if g.batch == 1 else ", grouped"
    return Work(kind, g.macs, g.padded + passes * (g.padded + g.elements[1]), tiles * passes)


def run(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    dtype = accumulator(spec, lhs.dtype)
    out_shape, result = spec.out_shape(lhs.shape, rhs.shape), output_dtype(spec, lhs.dtype)
    batch, _, features = group_sizes(spec, lhs.shape, rhs.shape)
    # Split into groups only in the loop: XLA copies operands that have axes of size 1.
    lhs, rhs = exchanged(spec, lhs, rhs)

    # From here on the axis summed over, I, is one more in front of the spatial ones, with the only offset 0.
    offsets, strides, dilation = (1, *out_shape[1:-1]), (1, *spec.strides), (1, *spec.rhs_dilation)
    low, lhs_dilation = (0, *(lo for lo, _ in spec.padding)), (1, *spec.lhs_dilation)
    block = block_shape(offsets, max(1, UNROLLED_OFFSETS // max(1, batch)))
    passes = block_counts(offsets, block)
    tile = block_shape(rhs.shape[:-1], max(1, BLOCK_ELEMENTS // max(1, rhs.shape[-1])))
    tiles = block_counts(rhs.shape[:-1], tile)
    space = [n * t for n, t in zip(tiles, tile, strict=True)]
    reach = _reach([n * b for n, b in zip(passes, block, strict=True)], strides, space, dilation)
    size = [lo + (n - 1) * d + 1 for lo, n, d in zip(low, lhs.shape, lhs_dilation, strict=False)]
    lhs = lax.optimization_barrier(
        pad_space(lhs, [(lo, r - n) for lo, r, n in zip(low, reach, size, strict=True)], lhs_dilation, first=0)
    )
    missing = [n - m for n, m in zip(space, rhs.shape, strict=False)]
    rhs = pad_space(rhs, [(0, m) for m in missing], (1,) * len(missing), first=0)
    reach = _reach(block, strides, tile, dilation)

    def tiled(x: Array, start: Sequence[Any], shape: Sequence[int]) -> Array:
        part = lax.dynamic_slice(x, (*start, 0), (*shape, x.shape[-1])).astype(dtype)
        return split_axis(part, part.ndim - 1, spec.groups)

    def one_pass(index: Any) -> Array:
        first = [i * b * s for i, b, s in zip(unravel(index, passes), block, strides, strict=True)]

        def step(sums: tuple[Array, ...], index: Array) -> tuple[tuple[Array, ...], None]:
            start = [i * t for i, t in zip(unravel(index, tiles), tile, strict=True)]
            shift = [f + i * d for f, i, d in zip(first, start, dilation, strict=True)]
            x = tiled(lhs, shift, reach)
            ct = tiled(rhs, start, tile)
            terms = (
                x[_window(offset, strides, tile, dilation)][..., n, None] * ct
                for offset in np.ndindex(*block)
                for n in range(batch)
            )
            return tuple(total + term for total, term in zip(sums, terms, strict=True)), None

        zeros = jnp.zeros((*tile, spec.groups, features), dtype)
        sums, _ = lax.scan(step, (zeros,) * (math.prod(block) * batch), jnp.arange(math.prod(tiles)))
        reduced = jnp.stack([total.sum(tuple(range(len(tile))), dtype=dtype) for total in sums])
        return reduced.reshape(*block, batch, spec.groups, features)

    whole = lax.map(one_pass, jnp.arange(math.prod(passes))) if math.prod(passes) > 1 else one_pass(0)[None]
    whole = whole.reshape(*passes, *whole.shape[1:])
    n = len(offsets)
    whole = whole.transpose(2 * n, *(axis for i in range(n) for axis in (i, n + i)), 2 * n + 1, 2 * n + 2)
    whole = whole.reshape(batch, *(p * b for p, b in zip(passes, block, strict=True)), -1)
    return whole[(slice(None), 0, *(slice(o) for o in offsets[1:]))].reshape(out_shape).astype(result)


def _reach(offsets: Sequence[int], strides: Sequence[int], space: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """Inputs that meet `space` kernel positions at so many offsets."""
    return [(o - 1) * s + (k - 1) * d + 1 for o, s, k, d in zip(offsets, strides, space, dilation, strict=True)]


def _window(
    offset: Sequence[int], strides: Sequence[int], space: Sequence[int], dilation: Sequence[int]
) -> tuple[slice, ...]:
    return tuple(
        slice(o * s, o * s + (k - 1) * d + 1, d) for o, s, k, d in zip(offset, strides, space, dilation, strict=True)
    )
