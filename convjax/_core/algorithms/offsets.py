"""One reduction per output position: the kernel gradient of depthwise and narrow-group convolutions.

The kernel gradient is a convolution whose kernel is as large as its input (the cotangent) and whose output is a few
positions wide (the kernel). Each of these offsets is the sum of a product of two arrays that are as large as the
problem. XLA sums fast along one axis that is not the last, and only while both arrays are in cache: so a scan over
blocks of rows adds, for every offset at once, the sum over the rows of a block, and keeps the other axes to the end.
Cost: offsets x input elements multiply-adds, both operands read once.
Error: that of blocked summation in the accumulation dtype.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from convjax._core.arrange import block_counts, block_shape, exchanged, group_sizes, pad_space, split_axis, unravel
from convjax._core.dtypes import accumulator, output_dtype
from convjax._core.spec import ConvSpec

MAX_CHANNELS_PER_GROUP = 8  # of the convolution whose gradient this is: the batch of this problem
UNROLLED_OFFSETS = 64  # reductions in the body of the loop; more are scanned, each pass reading the operands anew
BLOCK_ELEMENTS = 2**17  # of the cotangent, 512 kB: with the input and the sums within L2
MIN_ROWS = 8  # the sums, offsets x one row, are read and written once in so many rows
MIN_LANES = 128  # elements that stay apart in the sum, for vector instructions


def supports(spec: ConvSpec, lhs: Any, rhs: Any, platform: str) -> str | None:
    """None where this algorithm can serve, else the reason why not, in words for a user."""
    if spec.ndim == 0:
        return "no spatial axis: there is one offset, a matrix product"
    batch, *_ = group_sizes(spec, lhs.shape, rhs.shape)
    if batch > MAX_CHANNELS_PER_GROUP:
        return f"{batch} rows of output a group: a matrix product is cheaper above {MAX_CHANNELS_PER_GROUP}"
    return None


def run(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    dtype = accumulator(spec, lhs.dtype)
    out_shape, result = spec.out_shape(lhs.shape, rhs.shape), output_dtype(spec, lhs.dtype)
    offsets = out_shape[1:-1]
    shapes = lhs.shape, rhs.shape
    lhs, rhs = exchanged(spec, lhs, rhs)  # split into groups only in the loop: XLA copies operands with axes of size 1

    batch, _, features = group_sizes(spec, *shapes)
    block = block_shape(offsets, max(1, UNROLLED_OFFSETS // max(1, batch)))
    counts = block_counts(offsets, block)
    rows, lanes, row_blocks = _rows(rhs.shape)
    missing = rows * row_blocks - rhs.shape[1]
    ones, zero = (1,) * spec.ndim, (0,) * spec.ndim
    high = [
        (n * b - 1) * s + d * (k - 1) + 1 - size
        for n, b, s, d, k, size in zip(
            counts,
            block,
            spec.strides,
            spec.rhs_dilation,
            (rows * row_blocks, *rhs.shape[2:-1]),
            [lo + (a - 1) * d + 1 for a, d, (lo, _) in zip(lhs.shape[1:-1], spec.lhs_dilation, spec.padding)],
            strict=True,
        )
    ]
    lhs = lax.optimization_barrier(
        pad_space(lhs, [(lo, hi) for (lo, _), hi in zip(spec.padding, high, strict=True)], spec.lhs_dilation)
    )
    rhs = pad_space(rhs, ((0, missing), *((0, 0),) * (spec.ndim - 1)), ones)
    reach = [
        (b - 1) * s + (k - 1) * d + 1
        for b, s, k, d in zip(block, spec.strides, (rows, *rhs.shape[2:-1]), spec.rhs_dilation, strict=True)
    ]
    step_counts = (rhs.shape[0], row_blocks)

    def sums(first):
        def step(total, index):
            image, row = unravel(index, step_counts)
            start = [f * s for f, s in zip(first, spec.strides, strict=True)]
            start[0] += row * (rows * spec.rhs_dilation[0])
            x = lax.dynamic_slice(lhs, (image, *start, 0), (1, *reach, lhs.shape[-1]))[0]
            ct = lax.dynamic_slice(rhs, (image, row * rows, *zero[1:], 0), (1, rows, *rhs.shape[2:]))[0]
            x, ct = (split_axis(operand.astype(dtype), operand.ndim - 1, spec.groups) for operand in (x, ct))
            return total + _sums(spec, x, ct, block, lanes), None

        shape = (math.prod(block), batch, lanes, *rhs.shape[2:-1], spec.groups, features)
        total, _ = lax.scan(step, jnp.zeros(shape, dtype), jnp.arange(math.prod(step_counts)))
        return total.sum(tuple(range(2, 2 + spec.ndim)), dtype=dtype)  # (offsets, N, G, J)

    if math.prod(counts) == 1:
        total = sums(zero)[None]
    else:
        total = lax.map(
            lambda i: sums([a * b for a, b in zip(unravel(i, counts), block, strict=True)]),
            jnp.arange(math.prod(counts)),
        )
    total = total.reshape(*counts, *block, *total.shape[2:])
    order = [axis for pair in zip(range(spec.ndim), range(spec.ndim, 2 * spec.ndim)) for axis in pair]
    total = total.transpose(2 * spec.ndim, *order, 2 * spec.ndim + 1, 2 * spec.ndim + 2)
    total = total.reshape(total.shape[0], *(n * b for n, b in zip(counts, block, strict=True)), *total.shape[-2:])
    return total[(slice(None), *(slice(o) for o in offsets))].reshape(out_shape).astype(result)


def _rows(shape):
    """Rows in a block, rows that stay apart in its sum, and the number of blocks."""
    row = max(1, math.prod(shape[2:]))
    lanes = 1 if row >= MIN_LANES else -(-MIN_LANES // row)
    rows = max(MIN_ROWS, BLOCK_ELEMENTS // row)
    blocks = max(1, -(-shape[1] // rows))
    rows = -(-shape[1] // blocks)
    lanes = min(lanes, max(1, rows // 2))
    return -(-rows // lanes) * lanes, lanes, blocks


def _sums(spec, x, ct, block, lanes):
    """`(offsets, N, lanes, *rest, G, J)`: for each offset of `block`, products summed over the rows of `ct`."""
    sums = []
    for offset in np.ndindex(*block):
        part = tuple(
            slice(o * s, o * s + (k - 1) * d + 1, d)
            for o, s, k, d in zip(offset, spec.strides, ct.shape, spec.rhs_dilation, strict=False)
        )
        for n in range(x.shape[-1]):
            product = x[part][..., n, None] * ct
            sums.append(product.reshape(-1, lanes, *ct.shape[1:]).sum(0, dtype=ct.dtype))
    return jnp.stack(sums).reshape(-1, x.shape[-1], *sums[0].shape)
