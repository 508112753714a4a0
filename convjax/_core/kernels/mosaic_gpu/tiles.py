"""Which part of a depthwise convolution a block takes, and the limits of the device that the part must keep to.

All limits are checked here, in Python: on the device a copy beyond them aborts the process.

Sources: NVIDIA, CUDA C++ programming guide, tables of compute capability 9.0 and of tensor maps.
"""

from __future__ import annotations

import dataclasses
import functools
import heapq
import math
from collections.abc import Iterator

from convjax._core.spec import dilate

SHARED_BYTES = 232_448  # that a block may ask for, of 233472 a multiprocessor
RESERVED_BYTES = 1024  # of the multiprocessor's, for each block on it
BARRIER_BYTES = 1024  # barriers, and alignment of buffers
BOX = 256  # elements of a TMA box along an axis
ALIGNMENT = 16  # bytes: strides of a tensor that TMA copies, and the innermost side of a box
COPY_BYTES = 128  # Pallas copies multiples of so many
MOST_BLOCKS = 2**31 - 1

# For the choice of a tile only. 132 multiprocessors at 1.98 GHz; bytes a clock and multiprocessor of the 4.3 TB/s that
# a copy reaches on an H200; 4 instructions a clock; resident warps from which they keep the units busy.
MULTIPROCESSORS = 132
BYTES_A_CLOCK = 16
BUSY_WARPS = 12
LINE = 128  # bytes of a cache line, which the channels of a tile should fill

STRIPS = (8, 7, 6, 5, 4, 2, 1)
ROWS = (4, 8, 16, 32)


def round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


@dataclasses.dataclass(frozen=True)
class Tile:
    """Output rows and columns of a block, in strips of columns whose sums are in registers at once.

    Attributes:
      rows: output rows, four a warpgroup at a time; in one dimension, stretches of `columns` positions.
      strip: columns of sums in registers.
      strips: strips side by side.
      channels: 64 or 32.
      warpgroups: that share the rows.
    """

    rows: int
    strip: int
    strips: int
    channels: int
    warpgroups: int = 1

    @property
    def columns(self) -> int:
        return self.strip * self.strips


