"""Matrix product: patches of the input, one a row, times the kernel (im2col).

A kernel of one tap needs no patches: the input itself is the matrix. Otherwise the patches of a block of output rows
are gathered and multiplied before the next block's, so that memory is bounded by `BLOCK_BYTES`, and a block stays in
the cache between the two. Groups are a batch of products.

Cost: the products of direct summation; patches written and read once, in the cache where they fit one block.
Error: that of direct summation in the accumulation dtype.
Source: Chellapilla, Puri, Simard, 2006, section 3.1; Anderson et al., arXiv:1709.03395, for the blocks.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from convjax._core.arrange import groups_first, groups_last, met_by, pad_space
from convjax._core.dtypes import accumulator, as_bits, as_floats, output_dtype
from convjax._core.geometry import Geometry, Work
from convjax._core.spec import ConvSpec, dilate

# 3x3 64->64 at 56x56, 2 cores with 1 MiB of L2 each: 27 ms at one row (129 KiB) a block, 44 ms whole (58 MB).
BLOCK_BYTES = 2**20

# Pixels from which an image is worth a product of its own, and bytes that all their copies of the kernel may take.
IMAGE_ROWS = 2**10
KERNEL_BYTES = 2**22

# Each tap is a slice in the program; 169 of them compile in 4 s.
MAX_TAPS = 64


def supports(spec: ConvSpec, lhs: Any, rhs: Any, platform: str) -> str | None:
    """None where this algorithm can serve, else the reason why not, in words for a user."""
    if (taps := math.prod(rhs.shape[:-2])) > MAX_TAPS:
        return f"{taps} taps would be as many slices in the program: at most {MAX_TAPS}"
    return None


def work(g: Geometry) -> Work:
    kind = "gemm" if g.is_dense else "gemm, grouped"
    bits = ", 16 bits" if g.dtype == jnp.bfloat16 else ""
    if g.taps == 1:
        return Work(f"{kind}, one tap{bits}", g.vector_macs, g.patches, g.spec.groups)
    row_bytes = math.prod(g.out[1:]) * math.prod(g.rhs[:-1]) * g.dtype.itemsize
    blocks = -(-g.out[0] // max(1, BLOCK_BYTES // row_bytes)) * g.batch
    return Work(f"{kind}{bits}", g.vector_macs, g.patches, blocks)


def run(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    out = spec.out_space(lhs.shape, rhs.shape)
    padded = pad_space(lhs, spec.padding, spec.lhs_dilation)
    if spec.groups == 1:
        product = one_group(spec, out, padded, rhs)
    else:
        product = groups_last(jax.vmap(lambda x, w: one_group(spec, out, x, w))(*groups_first(spec, padded, rhs)))
    return product.astype(output_dtype(spec, lhs.dtype))


def one_group(spec: ConvSpec, out: tuple[int, ...], padded: Array, rhs: Array) -> Array:
    """Convolve `(batch, *padded, features)`; the result is in the accumulation dtype."""
    if all(size == 1 for size in rhs.shape[:-2]):
        return of_pixels(spec, met_by(padded, (0,) * spec.ndim, out, spec.strides), rhs)
    row_bytes = math.prod(out[1:]) * math.prod(rhs.shape[:-1]) * padded.dtype.itemsize
    rows = max(1, min(out[0], BLOCK_BYTES // row_bytes))
    if rows == out[0] and row_bytes * rows * padded.shape[0] <= BLOCK_BYTES:
        return multiply(spec, patches(spec, out, padded, rhs.shape), rhs)
    return by_blocks(spec, out, rows, padded, rhs)


def of_pixels(spec: ConvSpec, x: Array, rhs: Array) -> Array:
    """A kernel of one tap. A product an image lets XLA take in the transpositions of a layout with channels first."""
    batch, features, outputs = x.shape[0], *rhs.shape[-2:]
    rows = math.prod(x.shape[1:-1])
    if batch == 1 or rows < IMAGE_ROWS or batch * rhs.size * rhs.dtype.itemsize > KERNEL_BYTES:
        return multiply(spec, x, rhs)
    product = lax.dot_general(
        x.reshape(batch, rows, features),
        jnp.broadcast_to(rhs.reshape(features, outputs), (batch, features, outputs)),
        (((2,), (1,)), ((0,), (0,))),
        precision=spec.precision,
        preferred_element_type=accumulator(spec, x.dtype),
    )
    return product.reshape(*x.shape[:-1], outputs)


def by_blocks(spec: ConvSpec, out: tuple[int, ...], rows: int, padded: Array, rhs: Array) -> Array:
    """One image and `rows` output rows at a time."""
    blocks = -(-out[0] // rows)
    stride, window = spec.strides[0], dilate(rhs.shape[0], spec.rhs_dilation[0])
    met = (rows - 1) * stride + window  # input rows that a block meets
    missing = (blocks * rows - 1) * stride + window - padded.shape[1]
    bits = as_bits(padded)
    bits = lax.pad(bits, jnp.zeros((), bits.dtype), [(0, 0, 0), (0, max(0, missing), 0)] + [(0, 0, 0)] * spec.ndim)

    def block(index: Array) -> Array:
        image, first = index // blocks, index % blocks * (rows * stride)
        starts = (image, first) + (jnp.zeros((), index.dtype),) * spec.ndim
        piece = as_floats(lax.dynamic_slice(bits, starts, (1, met, *padded.shape[2:])), padded.dtype)
        return multiply(spec, patches(spec, (rows, *out[1:]), piece, rhs.shape), rhs)[0]

    done = lax.map(block, jnp.arange(padded.shape[0] * blocks))
    whole = done.reshape(padded.shape[0], blocks * rows, *done.shape[2:])
    return lax.slice_in_dim(whole, 0, out[0], axis=1)


def patches(spec: ConvSpec, out: tuple[int, ...], padded: Array, rhs_shape: tuple[int, ...]) -> Array:
    """`(batch, *out, taps * features)`, in the kernel's order."""
    met = []
    for tap in spec.taps(rhs_shape):
        starts = tuple(t * dilation for t, dilation in zip(tap, spec.rhs_dilation, strict=True))
        met.append(met_by(padded, starts, out, spec.strides))
    return jnp.concatenate(met, -1)


def multiply(spec: ConvSpec, rows: Array, rhs: Array) -> Array:
    """`(.., taps * features)` times the kernel as a matrix; XLA on CPU is fastest where both are plainly 2-D."""
    matrix = rhs.reshape(-1, rhs.shape[-1])
    dtype = accumulator(spec, rows.dtype)
    product = jnp.dot(rows.reshape(-1, len(matrix)), matrix, precision=spec.precision, preferred_element_type=dtype)
    return product.reshape(*rows.shape[:-1], -1)
