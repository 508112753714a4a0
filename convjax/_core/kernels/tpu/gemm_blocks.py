"""What the kernels for the matrix unit share: blocks of the input, what a tap meets of them, loops over products."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from convjax._core.kernels.tpu.gemm_problem import Gemm, quotient
from convjax._core.kernels.tpu.gemm_tiles import Tiles
from convjax._core.kernels.tpu.stage import border, stage
from convjax._core.kernels.tpu.tiles import LANES
from convjax._core.spec import ConvSpec, Shape


def input_block(p: Gemm, t: Tiles, pack: Callable[[Any], Any]) -> Any:
    """Rows of the input that a grid step `(outputs, image, rows)` meets, inside the image."""
    from jax.experimental import pallas as pl

    if p.is_direct:
        return pl.BlockSpec((1, t.rows, p.space[1], p.features), lambda o, n, h: (n, h, 0, pack(o)))
    rows, width = block_rows(p, t), p.space[1] // p.beside
    sizes = (rows, width, p.beside, p.features) if p.beside > 1 else (1, rows, width, p.features)

    def place(o: Any, n: Any, h: Any) -> tuple[Any, ...]:
        row, features = first_row(p, t, h), pack(o) * p.features if p.packs > 1 else 0
        return (row, 0, n * p.beside if p.batch > 1 else 0, features) if p.beside > 1 else (n, row, 0, features)

    return pl.BlockSpec(tuple(map(pl.Element, sizes)), place)


def output_block(p: Gemm, t: Tiles) -> Any:
    """Rows of the output, or of what has its shape, that a grid step makes."""
    from jax.experimental import pallas as pl

    if p.beside == 1:
        return pl.BlockSpec((1, t.rows, p.out[1], t.outputs), lambda o, n, h: (n, h, 0, o))
    return pl.BlockSpec((t.rows, p.out[1] // p.beside, p.beside, t.outputs), lambda o, n, h: (h, 0, n, o))


def place(p: Gemm, rows: Any, column: Any, columns: int, lanes: Any) -> tuple[Any, ...]:
    """Where so many columns from `column` on are in such a block."""
    from jax.experimental import pallas as pl

    if p.beside == 1:
        return 0, rows, pl.ds(column, columns), lanes
    return rows, pl.ds(quotient(column, p.beside), columns // p.beside), slice(None), lanes


class SideBySide:
    """A block `(rows, columns, images, channels)` read as `(1, rows, columns * images, channels)`, in float32."""

    def __init__(self, p: Gemm, block: Any) -> None:
        self.plane, self.block = p, block
        rows, columns, images, channels = block.shape
        self.shape = (1, rows, columns * images, channels)

    def __getitem__(self, index: tuple[Any, ...]) -> Array:
        _, row, columns, lanes = index
        values = self.block[place(self.plane, row, columns.start, columns.size, lanes)].astype(jnp.float32)
        return values.reshape(columns.size, -1)


def readable(p: Gemm, block: Any) -> Any:
    """A block as `stage` reads it."""
    return block if p.beside == 1 else SideBySide(p, block)


def block_rows(p: Gemm, t: Tiles) -> int:
    return min(p.space[0], p.reach(0, t.rows))


def first_row(p: Gemm, t: Tiles, h: Any) -> Any:
    """Of the input, in the block of step `h`."""
    return jnp.clip(h * (t.rows * p.strides[0]) - p.low[0], 0, p.space[0] - block_rows(p, t))


def stage_input(p: Gemm, t: Tiles, block: Any, scratch: Any, h: Any) -> None:
    """The block of step `h` with its border of zeros, in float32."""
    first = h * (t.rows * p.strides[0]) - p.low[0] - first_row(p, t, h)
    below = [row * p.dilation[0] for row in range(p.fold)]
    for chunk in range(t.scratch[0]):
        lane = chunk * LANES
        lanes = min(LANES, p.features - lane)
        border(scratch.at[chunk], t.left, p.space[1], lanes * p.fold)
        rows = readable(p, block)
        stage(rows, scratch.at[chunk], t.left, first, block_rows(p, t), lane, lanes, t.at_once, below)


def met(p: Gemm, t: Tiles, block: Any, scratch: Any, row: Any, column: Any, tap: tuple[int, int], dtype: Any) -> Array:
    """Inputs `(positions, features)` that a tap, or the folded ones, meet of outputs from `row` and `column` on."""
    from jax.experimental import pallas as pl

    if p.is_direct:
        here = block[0, pl.ds(row, t.group), :, :]
    else:
        rows = pl.ds(row * p.strides[0] + tap[0] * p.fold * p.dilation[0], t.group, p.strides[0])
        left = t.left - p.low[1] + tap[1] * p.dilation[1]
        runs = [pl.ds(left + first, size, step) for first, size, step in column_runs(p, column, t.columns)]
        chunks = [joined([scratch[chunk, rows, run, :] for run in runs], 1) for chunk in range(t.scratch[0])]
        here = joined(chunks, -1)[..., : depth(p, tap)]
    return here.reshape(t.group * t.columns, -1).astype(dtype)


def depth(p: Gemm, tap: tuple[int, int]) -> int:
    """Channels of the product of a tap and those folded with it: no zeros for rows that the kernel has not."""
    return min(p.fold, p.kernel[0] - tap[0] * p.fold) * p.features


def column_runs(p: Gemm, column: Any, columns: int) -> list[tuple[Any, int, int]]:
    """First, size and step of the inputs that so many outputs from `column` on begin at, by a step that is the same."""
    if p.strides[1] == 1 or p.beside == 1:
        return [(p.first(1, column), columns, p.strides[1])]
    size = math.gcd(p.beside, columns)
    return [(p.first(1, column + at), size, 1) for at in range(0, columns, size)]


def joined(parts: list[Array], axis: int) -> Array:
    return jnp.concatenate(parts, axis) if len(parts) > 1 else parts[0]


def laid(p: Gemm, x: Array, space: Shape) -> Array:
    """Images `(N, ..., channels)` as blocks are cut from them."""
    return (jnp.moveaxis(x, 0, -2) if p.batch_second else x).reshape(laid_shape(p, space, x.shape[-1]))


def laid_shape(p: Gemm, space: Shape, channels: int) -> Shape:
    """`(N, rows, columns, channels)`, or with the batch before the channels where images lie side by side."""
    if p.beside == 1:
        return (p.batch, *space, channels)
    return (space[0], space[1] // p.beside, p.batch * p.beside, channels)


def images(p: Gemm, x: Array, shape: Shape) -> Array:
    """The inverse of `laid`, to images of this shape."""
    if not p.batch_second:
        return x.reshape(shape)
    return jnp.moveaxis(x.reshape(*shape[1:-1], shape[0], shape[-1]), -2, 0)


def taps(p: Gemm) -> list[tuple[int, int]]:
    """Of each product, by row and column of the folded kernel."""
    return [(i, j) for i in range(p.folded[0]) for j in range(p.folded[1])]


def fold(p: Gemm, w: Array) -> Array:
    """A kernel `(*k, features, outputs)` with the channels of folded rows side by side."""
    w = w.reshape(*p.kernel, *w.shape[-2:])
    if p.fold == 1:
        return w
    rows, columns, depth, outputs = p.folded
    w = jnp.pad(w, ((0, rows * p.fold - p.kernel[0]), *[(0, 0)] * 3))
    return jnp.swapaxes(w.reshape(rows, p.fold, columns, -1, outputs), 1, 2).reshape(rows, columns, depth, outputs)


def unfold(p: Gemm, w: Array) -> Array:
    """The inverse, of `(packs, *folded)`."""
    if p.fold == 1:
        return w
    packs, rows, columns, _, outputs = w.shape
    w = jnp.swapaxes(w.reshape(packs, rows, columns, p.fold, p.features, outputs), 2, 3)
    return w.reshape(packs, -1, columns, p.features, outputs)[:, : p.kernel[0]]


def each_product(p: Gemm, t: Tiles, product: Callable[[Any, Any, int], None]) -> None:
    """Call `product` with the first row and column, and the number of columns that exist, of every product."""
    whole, rest = divmod(p.out[1], t.columns)

    def group(row: Any) -> None:
        each(whole, t.columns, lambda column: product(row, column, t.columns))
        if rest:
            product(row, whole * t.columns, rest)

    each(t.rows // t.group, t.group, group)


def each(count: int, step: int, body: Callable[[Any], None]) -> None:
    """Call `body` with `0, step, 2 * step, ...`, in a loop of the program where there are several."""
    from jax.experimental import pallas as pl

    if count == 1:
        body(0)
    elif count > 1:
        jax.lax.fori_loop(0, count, lambda i, _: body(pl.multiple_of(i * step, step)), None)


def precision(spec: ConvSpec, dtype: Any) -> Any:
    """Of the products: one pass is exact for bfloat16, whatever the spec names."""
    return spec.precision if dtype == jnp.float32 else None


def compiler_params(vmem: int, semantics: Any) -> Any:
    from jax.experimental.pallas import tpu as pltpu

    # Twice what was counted, for what the compiler spills and keeps of its own.
    limit = max(16 * 2**20, min(2 * vmem, 60 * 2**20))
    return pltpu.CompilerParams(dimension_semantics=semantics, vmem_limit_bytes=limit)
