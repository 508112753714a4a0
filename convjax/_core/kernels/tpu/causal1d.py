"""Causal depthwise convolution of signals on a TPU: few taps, bias and SiLU fused, a state before the first input.

A grid step takes up to 2048 inputs of 128 channels; what the next step sees of them stays in VMEM, so that every input
is read once. Where segment ids are given, an output sees the inputs that have its own id: which taps those are is a
word of bits for each position, and other inputs are replaced by zero, not multiplied by it.

Cost: one read and one write of the signal; taps x outputs multiply-adds on the vector unit.
Error: that of direct summation in float32.
Source: the operation of Dao's causal-conv1d (Gu and Dao, arXiv:2312.00752, section 3.4), with dilation.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from convjax._core.dtypes import output_dtype
from convjax._core.geometry import Geometry, Work
from convjax._core.kernels.tpu import plane
from convjax._core.kernels.tpu.blocks import compiler_params, interpret_mode
from convjax._core.kernels.tpu.finish import FUSES as FUSES
from convjax._core.kernels.tpu.finish import finish
from convjax._core.kernels.tpu.signal import LANES, Signal, bits_of_segments, broadcast_bits, copy_rows, tap
from convjax._core.spec import ConvSpec

MIN_TAPS, MAX_TAPS = 2, 16
MAX_REACH = 2048  # inputs before now that a kernel sees: those of one grid step


def supports(spec: ConvSpec, lhs: Any, rhs: Any, platform: str) -> str | None:
    """None where this kernel can serve, else the reason why not, in words for a user."""
    if reason := plane.unfit(spec, lhs, rhs, platform):
        return reason
    if spec.ndim != 1 or spec.batch_groups > 1 or rhs.shape[1] != 1 or rhs.shape[-1] != lhs.shape[-1]:
        return "the kernel is for one kernel a channel, in one dimension"
    if spec.strides != (1,):
        return f"strides {spec.strides}: the kernel makes an output for every input"
    if reason := limits(rhs.shape[0], spec.rhs_dilation[0]):
        return reason
    if spec.padding != ((before := (rhs.shape[0] - 1) * spec.rhs_dilation[0], 0),):
        return f"padding {spec.padding}: a causal one of this width is (({before}, 0),)"
    return None


def limits(taps: int, dilation: int) -> str | None:
    """Why a width or a dilation is not served, in words for a user."""
    if not MIN_TAPS <= taps <= MAX_TAPS:
        return f"{taps} taps: the kernel has {MIN_TAPS} to {MAX_TAPS}"
    if (reach := (taps - 1) * dilation) > MAX_REACH:
        return f"an output sees {reach} inputs before now: the kernel keeps {MAX_REACH}"
    return None


def work(g: Geometry) -> Work:
    return Work("tpu_causal1d", g.macs, g.elements[2], 1)


def run(
    spec: ConvSpec,
    lhs: Array,
    rhs: Array,
    *,
    bias: Array | None = None,
    residual: Array | None = None,
    activation: str | None = None,
    state: Array | None = None,
    segment_ids: Array | None = None,
    interpret: Any = False,
) -> Array:
    w, dilation, dtype = rhs.reshape(rhs.shape[0], -1), spec.rhs_dilation[0], output_dtype(spec, lhs.dtype)
    return _call(lhs, w, bias, state, segment_ids, residual, activation, dilation, dtype, interpret)


def forward(
    x: Array,
    w: Array,
    bias: Array | None = None,
    state: Array | None = None,
    segment_ids: Array | None = None,
    silu: bool = False,
    *,
    dilation: int = 1,
    interpret: Any = False,
) -> tuple[Array, Array]:
    """Convolve `x (N, L, C)` with `w (k, C)`, from `state (N, (k - 1) * dilation, C)`: output, and the state after it.

    `segment_ids (N, L)` are integers; the state, if there is one too, is of the first input's segment. Trusts shapes
    and dtypes; `limits` says which widths and dilations there are.
    """
    activation = "silu" if silu else None
    y = _call(x, w, bias, state, segment_ids, None, activation, dilation, x.dtype, interpret)
    return y, after(x, state, (w.shape[0] - 1) * dilation)


def after(x: Array, state: Array | None, reach: int) -> Array:
    """The last `reach` inputs, those before the first from `state`, or zeros."""
    if x.shape[1] < reach:
        before = jnp.zeros((x.shape[0], reach, x.shape[2]), x.dtype) if state is None else state
        x = jnp.concatenate([before, x], axis=1)
    return x[:, x.shape[1] - reach :]


def _call(
    x: Array,
    w: Array,
    bias: Array | None,
    state: Array | None,
    segment_ids: Array | None,
    residual: Array | None,
    activation: str | None,
    dilation: int,
    dtype: Any,
    interpret: Any,
) -> Array:
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    s = Signal.of(x, w, dilation)
    operands: dict[str, tuple[Array, Any]] = {"x": (x, s.block()), "w": (w.astype(jnp.float32), s.of_channels(s.taps))}
    if bias is not None:
        operands["bias"] = bias.reshape(1, -1).astype(jnp.float32), s.of_channels(1)
    if state is not None:
        operands["state"] = s.aligned_state(state), s.of_state()
    if segment_ids is not None:
        operands["bits"] = bits_of_segments(segment_ids, s.taps, dilation), s.of_bits()
    if residual is not None:
        operands["residual"] = residual, s.block()
    scratch = [pltpu.VMEM((s.before + s.padded_rows, LANES), jnp.float32)]
    scratch += [pltpu.VMEM((s.padded_rows, LANES), jnp.int32)] * (segment_ids is not None)

    def kernel(*refs: Any) -> None:
        ref = dict(zip(operands, refs, strict=False))
        out, seen, *bits = refs[len(operands) :]
        lanes = out.shape[-1]

        @pl.when(pl.program_id(2) == 0)
        def _() -> None:
            first = ref["state"][0] if state is not None else jnp.zeros((s.before, lanes), jnp.float32)
            seen[: s.before, :lanes] = first

        @pl.when(pl.program_id(2) > 0)
        def _() -> None:
            seen[: s.before, :lanes] = seen[s.rows : s.rows + s.before, :lanes]

        copy_rows(ref["x"], seen, s.before, s.rows, lanes)
        if bits:
            broadcast_bits(ref["bits"], bits[0], s.rows)

        def chunk(first: Any, count: int) -> None:
            total: Any = ref["bias"][...] if bias is not None else 0.0
            here = bits[0][pl.ds(first, count), :lanes] if bits else None
            for i in range(s.taps):
                ago = s.taps - 1 - i
                total = (
                    total + tap(seen, first + s.before - ago * dilation, count, lanes, here, ago) * ref["w"][i : i + 1]
                )
            added = ref["residual"][0, pl.ds(first, count)] if residual is not None else None
            out[0, pl.ds(first, count)] = finish(total, None, added, activation, dtype)

        s.for_chunks(chunk)

    return pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct(x.shape, dtype),
        grid=s.grid,
        in_specs=[spec for _, spec in operands.values()],
        out_specs=s.block(),
        scratch_shapes=scratch,
        compiler_params=compiler_params(s.vmem, last="arbitrary"),
        interpret=interpret_mode(interpret),
        name="convjax_causal1d",
    )(*(operand for operand, _ in operands.values()))
