"""A kernel that slides over an input and fills its output cell by cell, with every number."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Num
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from convjax._core import arguments
from convjax.viz._canvas import WIDTH, cells, finish, limits, new_figure, number
from convjax.viz._slide import Slide, read_slide
from convjax.viz.themes import faint, is_dark, palette, signed

# Wider than that, all cells of the picture are too small for their numbers.
NUMBERED_COLUMNS = 26
SPELT_OUT = 12  # products that are written out in the equation
MAX_FRAMES = 400


def sliding(
    x: Num[Any, "*space"],
    w: Num[Any, "*k"],
    *,
    step: int | None = None,
    stride: Any = 1,
    padding: Any = "SAME",
    dilation: Any = 1,
    transposed: bool = False,
    figure: Any = None,
) -> Figure:
    """Draw a kernel on its input, and the output as far as it is filled, with the products of the current cell.

    A transposed convolution is drawn as the convolution that it equals: zeros between the inputs, the kernel flipped.

    Args:
      x: `(H, W)` or `(T,)`, one channel.
      w: `(k_h, k_w)` or `(k,)`.
      step: number of the output cell to be filled, row by row from 0; negative ones count from the end; None is the
        last.
      stride, padding, dilation: as `convjax.conv`, or as `convjax.conv_transpose` if `transposed`.
      transposed: whether to draw the transposed convolution.
      figure: a matplotlib figure or subfigure to draw on; a new one if None.

    Returns:
      the figure.

    Raises:
      ValueError: ranks or sizes do not fit, there is no such step. TypeError: complex numbers, sizes that are no
        integers.

    Example:
      >>> import jax.numpy as jnp
      >>> from convjax import viz
      >>> figure = viz.sliding(jnp.arange(5.0), jnp.array([1.0, 0.0, -1.0]), step=1)
      >>> figure.axes[-1].get_title()
      'output (5), 2 of 5 cells'

    Source: Dumoulin and Visin, A guide to convolution arithmetic for deep learning, arXiv:1603.07285.
    """
    where = "sliding"
    slide = read_slide(where, x, w, stride=stride, padding=padding, dilation=dilation, transposed=transposed)
    step = slide.y.size - 1 if step is None else arguments.integer(where, "step", step)
    if not -slide.y.size <= step < slide.y.size:
        raise ValueError(
            f"{where}: step={step}, but the output of shape {slide.y.shape} has {slide.y.size} cells. "
            f"Type one from 0 to {slide.y.size - 1}."
        )
    size = _size(slide)
    figure = new_figure(where, figure, size[1], size[0], layout=None)
    _draw(figure, slide, step % slide.y.size, one_row=np.ndim(x) == 1, transposed=transposed)
    return figure


def _size(slide: Slide) -> tuple[float, float]:
    """Width and height in inches."""
    shapes = slide.field.shape, slide.kernel.shape, slide.y.shape
    cell = min(0.55, (WIDTH - 1.0) / sum(shape[1] for shape in shapes))
    return WIDTH, 1.7 + cell * max(shape[0] for shape in shapes)


def _draw(figure: Any, slide: Slide, step: int, *, one_row: bool, transposed: bool) -> None:
    shapes = slide.field.shape, slide.kernel.shape, slide.y.shape
    columns, height = sum(shape[1] for shape in shapes), figure.bbox.height / figure.dpi
    room = dict(left=0.02, right=0.98, top=1 - 0.55 / height, bottom=0.85 / height, wspace=0.12)
    axes = figure.add_gridspec(1, 3, width_ratios=[shape[1] for shape in shapes], **room).subplots()
    on_field, on_kernel, on_output = axes
    look: dict[str, Any] = dict(
        size=9.0 if columns <= 20 else 7.0, text=number if columns <= NUMBERED_COLUMNS else None
    )
    frame: dict[str, Any] = dict(fill=False, edgecolor=palette()[1], linewidth=2.5, zorder=4)
    rows, taps = slide.window(step)
    at = tuple(int(i) for i in np.unravel_index(step, slide.y.shape))

    cells(on_field, np.where(slide.inside, slide.field, np.nan), "cividis", *limits(slide.field), **look)
    on_field.set_facecolor(faint())
    if look["text"]:
        grey = "#A8A8A8" if is_dark() else "#606060"
        for row, column in np.argwhere(~slide.inside):
            on_field.text(column, row, "0", ha="center", va="center", fontsize=look["size"], color=grey)
    for row, column in np.stack(np.meshgrid(rows, taps), -1).reshape(-1, 2):
        on_field.add_patch(_square(row, column, **frame))
    zeros = "" if slide.inside.all() else " among zeros"
    on_field.set_title(f"input {_shape(_inputs(slide), one_row)}{zeros}")

    largest = float(np.abs(slide.kernel).max()) or 1.0
    cells(on_kernel, slide.kernel, signed(), -largest, largest, **look)
    on_kernel.spines[:].set(color=frame["edgecolor"], linewidth=frame["linewidth"])
    on_kernel.set_title("kernel, flipped" if transposed else "kernel")

    filled = np.arange(slide.y.size).reshape(slide.y.shape) <= step
    cells(on_output, np.where(filled, slide.y, np.nan), "cividis", *limits(slide.y), **look)
    on_output.add_patch(_square(*at, **frame))
    on_output.set_title(f"output {_shape(slide.y.shape, one_row)}, {step + 1} of {slide.y.size} cells")

    equation = f"output[{at[1] if one_row else f'{at[0]}, {at[1]}'}] = {_terms(slide, step)} = {number(slide.y[at])}"
    figure.text(0.5, 0.35 / height, textwrap.fill(equation, 110), ha="center", va="center")
    finish(axes)


def _terms(slide: Slide, step: int) -> str:
    if slide.kernel.size > SPELT_OUT:
        return f"sum of {slide.kernel.size} products"
    pairs = zip(slide.field[np.ix_(*slide.window(step))].ravel(), slide.kernel.ravel(), strict=True)
    return " + ".join(f"{_signed(value)} · {_signed(weight)}" for value, weight in pairs)


def _inputs(slide: Slide) -> tuple[int, int]:
    return int(slide.inside.any(axis=1).sum()), int(slide.inside.any(axis=0).sum())


def _square(row: int, column: int, **kwargs: Any) -> Rectangle:
    return Rectangle((column - 0.5, row - 0.5), 1, 1, **kwargs)


def _signed(value: float) -> str:
    return number(value) if value >= 0 else f"({number(value)})"


def _shape(shape: tuple[int, ...], one_row: bool) -> str:
    return f"({shape[1]})" if one_row else f"({shape[0]}, {shape[1]})"


def sliding_gif(
    path: str | os.PathLike[str],
    x: Num[Any, "*space"],
    w: Num[Any, "*k"],
    *,
    stride: Any = 1,
    padding: Any = "SAME",
    dilation: Any = 1,
    transposed: bool = False,
    fps: int = 2,
) -> Path:
    """Write `sliding` as an animated GIF, a frame for each output cell, in the colours of the style around the call.

    Args:
      path: where to; its folder must exist.
      x, w, stride, padding, dilation, transposed: as `sliding`.
      fps: frames a second.

    Returns:
      the path.

    Raises:
      ValueError, TypeError: as `sliding`; more than 400 output cells.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> from convjax import viz
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = viz.sliding_gif(folder + "/sum.gif", jnp.arange(4.0), jnp.ones(3))
      ...     path.read_bytes()[:6]
      b'GIF89a'

    Source: as `sliding`.
    """
    from matplotlib.animation import PillowWriter

    where = "sliding_gif"
    slide = read_slide(where, x, w, stride=stride, padding=padding, dilation=dilation, transposed=transposed)
    fps = arguments.integer(where, "fps", fps, minimum=1)
    if slide.y.size > MAX_FRAMES:
        raise ValueError(
            f"{where}: an output of shape {slide.y.shape} takes {slide.y.size} frames, more than {MAX_FRAMES}. "
            "Type a smaller input or a larger stride."
        )
    size = _size(slide)
    figure = new_figure(where, None, size[1], size[0], layout=None)
    writer = PillowWriter(fps=fps)
    with writer.saving(figure, os.fspath(path), dpi=80):
        for step in range(slide.y.size):
            figure.clear()
            _draw(figure, slide, step, one_row=np.ndim(x) == 1, transposed=transposed)
            writer.grab_frame()
    return Path(path)
