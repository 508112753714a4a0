"""Kernels, and the feature maps that they give, side by side on one scale."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Num
from matplotlib.figure import Figure

from convjax._core import arguments
from convjax.viz._canvas import WIDTH, columns_for, finish, grid, limits, new_figure, read
from convjax.viz.themes import signed

NUMBERED = 16  # rows and taps that still have a number each


def kernels(w: Num[Any, "*k i o"], *, columns: int = 8, limit: int = 32, figure: Any = None) -> Figure:
    """Draw the kernels of a layer on one scale, whose middle is zero.

    With several input channels there is a row for each output and a column for each input; with one, as in a depthwise
    layer, kernels follow each other row by row. 1-D kernels are the rows of one picture.

    Args:
      w: `(k, I, O)` or `(k_h, k_w, I, O)`, the last two as `convjax.conv` takes them.
      columns: kernels side by side at most; further input channels are left out.
      limit: output channels drawn at most; the title says how many there are.
      figure: a matplotlib figure or subfigure to draw on; a new one if None.

    Returns:
      the figure.

    Raises:
      ValueError: `w` has another number of axes, `columns` or `limit` is below 1. TypeError: `w` is complex.

    Example:
      >>> import jax.numpy as jnp
      >>> from convjax import viz
      >>> figure = viz.kernels(jnp.ones((3, 3, 1, 4)))
      >>> len(figure.axes)  # four kernels and the scale
      5

    Source: Zeiler and Fergus, Visualizing and understanding convolutional networks, arXiv:1311.2901.
    """
    where = "kernels"
    values = read(where, "w", w, one="k I O", two="k_h k_w I O")
    columns = arguments.integer(where, "columns", columns, minimum=1)
    limit = arguments.integer(where, "limit", limit, minimum=1)
    inputs, outputs = values.shape[-2:]
    shown = values[..., :columns, :limit]
    size = " x ".join(map(str, values.shape[:-2])) + (" taps" if values.ndim == 3 else "")
    title = f"Kernels of {size}, input channels: {inputs}, output channels: {outputs}"
    if shown.size < values.size:
        title += f"; shown: {shown.shape[-2]} and {shown.shape[-1]}"
    in_order = np.moveaxis(shown, (-1, -2), (0, 1)).reshape(-1, *values.shape[:-2])
    largest = float(np.abs(values[np.isfinite(values)]).max(initial=0)) or 1.0
    scale = dict(cmap=signed(), vmin=-largest, vmax=largest, interpolation="nearest")
    if values.ndim == 3:
        return _rows(where, figure, in_order, title, scale)
    return _squares(where, figure, in_order, columns if inputs == 1 else shown.shape[-2], inputs > 1, title, scale)


def _rows(where: str, figure: Any, kernels: np.ndarray, title: str, scale: dict[str, Any]) -> Figure:
    """1-D kernels, one below the other."""
    count, taps = kernels.shape
    figure = new_figure(where, figure, min(8.0, 1.4 + 0.3 * count))
    ax = figure.subplots()
    image = ax.imshow(kernels, aspect="auto", **scale)
    ax.set(xlabel="tap", ylabel="kernel, input by input", title=title)
    if taps <= NUMBERED:
        ax.set_xticks(range(taps))
    if count <= NUMBERED:
        ax.set_yticks(range(count))
    figure.colorbar(image, ax=ax, label="weight")
    finish(figure.axes)
    return figure


def _squares(
    where: str, figure: Any, kernels: np.ndarray, columns: int, labelled: bool, title: str, scale: dict[str, Any]
) -> Figure:
    """2-D kernels: outputs down and inputs across, or one after the other."""
    rows, columns = columns_for(len(kernels), columns)
    side = min(1.2, WIDTH * 0.85 / columns) * kernels.shape[1] / kernels.shape[2]
    width = min(WIDTH, max(6.0, 2.5 + 1.2 * columns))
    figure = new_figure(where, figure, max(2.0, 0.6 + rows * side), width)
    figure.suptitle(title)
    axes = grid(figure, rows, columns, len(kernels))
    for ax, kernel in zip(axes.ravel(), kernels, strict=False):
        image = ax.imshow(kernel, **scale)
        ax.spines[:].set(visible=True, linewidth=0.5)
    if labelled:
        for o, ax in enumerate(axes[:, 0]):
            ax.set_ylabel(f"output {o}", rotation=0, ha="right", va="center")
        for i, ax in enumerate(axes[-1]):
            ax.set_xlabel(f"input {i}")
    figure.colorbar(image, ax=axes, label="weight")
    finish(figure.axes)
    return figure


def feature_maps(y: Num[Any, "*space c"], *, columns: int = 8, limit: int = 32, figure: Any = None) -> Figure:
    """Draw the channels of one example on one scale, dark low and bright high.

    Args:
      y: `(H, W, C)`, or `(T, C)`, which is one picture with time across and channels down. Not a batch: pick `y[0]`.
      columns: maps side by side at most.
      limit: channels drawn at most; the title says how many there are.
      figure: a matplotlib figure or subfigure to draw on; a new one if None.

    Returns:
      the figure.

    Raises:
      ValueError: `y` has another number of axes, `columns` or `limit` is below 1. TypeError: `y` is complex.

    Example:
      >>> import jax.numpy as jnp
      >>> from convjax import viz
      >>> len(viz.feature_maps(jnp.ones((4, 4, 3))).axes)
      4

    Source: Zeiler and Fergus, Visualizing and understanding convolutional networks, arXiv:1311.2901.
    """
    where = "feature_maps"
    values = read(where, "y", y, one="T C", two="H W C")
    columns = arguments.integer(where, "columns", columns, minimum=1)
    limit = arguments.integer(where, "limit", limit, minimum=1)
    channels = values.shape[-1]
    maps = np.moveaxis(values, -1, 0)[:limit]
    size = " x ".join(map(str, values.shape[:-1])) + (" steps" if values.ndim == 2 else "")
    title = f"Feature maps of {size}, channels: {channels}"
    if len(maps) < channels:
        title += f"; shown: {len(maps)}"
    low, high = limits(values)
    scale = dict(cmap="cividis", vmin=low, vmax=high, interpolation="nearest")
    if values.ndim == 2:
        figure = new_figure(where, figure, min(8.0, 1.4 + 0.3 * len(maps)))
        axes: Any = figure.subplots()
        image = axes.imshow(maps, aspect="auto", **scale)
        axes.set(xlabel="time step", ylabel="channel", title=title)
        if len(maps) <= NUMBERED:
            axes.set_yticks(range(len(maps)))
    else:
        rows, across = columns_for(len(maps), columns)
        side = min(2.5, WIDTH * 0.85 / across) * values.shape[0] / values.shape[1]
        width = min(WIDTH, max(6.0, 1.5 + 2.5 * across))
        figure = new_figure(where, figure, max(2.0, 0.6 + rows * (side + 0.25)), width)
        figure.suptitle(title)
        axes = grid(figure, rows, across, len(maps))
        for channel, (ax, each) in enumerate(zip(axes.ravel(), maps, strict=False)):
            image = ax.imshow(each, **scale)
            ax.set_title(f"channel {channel}", fontsize=8, pad=2)
    figure.colorbar(image, ax=axes, label="activation")
    finish(figure.axes)
    return figure
