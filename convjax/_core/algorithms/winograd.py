"""Winograd's minimal filtering: tiles of the input and of the kernel multiplied point by point.

F(m, r) computes m outputs of an r-tap filter from m + r - 1 products, against m * r directly: both operands are taken
to the values of polynomials at that many points (Toom-Cook), multiplied there, and the product is taken back. Over
features the products at one point are a matrix product; in n dimensions the transforms nest, axis by axis. A kernel
gradient has a kernel as long as the input and few outputs: its kernel is cut into tiles, and their products are summed
before they are taken back, once. Under a dilated kernel interleaved sub-images are tiled, each of every so-many-th
pixel; its gradient has a stride instead. Blocks of images, or bands of one image, follow one another through the cache.

Cost: 3x3 with m = 4 takes a quarter of the products, plus transforms that read and write about 2.25 times the input
and the output.
Error: grows with the number of points. Measured on normal data in float32, 2-D, largest error over largest output:
F(2, 3) 2e-7, as direct summation; F(4, 3) 4e-6 to 6e-6; F(6, 3) 5e-6; F(2, 5) 2e-6; F(4, 5) 4e-6; F(4, 7) 4e-4.
A NaN or infinity spreads over its tile.
Source: Lavin and Gray, arXiv:1509.09308.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from convjax._core.arrange import largest_divisor, pad_space
from convjax._core.blocks import cut, stacked, summed
from convjax._core.dtypes import accumulator, output_dtype
from convjax._core.geometry import Geometry, Work
from convjax._core.spec import ConvSpec
from convjax._core.toom_cook import transforms

# Beyond 8 points, infinity included (F(4, 5), F(2, 7)), rounding costs more digits than the products are worth.
MAX_POINTS = 8

# Transformed input of a block: the 6.4 MB of 3x3 256->256 at 14x14 N8 whole 5.2 ms, in two blocks 5.6 ms; the 26 MB of
# 3-D 3x3x3 64->64 at 16x28x28 whole 22 ms, in four bands 10 ms.
BLOCK_BYTES = 2**23


@dataclasses.dataclass(frozen=True)
class Winograd:
    """F(m, r) for kernels of any r, where `outputs` is m; in a kernel gradient the two change places.

    3x3 64->64 at 56x56 N8 on 2 cores: 5.4 ms with m = 4, 7.6 ms with m = 2, XLA 9.9 ms.
    """

    outputs: int

    def supports(self, spec: ConvSpec, lhs: Any, rhs: Any, platform: str) -> str | None:
        """None where this algorithm can serve, else the reason why not, in words for a user."""
        taps, out = rhs.shape[:-2], spec.out_space(lhs.shape, rhs.shape)
        if not is_short_kernel(taps, out) and not is_short_kernel(out, taps):
            return "long in the kernel along one axis and in the output along another"
        steps = spec.strides if is_short_kernel(taps, out) else spec.rhs_dilation
        if any(step != 1 for step in (*steps, *spec.lhs_dilation)):
            return "tiles overlap only without a stride (in a kernel gradient: a kernel dilation) and input dilation"
        if spec.groups > 1:
            return "groups: the products at a point would be too narrow"
        if not jnp.issubdtype(lhs.dtype, jnp.inexact):
            return "integers: the transforms are fractions"
        short = list(map(min, taps, out))
        if math.prod(short) == 1:
            return "one tap: a matrix product already"
        if max(short) + self.outputs - 1 > MAX_POINTS:
            return f"F({self.outputs}, {max(short)}) has more than {MAX_POINTS} points, and would lose too many digits"
        return None

    def work(self, g: Geometry) -> Work:
        tiling = Tiling.of(self.outputs, g.spec, g.lhs, g.rhs)
        points, images = tiling.points, g.batch * math.prod(tiling.tiles) * math.prod(tiling.spacing)
        many = ", 3-D" if g.spec.ndim > 2 else ""
        macs = points * images * g.features * g.outputs
        if g.is_kernel_gradient:
            tiles = images // g.batch
            moved = points * (tiles * g.features * (g.batch + g.outputs) + g.batch * g.outputs)
            return Work(f"winograd, gradient{many}", macs, moved, points)
        moved = points * (images * (g.features + g.outputs) + g.features * g.outputs)
        return Work(f"winograd{many}", macs, moved, points)

    def run(self, spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
        tiling = Tiling.of(self.outputs, spec, lhs.shape, rhs.shape)
        serve = short_kernel if is_short_kernel(rhs.shape[: spec.ndim], tiling.out) else short_output
        return serve(tiling, spec, lhs, rhs).astype(output_dtype(spec, lhs.dtype))


def is_short_kernel(taps: Sequence[int], out: Sequence[int]) -> bool:
    """Whether the output is cut into tiles; else the kernel is."""
    return all(k <= size for k, size in zip(taps, out, strict=True))


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How the longer of output and kernel is cut: each axis into interleaved sub-images, each of these into tiles.

    Attributes:
      out: sizes of the output.
      short: of the one that stays whole, r or m of F(m, r).
      tile: of a tile, the other of the two.
      tiles: how many along each axis.
      spacing: distance of neighbours in a sub-image, and number of sub-images: a dilation or, for a gradient, a stride.
      lo: padding in front of the input.
    """

    out: tuple[int, ...]
    short: tuple[int, ...]
    tile: tuple[int, ...]
    tiles: tuple[int, ...]
    spacing: tuple[int, ...]
    lo: tuple[int, ...]

    @classmethod
    def of(cls, outputs: int, spec: ConvSpec, lhs: Sequence[int], rhs: Sequence[int]) -> Tiling:
        out, taps = spec.out_space(tuple(lhs), tuple(rhs)), tuple(rhs[: spec.ndim])
        short, long, steps = (taps, out, spec.rhs_dilation) if is_short_kernel(taps, out) else (out, taps, spec.strides)
        # Along an axis of one tap there is nothing to save.
        tile = tuple(1 if size == 1 else outputs for size in short)
        spacing = tuple(1 if size == 1 else step for size, step in zip(short, steps, strict=True))
        tiles = tuple(-(-size // (m * s)) for size, m, s in zip(long, tile, spacing, strict=True))
        return cls(out, short, tile, tiles, spacing, tuple(lo for lo, _ in spec.padding))

    @property
    def points(self) -> int:
        return math.prod(m + size - 1 for m, size in zip(self.tile, self.short, strict=True))

    @property
    def padded(self) -> tuple[int, ...]:
        """Of the input that all tiles meet."""
        sizes = zip(self.tiles, self.tile, self.short, self.spacing, strict=True)
        return tuple((t * m + size - 1) * s for t, m, size, s in sizes)

    @property
    def covered(self) -> tuple[int, ...]:
        """Outputs, or taps, of all tiles."""
        return tuple(t * m * s for t, m, s in zip(self.tiles, self.tile, self.spacing, strict=True))

    def blocks(self, batch: int, image_bytes: int) -> tuple[int, int, Tiling]:
        """Images and parts of an image that are worked on one after the other, and the tiling of a part.

        Only single images are cut, into bands of tiles along the first axis.
        """
        images = largest_divisor(batch, max(1, BLOCK_BYTES // image_bytes))
        parts = 1 if images > 1 else min(self.tiles[0], -(-image_bytes // BLOCK_BYTES))
        return batch // images, parts, dataclasses.replace(self, tiles=(-(-self.tiles[0] // parts), *self.tiles[1:]))


def short_kernel(tiling: Tiling, spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    """Tiles of `m` outputs along each axis; the kernel is transformed once."""
    n, dtype = spec.ndim, accumulator(spec, lhs.dtype)
    at_points, to_points, from_points = zip(*map(transforms, tiling.tile, tiling.short), strict=True)  # B^T, G, A^T
    kernel = at_once(to_points, rhs.astype(dtype).reshape(-1, rhs.shape[-2] * rhs.shape[-1]))
    kernel = kernel.reshape(-1, *rhs.shape[n:])  # (points, features, outputs)
    image_bytes = tiling.points * math.prod(tiling.covered) // math.prod(tiling.tile) * lhs.shape[-1] * dtype.itemsize
    blocks, parts, band = tiling.blocks(lhs.shape[0], image_bytes)
    whole = dataclasses.replace(tiling, tiles=(band.tiles[0] * parts, *tiling.tiles[1:]))

    def of_band(padded: Array, index: Any) -> Array:
        products = lax.dot_general(
            into_tiles(cut(padded, index, band.covered[0], band.padded[0], axis=1), band, at_points),
            kernel,
            (((2,), (1,)), ((0,), (0,))),
            precision=spec.precision,
            preferred_element_type=dtype,
        )
        return out_of_tiles(products, band, from_points).astype(output_dtype(spec, lhs.dtype))

    def of_images(index: Any) -> Array:
        images = lhs.shape[0] // blocks
        x = cut(lhs, index, images, images, axis=0)
        padded = fill(x, tiling.lo, whole.padded).astype(dtype)
        return stacked(lambda part: of_band(padded, part), parts, axis=1)

    return lax.slice(stacked(of_images, blocks, axis=0), (0,) * (n + 2), (lhs.shape[0], *tiling.out, rhs.shape[-1]))


def short_output(tiling: Tiling, spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    """Tiles of `m` taps along each axis; their products are summed at the points, and taken back once."""
    n, dtype = spec.ndim, accumulator(spec, lhs.dtype)
    at_points, to_points, from_points = zip(*map(transforms, tiling.short, tiling.tile), strict=True)
    natural, cotangent = jnp.moveaxis(lhs, (0, -1), (-1, 0)), jnp.moveaxis(rhs, n, 0)
    image_bytes = tiling.points * math.prod(tiling.covered) // math.prod(tiling.tile) * lhs.shape[0] * dtype.itemsize
    blocks, parts, band = tiling.blocks(natural.shape[0], image_bytes)
    whole = dataclasses.replace(tiling, tiles=(band.tiles[0] * parts, *tiling.tiles[1:]))

    def of_band(padded: Array, filled: Array, index: Any) -> Array:
        return lax.dot_general(
            into_tiles(cut(padded, index, band.covered[0], band.padded[0], axis=1), band, at_points),
            into_tiles(cut(filled, index, band.covered[0], band.covered[0], axis=1), band, to_points),
            (((1,), (1,)), ((0,), (0,))),
            precision=spec.precision,
            preferred_element_type=dtype,
        )

    def of_images(index: Any) -> Array:
        images = natural.shape[0] // blocks
        x, ct = (cut(a, index, images, images, axis=0) for a in (natural, cotangent))
        padded, filled = fill(x, tiling.lo, whole.padded).astype(dtype), fill(ct, (0,) * n, whole.covered).astype(dtype)
        return summed(lambda part: of_band(padded, filled, part), parts)

    products = summed(of_images, blocks)
    gradient = at_once(from_points, products.reshape(tiling.points, -1))
    return jnp.moveaxis(gradient.reshape(*tiling.out, *products.shape[1:]), n, 0)


def fill(x: Array, lo: Sequence[int], lengths: Sequence[int]) -> Array:
    """Zeros around the spatial axes up to these lengths, `lo` of them in front; what lies beyond is cropped."""
    padding = [(a, length - size - a) for a, length, size in zip(lo, lengths, x.shape[1:], strict=False)]
    return pad_space(x, padding, (1,) * len(padding))


# --- transforms -------------------------------------------------------------------------------------------------------


def into_tiles(x: Array, tiling: Tiling, matrices: Sequence[np.ndarray]) -> Array:
    """`(points, batch * tiles, features)` of `(batch, *space, features)`; tiles may overlap."""
    n = len(matrices)
    grid = itertools.chain.from_iterable((size // s, s) for size, s in zip(x.shape[1:], tiling.spacing, strict=False))
    x = x.reshape(x.shape[0], *grid, x.shape[-1])
    for i, (matrix, tile, tiles) in enumerate(zip(matrices, tiling.tile, tiling.tiles, strict=True)):
        axis = i + 1 + 2 * i  # the i axes of points so far come first
        members = [lax.slice_in_dim(x, j, j + (tiles - 1) * tile + 1, tile, axis) for j in range(matrix.shape[1])]
        x = combine(matrix, members, i)
    return x.reshape(math.prod(x.shape[:n]), -1, x.shape[-1])


def out_of_tiles(products: Array, tiling: Tiling, matrices: Sequence[np.ndarray]) -> Array:
    """`(batch, *covered, outputs)` of `(points, batch * tiles, outputs)`."""
    n, outputs = len(matrices), products.shape[-1]
    x = at_once(matrices, products.reshape(len(products), -1))
    grid = itertools.chain.from_iterable(zip(tiling.tiles, tiling.spacing, strict=True))
    x = x.reshape(*tiling.tile, -1, *grid, outputs)
    order = [n, *itertools.chain.from_iterable((n + 1 + 2 * i, i, n + 2 + 2 * i) for i in range(n)), 3 * n + 1]
    return x.transpose(order).reshape(-1, *tiling.covered, outputs)


def at_once(matrices: Sequence[np.ndarray], x: Array) -> Array:
    """All axes' matrices times `x`: a product with their Kronecker product, which compiles in no time.

    3x3 256->256 at 14x14 N8 compiles in 120 ms so, in 330 ms with a sum of terms for each axis.
    """
    matrix = functools.reduce(np.kron, matrices)
    return jnp.dot(matrix.astype(x.dtype), x, precision=lax.Precision.HIGHEST)


def combine(matrix: np.ndarray, members: list[Array], axis: int) -> Array:
    """`matrix @ members`, the rows along a new `axis`; a sum of products, which XLA fuses into one pass."""
    rows = []
    for row in matrix:
        terms = [
            m if c == 1 else -m if c == -1 else m * m.dtype.type(c) for c, m in zip(row, members, strict=True) if c
        ]
        rows.append(functools.reduce(lambda a, b: a + b, terms))
    return jnp.stack(rows, axis)
