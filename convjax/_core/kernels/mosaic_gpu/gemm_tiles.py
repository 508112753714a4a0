"""Tiles of the implicit matrix product: what one block of threads computes, chosen here and checked before launch."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

from convjax._core.kernels.mosaic_gpu import panels
from convjax._core.kernels.mosaic_gpu.panels import WIDTH
from convjax._core.kernels.mosaic_gpu.tiles import BARRIER_BYTES, BOX, MULTIPROCESSORS, SHARED_BYTES
from convjax._core.spec import Shape

# For the order among tiles only. Multiply-adds of a multiprocessor a clock in 16 bits; bytes a clock from L2, 5120 over
# all of them.
MACS = 2048
L2_BYTES = 38
MOST_STAGES = 4
MOST_OUTPUTS = 4  # panels
MOST_SUMS = 128  # in the 255 registers that a thread can have
THREADS = 128  # of a warpgroup
WARPGROUPS = 2  # that multiply; one more fills the panels


@dataclasses.dataclass(frozen=True)
class Tile:
    """Output pixels and channels of one block.

    Attributes:
      shape: images, rows and columns; the last is a multiple of 8.
      outputs: panels of 64 output channels.
      stages: buffers of the pipeline.
    """

    shape: Shape
    outputs: int
    stages: int

    @property
    def pixels(self) -> int:
        return math.prod(self.shape)

    @property
    def sums(self) -> int:
        """Of one thread, in registers."""
        return self.pixels * self.outputs * WIDTH // (WARPGROUPS * THREADS)

    @property
    def part(self) -> Shape:
        """What one of the two warpgroups computes: half of the axis `halved`."""
        return tuple(side // WARPGROUPS if i == self.halved else side for i, side in enumerate(self.shape))

    @property
    def halved(self) -> int:
        """The first axis that can be, so that the halves are consecutive rows of a panel."""
        return next(i for i, side in enumerate(self.shape) if side > 1)

    def counts(self, pixels: Shape) -> Shape:
        """How many tiles cover images, rows and columns."""
        return tuple(-(-size // side) for size, side in zip(pixels, self.shape, strict=True))


@functools.lru_cache(2**12)
def choose(pixels: Shape, outputs: int, widest: int, fewest_rows: int) -> Tile:
    """The tile with the least estimated time for `(images, rows, columns)` of output and so many channels.

    `widest` is the most panels of output channels that may share their input, `fewest_rows` the least of a tile.
    """
    panels_of_output = -(-outputs // WIDTH)

    def clocks(tile: Tile) -> float:
        blocks = math.prod(tile.counts(pixels)) * -(-panels_of_output // tile.outputs)
        multiply = tile.pixels * tile.outputs * WIDTH * WIDTH / MACS
        return -(-blocks // MULTIPROCESSORS) * max(multiply, _stage(tile.pixels, tile.outputs) / L2_BYTES)

    candidates = [
        Tile(box(pixels, size, fewest_rows), count, stages(size, count))
        for size, count in itertools.product((256, 128), (MOST_OUTPUTS, 2, 1))
        if count <= min(widest, panels_of_output) and Tile((1, 1, size), count, 1).sums <= MOST_SUMS
    ]
    return min(candidates, key=clocks)


def box(pixels: Shape, size: int, fewest_rows: int) -> Shape:
    """The sides, powers of two with `size` pixels in all, of the boxes that cover the output with the least excess."""
    sides = [
        (size // (rows * columns), rows, columns)
        for columns in _powers(panels.TILE, min(size, BOX))
        for rows in _powers(fewest_rows, size // columns)
    ]
    covered = lambda shape: math.prod(-(-n // side) for n, side in zip(pixels, shape, strict=True))
    return min(sides, key=lambda shape: (covered(shape), shape[0], shape[1]))


def stages(size: int, outputs: int) -> int:
    """Buffers that shared memory has room for beside the output's own panels."""
    room = SHARED_BYTES - BARRIER_BYTES - panels.size(outputs, size)
    return min(MOST_STAGES, room // _stage(size, outputs))


def _stage(size: int, outputs: int) -> int:
    """Bytes of one buffer: a panel of the input and one of the kernel for every panel of outputs."""
    return panels.size(1, size) + panels.size(outputs, WIDTH)


def _powers(first: int, last: int) -> list[int]:
    return [2**i for i in range(first.bit_length() - 1, last.bit_length())]
