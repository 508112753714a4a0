"""All gradients of the causal depthwise convolution in one pass over the signal, from its end to its beginning.

A grid step computes once more what the activation was given, from there the cotangent of the sums, and with it the
gradient in the input, in the tile's kernel and in its bias. What later steps (of earlier inputs) see of the cotangent
stays in VMEM. Kernel and bias gradients are written for each step and added up by XLA in a fixed order: equal inputs
give equal bits.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from convjax._core.kernels.tpu.blocks import compiler_params, interpret_mode
from convjax._core.kernels.tpu.finish import sigmoid
from convjax._core.kernels.tpu.signal import (
    LANES,
    SUBLANES,
    Signal,
    bits_of_segments,
    broadcast_bits,
    copy_rows,
    tap,
)


def refusal(taps: int, dilation: int, dtype: Any) -> str | None:
    """None: what `causal1d` serves is served here."""
    return None


def backward(
    x: Array,
    w: Array,
    bias: Array | None,
    state: Array | None,
    segment_ids: Array | None,
    silu: bool,
    dy: Array,
    dstate_out: Array | None = None,
    *,
    dilation: int = 1,
    interpret: Any = False,
) -> tuple[Array, Array, Array, Array]:
    """Gradients in `x`, `w`, `bias (C,)` and `state` of `causal1d.forward`, from those in both of its results."""
    s = Signal.of(x, w, dilation)
    dx, before, parts = _call(s, x, w, bias, state, segment_ids, silu, dy, interpret)
    sums = parts.sum((0, 1))
    dstate = before[:, s.before - s.reach :]
    if dstate_out is not None:
        both = jnp.concatenate([dstate, dx.astype(jnp.float32)], axis=1)
        both = both.at[:, both.shape[1] - s.reach :].add(dstate_out.astype(jnp.float32))
        dstate, dx = both[:, : s.reach], both[:, s.reach :]
    dbias = sums[s.taps].astype(w.dtype if bias is None else bias.dtype)
    return dx.astype(x.dtype), sums[: s.taps].astype(w.dtype), dbias, dstate.astype(x.dtype)


def _call(
    s: Signal,
    x: Array,
    w: Array,
    bias: Array | None,
    state: Array | None,
    segment_ids: Array | None,
    silu: bool,
    dy: Array,
    interpret: Any,
) -> tuple[Array, Array, Array]:
    """Gradient in the input; in the state, float32 in whole registers; of kernel and bias, for each grid step."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    order = lambda t: s.tiles - 1 - t
    operands: dict[str, tuple[Array, Any]] = {
        "x": (x, s.block(order)),
        "dy": (dy, s.block(order)),
        "w": (w.astype(jnp.float32), s.of_channels(s.taps)),
    }
    if s.tiles > 1:  # what a tile's outputs see of the inputs before it
        blocks = rows_before(s)
        operands["x_before"] = (
            x,
            pl.BlockSpec(
                (1, blocks, s.lanes), lambda n, c, t: (n, jnp.maximum(order(t) * (s.rows // blocks) - 1, 0), c)
            ),
        )
    if bias is not None:
        operands["bias"] = bias.reshape(1, -1).astype(jnp.float32), s.of_channels(1)
    if state is not None:
        operands["state"] = s.aligned_state(state), s.of_state()
    if segment_ids is not None:
        operands["bits"] = bits_of_segments(segment_ids, s.taps, s.dilation), s.of_bits(order)
    rows = s.before + s.padded_rows
    scratch = [pltpu.VMEM((rows, LANES), jnp.float32), pltpu.VMEM((rows + s.before, LANES), jnp.float32)]
    scratch += [pltpu.VMEM((rows + s.before, LANES), jnp.int32)] * (segment_ids is not None)

    def kernel(*refs: Any) -> None:
        ref = dict(zip(operands, refs, strict=False))
        dx, dstate, parts, seen, dz, *bits = refs[len(operands) :]
        lanes, t = dx.shape[-1], pl.program_id(2)
        tile = order(t)
        valid = s.length - tile * s.rows
        zeros = jnp.zeros((s.before, lanes), jnp.float32)

        # dz holds `before` zeros, the tile's rows, and the first `before` rows of the tile that follows.
        @pl.when(t == 0)
        def _() -> None:
            dz[: s.before, :lanes] = zeros
            dz[s.before + s.rows : s.before + s.rows + s.before, :lanes] = zeros
            if bits:
                bits[0][: s.before] = jnp.zeros((s.before, LANES), jnp.int32)
                bits[0][s.before + s.rows : s.before + s.rows + s.before] = jnp.zeros((s.before, LANES), jnp.int32)

        @pl.when(t > 0)
        def _() -> None:
            for held in (dz, *bits):
                held[s.before + s.rows : s.before + s.rows + s.before] = held[s.before : 2 * s.before]

        @pl.when(tile == 0)
        def _() -> None:
            seen[: s.before, :lanes] = ref["state"][0] if state is not None else zeros

        if s.tiles > 1:

            @pl.when(tile > 0)
            def _() -> None:
                held = ref["x_before"]
                seen[: s.before, :lanes] = held[0, held.shape[1] - s.before :].astype(jnp.float32)

        copy_rows(ref["x"], seen, s.before, s.rows, lanes, valid)
        copy_rows(ref["dy"], dz, s.before, s.rows, lanes, valid)
        if bits:
            broadcast_bits(ref["bits"], bits[0], s.rows, s.before)

        def through_silu(first: Any, count: int) -> None:
            here = bits[0][pl.ds(first + s.before, count), :lanes] if bits else None
            z: Any = ref["bias"][...] if bias is not None else 0.0
            for i in range(s.taps):
                ago = s.taps - 1 - i
                z = z + tap(seen, first + s.before - ago * s.dilation, count, lanes, here, ago) * ref["w"][i : i + 1]
            at = pl.ds(first + s.before, count)
            sig = sigmoid(z, dx.dtype)
            dz[at, :lanes] = dz[at, :lanes] * (sig * (1.0 + z * (1.0 - sig)))

        def input_gradient(first: Any, count: int) -> Array:
            total: Any = 0.0
            for i in range(s.taps):
                ago = s.taps - 1 - i
                from_row = first + ago * s.dilation
                words = bits[0][pl.ds(from_row, count), :lanes] if bits else None
                total = total + tap(dz, from_row, count, lanes, words, ago) * ref["w"][i : i + 1]
            return total

        def store(first: Any, count: int) -> None:
            dx[0, pl.ds(first, count)] = input_gradient(first + s.before, count).astype(dx.dtype)

        if silu:
            s.for_chunks(through_silu)
        s.for_chunks(store)

        @pl.when(tile == 0)
        def _() -> None:
            dstate[0] = input_gradient(0, s.before)

        _kernel_gradient(s, parts, seen, dz, bits, lanes)

    return pl.pallas_call(
        kernel,
        out_shape=(
            jax.ShapeDtypeStruct(x.shape, x.dtype),
            jax.ShapeDtypeStruct((s.batch, s.before, s.channels), jnp.float32),
            jax.ShapeDtypeStruct((s.batch, s.tiles, s.taps + 1, s.channels), jnp.float32),
        ),
        grid=s.grid,
        in_specs=[spec for _, spec in operands.values()],
        out_specs=(
            s.block(order),
            s.of_state(),
            pl.BlockSpec((1, 1, s.taps + 1, s.lanes), lambda n, c, t: (n, order(t), 0, c)),
        ),
        scratch_shapes=scratch,
        compiler_params=compiler_params(2 * s.vmem, last="arbitrary"),
        interpret=interpret_mode(interpret),
        name="convjax_causal1d_gradients",
    )(*(operand for operand, _ in operands.values()))


def _kernel_gradient(s: Signal, parts: Any, seen: Any, dz: Any, bits: list[Any], lanes: int) -> None:
    """For every tap the sum of cotangent times input, and the sum of the cotangent, to `parts (1, 1, k + 1, lanes)`."""
    from jax.experimental import pallas as pl

    def chunk(first: Any, count: int, sums: tuple[Array, ...]) -> tuple[Array, ...]:
        here = bits[0][pl.ds(first + s.before, count), :lanes] if bits else None
        g = dz[pl.ds(first + s.before, count), :lanes]
        added = []
        for i in range(s.taps):
            ago = s.taps - 1 - i
            added.append(g * tap(seen, first + s.before - ago * s.dilation, count, lanes, here, ago))
        return tuple(total + fold(new) for total, new in zip(sums, (*added, g), strict=True))

    sums = (jnp.zeros((SUBLANES, lanes), jnp.float32),) * (s.taps + 1)
    sums = s.fold_chunks(chunk, sums)
    for i, total in enumerate(sums):
        parts[0, 0, i : i + 1, :] = total.sum(0, keepdims=True)


def fold(rows: Array) -> Array:
    """`(count, lanes)` to the sum of its registers, `(8, lanes)`; missing rows are zeros."""
    if missing := -rows.shape[0] % SUBLANES:
        rows = jnp.concatenate([rows, jnp.zeros((missing, rows.shape[1]), rows.dtype)])
    return rows.reshape(-1, SUBLANES, rows.shape[1]).sum(0)


def rows_before(s: Signal) -> int:
    """Rows of the block in front of a tile: a divisor of the tile's rows that holds what its outputs see."""
    return next(rows for rows in range(s.before, s.rows + 1, 16) if s.rows % rows == 0)
