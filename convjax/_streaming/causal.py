"""Causal convolutions that continue: a state stands where the zeros would, or ids say whose inputs an output may see.

Both rewrite a `Problem` that `variants.causal` has read, so that everything else stays as without them. As in
causal-conv1d (`initial_states`, `seq_idx`), for any width, dilation and groups.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from convjax._core import arguments, bridge
from convjax._core.canonical import Problem
from convjax._core.primitive import convolve
from convjax._core.spec import is_zero


def reach(problem: Problem) -> int:
    """How many inputs before now a kernel sees: the zeros in front of the first input."""
    return problem.spec.padding[0][0]


def read_state(where: str, problem: Problem, state: Any) -> Array:
    """The last inputs, `(N, reach, C)`; zeros for None."""
    x = problem.lhs
    shape = (*problem.batch, reach(problem), x.shape[-1])
    if state is None:
        return jnp.zeros((x.shape[0], *shape[-2:]), x.dtype)
    state = arguments.array(where, "state", state)
    if state.shape != shape:
        taps, dilation = problem.rhs.shape[0], problem.spec.rhs_dilation[0]
        raise ValueError(
            f"{where}: state has shape {state.shape}, but {taps} taps with dilation={dilation} see {shape[-2]} inputs "
            f"before now: (*batch, (k - 1) * dilation, C) = {shape}. Type jnp.zeros({shape}, x.dtype) to begin."
        )
    if state.dtype != x.dtype:
        raise TypeError(f"{where}: state is {state.dtype} but x is {x.dtype}. Type state.astype(x.dtype).")
    return state.reshape(x.shape[0], *shape[-2:])


def advance(where: str, problem: Problem, state: Any) -> tuple[Problem, Array]:
    """The convolution that goes on from `state`, and the state after it, `(*batch, reach, C)`."""
    state, length = read_state(where, problem, state), reach(problem)
    shape = (*problem.batch, *state.shape[1:])
    if is_zero(problem.lhs.shape[1]):
        return problem, state.reshape(shape)
    seen = jnp.concatenate([state, problem.lhs], axis=1)
    after = seen[:, seen.shape[1] - length :].reshape(shape)
    return dataclasses.replace(problem, lhs=seen, spec=problem.spec.replace(padding=((0, 0),))), after


@dataclasses.dataclass(frozen=True)
class Windows(Problem):
    """Every output with a window of its own, `lhs (N * T, k, C)`: its axis of size 1 is no axis of the result."""

    @property
    def out_shape(self) -> tuple[int, ...]:
        shape = (*self.batch, self.rhs.shape[-1])
        return tuple(shape[axis] for axis in bridge.inverse(self.layout.out))

    def run(self) -> Array:
        y = convolve(self.lhs, self.rhs, self.spec).reshape(*self.batch, self.rhs.shape[-1])
        return bridge.transpose(y, bridge.inverse(self.layout.out))


def segmented(where: str, problem: Problem, segment_ids: Any) -> Windows:
    """The convolution in which an output sees those inputs that have its own id.

    Other inputs are replaced, not multiplied by zero, so that not even their NaN is seen.
    """
    x, spec = problem.lhs, problem.spec
    ids = _read_ids(where, segment_ids, (*problem.batch, x.shape[1])).reshape(x.shape[:2])
    (stride,), (dilation,), front = spec.strides, spec.rhs_dilation, reach(problem)
    own = ids[:, ::stride]
    padded, padded_ids = jnp.pad(x, ((0, 0), (front, 0), (0, 0))), jnp.pad(ids, ((0, 0), (front, 0)))
    taps = []
    for first in range(0, front + 1, dilation):
        same = lax.slice_in_dim(padded_ids, first, first + x.shape[1], stride, axis=1) == own
        seen = lax.slice_in_dim(padded, first, first + x.shape[1], stride, axis=1)
        taps.append(jnp.where(same[..., None], seen, 0))
    windows = jnp.stack(taps, axis=2).reshape(x.shape[0] * own.shape[1], len(taps), x.shape[-1])
    once = spec.replace(strides=(1,), padding=((0, 0),), rhs_dilation=(1,))
    return Windows(windows, problem.rhs, once, problem.layout, (*problem.batch, own.shape[1]))


def _read_ids(where: str, value: Any, shape: tuple[int, ...]) -> Array:
    ids = arguments.array(where, "segment_ids", value)
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(f"{where}: segment_ids must be integers, got {ids.dtype}. Type segment_ids.astype(jnp.int32).")
    if ids.shape != shape:
        raise ValueError(
            f"{where}: segment_ids has shape {ids.shape}, but x has one input for each of (*batch, T) = {shape}. Type "
            f"ids of that shape, such as jnp.broadcast_to(segment_ids, {shape})."
        )
    return ids
