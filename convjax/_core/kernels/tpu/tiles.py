"""Sizes of the tiles of a depthwise kernel, and whether they fit into VMEM.

A grid step takes some rows of one image, all columns, and one tile of channels. The input's block is as narrow as its
dtype; its copy with the border of zeros is float32, so that a shift by any number of columns is one load a register.
"""

from __future__ import annotations

import dataclasses

from convjax._core.arrange import largest_divisor
from convjax._core.kernels.tpu.plane import Plane, side_by_side

LANES, SUBLANES, REGISTERS = 128, 8, 64
# Every generation from v5e on has 64 MiB of VMEM or more a core; the compiler wants some for itself.
VMEM_BYTES = 48 * 2**20
STAGED_REGISTERS = 128  # that a step of the copy fills, at most
STAGE_LATENCY = 14  # cycles of such a step beside its stores, read off the schedule for v5e
MAX_TAPS = 31  # along an axis: the taps of a row are unrolled
SUMS = 56  # registers that a group of sums would fill; the compiler orders them so that few live at once
SHARING = 32  # registers of columns that share loads: 7x7 gradients take half the bundles of those of 4 at a time (v5e)
CARRIED_SUMS = 24  # registers of sums that a loop over the kernel's rows carries
UNROLLED_PRODUCTS = 3000  # of registers in one loop body, beyond which compilation takes tens of seconds
# What a grid step costs beside its bundles, in bytes that could have moved meanwhile: 0.35 us at 819 GB/s.
STEP_BYTES = 280_000


@dataclasses.dataclass(frozen=True)
class Tiles:
    """How a plane is cut.

    Attributes:
      channels: of a block: 128, or all of them where 128 does not divide them.
      rows: of the output, a grid step.
      group: rows whose sums are computed at once, a divisor of `rows`.
      columns: of the output in a chunk, at once.
      unrolled: whether all rows of the kernel are unrolled, or looped over.
      vmem: bytes.
    """

    channels: int
    rows: int
    group: int
    columns: int
    unrolled: bool
    vmem: int


def up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def channel_tile(channels: int) -> int:
    return LANES if channels % LANES == 0 else channels


def column_chunk(out: int) -> int:
    """All columns up to 64, else a multiple of 16 that divides them, if there is one of 32 or more."""
    if out <= 64:
        return out
    return next((q for q in (64, 48, 32) if out % q == 0), 64)


def arranged(plane: Plane, addends: int = 0, *, gradient: bool = False) -> Plane:
    """With images side by side where that helps and fits."""
    wide = side_by_side(plane)
    return wide if choose(wide, addends, gradient=gradient).vmem <= VMEM_BYTES else plane


def gradient_chunk(plane: Plane) -> int:
    """All columns of some registers that divide them, as neighbours share loads where images lie side by side."""
    registers = largest_divisor(plane.out[1] // SUBLANES, SHARING) if plane.beside > 1 else 0
    return registers * SUBLANES if registers * SUBLANES > 64 else column_chunk(plane.out[1])


def choose(plane: Plane, addends: int = 0, *, gradient: bool = False) -> Tiles:
    """The tiles that move and wait the least; `addends` arrays of the output's size are read beside the input.

    The first block is loaded and the last one stored while nothing else goes on, and blocks overlap by the kernel's
    rows: few large blocks wait longer, many small ones read more.
    """
    registers = max(1, up(column_chunk(plane.out[1]), SUBLANES) // SUBLANES)
    taps = plane.kernel[0] * plane.kernel[1]
    group = _group(plane.out[0], min(SUMS, UNROLLED_PRODUCTS // taps) // registers)
    unrolled = taps * group * registers <= UNROLLED_PRODUCTS
    if not unrolled:
        group = _group(plane.out[0], CARRIED_SUMS // registers)
    candidates = [
        _tiles(plane, rows, group, unrolled, addends, gradient)
        for rows in range(group, up(plane.out[0], group) + 1, group)
    ]
    fitting = [tiles for tiles in candidates if tiles.vmem <= VMEM_BYTES]
    return min(fitting or candidates[:1], key=lambda tiles: _cost(plane, tiles, addends))


def _group(rows: int, most: int) -> int:
    """Rows computed at once: a divisor of all rows, unless that is much less than there is room for."""
    most = max(1, min(rows, most))
    divisor = largest_divisor(rows, most)
    return divisor if 2 * divisor > most else most


def _tiles(plane: Plane, rows: int, group: int, unrolled: bool, addends: int, gradient: bool) -> Tiles:
    channels = channel_tile(plane.channels)
    columns = gradient_chunk(plane) if gradient else column_chunk(plane.out[1])
    lanes = up(channels, LANES)
    inputs = min(plane.space[0], plane.reach(0, rows)) * up(plane.space[1], 16) * lanes * plane.itemsize
    outputs = (1 + addends) * rows * up(plane.out[1], 16) * lanes * 4
    border = up(plane.reach(0, rows), staged_rows(plane, rows)) * scratch_columns(plane)[1] * LANES * 4
    if gradient:
        border += rows * up(plane.out[1], up(columns, SUBLANES)) * LANES * 4
    kernels = plane.kernel[0] * up(plane.kernel[1], SUBLANES) * lanes * 4
    return Tiles(channels, rows, group, columns, unrolled, 2 * (inputs + outputs + kernels) + border)


def staged_rows(plane: Plane, rows: int) -> int:
    """Of the rows that so many outputs see, those that a step of the copy takes."""
    return rows_at_once(plane.reach(0, rows), up(plane.space[1], SUBLANES) // SUBLANES)


def rows_at_once(rows: int, registers: int) -> int:
    """Rows of so many registers that a step of a copy takes: few steps, few rows too many.

    A step stores a register a cycle, after it has waited once for what it loads.
    """
    most = max(1, min(rows, STAGED_REGISTERS // registers))
    return min(range(1, most + 1), key=lambda n: -(-rows // n) * (n * registers + STAGE_LATENCY))


def scratch_columns(plane: Plane) -> tuple[int, int]:
    """Where the input's first column stands in the copy, aligned, and how many columns that has."""
    left = up(max(0, plane.low[1]), SUBLANES)
    seen = left - plane.low[1] + plane.reach(1, up(plane.out[1], up(column_chunk(plane.out[1]), SUBLANES)))
    return left, up(max(seen, left + plane.space[1]), SUBLANES)


def _cost(plane: Plane, tiles: Tiles, addends: int) -> float:
    """Bytes moved, those of the first and last block twice, and the steps."""
    lanes = up(tiles.channels, LANES) * plane.itemsize
    block = min(plane.space[0], plane.reach(0, tiles.rows)) * plane.space[1] * lanes
    block += (1 + addends) * tiles.rows * plane.out[1] * lanes
    steps = plane.batch * (plane.channels // tiles.channels) * -(-plane.out[0] // tiles.rows)
    return steps * (block + STEP_BYTES) + block


def too_large(plane: Plane, addends: int = 0, *, gradient: bool = False) -> str | None:
    """Why no tiles serve, in words for a user."""
    if max(plane.kernel) > MAX_TAPS:
        return f"{'x'.join(map(str, plane.kernel))} taps: the kernel unrolls up to {MAX_TAPS} along an axis"
    if (need := choose(plane, addends, gradient=gradient).vmem) > VMEM_BYTES:
        return f"{plane.space[1]} columns need {need >> 20} MiB of VMEM a row, more than the {VMEM_BYTES >> 20} taken"
    return None
