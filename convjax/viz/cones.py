"""The receptive field of one cell, growing layer by layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from matplotlib.figure import Figure

from convjax._core import arguments
from convjax.viz._canvas import finish, new_axes
from convjax.viz.themes import faint, ink, palette

MAX_CELLS = 2000  # inputs: beyond that a cell is thinner than a pixel

WIDTH = 0.8  # of a cell, whose neighbour is 1 away


@dataclasses.dataclass(frozen=True)
class Layer:
    """A convolution along one axis, unpadded.

    Attributes:
      kernel: taps.
      stride, dilation: as `convjax.conv`.
    """

    kernel: int
    stride: int = 1
    dilation: int = 1

    @property
    def window(self) -> int:
        """Inputs from the first tap to the last."""
        return (self.kernel - 1) * self.dilation + 1


@dataclasses.dataclass(frozen=True)
class Cone:
    """Rows of cells, the input first, and those that one cell of the last row sees.

    Attributes:
      sizes: cells of each row.
      centres: of each row's first cell, in cells of the input, and from cell to cell of it.
      seen: indices in each row.
    """

    sizes: tuple[int, ...]
    centres: tuple[tuple[float, int], ...]
    seen: tuple[tuple[int, ...], ...]

    @property
    def fields(self) -> tuple[int, ...]:
        """Size of the receptive field of a cell of each row, from its first input to its last."""
        return tuple(1 + round(2 * (first - self.centres[0][0])) for first, _ in self.centres)


def read_layers(where: str, layers: Any) -> tuple[Layer, ...]:
    """Layers from ints (the taps), (kernel, stride, dilation) or shorter, or mappings with these keys."""
    if isinstance(layers, str) or not isinstance(layers, Iterable):
        raise TypeError(f"{where}: layers must be a list, got {layers!r}. Type e.g. [3, (3, 2), (3, 1, 2)].")
    names = [field.name for field in dataclasses.fields(Layer)]
    result = []
    for i, entry in enumerate(layers):
        if isinstance(entry, Mapping):
            for key in entry:
                arguments.choice(where, f"a key of layers[{i}]", key, names)
            given = {"kernel": 1, **entry}
        else:
            sizes = tuple(entry) if isinstance(entry, list | tuple) else (entry,)
            if not 1 <= len(sizes) <= len(names):
                raise ValueError(
                    f"{where}: layers[{i}]={entry!r} must be (kernel, stride, dilation), or less. Type (3, 1, 1)."
                )
            given = dict(zip(names, sizes, strict=False))
        read = {name: arguments.integer(where, f"layers[{i}].{name}", v, minimum=1) for name, v in given.items()}
        result.append(Layer(**read))
    if not result:
        raise ValueError(f"{where}: layers is empty. Type at least one, e.g. [3].")
    return tuple(result)


def cone_of(where: str, layers: Any, cell: Any, cells: Any) -> tuple[tuple[Layer, ...], Cone]:
    """The rows below `cells` outputs, and what output number `cell` (the middle one if None) sees."""
    layers = read_layers(where, layers)
    cells = arguments.integer(where, "cells", cells, minimum=1)
    cell = (cells - 1) // 2 if cell is None else arguments.integer(where, "cell", cell, minimum=0)
    if cell >= cells:
        raise ValueError(f"{where}: cell={cell}, but the last layer has {cells} cells. Type one from 0 to {cells - 1}.")
    sizes, seen = [cells], [(cell,)]
    for layer in reversed(layers):
        sizes.append((sizes[-1] - 1) * layer.stride + layer.window)
        if sizes[-1] > MAX_CELLS:
            raise ValueError(
                f"{where}: {cells} outputs of these layers take {sizes[-1]} inputs or more, too many to draw "
                f"(at most {MAX_CELLS}). Type fewer cells or layers."
            )
        below = {i * layer.stride + tap * layer.dilation for i in seen[-1] for tap in range(layer.kernel)}
        seen.append(tuple(sorted(below)))
    centres = [(0.0, 1)]
    for layer in layers:
        first, jump = centres[-1]
        centres.append((first + jump * (layer.window - 1) / 2, jump * layer.stride))
    return layers, Cone(tuple(sizes[::-1]), tuple(centres), tuple(seen[::-1]))


def receptive_cone(layers: Any, *, cell: int | None = None, cells: int = 5, ax: Any = None) -> Figure:
    """Draw stacked layers in cross section, and all that one cell of the last sees.

    Each row is a layer, the input at the bottom; lines lead from a cell to its taps. Beside each row stands the
    receptive field of its cells, in inputs from the first to the last, those between the taps of a dilated kernel
    included.

    Args:
      layers: for each layer, from the input on, its taps, or (kernel, stride, dilation), or a mapping with these keys.
      cell: the one of the last layer; the middle one if None.
      cells: of the last layer; layers are unpadded, so that the ones below have more.
      ax: matplotlib axes to draw on; new ones if None.

    Returns:
      the figure.

    Raises:
      ValueError, TypeError: a size below 1 or no integer, no layer, no such cell, more than 2000 inputs.

    Example:
      >>> from convjax import viz
      >>> ax = viz.receptive_cone([3, (3, 2), (3, 1, 2)]).axes[0]
      >>> [text.get_text() for text in ax.texts][-1]
      'sees 13 inputs'

    Source: Araujo, Norris and Sim, Computing receptive fields of convolutional neural networks, Distill, 2019.
    """
    read, cone = cone_of("receptive_cone", layers, cell, cells)
    ax = new_axes("receptive_cone", ax, 1.4 + 0.75 * len(read))
    accent, other = palette()[:2]
    for row, (size, (first, jump), seen) in enumerate(zip(cone.sizes, cone.centres, cone.seen, strict=True)):
        chosen = set(seen)
        for is_seen, colour in ((False, faint()), (True, other if row == len(read) else accent)):
            places = [first + jump * i - WIDTH / 2 for i in range(size) if (i in chosen) == is_seen]
            ax.broken_barh([(place, WIDTH) for place in places], (row - 0.13, 0.26), facecolor=colour, zorder=3)
    for row, layer in enumerate(read, start=1):
        (first, jump), (below, step) = cone.centres[row], cone.centres[row - 1]
        lines = [(i, i * layer.stride + tap * layer.dilation) for i in cone.seen[row] for tap in range(layer.kernel)]
        xs = [[first + jump * i for i, _ in lines], [below + step * i for _, i in lines]]
        sees = f"sees {cone.fields[row]} input{'s' * (cone.fields[row] > 1)}"
        ax.text(1.01, row, sees, va="center", transform=ax.get_yaxis_transform())
        ax.plot(xs, [[row - 0.13] * len(lines), [row - 0.87] * len(lines)], color=ink(), linewidth=0.7, alpha=0.5)
    ax.set_yticks(range(len(read) + 1), ["input", *(_label(i, layer) for i, layer in enumerate(read, start=1))])
    ax.set_xlim(-1, cone.sizes[0])
    ax.set_xlabel("input cell")
    ax.tick_params(axis="y", length=0)
    ax.spines[["left", "top", "right"]].set_visible(False)
    ax.xaxis.get_major_locator().set_params(integer=True)
    finish([ax])
    return ax.figure


def _label(number: int, layer: Layer) -> str:
    extra = [f"{name} {value}" for name, value in (("stride", layer.stride), ("dilation", layer.dilation)) if value > 1]
    return f"layer {number}: {layer.kernel} tap{'s' * (layer.kernel > 1)}" + "\n" * bool(extra) + ", ".join(extra)
