"""Kernel gradient of a depthwise convolution on Hopper: sums of products in registers, in two stages, without atomics.

First stage: a block takes some rows of taps, one stretch of channels and every so many-th tile of the cotangent. Tile
after tile and the inputs that it meets come by TMA, one ahead of what is computed; each thread adds to a sum for each
tap, and writes them at the end. Second stage: the sums of blocks and warps are added in a fixed order, element by
element, by XLA. So equal operands give equal bits.

Serves one and two spatial axes, strides, dilation, pads of either sign and a channel multiplier.
Cost: both operands once for every set of tap rows that registers hold; the sums are small.
Error: below that of direct summation in float32, as thousands of threads have sums of their own.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from convjax._core.arrange import exchanged
from convjax._core.dtypes import output_dtype
from convjax._core.kernels.mosaic_gpu import hopper, tiles
from convjax._core.kernels.mosaic_gpu.planes import divmod_, planes_first
from convjax._core.kernels.mosaic_gpu.registers import LANES, ROWS, Registers, meetings
from convjax._core.spec import ConvSpec

MAX_TAPS = 31  # along an axis
SUMS = 64  # registers of a thread that hold sums
SLOTS = 2  # tiles in shared memory: one arrives while the other is multiplied
BLOCKS = 4 * tiles.MULTIPROCESSORS  # that the first stage is split into, if there are tiles enough
FAN_IN = 16  # arrays that a step of the second stage adds


def is_kernel_gradient(spec: ConvSpec, lhs: Any, rhs: Any) -> bool:
    """Whether groups lie along the batch, and one side of a group has a single channel."""
    return spec.batch_groups > 1 and min(n // spec.batch_groups for n in (lhs.shape[0], rhs.shape[-1])) == 1


def refusal(spec: ConvSpec, lhs: Any, rhs: Any) -> str | None:
    """None where this kernel can serve a kernel gradient, else the reason why not."""
    taps = spec.out_space(lhs.shape, rhs.shape)
    if spec.ndim not in (1, 2):
        return f"{spec.ndim} spatial axes: it has one and two"
    if max(spec.lhs_dilation) > 1:
        return "the kernel gradient of a convolution with a dilated input"
    if max(taps) > MAX_TAPS:
        return f"a kernel of {max(taps)} taps: at most {MAX_TAPS} along an axis"
    return None if plan(spec, lhs.shape, rhs.shape, np.dtype(lhs.dtype)) else "no tile of it fits into shared memory"


@dataclasses.dataclass(frozen=True)
class Plan:
    """A problem of the first stage, with as many rows of taps as a block sums; its tile; how it is split."""

    problem: tiles.Depthwise
    tile: tiles.Tile
    tap_rows: int
    splits: int

    @property
    def sets(self) -> int:
        """Of tap rows; the last may be filled up."""
        return -(-self.tap_rows // self.problem.kernel[0])

    @property
    def planes(self) -> int:
        return self.problem.planes * self.problem.outputs

    @property
    def channel_blocks(self) -> int:
        return -(-self.problem.channels // self.tile.channels)

    @property
    def tiles(self) -> int:
        examples, down, across, _ = self.problem.grid(self.tile)
        return examples * down * across


@functools.lru_cache(2**10)
def plan(spec: ConvSpec, lhs: tuple[int, ...], rhs: tuple[int, ...], dtype: np.dtype) -> Plan | None:
    """The tile of fewest clocks; None where every one breaks a limit."""
    groups = spec.batch_groups
    both = lambda sizes: (1, *sizes) if spec.ndim == 1 else tuple(sizes)
    height, width = both(spec.out_space(lhs, rhs))
    found = []
    for channels in (32,) if dtype.itemsize == 4 or groups <= 32 else (64, 32):
        most = max(1, SUMS * LANES // (width * channels))
        problem = tiles.Depthwise(
            out=both(rhs[:-2]),
            kernel=(-(-height // -(-height // most)), width),
            strides=both(spec.rhs_dilation),
            dilation=both(spec.strides),
            examples=lhs[-1],
            channels=tiles.round_up(groups, tiles.ALIGNMENT // dtype.itemsize),
            planes=lhs[0] // groups,
            outputs=rhs[-1] // groups,
            itemsize=dtype.itemsize,
            out_itemsize=dtype.itemsize,
            is_line=spec.ndim == 1,
            slots=SLOTS,
            extra_bytes=4 * ROWS * channels * most * width,
        )
        if tile := tiles.choose(problem, (channels,), warpgroups=(1,)):
            sets = -(-height // problem.kernel[0])
            whole = Plan(problem, tile, height, 1)
            others = sets * whole.planes * whole.channel_blocks
            splits = min(whole.tiles, -(-BLOCKS // others), FAN_IN**2)
            splits = splits if splits <= FAN_IN else splits // FAN_IN * FAN_IN
            clocks = problem.clocks(tile) * sets
            found.append((clocks, dataclasses.replace(whole, splits=splits)))
    return min(found, key=lambda pair: pair[0])[1] if found else None


def run(spec: ConvSpec, lhs: Array, rhs: Array, *, interpret: bool = False, chosen: Plan | None = None) -> Array:
    p = chosen or plan(spec, lhs.shape, rhs.shape, np.dtype(lhs.dtype))
    assert p is not None
    groups, problem = spec.batch_groups, p.problem
    x, ct = (planes_first(a, groups, problem.channels) for a in exchanged(spec, lhs, rhs))
    top = spec.padding[0][0] if spec.ndim == 2 else 0
    kernel = _first_stage(p, lhs.dtype, top, spec.padding[-1][0], interpret)
    sums = in_order(kernel(x, ct))  # (planes * tap rows * taps of one, warps, C)
    total = (sums[:, 0] + sums[:, 1]) + (sums[:, 2] + sums[:, 3])
    total = total.reshape(problem.planes, problem.outputs, -1, problem.kernel[1], total.shape[-1])
    total = total[:, :, : p.tap_rows, :, :groups].transpose(0, 2, 3, 4, 1)
    return total.reshape(spec.out_shape(lhs.shape, rhs.shape)).astype(output_dtype(spec, lhs.dtype))


def in_order(sums: Array) -> Array:
    """Add along the first axis by elementwise additions, whose order nothing changes."""
    while (count := sums.shape[0]) > 1:
        parts = sums.reshape(-1, min(FAN_IN, count), *sums.shape[1:])
        sums = lax.optimization_barrier(functools.reduce(jnp.add, [parts[:, i] for i in range(parts.shape[1])]))
    return sums[0]


def _first_stage(p: Plan, dtype: Any, top: int, left: int, interpret: bool) -> Callable[..., Array]:
    """The kernel for `x (N, *space, planes, C)` and `ct (N, *out, outputs, C)`; sums `(splits, taps, warps, C)`."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import mosaic_gpu as plgpu

    problem, tile, line = p.problem, p.tile, p.problem.is_line
    (kh, kw), strides, dilation = problem.kernel, problem.strides, problem.dilation
    _, down, across, _ = problem.grid(tile)
    rows, phases, columns = problem.input_rows(tile), problem.row_phases, problem.input_columns(tile)
    copies_a_row = line or phases > 1
    copies = (rows * phases if copies_a_row else 1) + (tile.rows if line else 1)
    turns = -(-p.tiles // p.splits)
    height, width = problem.out

    def body(x: Any, ct: Any, y: Any, inputs: Any, cotangents: Any, outputs: Any, arrived: Any) -> None:
        hold = Registers(tile.channels)
        index, channel_block = divmod_(lax.axis_index("block"), p.channel_blocks)
        index, plane = divmod_(index, p.planes)
        split, tap_set = divmod_(index, p.sets)
        x_plane, ct_plane = divmod_(plane, problem.outputs)
        channels = pl.ds(channel_block * tile.channels, tile.channels)
        shift = tap_set * (kh * dilation[0]) - top

        def fetch(turn: Any) -> None:
            slot = lax.rem(turn, SLOTS)
            number = turn * p.splits + split
            at, column_block = divmod_(number, across)
            n, row_block = divmod_(at, down)
            # After the last tile come tiles below the image, whose cotangents are zeros.
            beyond = number >= p.tiles
            n = jnp.where(beyond, 0, n)
            row = jnp.where(beyond, height, row_block * tile.rows)
            column = column_block * tile.columns * (tile.rows if line else 1)
            column = jnp.where(beyond, width, column) if line else column
            here, there, done = inputs.at[slot], cotangents.at[slot], arrived.at[slot]
            start = column * strides[1] - left

            def input_row(r: Any, _: None) -> None:
                if line:
                    box = x.at[n, pl.ds(start + r * (tile.columns * strides[1]), columns), x_plane, channels]
                    plgpu.copy_gmem_to_smem(box, here.at[r, 0], done)
                else:
                    box = x.at[n, pl.ds(row * strides[0] + shift + r, 1), pl.ds(start, columns), x_plane, channels]
                    q, phase = divmod_(r, phases)
                    plgpu.copy_gmem_to_smem(box, here.at[q, pl.ds(phase, 1)], done)

            def cotangent_row(r: Any, _: None) -> None:
                box = ct.at[n, pl.ds(column + r * tile.columns, tile.columns), ct_plane, channels]
                plgpu.copy_gmem_to_smem(box, there.at[r], done)

            if copies_a_row:
                lax.fori_loop(0, rows * phases, input_row, None)
            else:
                box = x.at[n, pl.ds(row + shift, rows), pl.ds(start, columns), x_plane, channels]
                plgpu.copy_gmem_to_smem(box, here.at[:, 0], done)
            if line:
                lax.fori_loop(0, tile.rows, cotangent_row, None)
            else:
                box = ct.at[n, pl.ds(row, tile.rows), pl.ds(column, tile.columns), ct_plane, channels]
                plgpu.copy_gmem_to_smem(box, there, done)

        def multiply(slot: Any, unit: Any, sums: tuple[Array, ...]) -> tuple[Array, ...]:
            quad, at = divmod_(unit, tile.strips)
            r, at = quad * ROWS, at * tile.strip
            totals = list(sums)
            cts = [hold.load(cotangents.at[slot, pl.ds(r, ROWS), at + c]) for c in range(tile.strip)]
            for i in range(kh):
                q, phase = divmod(i * dilation[0], phases)
                for column, pairs in meetings(tile.strip, kw, strides[1], dilation[1]):
                    value = hold.load(inputs.at[slot, pl.ds(r + q, ROWS), phase, at * strides[1] + column])
                    for c, tap in pairs:
                        totals[i * kw + tap] = totals[i * kw + tap] + value * cts[c]
            return tuple(totals)

        def turn(number: Any, sums: tuple[Array, ...]) -> tuple[Array, ...]:
            plgpu.commit_smem()  # whatever was read of the slot comes before the copy into it
            pl.when(number + 1 < turns)(lambda: fetch(number + 1))
            slot = lax.rem(number, SLOTS)
            plgpu.barrier_wait(arrived.at[slot])
            units = tile.rows // ROWS * tile.strips
            return lax.fori_loop(0, units, functools.partial(multiply, slot), sums)

        fetch(jnp.int32(0))
        sums = lax.fori_loop(0, turns, turn, tuple(hold.zeros() for _ in range(kh * kw)))
        for tap, total in enumerate(sums):
            outputs[tap] = total
        plgpu.commit_smem()
        first = (plane * p.sets + tap_set) * (kh * kw)
        plgpu.copy_smem_to_gmem(outputs, y.at[split, pl.ds(first, kh * kw), :, channels])
        plgpu.wait_smem_to_gmem(0)

    taps = p.planes * p.sets * kh * kw
    return hopper.launch(
        body,
        out_type=jax.ShapeDtypeStruct((p.splits, taps, ROWS, p.channel_blocks * tile.channels), jnp.float32),
        scratch_types=[
            plgpu.SMEM((SLOTS, rows, phases, columns, tile.channels), dtype),
            plgpu.SMEM((SLOTS, tile.rows, tile.columns, tile.channels), dtype),
            plgpu.SMEM((kh * kw, ROWS, tile.channels), jnp.float32),
            plgpu.Barrier(num_arrivals=copies, num_barriers=SLOTS),
        ],
        blocks=p.splits * p.sets * p.planes * p.channel_blocks,
        interpret=interpret,
    )
