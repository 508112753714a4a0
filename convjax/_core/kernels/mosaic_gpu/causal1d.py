"""Causal depthwise convolution in time on Hopper, as state-space and linear-attention blocks have it.

    y[n, l] = silu(bias + sum_k w[k] * x[n, l - (K - 1 - k) * dilation])

with a state from the call before, and segments that do not mix. A block takes stretches of time, one a warp, each with
the inputs before it: TMA brings them, from the state in front of the first position, and each is read from shared
memory once a strip.
Cost: input and output once, and for every stretch the inputs that it looks back at.
Error: that of direct summation in float32, rounded once.
Source: Gu and Dao, Mamba, arXiv:2312.00752, section 3.4; figure 3 shows the block.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from convjax._core.dtypes import output_dtype
from convjax._core.geometry import Geometry, Work
from convjax._core.kernels.mosaic_gpu import causal1d_state, depthwise, hopper, tiles
from convjax._core.kernels.mosaic_gpu.planes import channels_to, divmod_
from convjax._core.kernels.mosaic_gpu.registers import ACTIVATIONS, ROWS, Registers, meetings
from convjax._core.spec import ConvSpec

FUSES = frozenset({"silu", "swish"})
TAPS = range(2, 17)
PREFERRED_BYTES = 76 * 1024  # of shared memory: three blocks on a multiprocessor
COLUMNS = (64, 48, 32, 24, 16, 8)  # of a stretch
STRIP, STRIP_BACK = 8, 4  # columns whose sums are in registers; backwards sums for every tap are there beside them
MASK_WORDS = tiles.COPY_BYTES // 4  # a copy of them is a multiple of this


def supports(spec: ConvSpec, lhs: Any, rhs: Any, platform: str) -> str | None:
    """None where this kernel can serve, else the reason why not, in words for a user."""
    if reason := hopper.unavailable(platform):
        return reason
    if spec.ndim != 1 or spec.batch_groups > 1 or not spec.feature_groups == lhs.shape[-1] == rhs.shape[-1]:
        return "it is for depthwise convolutions in one dimension, each channel with one output"
    reach = (rhs.shape[0] - 1) * spec.rhs_dilation[0]
    if (spec.strides, spec.lhs_dilation, spec.padding) != ((1,), (1,), ((reach, 0),)):
        return f"it is for causal convolutions: stride 1, and here the padding ({reach}, 0)"
    if output_dtype(spec, lhs.dtype) != lhs.dtype:
        return "the output has another dtype than the input"
    return refusal(rhs.shape[0], spec.rhs_dilation[0], np.dtype(lhs.dtype))


def refusal(taps: int, dilation: int, dtype: np.dtype, *, gradients: bool = False) -> str | None:
    """What of a problem is beyond `forward`, or beyond `backward` too; None where nothing is."""
    if dtype not in depthwise.DTYPES:
        return f"it computes in bfloat16, float16 and float32, not in {dtype}"
    if taps not in TAPS:
        return f"{taps} taps: it has {TAPS.start} to {TAPS.stop - 1}"
    strip = STRIP_BACK if gradients else STRIP
    if Block.of((1, 1, 1), taps, dilation, dtype, strip, gradients=gradients) is None:
        return f"it looks back {(taps - 1) * dilation} positions, more than a block's shared memory has room for"
    return None


def work(g: Geometry) -> Work:
    return Work("gpu_causal1d", g.macs, g.elements[0] + g.elements[2], 1)


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
    interpret: bool = False,
) -> Array:
    if residual is not None or activation not in (None, *FUSES):  # not part of such a block
        assert state is segment_ids is None  # `convjax._core.causal` asks for no more than a block has
        options = dict(bias=bias, residual=residual, activation=activation)
        return depthwise.run(spec, lhs, rhs, **options, interpret=interpret)  # type: ignore[arg-type]
    silu, dilation = activation is not None, spec.rhs_dilation[0]
    return convolve(lhs, rhs[:, 0], bias, state, segment_ids, silu=silu, dilation=dilation, interpret=interpret)


def forward(
    x: Array,
    w: Array,
    bias: Array | None = None,
    state: Array | None = None,
    segment_ids: Array | None = None,
    silu: bool = True,
    *,
    dilation: int = 1,
    interpret: bool = False,
) -> tuple[Array, Array]:
    """Output and state for the next call.

    Args:
      x: input `(N, L, C)` in bfloat16, float16 or float32.
      w: kernel `(K, C)`, 2 to 16 taps, the last for the present.
      bias: `(C,)`.
      state: the `(K - 1) * dilation` inputs before `x`, `(N, (K - 1) * dilation, C)`; zeros if None.
      segment_ids: `(N, L)` integers, equal in a segment.
      silu: whether the activation applies.
      dilation: positions between taps.
      interpret: on a CPU, with races detected.
    """
    y = convolve(x, w, bias, state, segment_ids, silu=silu, dilation=dilation, interpret=interpret)
    return y, causal1d_state.state_after(x, state, segment_ids, (w.shape[0] - 1) * dilation)


def convolve(
    x: Array,
    w: Array,
    bias: Array | None,
    state: Array | None,
    segment_ids: Array | None,
    *,
    silu: bool,
    dilation: int,
    interpret: bool = False,
) -> Array:
    block = Block.of(x.shape, w.shape[0], dilation, np.dtype(x.dtype), STRIP, gradients=False)
    assert block is not None  # `refusal`
    operands = operands_of(block, x, w, bias, state, segment_ids)
    given = tuple(operand is not None for operand in operands[2:])
    kernel = _kernel(block, x.dtype, given, silu, interpret)
    return kernel(*(operand for operand in operands if operand is not None))[..., : x.shape[-1]]


# --- what both directions share ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Block:
    """Four stretches of time, one a warp, of the channels that fill a cache line.

    Attributes:
      shape: of the input, its channels filled up to what TMA copies.
      columns: positions of a stretch, no fewer than the first tap looks back.
      channels: of a block.
      strip: columns whose sums are in registers.
    """

    shape: tuple[int, int, int]
    taps: int
    dilation: int
    itemsize: int
    columns: int
    channels: int
    strip: int

    @classmethod
    def of(
        cls, shape: tuple[int, ...], taps: int, dilation: int, dtype: np.dtype, strip: int, *, gradients: bool
    ) -> Block | None:
        """The longest stretches that leave room for other blocks, else the shortest; None where none fit."""
        filled = tiles.round_up(shape[2], tiles.ALIGNMENT // dtype.itemsize)
        whole = (shape[0], shape[1], filled), taps, dilation, dtype.itemsize
        fitting = []
        for columns in COLUMNS:
            block = cls(*whole, columns, tiles.LINE // dtype.itemsize, strip)
            need = block.gradient_bytes if gradients else block.forward_bytes
            if need <= PREFERRED_BYTES and columns >= block.reach:
                return block
            if need <= tiles.SHARED_BYTES and columns >= block.reach:
                fitting.append(block)
        return fitting[-1] if fitting else None

    @property
    def reach(self) -> int:
        """How far back the first tap looks."""
        return (self.taps - 1) * self.dilation

    @property
    def across(self) -> int:
        """Blocks along time."""
        return -(-self.shape[1] // (ROWS * self.columns))

    @property
    def channel_blocks(self) -> int:
        return -(-self.shape[2] // self.channels)

    @property
    def behind(self) -> int:
        """Positions behind a stretch that look back into it, in whole strips."""
        return tiles.round_up(self.reach, self.strip)

    @property
    def forward_bytes(self) -> int:
        words = tiles.round_up(self.columns, MASK_WORDS)
        return ROWS * ((self.reach + 2 * self.columns) * tiles.LINE + 4 * words) + tiles.BARRIER_BYTES

    @property
    def gradient_bytes(self) -> int:
        """Input, cotangent, and float32 for what it becomes; a sum for every tap and the bias."""
        length = self.columns + self.behind
        a_position = 2 * tiles.LINE + 4 * self.channels
        sums = 4 * (self.taps + 1) * ROWS * self.channels
        words = tiles.round_up(length, MASK_WORDS)
        return ROWS * (length * a_position + self.reach * tiles.LINE + 4 * words) + sums + tiles.BARRIER_BYTES

    def strips(self) -> list[tuple[int, list[tuple[int, int]]]]:
        return meetings(self.strip, self.taps, 1, self.dilation)


def operands_of(
    block: Block, x: Array, w: Array, bias: Array | None, state: Array | None, segment_ids: Array | None
) -> list[Array | None]:
    """Filled up to what the kernels copy: x, w, bias, state and the taps that each position meets."""
    filled, whole = block.shape[2], block.channel_blocks * block.channels
    met = None
    if segment_ids is not None:
        met = causal1d_state.taps_met(segment_ids, block.taps, block.dilation)
        met = channels_to(met, tiles.round_up(block.shape[1], tiles.ALIGNMENT // 4))
    return [
        channels_to(x, filled),
        channels_to(w, whole),
        None if bias is None else channels_to(bias, whole),
        None if state is None else channels_to(state.astype(x.dtype), filled),
        met,
    ]


def named(refs: tuple[Any, ...], given: tuple[bool, ...]) -> tuple[list[Any], tuple[Any, ...]]:
    """The references of what is given, None for the others; and the remaining ones."""
    each = iter(refs)
    return [next(each) if there else None for there in given], tuple(each)


def fetch_row(
    x: Any, state: Any, to: Any, row: Any, at: tuple[Any, Any, Any], reach: int, length: int, arrived: Any
) -> None:
    """Copy inputs `start - reach` to `start + length` into row `row` of `to`, by two copies where there is a state."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import mosaic_gpu as plgpu

    n, start, channels = at
    if state is None:
        plgpu.copy_gmem_to_smem(x.at[n, pl.ds(start - reach, reach + length), channels], to.at[row], arrived)
        return
    before = to.at[row, pl.ds(0, reach)]

    @pl.when(start == 0)
    def _() -> None:
        plgpu.copy_gmem_to_smem(state.at[n, :, channels], before, arrived)

    @pl.when(start > 0)
    def _() -> None:
        plgpu.copy_gmem_to_smem(x.at[n, pl.ds(start - reach, reach), channels], before, arrived)

    plgpu.copy_gmem_to_smem(x.at[n, pl.ds(start, length), channels], to.at[row, pl.ds(reach, length)], arrived)


