"""What an array depends on: for each axis of the input, how it shows along the array's own axes.

A `View` where places of the input lie along an axis of the array; `Fixed` where every position sees the same few of
them; a string, the reason in words for a user, where each position may depend on the whole axis.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from functools import reduce

from convjax.analysis.reach import Bounds, Reach, everywhere, hull


@dataclasses.dataclass(frozen=True)
class View:
    """Positions along `axis` see the input by `reach`."""

    axis: int
    reach: Reach

    def along(self, axis: int, later: Reach | None = None) -> View:
        """On another axis, each position of which sees, by `later`, positions of this one."""
        return View(axis, self.reach if later is None else self.reach.then(later))

    def only(self) -> Fixed:
        """Of an axis of size 1 that ends: its only position, which all others then see."""
        return Fixed(self.reach.at(0))


@dataclasses.dataclass(frozen=True)
class Fixed:
    """Every position sees the inputs within the same bounds."""

    bound: Bounds

    @property
    def reach(self) -> Reach:
        return everywhere(self.bound)


Entry = View | Fixed | str
State = tuple[Entry, ...] | None  # None: does not depend on the input at all


def join(a: Entry, b: Entry) -> Entry:
    """What a position sees by either."""
    if isinstance(a, str) or isinstance(b, str):
        return a if isinstance(a, str) else b
    if isinstance(a, Fixed) and isinstance(b, Fixed):
        return Fixed(hull((a.bound, b.bound)))
    if isinstance(a, Fixed) or isinstance(b, Fixed) or a.axis != b.axis:
        return "values along the axis meet values of fixed places on it, or those of all places meet each other"
    if a.reach.stride != b.reach.stride:
        return f"branches with strides {a.reach.stride} and {b.reach.stride} meet"
    return View(a.axis, a.reach | b.reach)


def joined(states: Iterable[State]) -> State:
    """What an array depends on that is made from several, position by position."""
    found = [state for state in states if state is not None]
    return tuple(reduce(join, entries) for entries in zip(*found, strict=True)) if found else None
