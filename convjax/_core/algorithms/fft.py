"""Multiplication of spectra: one transform of each operand over its spatial axes, one back.

For kernels of many taps on both sides of the family: a long kernel, or the cotangent in a kernel gradient.
Cost: transforms of every plane, N G I + I G J + N G J of them, n log n each, and N G I J products a frequency.
Error: norm-wise, about 1e-7 of the largest output in float32, however small the others are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from convjax._core.arrange import grouped, largest_divisor, merge_axes, pad_space, split_axis
from convjax._core.dtypes import accumulator, as_bits, as_floats, output_dtype
from convjax._core.geometry import Geometry, Work
from convjax._core.spec import ConvSpec, dilate
from convjax._core.spectrum import backward, fast_lengths, forward

# Up to so many products a frequency they are fused sums; beyond, matrix products with the frequency as batch.
FUSED_PRODUCTS = 16

# Padded planes transformed at a time: what a call allocates beyond 32 MiB costs a page fault for each 4 KiB, and a
# training step has three. k1K 768 L1K, two cores: 48 ms whole (44 MB), 29 in two blocks (28 MB); forward 12 and 11.
BLOCK_BYTES = 2**22
# Longer planes stay together, as XLA computes the roots of unity anew for each transform: k128K 16 L128K has no gain.
BLOCK_POINTS = 2**15


def supports(spec: ConvSpec, lhs: Any, rhs: Any, platform: str) -> str | None:
    """None where this algorithm can serve, else the reason why not, in words for a user."""
    if spec.ndim == 0:
        return "no spatial axis to transform"
    if not jnp.issubdtype(accumulator(spec, lhs.dtype), jnp.inexact):
        return f"{lhs.dtype} operands: integers are exact or refused, and a transform rounds"
    return None


def work(g: Geometry) -> Work:
    """As many transforms as planes; a real one counts its elements once, a complex one twice."""
    low = [lo for lo, _ in g.spec.padding]
    size = [lo + dilate(n, d) for lo, n, d in zip(low, g.lhs[1:], g.spec.lhs_dilation, strict=False)]
    last = [(n - 1) * s for n, s in zip(g.out, g.spec.strides, strict=True)]
    window = g.spec.window(g.rhs)
    length = [circle(*axis) for axis in zip(low, size, last, window, strict=True)]
    planes = most_planes((g.batch, g.spec.groups, g.features), (g.spec.groups, g.features, g.outputs))
    points = math.prod(fast_lengths(length, accumulator(g.spec, g.dtype), planes))
    return spectra("fft", g, points, 1)


def spectra(kind: str, g: Geometry, points: int, blocks: int) -> Work:
    """Transforms of `points` elements, `blocks` of them for a plane of input or output and one for a kernel's."""
    groups, batch, features, outputs = g.spec.groups, g.batch * blocks, g.features, g.outputs
    planes = groups * (batch * features + features * outputs + batch * outputs)
    products = groups * batch * features * outputs * points
    if features * outputs > FUSED_PRODUCTS:
        kind = f"{kind}, wide"
    return Work(kind, products, planes * points * math.log2(max(2, points)), planes)


def run(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    dtype = accumulator(spec, lhs.dtype)
    out_shape, result = spec.out_shape(lhs.shape, rhs.shape), output_dtype(spec, lhs.dtype)
    window = spec.window(rhs.shape)
    element = lhs.dtype
    lhs, rhs = grouped(spec, as_bits(lhs), as_bits(rhs))
    lhs = jnp.moveaxis(lhs, (-2, -1), (0, 2))  # (G, N, I, *space): transforms want their axes last
    rhs = jnp.moveaxis(rhs, (-2, -3, -1), (0, 1, 2))  # (G, I, J, *k)
    low = [lo for lo, _ in spec.padding]
    size = [lo + (n - 1) * d + 1 for lo, n, d in zip(low, lhs.shape[3:], spec.lhs_dilation, strict=True)]
    last = [(n - 1) * s for n, s in zip(out_shape[1:-1], spec.strides, strict=True)]
    length = [circle(*axis) for axis in zip(low, size, last, window, strict=True)]
    (g, n, i), j = lhs.shape[:3], rhs.shape[2]
    planes = max(n * i, i * j, n * j)  # of a group
    length = fast_lengths(length, dtype, g * planes)
    lhs_padding = [(lo, n - m) for lo, n, m in zip(low, length, size, strict=True)]
    rhs_padding = [(0, n - m) for n, m in zip(length, window, strict=True)]

    def block(operands: tuple[Array, Array]) -> Array:
        x, w = (as_floats(a, element).astype(dtype) for a in operands)
        x = pad_space(jnp.swapaxes(x, 0, 1), lhs_padding, spec.lhs_dilation, 3)
        y = correlate(x, pad_space(w, rhs_padding, spec.rhs_dilation, 3), length)
        y = y[(..., *(slice(0, n + 1, s) for n, s in zip(last, spec.strides, strict=True)))]
        return as_bits(jnp.swapaxes(y, 0, 1).astype(result))

    points = math.prod(length)
    most = BLOCK_BYTES // (points * dtype.itemsize * planes) if points <= BLOCK_POINTS else g
    y = by_blocks(block, lhs, rhs, most)
    return as_floats(jnp.moveaxis(y, (0, 2), (-2, -1)), result).reshape(out_shape)


def by_blocks(block: Callable[[tuple[Array, Array]], Array], lhs: Array, rhs: Array, most: int) -> Array:
    """`block((lhs, rhs))`, with at most so many groups, on the first axis of all three, at a time."""
    count = blocks(len(lhs), most)
    if count == 1:
        return block((lhs, rhs))
    return merge_axes(lax.map(block, (split_axis(lhs, 0, count), split_axis(rhs, 0, count))), 0)


def blocks(groups: int, most: int) -> int:
    """Equal rounds of at most `most` groups; one where none are nearly as large."""
    size = largest_divisor(groups, max(1, most))
    return groups // size if 2 * size > most else 1


def circle(low, size, last, window):
    """Shortest circle for outputs 0 to `last` of an input that ends at `size` after `low` zeros.

    The zeros that an output reaches beyond the end of the input may be those in front of it.
    """
    return max(min(size, last + window), last + window - max(low, 0), last + 1, window)


def correlate(lhs, rhs, lengths):
    """Circular correlation of `(N, G, I, *lengths)` with `(G, I, J, *lengths)`, summed over I."""
    planes = most_planes(lhs.shape, rhs.shape)
    x, w = forward(lhs, lengths, planes), forward(rhs.conj(), lengths, planes).conj()
    return backward(contract(x, w), lengths, lhs.dtype, planes)


def most_planes(lhs_shape, rhs_shape):
    """The most that are transformed at a time, of `(N, G, I, ...)`, `(G, I, J, ...)` and the product of both."""
    (n, g, i), j = lhs_shape[:3], rhs_shape[2]
    return g * max(n * i, i * j, n * j)


def contract(x, w):
    """`(N, G, J, *frequencies)` from `(N, G, I, *f)` and `(G, I, J, *f)`."""
    if w.shape[1] * w.shape[2] <= FUSED_PRODUCTS:
        return sum(x[:, :, i, None] * w[:, i] for i in range(w.shape[1]))
    return jnp.einsum("ngi...,gij...->ngj...", x, w)
