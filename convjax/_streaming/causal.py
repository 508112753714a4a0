"""Causal convolutions that continue: a state stands where the zeros would, or ids say whose inputs an output may see.

Both rewrite a `Problem` that `variants.causal` has read, so that everything else stays as without them. As in
causal-conv1d (`initial_states`, `seq_idx`), for any width, dilation and groups. Only where a kernel is asked for that
takes them itself, or was measured to be fastest here, they are handed to it (`convjax._core.causal`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from convjax._core import arguments, bridge, epilogue, fused, tuning
from convjax._core.canonical import Problem
from convjax._core.causal import causal, of_segments
from convjax._core.choose import choose
from convjax._core.kernels import CAUSAL
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


def extend(
    where: str, problem: Problem, *, state: Any = None, return_state: bool = False, segment_ids: Any = None
) -> tuple[Problem, Array | None]:
    """The convolution with what it goes on from, or whose inputs it may see; and the state after it where there is one.

    Raises:
      ValueError, TypeError: `state` or `segment_ids` does not fit, or both are there.
    """
    continues = return_state or state is not None
    if segment_ids is not None:
        if continues:
            raise ValueError(
                f"{where}: segment_ids together with state or return_state: the segment of the inputs in a state is "
                "not known. Leave one of them out."
            )
        return segmented(where, problem, segment_ids), None
    if continues:
        return advance(where, problem, state)
    return (Fused(**vars(problem)) if _is_named(problem) else problem), None


def advance(where: str, problem: Problem, state: Any) -> tuple[Problem, Array]:
    """The convolution that goes on from `state`, and the state after it, `(*batch, reach, C)`."""
    given, length = read_state(where, problem, state), reach(problem)
    shape = (*problem.batch, *given.shape[1:])
    if is_zero(problem.lhs.shape[1]):
        return problem, given.reshape(shape)
    seen = jnp.concatenate([given, problem.lhs], axis=1)
    after = seen[:, seen.shape[1] - length :].reshape(shape)
    if _is_for_a_kernel(problem):
        return Fused(**vars(problem), state=None if state is None else given), after
    return dataclasses.replace(problem, lhs=seen, spec=problem.spec.replace(padding=((0, 0),))), after


@dataclasses.dataclass(frozen=True)
class Fused(Problem):
    """What a kernel may take in one pass; without a state and ids it begins with zeros."""

    state: Array | None = None
    segment_ids: Array | None = None

    def run(self, bias: Array | None = None, *, silu: bool = False) -> Array:
        bias = None if bias is None else bias.reshape(-1)
        given = dict(bias=bias, state=self.state, segment_ids=self.segment_ids)
        return self.layout.restore(causal(self.lhs, self.rhs, self.spec, silu=silu, **given), self.batch)


def run(problem: Problem, bias: Array | None, residual: Array | None, activation: Callable | None) -> Array:
    """The convolution and its epilogue; a bias, then SiLU, go with it into a kernel, what else there is follows."""
    if not isinstance(problem, Fused):
        return fused.run(problem, bias, residual, activation)
    silu = activation is epilogue.ACTIVATIONS["silu"]
    if residual is None and (silu or activation is None):
        return problem.run(bias, silu=silu)
    if problem.state is None and problem.segment_ids is None:  # a kernel may fuse more into a convolution alone
        plain = Problem(problem.lhs, problem.rhs, problem.spec, problem.layout, problem.batch)
        return fused.run(plain, bias, residual, activation)
    return epilogue.apply(problem.run(bias), None, residual, activation)


def _is_named(problem: Problem) -> bool:
    return problem.spec.algorithms[0].rstrip("?") in CAUSAL


def _is_for_a_kernel(problem: Problem) -> bool:
    """Whether one is named, or was measured to be the fastest for the signal without its state."""
    platform = tuning.lowering_platform()
    if _is_named(problem) or problem.spec.algorithms[0] != "auto" or platform == "cpu":
        return _is_named(problem)
    with tuning.reading():
        return choose(problem.spec, problem.lhs, problem.rhs, platform) in CAUSAL


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


def segmented(where: str, problem: Problem, segment_ids: Any) -> Problem:
    """The convolution in which an output sees those inputs that have its own id, and not even the NaN of others."""
    x = problem.lhs
    ids = _read_ids(where, segment_ids, (*problem.batch, x.shape[1])).reshape(x.shape[:2])
    if _is_for_a_kernel(problem):
        return Fused(**vars(problem), segment_ids=ids)
    windows, once = of_segments(x, ids, problem.rhs.shape[0], problem.spec)
    count, length, *window = windows.shape
    batch = (*problem.batch, length)
    return Windows(windows.reshape(count * length, *window), problem.rhs, once, problem.layout, batch)


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
