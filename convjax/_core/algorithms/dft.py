"""Multiplication of spectra on small maps, where a Fourier transform is a matrix product along each axis.

For large kernels in two dimensions. As a product with the matrix of the DFT, a transform needs no padded copy, takes
only the outputs that are wanted back, and leaves channels last, in the vector lanes: with a length of tens that is
less than a fast transform of each plane spends on moving them (depthwise 27x27 512 @14 N8, two cores: 6.2 ms, `fft`
20). The input is real, so half the frequencies of the last axis will do; complex numbers are pairs of real ones,
multiplied by real matrices of twice the size.
Cost: 2 L or 4 L multiply-adds an element and axis, L its length, and N G I J products a frequency.
Error: as of `fft`, relative to the largest output.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from convjax._core.algorithms import fft
from convjax._core.algorithms.fft import FUSED_PRODUCTS, circle
from convjax._core.arrange import grouped, inside, split_axis
from convjax._core.dtypes import accumulator, as_bits, as_floats, output_dtype
from convjax._core.geometry import Geometry, Work
from convjax._core.spec import ConvSpec, dilate

# depthwise 31x31 128 @56 N1, length 71: 5.0 ms, `fft` 10.8; 41x41 64 @64, length 84: 8.6 and 6.3 ms.
MAX_LENGTH = 80
# Spectra of a block of groups: they stay in the cache between one product and the next.
BLOCK_BYTES = 2**22


def supports(spec: ConvSpec, lhs: Any, rhs: Any, platform: str) -> str | None:
    """None where this algorithm can serve, else the reason why not, in words for a user."""
    if reason := fft.supports(spec, lhs, rhs, platform):
        return reason
    if spec.ndim != 2:
        return f"{spec.ndim} spatial axes: the matrices are for two"
    if max(length := circles(spec, lhs.shape, rhs.shape)) > MAX_LENGTH:
        return f"a transform of {length} elements is faster without matrices: at most {MAX_LENGTH}"
    return None


def work(g: Geometry) -> Work:
    rows, columns = circles(g.spec, g.lhs, g.rhs)
    half, parts = columns // 2 + 1, 2 if jnp.issubdtype(g.dtype, jnp.complexfloating) else 1
    groups, batch, features, outputs = g.spec.groups, parts * g.batch, g.features, parts * g.outputs
    sizes = ((batch * features, g.lhs[1:3]), (features * outputs, g.kernel), (batch * outputs, g.out))
    macs = sum(n * 2 * half * height * (width + 2 * rows) for n, (height, width) in sizes)
    points = 2 * half * rows
    moved = points * sum(n for n, _ in sizes)
    kind = "dft, wide" if features * outputs > FUSED_PRODUCTS else "dft"
    products = 2 * points * batch * features * outputs
    return Work(kind, groups * (macs + products), groups * moved, fft.blocks(groups, most_groups(g.spec, g.lhs, g.rhs)))


def circles(spec: ConvSpec, lhs_shape: Sequence[int], rhs_shape: Sequence[int]) -> list[int]:
    """Length of the transform along each axis."""
    axes = zip(
        spec.padding, lhs_shape[1:], spec.lhs_dilation, spec.out_space(lhs_shape, rhs_shape), spec.strides, strict=False
    )
    ends = [(lo, lo + dilate(n, d), (out - 1) * stride) for (lo, _), n, d, out, stride in axes]
    return [circle(*end, window) for end, window in zip(ends, spec.window(rhs_shape), strict=True)]


def most_groups(spec: ConvSpec, lhs_shape: Sequence[int], rhs_shape: Sequence[int]) -> int:
    """How many are worked through at a time."""
    features, outputs, batch = rhs_shape[-2], rhs_shape[-1] // spec.groups, lhs_shape[0] // spec.batch_groups
    rows, columns = circles(spec, lhs_shape, rhs_shape)
    one = 8 * rows * (columns // 2 + 1) * max(batch * features, features * outputs, batch * outputs)
    return BLOCK_BYTES // one


def run(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    element, dtype = lhs.dtype, accumulator(spec, lhs.dtype)
    out_shape, result = spec.out_shape(lhs.shape, rhs.shape), output_dtype(spec, lhs.dtype)
    lengths, most = circles(spec, lhs.shape, rhs.shape), most_groups(spec, lhs.shape, rhs.shape)
    starts = [lo for lo, _ in spec.padding]
    met = [inside(lo, d, n, m) for lo, d, n, m in zip(starts, spec.lhs_dilation, lhs.shape[1:], lengths, strict=False)]
    if any(first == stop for first, stop in met):
        return jnp.zeros(out_shape, result)  # all of the input is cropped away
    lhs_at = [[lo + i * d for i in range(*span)] for lo, d, span in zip(starts, spec.lhs_dilation, met, strict=True)]
    rhs_at = [[i * d for i in range(k)] for k, d in zip(rhs.shape, spec.rhs_dilation, strict=False)]
    out_at = [[i * s for i in range(n)] for n, s in zip(out_shape[1:], spec.strides, strict=False)]

    lhs, rhs = grouped(spec, as_bits(lhs), as_bits(rhs))
    lhs = lhs[(slice(None), *(slice(*span) for span in met))]
    # Blocks of groups first, the groups of a block last: (blocks, width, height, N, I, G) and (.., I, J, G)
    blocks = fft.blocks(spec.groups, most)
    lhs = split_axis(lhs, 3, blocks).transpose(3, 2, 1, 0, 5, 4)
    rhs = split_axis(rhs, 3, blocks).transpose(3, 1, 0, 2, 5, 4)

    def block(operands: tuple[Array, Array]) -> Array:
        x, w = (as_floats(a, element).astype(dtype) for a in operands)
        if jnp.iscomplexobj(x):  # four convolutions of real numbers
            x, w = jnp.concatenate([x.real, x.imag], 2), jnp.concatenate([w.real, w.imag], 3)
        y = backward(correlate(forward(x, lhs_at, lengths), forward(w, rhs_at, lengths)), out_at, lengths)
        if jnp.issubdtype(dtype, jnp.complexfloating):
            (a, b), (c, d) = (jnp.split(half, 2, 3) for half in jnp.split(y, 2, 2))
            y = lax.complex(a - d, b + c)
        return as_bits(y.astype(result))

    y = lax.map(block, (lhs, rhs)) if blocks > 1 else block((lhs[0], rhs[0]))[None]
    return as_floats(y.transpose(3, 2, 1, 0, 5, 4), result).reshape(out_shape)


def forward(x: Array, at: Sequence[Sequence[int]], lengths: Sequence[int]) -> Array:
    """`(half, 2, rows, ...)`, real and imaginary parts, of `(width, height, ...)` at these places of the circles."""
    columns = real_dft(lengths[1], tuple(at[1]))
    x = multiply(columns.reshape(-1, len(x)), x).reshape(len(columns), -1, *x.shape[2:])
    return across(complex_dft(lengths[0], tuple(at[0])), x).reshape(len(columns), 2, lengths[0], *x.shape[2:])


def backward(y: Array, at: Sequence[Sequence[int]], lengths: Sequence[int]) -> Array:
    """The inverse of `forward` at these places of the circles: `(width, height, ...)`."""
    half, height = len(y), len(at[0])
    y = across(complex_dft(lengths[0], tuple(at[0])).T / lengths[0], y.reshape(half, -1, *y.shape[3:]))
    weights = np.full(half, 2 / lengths[1])  # frequencies that stand for their conjugates as well count twice
    weights[0] = 1 / lengths[1]
    if lengths[1] % 2 == 0:
        weights[-1] = 1 / lengths[1]
    columns = real_dft(lengths[1], tuple(at[1])) * weights[:, None, None]
    return multiply(columns.reshape(2 * half, -1).T, y.reshape(2 * half, height, *y.shape[2:]))


def correlate(x: Array, w: Array) -> Array:
    """`x` times the conjugate of `w`, `(half, 2, rows, N, J, G)` from `(.., N, I, G)` and `(.., I, J, G)`."""
    features, outputs = w.shape[3:5]
    if features * outputs > FUSED_PRODUCTS:
        x, w = lax.complex(x[:, 0], x[:, 1]), lax.complex(w[:, 0], -w[:, 1])
        y = jnp.einsum("fkngi,fkijg->fknjg", jnp.swapaxes(x, -1, -2), w, precision=lax.Precision.HIGHEST)
        return jnp.stack([y.real, y.imag], 1)
    pairs = [
        (x[:, 0, :, :, i, None], x[:, 1, :, :, i, None], w[:, 0, :, None, i], w[:, 1, :, None, i])
        for i in range(features)
    ]
    return jnp.stack([sum(a * c + b * d for a, b, c, d in pairs), sum(b * c - a * d for a, b, c, d in pairs)], 1)


def multiply(matrix: np.ndarray, x: Array) -> Array:
    """Along the first axis."""
    matrix = matrix.astype(x.dtype)
    return jnp.dot(matrix, x.reshape(len(x), -1), precision=lax.Precision.HIGHEST).reshape(len(matrix), *x.shape[1:])


def across(matrix: np.ndarray, x: Array) -> Array:
    """Along the second axis, at every index of the first."""
    many = jnp.broadcast_to(matrix.astype(x.dtype), (len(x), *matrix.shape))
    y = jnp.matmul(many, x.reshape(*x.shape[:2], -1), precision=lax.Precision.HIGHEST)
    return y.reshape(len(x), len(matrix), *x.shape[2:])


@functools.cache
def real_dft(length: int, at: tuple[int, ...]) -> np.ndarray:
    """`(half, 2, len(at))`: real and imaginary part of the DFT of real numbers at these places of a circle."""
    angle = 2 * np.pi / length * (np.outer(np.arange(length // 2 + 1), at) % length)
    return np.stack([np.cos(angle), -np.sin(angle)], 1)


@functools.cache
def complex_dft(length: int, at: tuple[int, ...]) -> np.ndarray:
    """`(2 length, 2 len(at))`: the DFT of complex numbers at these places, real parts before imaginary ones.

    Its transpose is the inverse, but for a factor of `length`.
    """
    angle = 2 * np.pi / length * (np.outer(np.arange(length), at) % length)
    real, imaginary = np.cos(angle), -np.sin(angle)
    return np.block([[real, -imaginary], [imaginary, real]])
