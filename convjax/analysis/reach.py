"""Reach: which inputs along one axis each position of an array sees, as exact bounds that repeat with a period.

A convolution of stride 2 sees inputs `2 i - pad` to `2 i - pad + window - 1`: period 1, 2 inputs further each time. A
transposed one of stride 2 sees `i // 2`, about: period 2, 1 input further each time. What chains of layers see follows
by composition, what joined branches see by union, and the bounds stay exact, phase by phase, but where a dilated kernel
skips the very positions that see something. Positions beyond the border of the input count as if the input went on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from fractions import Fraction

from convjax._core.spec import ConvSpec

Bounds = tuple[int, int] | None  # first and last input that is seen; None where none is


@dataclasses.dataclass(frozen=True)
class Reach:
    """Position `i` sees inputs `bounds[i % period]`, moved by `step * (i // period)`.

    Attributes:
      step: inputs by which the bounds advance in a period; 0 where every position sees the same.
      bounds: of the positions 0, 1, ... of the first period.
    """

    step: int
    bounds: tuple[Bounds, ...]

    @property
    def period(self) -> int:
        return len(self.bounds)

    @property
    def stride(self) -> Fraction:
        """Inputs by which the bounds advance in a position, in the mean."""
        return Fraction(self.step, self.period)

    @property
    def extent(self) -> int:
        """Inputs between the bounds, both included, of the position that sees most."""
        return max((bound[1] - bound[0] + 1 for bound in self.bounds if bound), default=0)

    def at(self, position: int) -> Bounds:
        """What one position sees."""
        periods, phase = divmod(position, self.period)
        bound = self.bounds[phase]
        return None if bound is None else (bound[0] + self.step * periods, bound[1] + self.step * periods)

    def seen_by(self, first: int, last: int) -> Bounds:
        """What the positions from `first` to `last` see together.

        Phase by phase the bounds move in a line, so that the extremes are among the first and the last period.
        """
        n = last - first + 1
        ends = range(n) if n <= 2 * self.period else (*range(self.period), *range(n - self.period, n))
        return hull(self.at(first + i) for i in ends)

    def then(self, later: Reach) -> Reach:
        """The reach of an array whose positions see, by `later`, positions of one that has this reach."""
        rounds = self.period // math.gcd(self.period, later.step)
        positions = (later.at(i) for i in range(later.period * rounds))
        bounds = tuple(None if seen is None else self.seen_by(*seen) for seen in positions)
        return shortest(self.step * (later.step * rounds // self.period), bounds)

    def __or__(self, other: Reach) -> Reach:
        """What positions see by either; both must advance alike."""
        if self.stride != other.stride:
            raise ValueError(f"a reach of stride {self.stride} and one of stride {other.stride} cannot be joined")
        period = math.lcm(self.period, other.period)
        bounds = tuple(hull((self.at(i), other.at(i))) for i in range(period))
        return shortest(self.step * (period // self.period), bounds)

    def line(self) -> tuple[Fraction, Fraction, int]:
        """The least window of one size for all: `(start, stride, size)`.

        Position `i` sees nothing outside `floor(start + stride * i)` and the `size - 1` inputs after it; with a period
        of 1 it sees exactly that.
        """
        stride = self.stride
        seen = [(i, bound) for i, bound in enumerate(self.bounds) if bound]
        if not seen:
            return Fraction(0), stride, 0
        # floor(start + stride i) <= first holds as long as start stays below first - stride i + 1, and all of these
        # are multiples of 1 / denominator.
        start = min(first - stride * i for i, (first, _) in seen) + 1 - Fraction(1, stride.denominator)
        return start, stride, max(last - math.floor(start + stride * i) + 1 for i, (_, last) in seen)


IDENTITY = Reach(1, ((0, 0),))


def hull(bounds: Iterable[Bounds]) -> Bounds:
    """From the least to the greatest of them; None where none sees anything."""
    seen = [bound for bound in bounds if bound]
    return (min(first for first, _ in seen), max(last for _, last in seen)) if seen else None


def shortest(step: int, bounds: Sequence[Bounds]) -> Reach:
    """The same reach in its least period."""
    whole = Reach(step, tuple(bounds))
    for period in range(1, len(bounds)):
        if len(bounds) % period or step * period % len(bounds):
            continue
        part = Reach(step * period // len(bounds), tuple(bounds[:period]))
        if all(part.at(i) == whole.at(i) for i in range(len(bounds))):
            return part
    return whole


def everywhere(bound: Bounds) -> Reach:
    """Every position sees the same."""
    return Reach(0, (bound,))


def window(kernel: int, stride: int = 1, low: int = 0, dilation: int = 1, input_dilation: int = 1) -> Reach:
    """Of a window of `kernel` taps on one axis, which `low` zeros precede, or on one with zeros between inputs."""
    period = input_dilation // math.gcd(input_dilation, stride)
    bounds: list[Bounds] = []
    for i in range(period):
        places = (i * stride - low + tap * dilation for tap in range(kernel))
        bounds.append(hull((p // input_dilation,) * 2 for p in places if p % input_dilation == 0))
    return shortest(stride * period // input_dilation, bounds)


def windows(spec: ConvSpec, kernel: Sequence[int]) -> tuple[Reach, ...]:
    """Of a convolution, on each spatial axis."""
    return tuple(
        window(k, stride, low, dilation, input_dilation)
        for k, stride, (low, _), dilation, input_dilation in zip(
            kernel, spec.strides, spec.padding, spec.rhs_dilation, spec.lhs_dilation, strict=True
        )
    )
