"""Receptive fields: their record, and those of a chain of layers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from convjax._core import arguments
from convjax.analysis import sizes
from convjax.analysis.reach import IDENTITY, Reach, windows
from convjax.analysis.sizes import Ints, Padding

Number = int | Fraction | float


@dataclasses.dataclass(frozen=True)
class ReceptiveField:
    """The inputs that an output may depend on, along each spatial axis of the input.

    Output `i` depends on nothing but inputs `floor(start + stride * i)` to `floor(start + stride * i) + size - 1`.
    Negative positions, and those beyond the last input, are padding. The window is exact, but where outputs differ by
    phase (a network that goes down and up again): there it is the least one that holds them all.

    Attributes:
      size: inputs in the window; `math.inf` where an output sees the whole axis, see `reasons`.
      stride: inputs from the window of one output to that of the next (the jump): a Fraction where the output is finer
        than the input, 0 where all outputs have the same window.
      start: first input of the window of the first output; it may be a Fraction where the stride is one; `-math.inf`
        where the whole axis is seen.
      name: of the layer; empty for a whole network.
      reasons: for each axis what made it global, None where it is not.
      layers: fields of the layers in the order in which they run; empty for a layer.
    """

    size: tuple[Number, ...]
    stride: tuple[Number, ...]
    start: tuple[Number, ...]
    name: str = ""
    reasons: tuple[str | None, ...] = ()
    layers: tuple[ReceptiveField, ...] = dataclasses.field(default=(), repr=False)

    @property
    def padding(self) -> tuple[Number, ...]:
        """Effective padding: how far the window of the first output begins before the first input."""
        return tuple(-start for start in self.start)

    @property
    def is_global(self) -> bool:
        """Whether an output sees the whole of an axis."""
        return math.inf in self.size

    def window(self, position: Sequence[int]) -> tuple[tuple[Number, Number], ...]:
        """First and last input, along each axis, of the window of the output at `position`."""
        index = arguments.per_axis("window", "position", position, len(self.size))
        return tuple(
            (first, first + size - 1) if size != math.inf else (-math.inf, math.inf)
            for size, first in zip(self.size, map(_first, self.start, self.stride, index), strict=True)
        )

    def __str__(self) -> str:
        head = f"{self.name}: " if self.name else ""
        axes = (f"size {_told(self.size)}", f"stride {_told(self.stride)}", f"start {_told(self.start)}")
        why = "".join(f"; axis {i}: {reason}" for i, reason in enumerate(self.reasons) if reason)
        return head + ", ".join(axes) + why


def _first(start: Number, stride: Number, index: int) -> Number:
    return start if start == -math.inf else math.floor(start + stride * index)


def _told(values: Sequence[Number]) -> str:
    each = [str(v) for v in values]
    return each[0] if len(set(each)) == 1 else " x ".join(each)


def exact(value: Fraction) -> int | Fraction:
    """An int where it is one."""
    return value.numerator if value.denominator == 1 else value


@dataclasses.dataclass(frozen=True)
class Layer:
    """A convolution or a pooling in a chain, by what matters to its receptive field.

    Attributes:
      kernel, stride, padding, dilation: as `convjax.conv`, or, `transposed`, as `convjax.conv_transpose`.
      transposed: whether it enlarges.
      name: told in the records.
    """

    kernel: Ints
    stride: Ints = 1
    padding: Padding = "SAME"
    dilation: Ints = 1
    transposed: bool = False
    name: str = ""


def receptive_field_of_layers(layers: Sequence[Layer], size: Ints | None = None) -> ReceptiveField:
    """Receptive field of a chain of layers, each fed by the one before.

    Args:
      layers: in the order in which they run, at least one; ints in them are for all axes.
      size: of the input. Only where a stride above 1 meets "SAME" or "SAME_LOWER", whose padding depends on it.

    Returns:
      the field of the last layer's outputs, with those of all layers in `layers`.

    Raises:
      ValueError: no layer; `size` is needed, or a kernel does not fit it; what the layers do not agree about.
      TypeError: an entry is no `Layer`, or a number in it no integer.

    Example:
      >>> from convjax.analysis import Layer, receptive_field_of_layers
      >>> field = receptive_field_of_layers([Layer(7, 2, 3), Layer(3, 2, 1), Layer(3, dilation=2)])
      >>> field.size, field.stride, field.start
      ((27,), (4,), (-13,))

    Source: Araujo, Norris and Sim, Computing receptive fields of convolutional neural networks, Distill 2019,
      equations 2 and 3.
    """
    where = "receptive_field_of_layers"
    chain = list(layers)
    if not chain:
        raise ValueError(f"{where}: layers is empty. Type [Layer(kernel, stride, padding), ...].")
    for i, layer in enumerate(chain):
        if not isinstance(layer, Layer):
            raise TypeError(f"{where}: layers[{i}] is {layer!r}. Type Layer(kernel, stride, padding, dilation).")
    ndim = max(sizes.axes(size), *(sizes.axes(la.kernel, la.stride, la.padding, la.dilation) for la in chain), 1)
    room = None if size is None else arguments.per_axis(where, "size", size, ndim, 1)
    reaches: tuple[Reach, ...] = (IDENTITY,) * ndim
    records = []
    for i, layer in enumerate(chain):
        own, room = _reach(f"{where}: layers[{i}]", layer, ndim, room)
        reaches = tuple(before.then(after) for before, after in zip(reaches, own, strict=True))
        records.append(from_reaches(reaches, name=layer.name or f"layer {i}"))
    return dataclasses.replace(records[-1], name="", layers=tuple(records))


def _reach(where: str, layer: Layer, ndim: int, room: Any) -> tuple[tuple[Reach, ...], Any]:
    """What a layer sees of its input, and the size of its output where that of its input is known."""
    kernel = arguments.per_axis(where, "kernel", layer.kernel, ndim, 1)
    stride = arguments.per_axis(where, "stride", layer.stride, ndim, 1)
    options: dict[str, Any] = dict(stride=stride, padding=layer.padding, dilation=layer.dilation)
    depends = isinstance(layer.padding, str) and layer.padding.upper().startswith("SAME") and not layer.transposed
    if room is None and depends and max(stride) > 1:
        raise ValueError(
            f"{where}: padding={layer.padding!r} with stride {stride} depends on the size of the input. Type size=... "
            "of the network's input, or numbers for the padding."
        )
    # Without a size, one on which any kernel fits: no other padding depends on it.
    given = room if room is not None else tuple(LARGE for _ in kernel)
    spec = (sizes.backward if layer.transposed else sizes.forward)(where, given, kernel, **options)
    after = None if room is None else spec.out_space((1, *room, 1), (*kernel, 1, 1))
    return windows(spec, kernel), after


LARGE = 2**24


def from_reaches(reaches: Sequence[Reach | str], name: str = "") -> ReceptiveField:
    """The record of what each axis sees; a string is the reason why it is all of it."""
    size, stride, start = zip(*map(_window, reaches), strict=True)
    reasons = tuple(reach if isinstance(reach, str) else None for reach in reaches)
    return ReceptiveField(size, stride, start, name, reasons)


def _window(reach: Reach | str) -> tuple[Number, Number, Number]:
    """Size, stride and start."""
    if isinstance(reach, str):
        return math.inf, 0, -math.inf
    start, stride, size = reach.line()
    return size, exact(stride), exact(start)
