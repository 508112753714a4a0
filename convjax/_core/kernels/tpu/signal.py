"""Signals as the causal kernels take them: tiles of 128 channels and 2048 inputs, and what these see before them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

LANES, SUBLANES = 128, 8
ROWS = 2048  # inputs of a grid step: half a MiB in bfloat16, as large as what its start costs
CHUNK = 64  # outputs in registers at once: eight of them


@dataclasses.dataclass(frozen=True)
class Signal:
    """Sizes of a problem; the grid is (signal, tile of channels, tile of inputs)."""

    batch: int
    length: int
    channels: int
    taps: int
    dilation: int

    @classmethod
    def of(cls, x: Array, w: Array, dilation: int) -> Signal:
        """Of `x (N, L, C)` and `w (k, C)`."""
        return cls(x.shape[0], x.shape[1], x.shape[2], w.shape[0], dilation)

    @property
    def rows(self) -> int:
        """Inputs of a grid step."""
        return min(self.length, ROWS)

    @property
    def padded_rows(self) -> int:
        """The same, in whole registers of either dtype."""
        return -(-self.rows // 16) * 16

    @property
    def lanes(self) -> int:
        """Channels of a grid step."""
        return min(self.channels, LANES)

    @property
    def reach(self) -> int:
        """Inputs before now that an output sees."""
        return (self.taps - 1) * self.dilation

    @property
    def before(self) -> int:
        """The same, in whole registers of either dtype."""
        return -(-self.reach // 16) * 16

    @property
    def tiles(self) -> int:
        return -(-self.length // self.rows)

    @property
    def grid(self) -> tuple[int, int, int]:
        return self.batch, -(-self.channels // LANES), self.tiles

    @property
    def vmem(self) -> int:
        """Bytes, about: blocks twice and the copies, all taken as float32."""
        return 4 * LANES * (8 * self.padded_rows + 4 * self.before)

    # --- blocks ------------------------------------------------------------------------------------------------------

    def block(self, order: Callable[[Any], Any] = lambda t: t) -> Any:
        """The inputs of a grid step."""
        from jax.experimental import pallas as pl

        return pl.BlockSpec((1, self.rows, self.lanes), lambda n, c, t: (n, order(t), c))

    def of_channels(self, rows: int) -> Any:
        """What every signal and input shares, `(rows, C)`."""
        from jax.experimental import pallas as pl

        return pl.BlockSpec((rows, self.lanes), lambda n, c, t: (0, c))

    def of_state(self) -> Any:
        from jax.experimental import pallas as pl

        return pl.BlockSpec((1, self.before, self.lanes), lambda n, c, t: (n, 0, c))

    def of_bits(self, order: Callable[[Any], Any] = lambda t: t) -> Any:
        from jax.experimental import pallas as pl

        return pl.BlockSpec((1, 1, self.rows), lambda n, c, t: (n, 0, order(t)))

    def aligned_state(self, state: Array) -> Array:
        """`state (N, reach, C)` in float32, at the end of whole registers."""
        return jnp.pad(state.astype(jnp.float32), ((0, 0), (self.before - self.reach, 0), (0, 0)))

    # --- loops -------------------------------------------------------------------------------------------------------

    def for_chunks(self, body: Callable[[Any, int], None]) -> None:
        """`body(first, count)` for chunks of a grid step's inputs."""
        from jax.experimental import pallas as pl

        whole, rest = divmod(self.rows, CHUNK)
        if whole:
            jax.lax.fori_loop(0, whole, lambda i, _: body(pl.multiple_of(i * CHUNK, CHUNK), CHUNK), None)
        if rest:
            body(whole * CHUNK, rest)

    def fold_chunks(self, body: Callable[[Any, int, Any], Any], carry: Any) -> Any:
        """`carry = body(first, count, carry)` for the same chunks."""
        from jax.experimental import pallas as pl

        whole, rest = divmod(self.rows, CHUNK)
        if whole:
            turn = lambda i, carry: body(pl.multiple_of(i * CHUNK, CHUNK), CHUNK, carry)
            carry = jax.lax.fori_loop(0, whole, turn, carry)
        return body(whole * CHUNK, rest, carry) if rest else carry


def copy_rows(block: Any, scratch: Any, at: int, rows: int, lanes: int, valid: Any = None) -> None:
    """`block (1, rows, channels)` to float32 from row `at` on; zeros from the `valid`-th on."""
    from jax.experimental import pallas as pl

    def copy(first: Any, count: int) -> None:
        values = block[0, pl.ds(first, count)].astype(jnp.float32)
        if valid is not None:
            inside = first + jax.lax.broadcasted_iota(jnp.int32, values.shape, 0) < valid
            values = jnp.where(inside, values, 0.0)
        scratch[pl.ds(at + first, count), :lanes] = values

    whole, rest = divmod(rows, 4 * CHUNK)
    if whole:
        jax.lax.fori_loop(0, whole, lambda i, _: copy(pl.multiple_of(i * 4 * CHUNK, CHUNK), 4 * CHUNK), None)
    if rest:
        copy(whole * 4 * CHUNK, rest)


def tap(scratch: Any, first: Any, count: int, lanes: int, bits: Any, ago: int) -> Array:
    """`count` rows of a copy from `first` on, zeros for those whose word of `bits` lacks the bit of this tap."""
    from jax.experimental import pallas as pl

    values = scratch[pl.ds(first, count), :lanes]
    if bits is None or ago == 0:  # what is now is of its own segment
        return values
    return jnp.where((bits & (1 << ago)) != 0, values, 0.0)


# --- segments ---------------------------------------------------------------------------------------------------------


def bits_of_segments(segment_ids: Array, taps: int, dilation: int) -> Array:
    """`(N, 1, L)`: bit `i` is set where the input `i * dilation` ago is of the same segment.

    What was before the first input is of its segment.
    """
    length = segment_ids.shape[1]
    bits = jnp.zeros(segment_ids.shape, jnp.int32)
    for i in range(taps):
        ago = jnp.pad(segment_ids, ((0, 0), (min(i * dilation, length), 0)), mode="edge")[:, :length]
        bits |= jnp.where(ago == segment_ids, 1 << i, 0)
    return bits[:, None]


def broadcast_bits(block: Any, scratch: Any, rows: int, at: int = 0) -> None:
    """`block (1, 1, rows)`, a word a lane, to a word a row from row `at` on, the same on all lanes."""
    from jax.experimental import pallas as pl

    for first in range(0, rows, LANES):
        count = min(LANES, rows - first)
        words = jnp.broadcast_to(block[0, :, first : first + count], (LANES, count))
        scratch[pl.ds(at + first, count), :] = words.T
