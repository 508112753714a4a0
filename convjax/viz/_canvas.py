"""What pictures share: a figure to draw on, grids of images, and cells with numbers."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from convjax._core import arguments
from convjax.viz.themes import luminance

WIDTH = 9.0  # inches: 900 pixels, what a notebook shows without scrolling


class Picture(Figure):
    """A figure that Jupyter shows where it is returned, without pyplot, which would keep it and show it again."""

    def _repr_png_(self) -> bytes:
        out = io.BytesIO()
        self.savefig(out, format="png")
        return out.getvalue()


def new_figure(where: str, figure: Any, height: float, width: float = WIDTH, layout: Any = "constrained") -> Any:
    """The figure or subfigure given, or a new one of that size in inches."""
    if figure is None:
        return Picture(figsize=(width, height), layout=layout)
    if not isinstance(figure, Figure | SubFigure):
        raise TypeError(
            f"{where}: figure must be a matplotlib Figure or SubFigure, got {type(figure).__name__}. "
            "Leave it out for a new one."
        )
    return figure


def new_axes(where: str, ax: Any, height: float, width: float = WIDTH) -> Any:
    """The axes given, or those of a new figure of that size in inches."""
    if ax is None:
        return Picture(figsize=(width, height), layout="constrained").subplots()
    if not isinstance(ax, Axes):
        raise TypeError(f"{where}: ax must be matplotlib Axes, got {type(ax).__name__}. Leave it out for new ones.")
    return ax


def finish(axes: Sequence[Any]) -> None:
    """Ticks are made when they are drawn, which may be after the style has gone: give them its colours now."""
    for a in axes:
        for which in ("xtick", "ytick"):
            settings = {key: matplotlib.rcParams[f"{which}.{key}"] for key in ("color", "labelsize")}
            a.tick_params(axis=which[0], labelcolor=settings["color"], **settings)
            a.tick_params(axis=which[0], which="minor", color=settings["color"])


def read(where: str, name: str, value: Any, **shapes: str) -> np.ndarray:
    """An array of real numbers with as many axes as one of `shapes` has letters, such as `image="H W C"`."""
    array = np.asarray(arguments.array(where, name, value))
    if np.iscomplexobj(array):
        raise TypeError(f"{where}: {name} must be real, got {array.dtype}. Type jnp.abs({name}) or {name}.real.")
    array = array.astype(np.float64)
    if array.ndim not in {len(shape.split()) for shape in shapes.values()} or not array.size:
        wanted = " or ".join(f"({', '.join(shape.split())})" for shape in shapes.values())
        raise ValueError(f"{where}: {name} must be {wanted}, got shape {array.shape}. Select or reshape its axes.")
    return array


def bare(ax: Any) -> None:
    """No ticks and no frame."""
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def grid(figure: Any, rows: int, columns: int, count: int) -> np.ndarray:
    """Axes without ticks, of which the first `count`, row by row, are seen."""
    axes = figure.subplots(rows, columns, squeeze=False)
    for i, a in enumerate(axes.ravel()):
        bare(a)
        a.set_visible(i < count)
    return axes


def limits(values: np.ndarray) -> tuple[float, float]:
    """Least and largest finite value; never the same, which no colour scale can take."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def number(value: float) -> str:
    """Three digits at most; whole numbers as they are."""
    return f"{value:.0f}" if value == round(value) and abs(value) < 1e5 else f"{value:.3g}"


def cells(
    ax: Any,
    values: np.ndarray,
    colours: Any,
    low: float,
    high: float,
    *,
    text: Callable[[float], str] | None = number,
    size: float = 9,
) -> Any:
    """A matrix as squares with its numbers in them; a NaN is an empty square."""
    shown = ax.imshow(values, cmap=colours, vmin=low, vmax=high, interpolation="nearest")
    rows, columns = values.shape
    ax.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    ax.set(xticks=[], yticks=[])
    ax.tick_params(which="minor", length=0)
    ax.grid(which="minor", color=matplotlib.rcParams["axes.edgecolor"], linewidth=0.4, alpha=0.5)
    ax.spines[:].set_visible(True)
    if text is not None:
        for row, column in zip(*np.nonzero(~np.isnan(values)), strict=True):
            value = values[row, column]
            ax.text(column, row, text(value), ha="center", va="center", fontsize=size, color=over(shown, value))
    return shown


def over(shown: Any, value: float) -> str:
    """Black or white, whichever is read on the colour of `value`."""
    return "black" if luminance(shown.cmap(shown.norm(value))[:3]) > 0.45 else "white"


def columns_for(count: int, at_most: int) -> tuple[int, int]:
    """Rows and columns for so many panels."""
    columns = max(1, min(count, at_most))
    return math.ceil(count / columns), columns
