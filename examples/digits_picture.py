"""The picture of the digits demo: what the network got right and wrong, what it learned, and how long a step takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from examples.digits_network import STAGES, Params, features

# Okabe and Ito's colours, told apart by colour-blind eyes; a wrong digit is marked by a frame and words as well.
BLUE, GREY, VERMILLION = "#0072B2", "#8c8c8c", "#D55E00"
COLUMNS = 12
FONT = {"font.size": 9, "axes.titlesize": 9, "figure.titlesize": 11}


def draw(
    path: Path, params: Params, images: np.ndarray, labels: np.ndarray, predicted: np.ndarray, ms: dict[str, float]
) -> None:
    """Write the picture to `path`, as PNG or whatever its suffix says."""
    with matplotlib.rc_context(FONT):
        figure = Figure(figsize=(11, 11), layout="constrained", dpi=110)
        parts: Any = figure.subfigures(4, 1, height_ratios=[2.5, 2.2, 4.6, 1.6], hspace=0.05)
        _digits(parts[0], images, labels, predicted)
        _kernels(parts[1], params)
        example = int(np.flatnonzero(predicted == labels)[0]) if np.any(predicted == labels) else 0
        _maps(parts[2], params, images[example], int(labels[example]))
        _times(parts[3], ms)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, pad_inches=0.15, bbox_inches="tight")


def _digits(part: SubFigure, images: np.ndarray, labels: np.ndarray, predicted: np.ndarray) -> None:
    """Two rows of held-out digits: the wrong ones first, then right ones."""
    wrong, right = np.flatnonzero(predicted != labels), np.flatnonzero(predicted == labels)
    part.suptitle(f"Held-out digits and what the network reads: {len(wrong)} of {len(labels)} wrong (framed)")
    shown = np.concatenate([wrong[:COLUMNS], right])[: 2 * COLUMNS]
    for axes, i in zip(_grid(part, 2, COLUMNS), shown, strict=False):
        _image(axes, images[i, ..., 0], "gray_r", 0, 1)
        if predicted[i] == labels[i]:
            axes.set_title(f"{predicted[i]}", pad=3)
        else:
            axes.set_title(f"{predicted[i]}, is {labels[i]}", pad=3, color=VERMILLION, fontweight="bold")
            _frame(axes, VERMILLION)


def _kernels(part: SubFigure, params: Params) -> None:
    """The first depthwise kernels, on one scale with white at zero."""
    kernels = np.asarray(params["first"]["depthwise"])[..., 0]
    part.suptitle(
        f"Learned depthwise 7x7 kernels, {2 * COLUMNS} of the first block's {kernels.shape[-1]} channels, on one scale"
    )
    limit = float(np.abs(kernels).max())
    axes = _grid(part, 2, COLUMNS)
    for channel, a in enumerate(axes):
        shown = _image(a, kernels[..., channel], "PuOr", -limit, limit)
    part.colorbar(shown, ax=axes, shrink=0.9, pad=0.01, label="weight")


def _maps(part: SubFigure, params: Params, image: np.ndarray, label: int) -> None:
    """One digit, and the first channels of what becomes of it: a row a stage, each row on its own scale."""
    stages = [np.asarray(maps)[0] for maps in jax.jit(features)(params, image[None])]
    part.suptitle(f"Feature maps: a {label} after each stage, {COLUMNS} channels (blue low, yellow high)")
    halves: Any = part.subfigures(1, 2, width_ratios=[1.8, COLUMNS])
    left, right = halves
    (whole,) = _grid(left, 1, 1)
    _image(whole, image[..., 0], "gray_r", 0, 1)
    whole.set_title("input\n8x8x1")
    axes = np.array(_grid(right, len(stages), COLUMNS)).reshape(len(stages), COLUMNS)
    for row, name, maps in zip(axes, STAGES, stages, strict=True):
        height, width, channels = maps.shape
        row[0].set_ylabel(f"{name}\n{height}x{width}x{channels}", rotation=0, ha="right", va="center", labelpad=8)
        for channel, a in enumerate(row):
            _image(a, maps[..., channel], "cividis", float(maps.min()), float(maps.max()))


def _times(part: SubFigure, ms: dict[str, float]) -> None:
    """Milliseconds of one training step, as bars from zero."""
    axes = part.subplots()
    bars = axes.barh(list(ms), list(ms.values()), color=[BLUE, GREY], height=0.6)
    axes.bar_label(bars, [f"{value:.1f} ms" for value in ms.values()], padding=4)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * max(ms.values()))
    axes.set_xlabel("milliseconds, median; shorter is better")
    axes.spines[["top", "right"]].set_visible(False)
    part.suptitle("One training step: the same network, convolutions chosen by convjax or left to lax")


def _grid(part: SubFigure, rows: int, columns: int) -> list[Axes]:
    axes = part.subplots(rows, columns, squeeze=False).ravel()
    for a in axes:
        a.set(xticks=[], yticks=[])
        a.spines[:].set_visible(False)
    return list(axes)


def _image(axes: Axes, values: np.ndarray, colours: str, low: float, high: float) -> Any:
    return axes.imshow(values, cmap=colours, vmin=low, vmax=high, interpolation="nearest")


def _frame(axes: Axes, colour: str) -> None:
    axes.spines[:].set(visible=True, color=colour, linewidth=2.5)
