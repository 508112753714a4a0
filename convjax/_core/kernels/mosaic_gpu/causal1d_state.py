"""What surrounds a causal convolution in time: inputs kept from one call to the next, and segments that do not mix.

A segment is a run of equal ids. What was kept belongs to the segment of the first position; of what is kept for the
next call, the inputs of other segments than the last are zeros. Tap `k` of `K` looks back `(K - 1 - k) * dilation`.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array


def with_state(x: Array, state: Array | None, reach: int) -> Array:
    """`x (N, L, C)` behind the `reach` inputs before it."""
    before = jnp.zeros((x.shape[0], reach, x.shape[2]), x.dtype) if state is None else state.astype(x.dtype)
    return jnp.concatenate([before, x], axis=1)


def segments_with_state(segment_ids: Array, reach: int) -> Array:
    return jnp.concatenate([jnp.repeat(segment_ids[:, :1], reach, axis=1), segment_ids], axis=1)


def taps_met(segment_ids: Array, taps: int, dilation: int) -> Array:
    """Bit `k` of each position says whether tap `k` sees its own segment; `(N, L)` int32."""
    length = segment_ids.shape[1]
    whole = segments_with_state(segment_ids, (taps - 1) * dilation)
    bits = [(whole[:, k * dilation : k * dilation + length] == segment_ids).astype(jnp.int32) << k for k in range(taps)]
    return functools.reduce(jnp.bitwise_or, bits)


def state_after(x: Array, state: Array | None, segment_ids: Array | None, reach: int) -> Array:
    """The last `reach` inputs, `(N, reach, C)`."""
    few = x[:, max(0, x.shape[1] - reach) :]
    last = few if few.shape[1] == reach else with_state(few, state, reach)[:, few.shape[1] :]
    return of_last_segment(last, segment_ids)


def of_last_segment(last: Array, segment_ids: Array | None) -> Array:
    """The last inputs, those before the last segment as zeros."""
    if segment_ids is None:
        return last
    reach = last.shape[1]
    whole = segments_with_state(segment_ids, reach)
    keep = whole[:, whole.shape[1] - reach :] == segment_ids[:, -1:]
    return jnp.where(keep[..., None], last, 0)


def direct(v: Array, w: Array, bias: Array | None, met: Array | None, silu: bool, dilation: int) -> Array:
    """The definition, for few positions: `v` is the input behind its state, the result float32."""
    taps, reach = w.shape[0], (w.shape[0] - 1) * dilation
    length = v.shape[1] - reach
    z = jnp.zeros((v.shape[0], length, v.shape[2]), jnp.float32)
    for k in range(taps):
        term = v[:, k * dilation : k * dilation + length].astype(jnp.float32) * w[k].astype(jnp.float32)
        z = z + (term if met is None else jnp.where((met[..., None] >> k) & 1 == 1, term, 0.0))
    z = z if bias is None else z + bias.astype(jnp.float32)
    return jax.nn.silu(z) if silu else z
