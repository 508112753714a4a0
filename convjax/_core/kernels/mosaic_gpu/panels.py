"""Panels: the shape in which operands of the tensor cores lie in shared memory.

A panel is `rows x 64` numbers of 16 bits, 128 bytes a row, with the 128-byte swizzle. Written by a TMA box of any shape
whose last side is 64 and whose other sides have `rows` elements, so that one copy brings a window of an image,
`(images, rows, columns, 64)`, zeros where it hangs over a border. Read by wgmma as a matrix, plain or transposed.

The two views are the same bytes. A panel that was declared with the tiling of wgmma could be filled only from windows
whose column is a multiple of 8: the tiling would be applied to the image too, and its halo starts anywhere.
"""

from __future__ import annotations

import math
from typing import Any

WIDTH = 64  # numbers of 16 bits in 128 bytes, the widest swizzle
TILE = 8  # rows over which the swizzle repeats
BYTES = 2


def pallas() -> tuple[Any, Any]:
    """Pallas and its dialect for GPUs, whose names differ among the versions of JAX that the package imports with."""
    from jax.experimental import pallas
    from jax.experimental.pallas import mosaic_gpu

    return pallas, mosaic_gpu


def panels(count: int, rows: int, dtype: Any, interpret: bool) -> Any:
    """So many panels in shared memory; interpret mode knows no layouts, and has them as matrices."""
    _, plgpu = pallas()
    return plgpu.SMEM((count, rows, WIDTH) if interpret else (count, rows // TILE, 1, TILE, WIDTH), dtype)


def size(count: int, rows: int) -> int:
    """Bytes of shared memory of so many panels."""
    return count * rows * WIDTH * BYTES


def matrix(memory: Any, panel: Any, first: Any, rows: int, interpret: bool) -> Any:
    """Rows `first, ...` (a multiple of 8) of a panel, `(rows, 64)`, for wgmma and registers."""
    pl, plgpu = pallas()
    if not interpret:
        tiling = plgpu.TilingTransform((TILE, WIDTH)).undo(memory)
        memory = _transformed(memory, _unswizzle(memory), tiling)
    return memory.at[panel, pl.ds(first, rows)]


def box(memory: Any, panel: Any, first: Any, shape: tuple[int, ...], interpret: bool) -> Any:
    """The same rows as `(*shape, 64)`, for TMA."""
    pl, _ = pallas()
    rows = math.prod(shape)
    if interpret:
        return memory.at[panel, pl.ds(first, rows)].reshape(*shape, WIDTH)
    view = memory.at[panel, pl.ds(first // TILE, rows // TILE)].reshape(*shape, WIDTH)
    return _transformed(view, _unswizzle(view))


def _unswizzle(memory: Any) -> Any:
    _, plgpu = pallas()
    return plgpu.SwizzleTransform(WIDTH * BYTES).undo(memory)


def _transformed(view: Any, *transforms: Any) -> Any:
    """A view of shared memory with so many transforms more."""
    plain = view.at[...] if not hasattr(view, "transforms") else view
    before = () if plain is not view else view.transforms
    return type(plain)(plain.ref, (*before, *transforms))
