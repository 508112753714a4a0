"""Blocked transforms for a long input and a short kernel: overlap-add.

Along each axis that is long beside the kernel the problem is cut into blocks, each convolved by spectra with the
kernel, which is transformed once. Of the two equal ways to join them this is the one where the blocks of the input
overlap and each gives outputs of its own (overlap-save): there is nothing to add.
Cost: transforms of length `step + window - 1` in place of one of the whole axis; the arrays in flight stay in cache.
Error: as of `fft`, relative to the largest output of a block.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
from jax import Array

from convjax._core.algorithms.fft import correlate, spectra
from convjax._core.arrange import grouped, pad_space
from convjax._core.dtypes import accumulator, output_dtype
from convjax._core.geometry import Geometry, Work
from convjax._core.spec import ConvSpec
from convjax._core.spectrum import fast_length

MIN_BLOCKS = 3  # fewer are better served by one transform


def supports(spec: ConvSpec, lhs: Any, rhs: Any, platform: str) -> str | None:
    """None where this algorithm can serve, else the reason why not, in words for a user."""
    if not jnp.issubdtype(accumulator(spec, lhs.dtype), jnp.inexact):
        return f"{lhs.dtype} operands: integers are exact or refused, and a transform rounds"
    if all(count == 1 for _, count in _blocks(spec, lhs.shape, rhs.shape)):
        return (
            f"input {spec.padded_space(lhs.shape)} too short beside kernel {spec.window(rhs.shape)} to cut into blocks"
        )
    return None


def work(g: Geometry) -> Work:
    blocks, window = _blocks(g.spec, g.lhs, g.rhs), g.spec.window(g.rhs)
    points = math.prod(step + w - 1 for (step, _), w in zip(blocks, window, strict=True))
    return spectra("fft, blocked", g, points, math.prod(count for _, count in blocks))


def run(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    dtype = accumulator(spec, lhs.dtype)
    out_shape, result = spec.out_shape(lhs.shape, rhs.shape), output_dtype(spec, lhs.dtype)
    window, blocks = spec.window(rhs.shape), _blocks(spec, lhs.shape, rhs.shape)
    lhs, rhs = grouped(spec, lhs.astype(dtype), rhs.astype(dtype))
    lhs = jnp.moveaxis(lhs, (-2, -1), (1, 2))  # (N, G, I, *space)
    rhs = jnp.moveaxis(rhs, (-2, -3, -1), (0, 1, 2))  # (G, I, J, *k)
    low, high, lengths = [], [], []
    for i, (step, count) in enumerate(blocks):
        size = spec.padding[i][0] + (lhs.shape[3 + i] - 1) * spec.lhs_dilation[i] + 1
        low.append(spec.padding[i][0])
        high.append(step * count + window[i] - 1 - size)
        lengths.append(step + window[i] - 1)
    x = pad_space(lhs, tuple(zip(low, high, strict=True)), spec.lhs_dilation, 3)
    for i, ((step, count), length) in enumerate(zip(blocks, lengths, strict=True)):
        x = frames(x, 3 + 2 * i, step, count, length)
    ndim = spec.ndim
    x = x.transpose(0, *range(3, 3 + 2 * ndim, 2), 1, 2, *range(4, 4 + 2 * ndim, 2))
    batch = x.shape[: 1 + ndim]
    x = x.reshape(math.prod(batch), *x.shape[1 + ndim :])
    missing = [n - w for n, w in zip(lengths, window, strict=True)]
    y = correlate(x, pad_space(rhs, [(0, m) for m in missing], spec.rhs_dilation, 3), lengths)
    y = y[(..., *(slice(0, step) for step, _ in blocks))]
    y = y.reshape(*batch, *y.shape[1:])  # (N, *counts, G, J, *steps)
    y = y.transpose(0, *(a for i in range(ndim) for a in (1 + i, 3 + ndim + i)), 1 + ndim, 2 + ndim)
    y = y.reshape(y.shape[0], *(step * count for step, count in blocks), *y.shape[-2:])
    y = y[(slice(None), *(slice(0, (o - 1) * s + 1, s) for o, s in zip(out_shape[1:-1], spec.strides, strict=True)))]
    return y.reshape(out_shape).astype(result)


def frames(x, axis, step, count, length):
    """Axis of `step * count + length - step` elements as `count` frames of `length`, `step` apart, on two axes."""
    parts = []
    for start in range(0, length, step):
        width = min(step, length - start)
        part = _slice(x, axis, start, start + step * count)
        part = part.reshape(*x.shape[:axis], count, step, *x.shape[axis + 1 :])
        parts.append(_slice(part, axis + 1, 0, width))
    return jnp.concatenate(parts, axis + 1)


def _slice(x, axis, start, stop):
    missing = max(0, stop - x.shape[axis])
    if missing:
        x = jnp.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)])
    return x[(slice(None),) * axis + (slice(start, stop),)]


def _blocks(spec, lhs_shape, rhs_shape):
    """`(step, count)` along each axis: outputs a block and the number of blocks."""
    out = spec.out_space(lhs_shape, rhs_shape)
    return [
        _axis_blocks((n - 1) * s + 1, window)
        for n, s, window in zip(out, spec.strides, spec.window(rhs_shape), strict=True)
    ]


def _axis_blocks(outputs, window):
    """The block length of least cost `count * n log n`, and one block unless `MIN_BLOCKS` pay."""
    best = (math.inf, outputs, 1)
    length = fast_length(2 * window)
    while length < outputs + window - 1:
        step = length - window + 1
        count = -(-outputs // step)
        if count >= MIN_BLOCKS:
            best = min(best, (count * length * math.log2(length), step, count))
        length = fast_length(length + 1 + length // 4)
    whole = fast_length(outputs + window - 1)
    if best[0] < whole * math.log2(whole):
        return best[1:]
    return whole - window + 1, 1
