"""Sum of shifted products: one fused pass over the input per kernel tap.

For depthwise and narrow groups, where a matrix product would have next to nothing to multiply.
Cost: taps x output elements x channels per group multiply-adds, read and written once by XLA's fusion.
Error: that of direct summation in the accumulation dtype.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from convjax._core.arrange import block_counts, block_shape, group_sizes, grouped, pad_space, unravel
from convjax._core.dtypes import accumulator, output_dtype
from convjax._core.geometry import Geometry, Work
from convjax._core.spec import ConvSpec

# 8 was timed (3x3 256 @28 N8, 5.7 ms), nothing above it.
MAX_CHANNELS_PER_GROUP = 8
# Products in one fusion: 49 (7x7) take 4.2 ms at once and 5.8 ms in blocks of 32; 72 (3x3, 8 channels) 7.1 and 5.5.
UNROLLED_PRODUCTS = 64
SCANNED_PRODUCTS = 32  # in the body of the scan that serves more: 31x31 6.4 ms, 12.5 ms with 64
# 1-D: a padded copy costs more than padding every tap anew in the fusion (k=4 512 L2048 N4: 4.4 against 1.8 ms);
# in 2-D the same is 3 to 8 times slower than the copy.
LAZILY_PADDED_TAPS = 8


def supports(spec: ConvSpec, lhs: Any, rhs: Any, platform: str) -> str | None:
    """None where this algorithm can serve, else the reason why not, in words for a user."""
    _, channels, _ = group_sizes(spec, lhs.shape, rhs.shape)
    if channels > MAX_CHANNELS_PER_GROUP:
        return f"{channels} channels a group: a matrix product is cheaper above {MAX_CHANNELS_PER_GROUP}"
    return None


def work(g: Geometry) -> Work:
    passes = max(1, g.taps * g.features // SCANNED_PRODUCTS)
    kind = "taps, gradient" if g.is_kernel_gradient else "taps"
    kind += ", thin" if g.rhs[-1] < 16 else "" if g.features == 1 else ", grouped"
    kind += ", scanned" if g.taps * g.features > UNROLLED_PRODUCTS else ""
    return Work(kind, g.macs, g.padded + passes * g.elements[2], passes)


def run(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    dtype = accumulator(spec, lhs.dtype)
    out_shape = spec.out_shape(lhs.shape, rhs.shape)
    space, kernel = out_shape[1:-1], rhs.shape[:-2]
    lhs, rhs = grouped(spec, lhs, rhs)
    channels = max(1, lhs.shape[-1])
    few = channels * math.prod(kernel) <= UNROLLED_PRODUCTS
    block = block_shape(kernel, max(1, (UNROLLED_PRODUCTS if few else SCANNED_PRODUCTS) // channels))
    counts = block_counts(kernel, block)

    low = [lo for lo, _ in spec.padding]
    extra = [n * b - k for n, b, k in zip(counts, block, kernel, strict=True)]  # zero taps that complete the last block
    high = [hi + e * d for (_, hi), e, d in zip(spec.padding, extra, spec.rhs_dilation, strict=True)]
    if math.prod(counts) == 1 and spec.ndim == 1 and kernel[0] <= LAZILY_PADDED_TAPS and spec.lhs_dilation == (1,):
        return _sum(spec, lhs, rhs, low, space, dtype).reshape(out_shape).astype(output_dtype(spec, lhs.dtype))
    lhs = lax.optimization_barrier(pad_space(lhs, tuple(zip(low, high, strict=True)), spec.lhs_dilation))
    zero = (0,) * spec.ndim
    if math.prod(counts) == 1:
        return _sum(spec, lhs, rhs, zero, space, dtype).reshape(out_shape).astype(output_dtype(spec, lhs.dtype))

    rhs = pad_space(rhs, [(0, e) for e in extra], (1,) * spec.ndim, first=0)
    reach = [
        (o - 1) * s + (b - 1) * d + 1 for o, s, b, d in zip(space, spec.strides, block, spec.rhs_dilation, strict=True)
    ]

    def step(total: Array, index: Array) -> tuple[Array, None]:
        first = [i * b for i, b in zip(unravel(index, counts), block, strict=True)]
        part = lax.dynamic_slice(
            lhs,
            (0, *(i * d for i, d in zip(first, spec.rhs_dilation, strict=True)), 0, 0),
            (lhs.shape[0], *reach, *lhs.shape[-2:]),
        )
        taps = lax.dynamic_slice(rhs, (*first, 0, 0, 0), (*block, *rhs.shape[-3:]))
        return _sum(spec, part, taps, zero, space, dtype, total), None

    total = jnp.zeros((lhs.shape[0], *space, rhs.shape[-2], rhs.shape[-1]), dtype)
    total, _ = lax.scan(step, total, jnp.arange(math.prod(counts)))
    return total.reshape(out_shape).astype(output_dtype(spec, lhs.dtype))


def _sum(
    spec: ConvSpec, lhs: Array, rhs: Array, low: Sequence[int], space: Sequence[int], dtype: Any, total: Any = 0
) -> Array:
    """`total` plus the product of every tap with the input shifted by it; `low` zeros are yet to be padded in front."""
    length = [(o - 1) * s + 1 for o, s in zip(space, spec.strides, strict=True)]
    every = (slice(None), *(slice(None, None, s) for s in spec.strides))
    for tap in np.ndindex(*rhs.shape[:-3]):
        lo = [zeros - t * d for zeros, t, d in zip(low, tap, spec.rhs_dilation, strict=True)]
        hi = [n - size - a for n, size, a in zip(length, lhs.shape[1:], lo, strict=False)]
        shifted = pad_space(lhs, tuple(zip(lo, hi, strict=True)), (1,) * spec.ndim)[every].astype(dtype)
        for channel in range(lhs.shape[-1]):
            total = total + shifted[..., channel, None] * rhs[(*tap, channel)].astype(dtype)
    return total
