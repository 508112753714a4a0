"""Blocks of a plane for `pallas_call`: where each grid step reads, how its rows are copied, and how it is run."""

from __future__ import annotations

from typing import Any, Literal

import jax.numpy as jnp

from convjax._core.kernels.tpu.plane import Plane
from convjax._core.kernels.tpu.stage import border, stage
from convjax._core.kernels.tpu.tiles import LANES, Tiles, scratch_columns, staged_rows, up


class Blocks:
    """The grid is (image, tile of channels, tile of output rows)."""

    def __init__(self, p: Plane, t: Tiles) -> None:
        from jax.experimental import pallas as pl

        self.plane, self.tiles = p, t
        self.grid = (p.batch, p.channels // t.channels, -(-p.out[0] // t.rows))
        self.rows = min(p.space[0], p.reach(0, t.rows))  # of the input, in a block
        self.left, columns = scratch_columns(p)
        self.at_once = staged_rows(p, t.rows)
        self.scratch = (up(p.reach(0, t.rows), self.at_once), columns, LANES)
        block = (1, self.rows, p.space[1], t.channels)
        tile = t.channels if p.channels > t.channels else 0  # one tile alone begins at 0, which Mosaic wants to see
        # Blocks overlap, which element offsets allow.
        self.input = pl.BlockSpec(tuple(map(pl.Element, block)), lambda n, c, h: (n, self.first_row(h), 0, c * tile))
        self.kernel = pl.BlockSpec((*p.kernel, t.channels), lambda n, c, h: (0, 0, c))
        self.output = pl.BlockSpec((1, t.rows, p.out[1], t.channels), lambda n, c, h: (n, h, 0, c))

    def wanted_row(self, h: Any) -> Any:
        """The input's row that the first output of a tile begins at; may be outside."""
        return h * self.tiles.rows * self.plane.strides[0] - self.plane.low[0]

    def first_row(self, h: Any) -> Any:
        """The first row of the input's block: as wanted, moved inside."""
        return jnp.clip(self.wanted_row(h), 0, self.plane.space[0] - self.rows)

    def stage(self, x_ref: Any, scratch: Any, h: Any, lane: int, lanes: int) -> None:
        """Copy the input's block to `scratch`, so that its row 0 is the row wanted, zeros where there is no input."""
        border(scratch, self.left, self.plane.space[1], lanes)
        shift = self.wanted_row(h) - self.first_row(h)
        stage(x_ref, scratch, self.left, shift, self.rows, lane, lanes, self.at_once)


def compiler_params(vmem: int, last: Literal["parallel", "arbitrary"] = "parallel") -> Any:
    """For a grid of three axes whose `last` one may depend on the order: "arbitrary" is one after the other."""
    from jax.experimental.pallas import tpu as pltpu

    # Twice what was counted, for what the compiler spills and keeps of its own.
    limit = max(16 * 2**20, min(2 * vmem, 60 * 2**20))
    return pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", last), vmem_limit_bytes=limit)


def interpret_mode(interpret: Any) -> Any:
    """True stands for races detected and memory that is NaN until written."""
    from jax.experimental.pallas import tpu as pltpu

    if interpret is True:
        return pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan", dma_execution_mode="on_wait")
    return interpret