def met_by(met: Array | None, tap: int, value: Array) -> Array:
    """The value where the position meets the tap, else zero."""
    return value if met is None else jnp.where((met & (1 << tap)) != 0, value, 0.0)


# --- the kernel -------------------------------------------------------------------------------------------------------


def _kernel(block: Block, dtype: Any, given: tuple[bool, ...], silu: bool, interpret: bool) -> Callable[..., Array]:
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import mosaic_gpu as plgpu

    has_bias, has_state, has_met = given
    columns, reach, strip = block.columns, block.reach, block.strip
    words = tiles.round_up(columns, MASK_WORDS)

    def body(x: Any, w: Any, *refs: Any) -> None:
        (bias, state, met), (y, inputs, outputs, words_met, arrived) = named(refs, given)
        hold = Registers(block.channels)
        index, channel_block = divmod_(lax.axis_index("block"), block.channel_blocks)
        n, across = divmod_(index, block.across)
        channels = pl.ds(channel_block * block.channels, block.channels)
        first = across * (ROWS * columns)
        for row in range(ROWS):
            start = first + row * columns
            fetch_row(x, state, inputs, row, (n, start, channels), reach, columns, arrived)
            if has_met:
                plgpu.copy_gmem_to_smem(met.at[n, pl.ds(start, words)], words_met.at[row], arrived)
        added = hold.load_row(bias.at[channels]) if has_bias else hold.zeros()
        weights = [hold.load_row(w.at[k, channels]) for k in range(block.taps)]
        plgpu.barrier_wait(arrived)

        def one(number: Any, _: None) -> None:
            at = number * strip
            sums = [added] * strip
            masks = [hold.load_column(words_met.at[:, at + c]) if has_met else None for c in range(strip)]
            for column, pairs in block.strips():
                value = hold.load(inputs.at[:, at + column])
                for c, tap in pairs:
                    sums[c] = sums[c] + met_by(masks[c], tap, value * weights[tap])
            for c, total in enumerate(sums):
                outputs[:, at + c] = (ACTIVATIONS["silu"](total) if silu else total).astype(dtype)

        lax.fori_loop(0, columns // strip, one, None)
        plgpu.commit_smem()
        for row in range(ROWS):
            plgpu.copy_smem_to_gmem(outputs.at[row], y.at[n, pl.ds(first + row * columns, columns), channels])
        plgpu.wait_smem_to_gmem(0)

    return hopper.launch(
        body,
        out_type=jax.ShapeDtypeStruct(block.shape, dtype),
        scratch_types=[
            plgpu.SMEM((ROWS, reach + columns, block.channels), dtype),
            plgpu.SMEM((ROWS, columns, block.channels), dtype),
            plgpu.SMEM((ROWS, words), jnp.int32),
            plgpu.Barrier(num_arrivals=ROWS * (1 + has_state + has_met)),
        ],
        blocks=block.shape[0] * block.across * block.channel_blocks,
        interpret=interpret,
    )
