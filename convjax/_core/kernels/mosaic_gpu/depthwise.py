"""Depthwise convolution on Hopper: one block a tile of the output, its inputs brought by TMA, taps met in registers.

The box of inputs that a tile meets, halo included, is one TMA copy (a copy a row for strides, and for stretches of a
line); what lies outside the input arrives as zeros, so that no padding is ever written. Each input in shared memory is
read once a kernel row and strip of columns, and multiplied with every tap that it meets. The residual waits where the
output will be written; bias and activation apply to the float32 sums.

Serves one and two spatial axes, any stride of the output and kernel dilation that fit in shared memory, pads of either
sign, a channel multiplier (by an axis of its own, in front of the channels, while the kernel runs), and the input
gradient of all this at stride 1. A kernel gradient goes to `depthwise_grad`.
Cost: the input once, halos from the second-level cache; the output once.
Error: that of direct summation in float32, rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from convjax._core import epilogue
from convjax._core.dtypes import output_dtype
from convjax._core.geometry import Geometry, Work
from convjax._core.kernels.mosaic_gpu import depthwise_grad, hopper, registers, tiles
from convjax._core.kernels.mosaic_gpu.planes import channels_to, divmod_, planes_first
from convjax._core.kernels.mosaic_gpu.registers import ROWS, Registers
from convjax._core.spec import ConvSpec

FUSES = registers.FUSES
DTYPES = tuple(np.dtype(d) for d in (jnp.bfloat16, np.float16, np.float32))
MAX_TAPS = 31  # along an axis: longer kernels are for transforms
IN_REGISTERS = 9  # taps whose weights stay in registers; more are read again for each strip


def supports(spec: ConvSpec, lhs: Any, rhs: Any, platform: str) -> str | None:
    """None where this kernel can serve, else the reason why not, in words for a user."""
    if reason := hopper.unavailable(platform):
        return reason
    if np.dtype(lhs.dtype) not in DTYPES or output_dtype(spec, lhs.dtype) not in DTYPES:
        return f"it computes in bfloat16, float16 and float32, not from {lhs.dtype} to {output_dtype(spec, lhs.dtype)}"
    if depthwise_grad.is_kernel_gradient(spec, lhs, rhs):
        return depthwise_grad.refusal(spec, lhs, rhs)
    if spec.ndim not in (1, 2):
        return f"{spec.ndim} spatial axes: it has one and two"
    if spec.batch_groups > 1:
        return "batch groups: of those it serves kernel gradients of depthwise convolutions alone"
    if max(spec.lhs_dilation) > 1:
        return "a dilated input: algorithm='subpixel' turns it into parts that this kernel serves"
    if spec.feature_groups == 1 or min(rhs.shape[-2], rhs.shape[-1] // spec.feature_groups) > 1:
        return "a group has several inputs and several outputs: it is for depthwise convolutions"
    if max(rhs.shape[:-2]) > MAX_TAPS:
        return f"a kernel of {max(rhs.shape[:-2])} taps: at most {MAX_TAPS} along an axis"
    problem = problem_of(spec, lhs, rhs)
    if tiles.choose(problem) is None:
        return f"no tile fits: {problem.refusal(tiles.SMALLEST)}"
    return None


def work(g: Geometry) -> Work:
    return Work("gpu_depthwise", g.macs, g.elements[0] + g.elements[2], 1)


def run(
    spec: ConvSpec,
    lhs: Array,
    rhs: Array,
    *,
    bias: Array | None = None,
    residual: Array | None = None,
    activation: str | None = None,
    interpret: bool = False,
    tile: tiles.Tile | None = None,
) -> Array:
    if depthwise_grad.is_kernel_gradient(spec, lhs, rhs):
        out = depthwise_grad.run(spec, lhs, rhs, interpret=interpret)
        return epilogue.apply(out, bias, residual, epilogue.ACTIVATIONS.get(activation or ""))
    problem = problem_of(spec, lhs, rhs)
    tile = tile or tiles.choose(problem)
    assert tile is not None  # `supports`
    assert problem.refusal(tile) is None
    groups, outputs = spec.feature_groups, rhs.shape[-1] // spec.feature_groups
    space, dtype = spec.out_space(lhs.shape, rhs.shape), output_dtype(spec, lhs.dtype)

    # Where a group has several channels, they lie on an axis in front of the groups while the kernel runs.
    w = rhs.reshape(-1, rhs.shape[spec.ndim - 1], problem.planes, groups, outputs).transpose(2, 0, 1, 4, 3)
    operands = [planes_first(lhs, groups, problem.channels), w.reshape(-1, w.shape[2], outputs, groups)]
    operands[1] = channels_to(operands[1], tiles.round_up(groups, tile.channels))
    if bias is not None:
        operands.append(channels_to(bias.reshape(groups, outputs).T, operands[1].shape[-1]))
    if residual is not None:
        operands.append(planes_first(residual, groups, problem.channels))
    kernel = _kernel(
        problem,
        tile,
        jax.ShapeDtypeStruct((lhs.shape[0], *space, outputs, problem.channels), dtype),
        jnp.dtype(lhs.dtype),
        spec.padding[0][0] if spec.ndim == 2 else 0,
        spec.padding[-1][0],
        bias is not None,
        residual is not None,
        activation,
        interpret,
    )
    y = kernel(*operands)[..., :groups]
    return jnp.swapaxes(y, -1, -2).reshape(lhs.shape[0], *space, groups * outputs)


def problem_of(spec: ConvSpec, lhs: Any, rhs: Any) -> tiles.Depthwise:
    itemsize, out_itemsize = np.dtype(lhs.dtype).itemsize, output_dtype(spec, lhs.dtype).itemsize
    both = lambda sizes: (1, *sizes) if spec.ndim == 1 else tuple(sizes)
    return tiles.Depthwise(
        out=both(spec.out_space(lhs.shape, rhs.shape)),
        kernel=both(rhs.shape[:-2]),
        strides=both(spec.strides),
        dilation=both(spec.rhs_dilation),
        examples=lhs.shape[0],
        channels=tiles.round_up(spec.feature_groups, tiles.ALIGNMENT // min(itemsize, out_itemsize)),
        planes=rhs.shape[-2],
        outputs=rhs.shape[-1] // spec.feature_groups,
        itemsize=itemsize,
        out_itemsize=out_itemsize,
        is_line=spec.ndim == 1,
    )


def _kernel(
    problem: tiles.Depthwise,
    tile: tiles.Tile,
    out: jax.ShapeDtypeStruct,
    dtype: np.dtype,
    top: int,
    left: int,
    has_bias: bool,
    has_residual: bool,
    activation: str | None,
    interpret: bool,
) -> Callable[..., Array]:
    """The kernel for `x (N, *space, planes, C)`, `w (planes * kh, kw, outputs, C)`, and what is added."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import mosaic_gpu as plgpu

    line, (kh, kw), (down, across) = problem.is_line, problem.kernel, problem.grid(tile)[1:3]
    rows, phases, columns = problem.input_rows(tile), problem.row_phases, problem.input_columns(tile)
    strides, dilation = problem.strides, problem.dilation
    blocks_of_channels = -(-problem.channels // tile.channels)
    rows_each = tile.rows // tile.warpgroups
    copies_a_row = line or phases > 1
    copies = problem.planes * (rows * phases if copies_a_row else 1) + has_residual * (tile.rows if line else 1)

    def body(x: Any, w: Any, *refs: Any) -> None:
        bias = refs[0] if has_bias else None
        residual = refs[has_bias] if has_residual else None
        y, inputs, outputs, arrived = refs[has_bias + has_residual :]
        hold = Registers(tile.channels)
        warpgroup = lax.axis_index("warpgroup")
        index, channel_block = divmod_(lax.axis_index("block"), problem.outputs * blocks_of_channels)
        plane, channel_block = divmod_(channel_block, blocks_of_channels)
        index, column_block = divmod_(index, across)
        n, row_block = divmod_(index, down)
        channels = pl.ds(channel_block * tile.channels, tile.channels)
        # Of the first output; on a line the stretches of a block follow each other.
        row = row_block * tile.rows
        column = column_block * tile.columns * (tile.rows if line else 1)

        def out_box(ref: Any, r: Any, count: int) -> Any:
            """Of rows `r` to `r + count` of the tile; of stretch `r` of a line."""
            if line:
                return ref.at[n, pl.ds(column + r * tile.columns, tile.columns), plane, channels]
            return ref.at[n, pl.ds(row + r, count), pl.ds(column, tile.columns), plane, channels]

        def fetch() -> None:
            for p in range(problem.planes):
                here = inputs.at[pl.ds(p * rows, rows)]
                start = column * strides[1] - left
                if not copies_a_row:
                    box = x.at[n, pl.ds(row - top, rows), pl.ds(start, columns), p, channels]
                    plgpu.copy_gmem_to_smem(box, here.at[:, 0], arrived)
                    continue

                def one(r: Any, _: None, p: int = p, here: Any = here, start: Any = start) -> None:
                    if line:
                        box = x.at[n, pl.ds(start + r * tile.columns * strides[1], columns), p, channels]
                        plgpu.copy_gmem_to_smem(box, here.at[r, 0], arrived)
                    else:
                        at = row * strides[0] - top + r
                        box = x.at[n, pl.ds(at, 1), pl.ds(start, columns), p, channels]
                        q, phase = divmod_(r, phases)
                        plgpu.copy_gmem_to_smem(box, here.at[q, pl.ds(phase, 1)], arrived)

                lax.fori_loop(0, rows * phases, one, None)
            if has_residual and line:
                for r in range(tile.rows):
                    plgpu.copy_gmem_to_smem(out_box(residual, r, 1), outputs.at[r], arrived)
            elif has_residual:
                plgpu.copy_gmem_to_smem(out_box(residual, 0, tile.rows), outputs, arrived)

        pl.when(warpgroup == 0)(fetch)
        plgpu.barrier_wait(arrived)
        added = None if bias is None else hold.load_row(bias.at[plane, channels])
        weight = lambda t, k: hold.load_row(w.at[t, k, plane, channels])
        kept = {(t, k): weight(t, k) for t in range(kh) for k in range(kw)} if _keeps(problem) else {}

        def strip(unit: Any, _: None) -> None:
            quad, at = divmod_(unit, tile.strips)
            r, at = warpgroup * rows_each + quad * ROWS, at * tile.strip

            def kernel_row(t: Any, sums: tuple[Array, ...]) -> tuple[Array, ...]:
                p, i = divmod_(t, kh)
                q, phase = divmod_(i * dilation[0], phases)
                here = pl.ds(p * rows + r + q, ROWS)
                load = lambda c: hold.load(inputs.at[here, phase, at * strides[1] + c])
                weights = [kept[t, k] if kept else weight(t, k) for k in range(kw)]
                return registers.products(sums, load, weights, strides[1], dilation[1])

            sums = tuple(hold.zeros() for _ in range(tile.strip))
            if kept or problem.planes * kh == 1:
                for t in range(problem.planes * kh):
                    sums = kernel_row(t, sums)
            else:
                sums = lax.fori_loop(0, problem.planes * kh, kernel_row, sums)
            for c, total in enumerate(sums):
                here = outputs.at[pl.ds(r, ROWS), at + c]
                total = total if added is None else total + added
                total = total + hold.load(here) if has_residual else total
                total = total if activation is None else registers.ACTIVATIONS[activation](total)
                here[...] = total.astype(out.dtype)

        lax.fori_loop(0, rows_each // ROWS * tile.strips, strip, None)
        plgpu.commit_smem()
        first = warpgroup * rows_each
        if line:
            for r in range(rows_each):
                plgpu.copy_smem_to_gmem(outputs.at[first + r], out_box(y, first + r, 1))
        else:
            plgpu.copy_smem_to_gmem(outputs.at[pl.ds(first, rows_each)], out_box(y, first, rows_each))
        plgpu.wait_smem_to_gmem(0)

    return hopper.launch(
        body,
        out_type=out,
        scratch_types=[
            plgpu.SMEM((problem.planes * rows, phases, columns, tile.channels), dtype),
            plgpu.SMEM((tile.rows, tile.columns, tile.channels), out.dtype),
            plgpu.Barrier(num_arrivals=copies),
        ],
        blocks=math.prod(problem.grid(tile)),
        warpgroups=tile.warpgroups,
        interpret=interpret,
    )


def _keeps(problem: tiles.Depthwise) -> bool:
    return problem.planes == 1 and math.prod(problem.kernel) <= IN_REGISTERS
