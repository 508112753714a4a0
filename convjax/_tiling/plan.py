"""Which tiles of one axis give all of the outputs, each from inputs that it has."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

from convjax._core import arguments
from convjax._tiling.growth import Growth


@dataclasses.dataclass(frozen=True)
class Reach:
    """Output j sees inputs from `j * stride + start`, up to, but without, `j * stride + end`; the stride may be unsaid.

    An int says the size alone. Where in its field an output lies depends on the padding of every layer, but input
    `j * stride` is in it, so that all else is less than the size away.
    """

    start: Fraction
    end: Fraction
    stride: Fraction | None

    @classmethod
    def of_size(cls, size: int) -> Reach:
        return cls(Fraction(1 - size), Fraction(size), None)


@dataclasses.dataclass(frozen=True)
class Tile:
    """Along one axis: what is read of the image, where results go, and which of its `outputs` results a tile takes.

    All are half-open intervals.
    """

    read: tuple[int, int]
    write: tuple[int, int]
    take: tuple[int, int]
    outputs: int


def read_field(where: str, value: Any, ndim: int) -> list[Reach]:
    """The receptive field along each of the image's spatial axes, of which there are `ndim` unless `value` says so."""
    if not all(hasattr(value, name) for name in ("size", "stride", "start")):
        given = value if isinstance(value, Iterable) and not isinstance(value, str) else (value,) * ndim
        return [
            Reach.of_size(arguments.integer(where, f"receptive_field[{i}]", v, minimum=1)) for i, v in enumerate(given)
        ]
    each: list[list[Fraction]] = []
    for name in ("size", "stride", "start"):
        field = getattr(value, name)
        each.append([_number(where, name, v) for v in (field if isinstance(field, Iterable) else (field,) * ndim)])
    if len({len(field) for field in each}) != 1:
        raise ValueError(
            f"{where}: receptive_field has {len(each[0])} sizes, {len(each[1])} strides and {len(each[2])} starts. "
            "Type one of each for every spatial axis."
        )
    return [Reach(start, start + size, stride) for size, stride, start in zip(*each, strict=True)]


def _number(where: str, name: str, value: Any) -> Fraction:
    try:
        return Fraction(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(
            f"{where}: receptive_field.{name} holds {value!r}, which is no finite number. Tiles are for functions "
            "whose outputs see a bounded part of the image; type its size."
        ) from None


def whole(size: int, outputs: int) -> list[Tile]:
    """An axis that fits."""
    return [Tile((0, size), (0, outputs), (0, outputs), outputs)]


def cut(where: str, axis: int, size: int, outputs: int, tile: int, growth: Growth, reach: Reach) -> list[Tile]:
    """Tiles of one length, at most `tile`, that begin at multiples of the period.

    The length differs from `size` by a multiple of the period too, so that the last tile ends where the image does, and
    that padding which depends on the size is the same in all. The image's own ends are kept; of what a tile gives at
    an end inside the image only that is taken whose inputs it has.
    """
    period, stride = growth.period, growth.stride
    if reach.stride not in (None, stride):
        raise ValueError(
            f"{where}: receptive_field says a stride of {reach.stride} along spatial axis {axis}, but fn gives "
            f"{growth.outputs} more outputs for {period} more inputs. Type a receptive_field of stride {stride}."
        )

    def given(length: int) -> int:
        """Outputs of a tile."""
        return outputs - int((size - length) / stride)

    def end(low: int, length: int) -> int:
        """The first output from which on a tile lacks inputs."""
        return min(math.floor((low + length - reach.end) / stride) + 1, int(low / stride) + given(length))

    def following(low: int, length: int) -> int:
        """Where the tile after that at `low` begins."""
        return math.floor((end(low, length) * stride + min(reach.start, Fraction(0))) / period) * period

    length = size - -(-(size - tile) // period) * period
    if length < 1 or following(0, length) < period:
        enough = next((n for n in range(size % period or period, size, period) if following(0, n) >= period), size)
        raise ValueError(
            f"{where}: a tile of {tile} along spatial axis {axis} is too small: an output sees inputs from "
            f"{reach.start} to {reach.end - 1} of its own place, and tiles begin at multiples of {period}. Type a tile "
            f"of {enough} or more."
        )
    tiles, low, done = [], 0, 0
    while low + length < size:
        first, last = int(low / stride), end(low, length)
        tiles.append(Tile((low, low + length), (done, last), (done - first, last - first), given(length)))
        done, low = last, min(following(low, length), size - length)
    first = int(low / stride)
    return [*tiles, Tile((low, size), (done, outputs), (done - first, outputs - first), given(length))]
