"""How each operation of a jaxpr carries on what its operands depend on: one rule a primitive.

A rule says what becomes of one operand's `View` of one axis of the input; what several operands show is joined
(`convjax.analysis.state`). An operation that has no rule makes the axis global: never wrong, at times too large.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

from jax.extend.core import Literal

from convjax.analysis.operations import CONVOLUTIONS, POOLS, convolution
from convjax.analysis.reach import Reach, shortest, window, windows
from convjax.analysis.state import Entry, State, View, join, joined

Rule = Callable[[Any, int, View], Entry]  # equation, operand, what it shows along one of its axes


def shift(by: int, step: int = 1) -> Reach:
    """Position `i` is position `by + step * i` of what it is taken from."""
    return Reach(step, ((by, by),))


def outputs(equation: Any, states: Sequence[State]) -> list[State]:
    """What the outputs of an equation depend on, from what its operands do."""
    if all(state is None for state in states):
        return [None] * len(equation.outvars)
    name = equation.primitive.name
    if name == "concatenate":
        return [concatenate(equation, states)]
    if name == "split":
        return split(equation, states)
    rule = RULES.get(name, _unknown)
    after = [
        None if state is None else tuple(rule(equation, i, e) if isinstance(e, View) else e for e in state)
        for i, state in enumerate(states)
    ]
    if name in SIDE_BY_SIDE:  # output i is operand i
        return after
    return [joined(after)] * len(equation.outvars)


def shape(equation: Any, operand: int) -> tuple[int, ...]:
    return tuple(equation.invars[operand].aval.shape)


def out_shape(equation: Any) -> tuple[int, ...]:
    return tuple(equation.outvars[0].aval.shape)


# --- rules ------------------------------------------------------------------------------------------------------------


def _unknown(equation: Any, operand: int, view: View) -> Entry:
    return f"{equation.primitive.name} may mix all places"


def _elementwise(equation: Any, operand: int, view: View) -> Entry:
    """An axis of size 1 may stand for a longer one."""
    return view if shape(equation, operand)[view.axis] == out_shape(equation)[view.axis] else view.only()


def _same(equation: Any, operand: int, view: View) -> Entry:
    return view


def _convolution(equation: Any, operand: int, view: View) -> Entry:
    if operand == 1:
        return "a kernel that is computed from the input is convolved with"
    g, to_lhs, to_out = convolution(equation)
    place = to_lhs.index(view.axis)
    if place == len(to_lhs) - 1:
        return "a convolution takes the axis for its channels"
    if place == 0:
        return view.along(to_out[0]) if g.spec.batch_groups == 1 else "batch groups split the axis"
    return view.along(to_out[place], windows(g.spec, g.kernel)[place - 1])


def _reduce_window(equation: Any, operand: int, view: View) -> Entry:
    p, axis = equation.params, view.axis
    n = len(shape(equation, operand))
    between, within = (p.get(key) or (1,) * n for key in ("base_dilation", "window_dilation"))
    size, stride, (low, _) = (p[k][axis] for k in ("window_dimensions", "window_strides", "padding"))
    return view.along(axis, window(size, stride, low, within[axis], between[axis]))


def _reduce(equation: Any, operand: int, view: View) -> Entry:
    axes = equation.params["axes"]
    if view.axis not in axes:
        return view.along(_without(view.axis, axes))
    if shape(equation, operand)[view.axis] == 1:
        return view.only()
    hint = " (batch norm: by its statistics in training, by stored ones in model.eval())"
    return f"{equation.primitive.name} takes all places{hint if 0 in axes else ''}"


def _without(axis: int, gone: Sequence[int]) -> int:
    """Number of an axis after others have gone."""
    return axis - sum(a < axis for a in gone)


def _one_axis(key: str) -> Rule:
    """Of an operation that mixes places along one axis, which the parameter `key` names."""

    def rule(equation: Any, operand: int, view: View) -> Entry:
        return _unknown(equation, operand, view) if equation.params[key] == view.axis else view

    return rule


def _dot(equation: Any, operand: int, view: View) -> Entry:
    contracting, batch = equation.params["dimension_numbers"]
    mine, shared = contracting[operand], batch[operand]
    if view.axis in mine:
        if shape(equation, operand)[view.axis] == 1:
            return view.only()
        return "dot_general takes all places: a dense layer over space, attention, or an interpolation"
    if view.axis in shared:
        return view.along(list(shared).index(view.axis))
    free = _without(view.axis, (*mine, *shared))
    before = len(shape(equation, 0)) - len(contracting[0]) - len(batch[0]) if operand else 0
    return view.along(len(shared) + before + free)


def _broadcast(equation: Any, operand: int, view: View) -> Entry:
    axis = equation.params["broadcast_dimensions"][view.axis]
    if shape(equation, 0)[view.axis] != out_shape(equation)[axis]:
        return view.only()
    return view.along(axis)


def _squeeze(equation: Any, operand: int, view: View) -> Entry:
    gone = equation.params["dimensions"]
    return view.only() if view.axis in gone else view.along(_without(view.axis, gone))


def _transpose(equation: Any, operand: int, view: View) -> Entry:
    return view.along(list(equation.params["permutation"]).index(view.axis))


def _reverse(equation: Any, operand: int, view: View) -> Entry:
    if view.axis not in equation.params["dimensions"]:
        return view
    return view.along(view.axis, shift(shape(equation, 0)[view.axis] - 1, -1))


def _slice(equation: Any, operand: int, view: View) -> Entry:
    start, steps = equation.params["start_indices"][view.axis], equation.params["strides"]
    return view.along(view.axis, shift(start, steps[view.axis] if steps else 1))


def _dynamic_slice(equation: Any, operand: int, view: View) -> Entry:
    size, count = shape(equation, 0)[view.axis], equation.params["slice_sizes"][view.axis]
    start = equation.invars[1 + view.axis]
    if count == size:
        return view
    if isinstance(start, Literal):
        return view.along(view.axis, shift(min(max(int(start.val), 0), size - count)))
    return "dynamic_slice takes a place that is known only when the program runs"


def _dynamic_update_slice(equation: Any, operand: int, view: View) -> Entry:
    whole = operand == 0 or shape(equation, 1)[view.axis] == shape(equation, 0)[view.axis]
    return view if whole else "dynamic_update_slice writes a part of the axis"


def _gather(equation: Any, operand: int, view: View) -> Entry:
    numbers, counts = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    if operand:  # an index, as into a table of embeddings, stands where what it takes will stand
        own = [i for i in range(len(out_shape(equation))) if i not in numbers.offset_dims]
        return view.along(own[view.axis]) if view.axis < len(own) else view.only()
    if view.axis in gone or counts[view.axis] != shape(equation, 0)[view.axis]:
        return "gather takes places by index"
    return view.along(numbers.offset_dims[_without(view.axis, gone)])


def _pad(equation: Any, operand: int, view: View) -> Entry:
    low, _, between = equation.params["padding_config"][view.axis]
    return view.along(view.axis, window(1, 1, low, 1, between + 1))


def _reshape(equation: Any, operand: int, view: View) -> Entry:
    """An axis that is split or merged is found along the outermost axis that it becomes a part of.

    Position `i` there holds `inner` elements in a row, as many as the axes after it have; each place of the old axis
    held `old`. With another axis outside the old one, places come round again: nothing along a line.
    """
    before, after, axis = shape(equation, 0), out_shape(equation), view.axis
    if equation.params.get("dimensions") is not None or 0 in before:
        return _unknown(equation, operand, view)
    outer = math.prod(before[:axis])
    starts = [new for new, size in enumerate(after) if math.prod(after[:new]) == outer]
    if before[axis] == 1:  # one of several such axes in a row stays where it is in the row
        ones = [new for new in starts if after[new] == 1]
        nth = sum(before[i] == 1 and math.prod(before[:i]) == outer for i in range(axis))
        return view.along(ones[nth]) if nth < len(ones) else view.only()
    for new in starts:
        if after[new] > 1:
            old, inner = math.prod(before[axis + 1 :]), math.prod(after[new + 1 :])
            period = old // math.gcd(old, inner)
            bounds = tuple((i * inner // old, (i * inner + inner - 1) // old) for i in range(period))
            return view.along(new, shortest(inner * period // old, bounds))
    return "reshape merges the axis into another"


def concatenate(equation: Any, states: Sequence[State]) -> State:
    """Along an axis of the input, one part is the signal and shorter ones its continuation beyond the border.

    So do paddings of other kinds than zeros, and rolls. The others may not see more than it does at a place, or what
    stands there would not be a continuation, and places are told apart.
    """
    dimension = equation.params["dimension"]
    lengths = [shape(equation, i)[dimension] for i in range(len(states))]
    offsets = [sum(lengths[:i]) for i in range(len(lengths))]
    parts = [i for i, state in enumerate(states) if state is not None and lengths[i]]
    result: list[Entry] = []
    for entries in zip(*(states[i] or () for i in parts), strict=True):
        own = {i: e for i, e in zip(parts, entries, strict=True) if isinstance(e, View) and e.axis == dimension}
        if not own:
            result.append(reduce(join, entries))
            continue
        longest = max(own, key=lengths.__getitem__)
        main = own[longest]
        others = [(i, e) for i, e in zip(parts, entries, strict=True) if i != longest]
        if any(isinstance(e, str) or e.reach.extent > main.reach.extent for _, e in others):
            result.append("concatenate puts different things side by side")
        elif any(lengths[i] >= lengths[longest] for i, _ in others):
            result.append("concatenate repeats the axis")
        else:
            result.append(main.along(dimension, shift(-offsets[longest])))
    return tuple(result) if parts else None


def split(equation: Any, states: Sequence[State]) -> list[State]:
    """The parts of an axis, each with its own first place."""
    (state,), axis, sizes = states, equation.params["axis"], equation.params["sizes"]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    move = lambda e, s: e.along(axis, shift(s)) if isinstance(e, View) and e.axis == axis else e
    return [tuple(move(e, start) for e in state or ()) for start in starts]


ELEMENTWISE = """
    abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp clz complex conj
    convert_element_type copy copy_p cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igammac
    imag integer_pow is_finite le lgamma log log1p logistic lt max min mul ne neg nextafter not or polygamma
    population_count pow real reduce_precision regularized_incomplete_beta rem round rsqrt select_n shift_left
    shift_right_arithmetic shift_right_logical sharding_constraint sign sin sinh sqrt square stop_gradient sub tan tanh
    xor zeta pvary pcast
"""
SIDE_BY_SIDE = ("optimization_barrier", "device_put")

RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE.split(), _elementwise),
    **dict.fromkeys(SIDE_BY_SIDE, _same),
    **dict.fromkeys(CONVOLUTIONS, _convolution),
    **dict.fromkeys(POOLS, _reduce_window),
    **dict.fromkeys((f"reduce_{kind}" for kind in ("sum", "max", "min", "prod", "and", "or", "xor")), _reduce),
    **dict.fromkeys(("argmax", "argmin"), _reduce),
    **dict.fromkeys((f"cum{kind}" for kind in ("sum", "prod", "max", "min", "logsumexp")), _one_axis("axis")),
    "sort": _one_axis("dimension"),
    "dot_general": _dot,
    "broadcast_in_dim": _broadcast,
    "squeeze": _squeeze,
    "transpose": _transpose,
    "rev": _reverse,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "gather": _gather,
    "pad": _pad,
    "reshape": _reshape,
}
