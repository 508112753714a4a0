"""A walk through a jaxpr in the order in which it runs: what its arrays depend on, and what its operations are."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from jax.extend.core import Literal, jaxprs_in_params

from convjax.analysis.dependence import RULES, outputs
from convjax.analysis.modules import Path, mark_p
from convjax.analysis.operations import Operation, operation
from convjax.analysis.state import State, View, joined

# Primitives that run one jaxpr on their own operands, by the names that JAX has given them over time.
CALLS = ("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2")
CUSTOM = ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")  # derivatives

LONGEST_SCAN = 1024  # rounds that are followed one by one, where what the carry sees keeps growing


@dataclasses.dataclass(frozen=True)
class Mark:
    """A layer begins or ends here; `shapes` and `state` are those of its outputs."""

    path: Path
    kind: str
    enters: bool
    shapes: tuple[tuple[int, ...], ...]
    state: State


@dataclasses.dataclass(frozen=True)
class Step:
    """An operation, how often it runs, and what its output depends on."""

    operation: Operation
    times: int
    state: State


class Walk:
    """What is met on the way, in order, is in `events`."""

    def __init__(self) -> None:
        self.events: list[Mark | Step] = []

    def through(self, jaxpr: Any, states: Sequence[State], times: int = 1) -> list[State]:
        """What the outputs of a jaxpr depend on, where its inputs do as `states` say."""
        known: dict[Any, State] = dict(zip(jaxpr.invars, states, strict=True))
        read = lambda v: None if isinstance(v, Literal) else known.get(v)
        for equation in jaxpr.eqns:
            before = [read(v) for v in equation.invars]
            known.update(zip(equation.outvars, self._equation(equation, before, times), strict=True))
        return [read(v) for v in jaxpr.outvars]

    def _equation(self, equation: Any, states: list[State], times: int) -> list[State]:
        name, params = equation.primitive.name, equation.params
        if equation.primitive is mark_p:
            shapes = tuple(tuple(v.aval.shape) for v in equation.invars)
            self.events.append(Mark(params["path"], params["kind"], params["enters"], shapes, joined(states[:1])))
            return []
        inner = list(jaxprs_in_params(params))
        if name in (*CALLS, *CUSTOM) and len(inner) == 1 and len(inner[0].invars) == len(states):
            return self.through(inner[0], states, times)
        if name == "scan":
            return self._scan(equation, inner[0], states, times)
        if name == "cond":
            branches = [self.through(branch, states[1:], times) for branch in inner]
            mixed = [joined(after) for after in zip(*branches, strict=True)]
            chosen = _all(states[0], "the choice of a branch depends on it")
            return [joined((chosen, state)) for state in mixed]
        if inner and name not in RULES:
            unknown = _all(joined(states), f"{name} is not looked into")
            for jaxpr in inner:
                self.through(jaxpr, [unknown] * len(jaxpr.invars), times)
            return [unknown] * len(equation.outvars)
        after = outputs(equation, states)
        if found := operation(equation):
            self.events.append(Step(found, times, after[0]))
        return after

    def _scan(self, equation: Any, body: Any, states: list[State], times: int) -> list[State]:
        """Round by round, until what the carry depends on no longer changes.

        What is scanned, and what is stacked, has an axis more outside than in the body; the rest is read off from that.
        """
        length = equation.params["length"]
        carries = sum(map(_same_rank, equation.outvars, body.outvars))
        consts = sum(map(_same_rank, equation.invars, body.invars)) - carries
        fixed, carry, rows = states[:consts], states[consts : consts + carries], states[consts + carries :]
        rows = [_row(state) for state in rows]
        begin = len(self.events)
        columns: list[State] = [None] * (len(equation.outvars) - carries)
        for _ in range(min(length, LONGEST_SCAN)):
            del self.events[begin:]  # those of the last round stay
            after = self.through(body, [*fixed, *carry, *rows], times * length)
            columns = [joined(pair) for pair in zip(columns, after[carries:], strict=True)]
            settled, carry = after[:carries] == carry, after[:carries]
            if settled:
                break
        else:
            if length > LONGEST_SCAN:
                carry = [_all(state, f"a scan of {length} rounds adds to it in each") for state in carry]
                columns = [joined((column, *carry)) for column in columns]
        return [*carry, *(_column(state) for state in columns)]


def _same_rank(outside: Any, inside: Any) -> bool:
    return len(outside.aval.shape) == len(inside.aval.shape)


def _all(state: State, reason: str) -> State:
    """The same dependence, in no order."""
    return None if state is None else (reason,) * len(state)


def _row(state: State) -> State:
    """What a round sees of an array that is scanned along its first axis."""
    return _moved(state, -1)


def _column(state: State) -> State:
    """What the rounds' outputs, stacked along a new first axis, depend on."""
    return _moved(state, 1)


def _moved(state: State, by: int) -> State:
    if state is None:
        return None
    along = lambda view: view.along(view.axis + by) if view.axis + by >= 0 else "a scan runs along the axis"
    return tuple(along(e) if isinstance(e, View) else e for e in state)