@dataclasses.dataclass(frozen=True)
class Depthwise:
    """The sizes of a depthwise problem in two dimensions; one dimension has `rows` stretches and a kernel of one row.

    Attributes:
      examples: the batch.
      channels: groups, filled up to what TMA copies.
      planes: input channels of a group, which each output sums over.
      outputs: of a group; one of these two is 1.
      itemsize, out_itemsize: bytes.
      is_line: whether there is one spatial axis.
      slots: tiles in shared memory at once.
      extra_bytes: of shared memory, for what else a block keeps there.
    """

    out: tuple[int, int]
    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilation: tuple[int, int]
    examples: int
    channels: int
    planes: int
    outputs: int
    itemsize: int
    out_itemsize: int
    is_line: bool = False
    slots: int = 1
    extra_bytes: int = 0

    def input_rows(self, tile: Tile) -> int:
        """Of one plane, in sets of `row_phases`, so that consecutive output rows start one set apart."""
        if self.is_line:
            return tile.rows
        return -(-((tile.rows - 1) * self.strides[0] + dilate(self.kernel[0], self.dilation[0])) // self.strides[0])

    @property
    def row_phases(self) -> int:
        """Rows of the input for each of the output, which alternate in shared memory."""
        return 1 if self.is_line else self.strides[0]

    def input_columns(self, tile: Tile) -> int:
        columns = (tile.columns - 1) * self.strides[1] + dilate(self.kernel[1], self.dilation[1])
        return round_up(columns, max(1, COPY_BYTES // (tile.channels * self.itemsize)))

    def input_bytes(self, tile: Tile) -> int:
        positions = self.planes * self.input_rows(tile) * self.row_phases * self.input_columns(tile)
        return positions * tile.channels * self.itemsize

    def output_bytes(self, tile: Tile) -> int:
        return tile.rows * tile.columns * tile.channels * self.out_itemsize

    def shared_bytes(self, tile: Tile) -> int:
        return self.slots * (self.input_bytes(tile) + self.output_bytes(tile)) + self.extra_bytes + BARRIER_BYTES

    def grid(self, tile: Tile) -> tuple[int, int, int, int]:
        """Examples, tiles down, tiles across, tiles of output channels."""
        height, width = self.out
        down, across = -(-height // tile.rows), -(-width // tile.columns)
        if self.is_line:
            down, across = 1, -(-width // (tile.rows * tile.columns))
        return self.examples, down, across, self.outputs * -(-self.channels // tile.channels)

    def refusal(self, tile: Tile) -> str | None:
        """What of the device's limits a tile breaks, None where it keeps to them."""
        rows, columns = self.input_rows(tile), self.input_columns(tile)
        if max(rows, columns, tile.rows, tile.columns) > BOX:
            return f"a block of {rows}x{columns} inputs is more than the {BOX} that one copy takes along an axis"
        if (need := self.shared_bytes(tile)) > SHARED_BYTES:
            return f"a block needs {need} bytes of shared memory, and has {SHARED_BYTES}"
        if tile.rows % (4 * tile.warpgroups) or tile.channels not in (32, 64):
            return f"{tile} does not divide into four rows a warpgroup of 32 or 64 channels"
        if tile.columns * tile.channels * min(self.itemsize, self.out_itemsize) % COPY_BYTES:
            return f"a row of {tile.columns} columns is no multiple of {COPY_BYTES} bytes"
        if (blocks := math.prod(self.grid(tile))) > MOST_BLOCKS:
            return f"{blocks} blocks are more than a grid may have"
        return None

    def clocks(self, tile: Tile) -> float:
        """Of the whole problem by count of instructions and bytes: for comparing tiles, not for predicting times."""
        per_lane = tile.channels // 32
        window = (tile.strip - 1) * self.strides[1] + dilate(self.kernel[1], self.dilation[1])
        loads = min(window, tile.strip * self.kernel[1]) + self.kernel[1]
        a_row = self.planes * self.kernel[0] * (loads * (1 + per_lane) + tile.strip * self.kernel[1] * per_lane)
        instructions = tile.rows * tile.strips * (a_row + 4 * tile.strip * per_lane) / 4
        moved = (self.input_bytes(tile) + self.output_bytes(tile)) / BYTES_A_CLOCK
        moved *= max(1.0, LINE / (tile.channels * self.itemsize)) ** 0.5
        resident = max(1, min(8, (SHARED_BYTES + RESERVED_BYTES) // (self.shared_bytes(tile) + RESERVED_BYTES)))
        warps = 4 * tile.warpgroups * resident
        one = max(instructions * max(1.0, BUSY_WARPS / warps), moved) + (instructions + moved) / resident
        return one * max(1.0, math.prod(self.grid(tile)) / MULTIPROCESSORS)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels that a tile may have: those of a cache line, or half of it."""
        return (32,) if self.itemsize == 4 or self.channels <= 32 else (64, 32)

    def candidates(self, widths: tuple[int, ...], warpgroups: tuple[int, ...]) -> Iterator[Tile]:
        for channels in widths:
            for strip in STRIPS:
                for strips in range(1, 9):
                    for rows in ROWS:
                        for several in warpgroups:
                            tile = Tile(rows, strip, strips, channels, several)
                            if self.refusal(tile) is None:
                                yield tile


@functools.lru_cache(2**12)
def choose(
    problem: Depthwise, widths: tuple[int, ...] | None = None, warpgroups: tuple[int, ...] = (1, 2, 4)
) -> Tile | None:
    """The tile of fewest clocks; None where every one breaks a limit."""
    return min(problem.candidates(widths or problem.widths, warpgroups), key=problem.clocks, default=None)


def ranked(problem: Depthwise, count: int) -> list[Tile]:
    """The tiles of fewest clocks, for measuring which is the fastest in fact."""
    return heapq.nsmallest(count, problem.candidates(problem.widths, (1, 2, 4)), key=problem.clocks)


SMALLEST = Tile(rows=4, strip=2, strips=1, channels=32)
