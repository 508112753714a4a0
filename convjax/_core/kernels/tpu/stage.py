"""Copies of blocks in VMEM, float32 with zeros around, from which a kernel loads at any offset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

COLUMNS = 512  # copied at once: rows that are longer are looped over


def border(scratch: Any, left: int, width: int, lanes: int) -> None:
    """Zeros in front of and behind the columns that `stage` fills."""
    rows, columns, _ = scratch.shape
    if left:
        scratch[:, :left, :lanes] = jnp.zeros((rows, left, lanes), jnp.float32)
    if columns > left + width:
        scratch[:, left + width :, :lanes] = jnp.zeros((rows, columns - left - width, lanes), jnp.float32)


def stage(
    block: Any,
    scratch: Any,
    left: int,
    first: Any,
    valid: Any,
    lane: int,
    lanes: int,
    at_once: int,
    below: Sequence[int] = (0,),
) -> None:
    """Rows of `block (1, rows, columns, channels)` to `scratch`, `at_once` a step, zeros where it has none.

    Row `first + r` of the block goes to row `r`, for those `first + r` that are at least 0 and below `valid`. Several
    numbers in `below` put the rows so far below it side by side into its lanes.
    """
    from jax.experimental import pallas as pl

    width, channels = block.shape[2], pl.ds(lane, lanes)

    def copy(r: Any, source: Any, target: Any) -> None:
        def seen(row: Any) -> Array:
            values = block[0, jnp.clip(row, 0, block.shape[1] - 1), source, channels].astype(jnp.float32)
            return jnp.where((row >= 0) & (row < valid), values, 0.0)

        rows = [seen(first + r + further) for further in below]
        scratch[r, target, : lanes * len(rows)] = jnp.concatenate(rows, -1) if len(rows) > 1 else rows[0]

    def row(r: Any) -> None:
        chunks = width // COLUMNS

        def chunk(c: Array, _: None) -> None:
            at = pl.multiple_of(c * COLUMNS, COLUMNS)
            copy(r, pl.ds(at, COLUMNS), pl.ds(at + left, COLUMNS))

        if chunks:
            jax.lax.fori_loop(0, chunks, chunk, None)
        if rest := width - chunks * COLUMNS:
            copy(r, pl.ds(chunks * COLUMNS, rest), pl.ds(left + chunks * COLUMNS, rest))

    def rows(step: Array, _: None) -> None:
        for i in range(at_once):
            row(step * at_once + i)

    jax.lax.fori_loop(0, scratch.shape[0] // at_once, rows, None)
