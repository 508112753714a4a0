"""All gradients of the causal convolution in one pass over the input and the cotangent.

A block recomputes what went into the activation, multiplies the cotangent with its derivative, and keeps the product
dz in shared memory: for its stretches, and for as many positions behind them as look back into them. From dz come
the input's gradient and, in registers over all the blocks' turns, sums for every tap and the bias, which are added in a
fixed order (`depthwise_grad.in_order`). The state's gradient concerns the first positions alone, and is left to XLA.

Cost: input and cotangent once, the input's gradient once; behind every stretch `(K - 1) * dilation` positions again.
Error: that of direct summation in float32, rounded once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from convjax._core.kernels.mosaic_gpu import causal1d, causal1d_state, hopper, tiles
from convjax._core.kernels.mosaic_gpu.causal1d import (
    MASK_WORDS,
    STRIP_BACK,
    Block,
    fetch_row,
    met_by,
    named,
    operands_of,
)
from convjax._core.kernels.mosaic_gpu.depthwise_grad import BLOCKS, FAN_IN, in_order
from convjax._core.kernels.mosaic_gpu.planes import channels_to, divmod_
from convjax._core.kernels.mosaic_gpu.registers import ROWS, Registers, meetings


def refusal(taps: int, dilation: int, dtype: Any) -> str | None:
    """What of a problem is beyond `backward`, in words for a user; None where nothing is."""
    return causal1d.refusal(taps, dilation, np.dtype(dtype), gradients=True)


def backward(
    x: Array,
    w: Array,
    bias: Array | None,
    state: Array | None,
    segment_ids: Array | None,
    silu: bool,
    dy: Array,
    dstate_after: Array | None = None,
    *,
    dilation: int = 1,
    interpret: bool = False,
) -> tuple[Array, Array, Array | None, Array | None]:
    """Gradients in x, w, bias and state; None for what is not given.

    The arguments are those of `causal1d.forward`, and the cotangents of its results.
    """
    block = Block.of(x.shape, w.shape[0], dilation, np.dtype(x.dtype), STRIP_BACK, gradients=True)
    assert block is not None  # `causal1d.refusal`
    operands = operands_of(block, x, w, bias, state, segment_ids)
    given = tuple(operand is not None for operand in operands[2:])
    blocks = block.shape[0] * block.across
    splits = min(blocks, -(-BLOCKS // block.channel_blocks), FAN_IN**2)
    splits = splits if splits <= FAN_IN else splits // FAN_IN * FAN_IN
    kernel = _kernel(block, splits, x.dtype, given, silu, interpret)
    dy = dy.astype(x.dtype)
    dx, sums = kernel(*(a for a in (*operands, channels_to(dy, block.shape[2])) if a is not None))
    total = in_order(sums)
    total = ((total[:, 0] + total[:, 1]) + (total[:, 2] + total[:, 3]))[:, : x.shape[2]]
    dx, dw = dx[..., : x.shape[2]], total[:-1].astype(w.dtype)
    dbias = None if bias is None else total[-1].astype(bias.dtype)
    dstate = None if state is None else _of_state(x, w, bias, state, segment_ids, silu, dy, dilation)
    if dstate_after is not None:
        dx, dstate = _of_what_is_kept(dx, dstate, x, state, segment_ids, dstate_after, block.reach)
    return dx, dw, dbias, dstate


def _of_state(
    x: Array,
    w: Array,
    bias: Array | None,
    state: Array,
    segment_ids: Array | None,
    silu: bool,
    dy: Array,
    dilation: int,
) -> Array:
    """Of the first positions, which alone look back into the state."""
    reach = state.shape[1]
    head, ids = x[:, :reach], None if segment_ids is None else segment_ids[:, :reach]
    met = None if ids is None else causal1d_state.taps_met(ids, w.shape[0], dilation)

    def first_outputs(state: Array) -> Array:
        return causal1d_state.direct(causal1d_state.with_state(head, state, reach), w, bias, met, silu, dilation)

    _, pull = jax.vjp(first_outputs, state)
    return pull(dy[:, :reach].astype(jnp.float32))[0]


def _of_what_is_kept(
    dx: Array,
    dstate: Array | None,
    x: Array,
    state: Array | None,
    segment_ids: Array | None,
    dstate_after: Array,
    reach: int,
) -> tuple[Array, Array | None]:
    """Add the gradient by way of the state for the next call, which holds the last inputs."""
    last = min(reach, x.shape[1])
    before = jnp.zeros((x.shape[0], reach, x.shape[2]), x.dtype) if state is None else state

    def kept(tail: Array, before: Array) -> Array:
        whole = tail if last == reach else jnp.concatenate([before.astype(x.dtype), tail], axis=1)[:, -reach:]
        return causal1d_state.of_last_segment(whole, segment_ids)

    _, pull = jax.vjp(kept, x[:, x.shape[1] - last :], before)
    by_tail, by_state = pull(dstate_after.astype(x.dtype))
    dx = dx.at[:, x.shape[1] - last :].add(by_tail)
    return dx, None if dstate is None else dstate + by_state


def _kernel(
    block: Block, splits: int, dtype: Any, given: tuple[bool, ...], silu: bool, interpret: bool
) -> Callable[..., tuple[Array, Array]]:
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import mosaic_gpu as plgpu

    _, has_state, has_met = given
    columns, reach, strip, taps = block.columns, block.reach, block.strip, block.taps
    behind = block.behind
    words = tiles.round_up(columns + behind, MASK_WORDS)
    blocks = block.shape[0] * block.across
    turns = -(-blocks // splits)

    def body(x: Any, w: Any, *refs: Any) -> None:
        (bias, state, met), refs = named(refs, given)
        dy, dx, sums_out, inputs, cotangents, products, sums_kept, words_met, arrived = refs
        hold = Registers(block.channels)
        split, channel_block = divmod_(lax.axis_index("block"), block.channel_blocks)
        channels = pl.ds(channel_block * block.channels, block.channels)
        added = hold.load_row(bias.at[channels]) if bias is not None else hold.zeros()
        weights = [hold.load_row(w.at[k, channels]) for k in range(taps)]
        masks_at = lambda at: [hold.load_column(words_met.at[:, at + c]) if has_met else None for c in range(strip)]

        def derivative(number: Any) -> list[Array]:
            """dz of one strip, kept in shared memory too."""
            at = number * strip
            masks, z = masks_at(at), [added] * strip
            for column, pairs in block.strips() if silu else ():
                value = hold.load(inputs.at[:, at + column])
                for c, tap in pairs:
                    z[c] = z[c] + met_by(masks[c], tap, value * weights[tap])
            dz = []
            for c in range(strip):
                ct = hold.load(cotangents.at[:, at + c])
                if silu:
                    s = lax.logistic(z[c])
                    ct = ct * (s * (1.0 + z[c] * (1.0 - s)))
                products[:, at + c] = ct
                dz.append(ct)
            return dz

        def own(number: Any, sums: tuple[Array, ...]) -> tuple[Array, ...]:
            dz, totals = derivative(number), list(sums)
            masks = masks_at(number * strip)
            for column, pairs in block.strips():
                value = hold.load(inputs.at[:, number * strip + column])
                for c, tap in pairs:
                    totals[tap] = totals[tap] + met_by(masks[c], tap, value * dz[c])
            for value in dz:
                totals[-1] = totals[-1] + value
            return tuple(totals)

        def others(number: Any, _: None) -> None:
            derivative(number)

        def input_gradient(number: Any, _: None) -> None:
            at = number * strip
            totals = [hold.zeros() for _ in range(strip)]
            for column, pairs in meetings(strip, taps, 1, block.dilation):
                value = hold.load(products.at[:, at + column])
                mask = hold.load_column(words_met.at[:, at + column]) if has_met else None
                for c, ahead in pairs:
                    tap = taps - 1 - ahead
                    totals[c] = totals[c] + met_by(mask, tap, value * weights[tap])
            for c, total in enumerate(totals):
                cotangents[:, at + c] = total.astype(dtype)  # the cotangent has had its use

        def turn(number: Any, sums: tuple[Array, ...]) -> tuple[Array, ...]:
            plgpu.commit_smem()  # whatever was read comes before the copies
            index = number * splits + split
            n, across = divmod_(index, block.across)
            # After the last block come blocks behind the last position, whose cotangents are zeros.
            across = jnp.where(index >= blocks, block.across, across)
            n = jnp.where(index >= blocks, 0, n)
            first = across * (ROWS * columns)
            for row in range(ROWS):
                start = first + row * columns
                fetch_row(x, state, inputs, row, (n, start, channels), reach, columns + behind, arrived)
                box = dy.at[n, pl.ds(start, columns + behind), channels]
                plgpu.copy_gmem_to_smem(box, cotangents.at[row], arrived)
                if has_met:
                    plgpu.copy_gmem_to_smem(met.at[n, pl.ds(start, words)], words_met.at[row], arrived)
            plgpu.barrier_wait(arrived)
            sums = lax.fori_loop(0, columns // strip, own, sums)
            lax.fori_loop(columns // strip, (columns + behind) // strip, others, None)
            plgpu.commit_smem()  # a store of four rows at once is one of its warp, and so are the loads that follow
            lax.fori_loop(0, columns // strip, input_gradient, None)
            plgpu.commit_smem()
            for row in range(ROWS):
                done = dx.at[n, pl.ds(first + row * columns, columns), channels]
                plgpu.copy_smem_to_gmem(cotangents.at[row, pl.ds(0, columns)], done)
            plgpu.wait_smem_to_gmem(0)
            return sums

        sums = lax.fori_loop(0, turns, turn, tuple(hold.zeros() for _ in range(taps + 1)))
        for tap, total in enumerate(sums):
            sums_kept[tap] = total
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(sums_kept, sums_out.at[split, :, :, channels])
        plgpu.wait_smem_to_gmem(0)

    whole = block.channel_blocks * block.channels
    return hopper.launch(
        body,
        out_type=(
            jax.ShapeDtypeStruct(block.shape, dtype),
            jax.ShapeDtypeStruct((splits, taps + 1, ROWS, whole), jnp.float32),
        ),
        scratch_types=[
            plgpu.SMEM((ROWS, reach + columns + behind, block.channels), dtype),
            plgpu.SMEM((ROWS, columns + behind, block.channels), dtype),
            plgpu.SMEM((ROWS, columns + behind, block.channels), jnp.float32),
            plgpu.SMEM((taps + 1, ROWS, block.channels), jnp.float32),
            plgpu.SMEM((ROWS, words), jnp.int32),
            plgpu.Barrier(num_arrivals=ROWS * (2 + has_state + has_met)),
        ],
        blocks=splits * block.channel_blocks,
        interpret=interpret,
    )
