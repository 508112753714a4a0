"""Winograd's minimal filtering: tiles of the input and of the kernel multiplied point by point.

F(m, r) computes m outputs of an r-tap filter from m + r - 1 products, against m * r directly: both operands are taken
to the values of polynomials at that many points (Toom-Cook), multiplied there, and the product is taken back. Over
features the products at one point are a matrix product; in n dimensions the transforms nest, axis by axis. A kernel
gradient has a kernel as long as the input and few outputs: its kernel is cut into tiles, and their products are summed
before they are taken back, once.

Cost: 3x3 with m = 4 takes a quarter of the products, plus transforms that read and write about 2.25 times the input
and the output.
Error: grows with the number of points. Measured on normal data in float32, 2-D, largest error over largest output:
F(2, 3) 2e-7, as direct summation; F(4, 3) 4e-6 to 6e-6; F(6, 3) 5e-6; F(2, 5) 2e-6; F(4, 5) 4e-6; F(4, 7) 4e-4.
A NaN or infinity spreads over its tile.
Source: Lavin and Gray, arXiv:1509.09308; Barabasz et al., arXiv:1803.10986, for the points.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from fractions import Fraction
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from convjax._core.arrange import largest_divisor, pad_space
from convjax._core.dtypes import accumulator, output_dtype
from convjax._core.geometry import Geometry, Work
from convjax._core.spec import ConvSpec

POINTS = tuple(Fraction(p) for p in ("0", "1", "-1", "2", "-2", "1/2", "-1/2", "4", "-4", "1/4", "-1/4"))

# Beyond 8 points, infinity included (F(4, 5), F(2, 7)), rounding costs more digits than the products are worth.
MAX_POINTS = 8

# Transformed input of a block of images: the 4.7 MB of 3x3 256->256 at 14x14 N8 whole 4.9 ms, in two blocks 6.0 ms.
BLOCK_BYTES = 2**23


@dataclasses.dataclass(frozen=True)
class Winograd:
    """F(m, r) for kernels of any r, where `outputs` is m; in a kernel gradient the two change places.

    3x3 64->64 at 56x56 N8 on 2 cores: 5.4 ms with m = 4, 8.3 ms with m = 2, XLA 10.2 ms.
    """

    outputs: int

    def supports(self, spec: ConvSpec, lhs: Any, rhs: Any, platform: str) -> str | None:
        """None where this algorithm can serve, else the reason why not, in words for a user."""
        if any(step != 1 for step in (*spec.strides, *spec.lhs_dilation, *spec.rhs_dilation)):
            return "tiles overlap only without stride and dilation"
        if spec.groups > 1:
            return "groups: the products at a point would be too narrow"
        if not jnp.issubdtype(lhs.dtype, jnp.inexact):
            return "integers: the transforms are fractions"
        sizes = list(zip(rhs.shape[:-2], spec.out_space(lhs.shape, rhs.shape), strict=True))
        short = [min(pair) for pair in sizes]
        if math.prod(short) == 1:
            return "one tap: a matrix product already"
        if max(short) + self.outputs - 1 > MAX_POINTS:
            return f"F({self.outputs}, {max(short)}) has more than {MAX_POINTS} points, and would lose too many digits"
        if any(taps > out for taps, out in sizes) and any(taps < out for taps, out in sizes):
            return "long in the kernel along one axis and in the output along another"
        return None

    def work(self, g: Geometry) -> Work:
        short, long = (g.kernel, g.out) if not g.is_kernel_gradient else (g.out, g.kernel)
        tile = [outputs_a_tile(self.outputs, size) for size in short]
        points = math.prod(m + size - 1 for m, size in zip(tile, short, strict=True))
        tiles = math.prod(-(-size // m) for size, m in zip(long, tile, strict=True))
        rows, columns, depth = g.batch * tiles, g.features, g.outputs
        many = ", 3-D" if g.spec.ndim > 2 else ""
        if g.is_kernel_gradient:
            moved = points * (tiles * g.features * (g.batch + g.outputs) + g.batch * g.outputs)
            return Work(f"winograd, gradient{many}", points * rows * columns * depth, moved, points)
        moved = points * (rows * (columns + depth) + columns * depth)
        return Work(f"winograd{many}", points * rows * columns * depth, moved, points)

    def run(self, spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
        out = spec.out_space(lhs.shape, rhs.shape)
        if all(taps <= size for taps, size in zip(rhs.shape[: spec.ndim], out, strict=True)):
            result = short_kernel(self.outputs, spec, out, lhs, rhs)
        else:
            result = short_output(self.outputs, spec, out, lhs, rhs)
        return result.astype(output_dtype(spec, lhs.dtype))


def outputs_a_tile(outputs: int, taps: int) -> int:
    """Along an axis of one tap there is nothing to save."""
    return 1 if taps == 1 else outputs


def short_kernel(outputs: int, spec: ConvSpec, out: tuple[int, ...], lhs: Array, rhs: Array) -> Array:
    """Tiles of `m` outputs along each axis; the kernel is transformed once."""
    n, dtype = spec.ndim, accumulator(spec, lhs.dtype)
    taps = rhs.shape[:n]
    tile = tuple(outputs_a_tile(outputs, r) for r in taps)
    tiles = tuple(-(-size // m) for size, m in zip(out, tile, strict=True))
    at_points, to_points, from_points = zip(*map(transforms, tile, taps), strict=True)  # B^T, G, A^T of each axis
    padding = [
        (lo, t * m + r - 1 - size - lo)
        for (lo, _), t, m, r, size in zip(spec.padding, tiles, tile, taps, lhs.shape[1:], strict=False)
    ]
    padded = pad_space(lhs, tuple(padding), spec.lhs_dilation).astype(dtype)
    kernel = rhs.astype(dtype)
    for i in range(n):
        kernel = along(to_points[i], kernel, i)
    kernel = kernel.reshape(-1, *kernel.shape[n:])  # (points, features, outputs)

    def block(images: Array) -> Array:
        points = into_tiles(images, tile, tiles, at_points)
        products = lax.dot_general(
            points, kernel, (((2,), (1,)), ((0,), (0,))), precision=spec.precision, preferred_element_type=dtype
        )
        return out_of_tiles(products, tile, tiles, from_points)

    image_bytes = math.prod(t * len(b) for t, b in zip(tiles, at_points, strict=True)) * lhs.shape[-1] * dtype.itemsize
    images = largest_divisor(lhs.shape[0], max(1, BLOCK_BYTES // image_bytes))
    if images == lhs.shape[0]:
        whole = block(padded)
    else:
        whole = lax.map(block, padded.reshape(-1, images, *padded.shape[1:]))
        whole = whole.reshape(-1, *whole.shape[2:])
    return lax.slice(whole, (0,) * (n + 2), (lhs.shape[0], *out, rhs.shape[-1]))


def short_output(outputs: int, spec: ConvSpec, out: tuple[int, ...], lhs: Array, rhs: Array) -> Array:
    """Tiles of `m` taps along each axis; their products are summed at the points, and taken back once."""
    n, dtype = spec.ndim, accumulator(spec, lhs.dtype)
    tile = tuple(outputs_a_tile(outputs, size) for size in out)
    tiles = tuple(-(-taps // m) for taps, m in zip(rhs.shape, tile, strict=False))
    at_points, to_points, from_points = zip(*map(transforms, out, tile), strict=True)
    padding = [
        (lo, t * m + o - 1 - size - lo)
        for (lo, _), t, m, o, size in zip(spec.padding, tiles, tile, out, lhs.shape[1:], strict=False)
    ]
    natural = pad_space(jnp.moveaxis(lhs, (0, -1), (-1, 0)), tuple(padding), spec.lhs_dilation).astype(dtype)
    cotangent = jnp.moveaxis(rhs, n, 0).astype(dtype)
    filled = [(0, t * m - taps) for t, m, taps in zip(tiles, tile, rhs.shape, strict=False)]
    cotangent = pad_space(cotangent, tuple(filled), (1,) * n)

    def block(images: Array, cotangents: Array) -> Array:
        return lax.dot_general(
            into_tiles(images, tile, tiles, at_points),
            into_tiles(cotangents, tile, tiles, to_points),
            (((1,), (1,)), ((0,), (0,))),
            precision=spec.precision,
            preferred_element_type=dtype,
        )

    image_bytes = math.prod(t * len(b) for t, b in zip(tiles, at_points, strict=True)) * lhs.shape[0] * dtype.itemsize
    batch = natural.shape[0]
    images = largest_divisor(batch, max(1, BLOCK_BYTES // image_bytes))
    if images == batch:
        products = block(natural, cotangent)
    else:
        blocks = [a.reshape(-1, images, *a.shape[1:]) for a in (natural, cotangent)]
        empty = jnp.zeros((math.prod(map(len, at_points)), lhs.shape[0], rhs.shape[-1]), dtype)
        products, _ = lax.scan(lambda total, pair: (total + block(*pair), None), empty, tuple(blocks))
    products = products.reshape(*map(len, at_points), *products.shape[1:])
    for i in range(n):
        products = along(from_points[i], products, i)
    return jnp.moveaxis(products, n, 0)


def into_tiles(x: Array, tile: tuple[int, ...], tiles: tuple[int, ...], matrices: tuple[np.ndarray, ...]) -> Array:
    """`(points, batch * tiles, features)` of `(batch, *space, features)`; tiles begin `tile` apart and may overlap."""
    n = len(tile)
    for i, matrix in enumerate(matrices):
        axis = i + 1 + i  # the i axes of points so far come first
        members = [
            lax.slice_in_dim(x, j, j + (tiles[i] - 1) * tile[i] + 1, tile[i], axis) for j in range(matrix.shape[1])
        ]
        x = combine(matrix, members, i)
    return x.reshape(math.prod(x.shape[:n]), -1, x.shape[-1])


def out_of_tiles(products: Array, tile: tuple[int, ...], tiles: tuple[int, ...], matrices: tuple) -> Array:
    """`(batch, *tiles * tile, outputs)` of `(points, batch * tiles, outputs)`."""
    n = len(tile)
    x = products.reshape(*(matrix.shape[1] for matrix in matrices), -1, *tiles, products.shape[-1])
    for i, matrix in enumerate(matrices):
        x = along(matrix, x, i)
    order = [n, *itertools.chain.from_iterable((n + 1 + i, i) for i in range(n)), 2 * n + 1]
    return x.transpose(order).reshape(-1, *map(int.__mul__, tiles, tile), x.shape[-1])


def along(matrix: np.ndarray, x: Array, axis: int) -> Array:
    """`matrix @ x` along one axis."""
    return combine(matrix, [lax.index_in_dim(x, j, axis, keepdims=False) for j in range(matrix.shape[1])], axis)


def combine(matrix: np.ndarray, members: list[Array], axis: int) -> Array:
    """`matrix @ members`, the rows along a new `axis`; a sum of products, which XLA fuses into one pass."""
    rows = []
    for row in matrix:
        terms = [
            m if c == 1 else -m if c == -1 else m * m.dtype.type(c) for c, m in zip(row, members, strict=True) if c
        ]
        rows.append(functools.reduce(lambda a, b: a + b, terms))
    return jnp.stack(rows, axis)


@functools.cache
def transforms(m: int, r: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """B^T, G and A^T of F(m, r): `A^T @ ((G @ kernel) * (B^T @ data))` are m outputs of r taps on m + r - 1 data.

    The product of two polynomials, of r and of m coefficients, is known from its values at m + r - 2 points and its
    leading coefficient (the point at infinity) by Lagrange's formula; transposed, this is a correlation. Denominators
    go to the kernel. Exact in fractions, rounded once.
    """
    count = m + r - 1
    points = POINTS[: count - 1]
    rows_b, rows_g, columns_a = [], [], []
    for i, point in enumerate(points):
        others = points[:i] + points[i + 1 :]
        denominator = math.prod((point - other for other in others), start=Fraction(1))
        rows_b.append([*polynomial(others), Fraction(0)])
        rows_g.append([point**j / denominator for j in range(r)])
        columns_a.append([point**j for j in range(m)])
    rows_b.append(polynomial(points))
    rows_g.append([Fraction(j == r - 1) for j in range(r)])
    columns_a.append([Fraction(j == m - 1) for j in range(m)])
    as_array = lambda rows: np.array([[float(value) for value in row] for row in rows])
    return as_array(rows_b), as_array(rows_g), as_array(columns_a).T


def polynomial(roots: tuple[Fraction, ...]) -> list[Fraction]:
    """Coefficients of `prod(x - root)`, the constant first."""
    coefficients = [Fraction(1)]
    for root in roots:
        coefficients = [
            a - root * b for a, b in zip([Fraction(0), *coefficients], [*coefficients, Fraction(0)], strict=True)
        ]
    return coefficients
