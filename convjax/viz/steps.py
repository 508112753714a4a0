"""What three algorithms do to a small input, number by number: im2col, Winograd's F(2, 3), and the FFT."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Num
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from convjax.patches import unfold
from convjax.viz._canvas import cells, finish, limits, new_figure, number, read
from convjax.viz.themes import palette, signed

MAX_CELLS = 8  # of an input along an axis, so that its numbers can be read
MAX_CELL = 0.42  # inches
GAP = 0.5  # inches between matrices

Panel = tuple[str, np.ndarray, Any]  # title, numbers, colours

# Lavin and Gray, equation 5 and the text below it: y = A^T ((G g) * (B^T d)).
B_T = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], np.float64)
EXAMPLE = np.array([[3, 1, 2, 0], [1, 0, 4, 2], [2, 5, 1, 3], [0, 2, 3, 1]], np.float64)
SOBEL = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]], np.float64)
PULSES = (np.arange(16) % 8 < 3).astype(np.float64)
BLUR = np.array([1, 4, 6, 4, 1]) / 16
G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float64)
A_T = np.array([[1, 1, 1, 0], [0, 1, -1, -1]], np.float64)


def im2col_steps(
    x: Num[Any, "h w"] | None = None, w: Num[Any, "k_h k_w"] | None = None, *, figure: Any = None
) -> Figure:
    """Draw a convolution as one matrix product: windows become the rows of a matrix, the kernel a column.

    Args:
      x: `(H, W)`, at most 8 x 8; an example of 4 x 4 if None. The convolution is unpadded.
      w: `(k_h, k_w)`; a Sobel kernel if None.
      figure: a matplotlib figure or subfigure to draw on; a new one if None.

    Returns:
      the figure; its panels are input, kernel, matrix of windows, kernel as a column, and output.

    Raises:
      ValueError: the input is too large to draw, the kernel does not fit it. TypeError: complex numbers.

    Example:
      >>> from convjax import viz
      >>> [ax.get_title() for ax in viz.im2col_steps().axes]
      ['input', 'kernel', 'windows, 4 x 9', 'kernel', 'output']

    Source: Chellapilla, Puri and Simard, High performance convolutional neural networks, 2006.
    """
    where = "im2col_steps"
    x, w = _operands(where, x, w, EXAMPLE, SOBEL, two="H W")
    patches = np.asarray(unfold(jnp.asarray(x)[..., None], w.shape, padding="VALID"), np.float64)
    out = patches.shape[:2]
    matrix, column = patches.reshape(out[0] * out[1], w.size), w.reshape(-1, 1)
    y = matrix @ column
    panels = [
        ("input", x, "cividis"),
        ("kernel", w, signed()),
        (f"windows, {matrix.shape[0]} x {matrix.shape[1]}", matrix, "cividis"),
        ("kernel", column, signed()),
        ("output", y.reshape(out), "cividis"),
    ]
    figure = new_figure(where, figure, 4.4, layout=None)
    axes = _row(figure, panels, " →·=", top=0.94)
    frame: dict[str, Any] = dict(fill=False, edgecolor=palette()[1], linewidth=3, clip_on=False, zorder=5)
    for ax, (height, width) in zip(axes[::2], (w.shape, (1, w.size), (1, 1)), strict=True):
        ax.add_patch(Rectangle((-0.5, -0.5), width, height, **frame))
    figure.suptitle(f"im2col: each window is a row, and all of them are one matrix product ({matrix.size} products)")
    return figure


def winograd_steps(x: Num[Any, " 4"] | None = None, w: Num[Any, " 3"] | None = None, *, figure: Any = None) -> Figure:
    """Draw F(2, 3): two outputs of a kernel of three taps from four products, where the sum takes six.

    Args:
      x: `(4,)`; 1, 2, 3, 4 if None.
      w: `(3,)`; 1, 0, -1 if None.
      figure: a matplotlib figure or subfigure to draw on; a new one if None.

    Returns:
      the figure; a row for the input, a row for the kernel, and their product and its sums.

    Raises:
      ValueError: other shapes. TypeError: complex numbers.

    Example:
      >>> from convjax import viz
      >>> [text.get_text() for text in viz.winograd_steps([1, 2, 3, 5], [1, 2, 4]).axes[-1].texts]
      ['17', '28']

    Source: Winograd, Arithmetic complexity of computations, 1980; Lavin and Gray, arXiv:1509.09308, section 4.
    """
    where = "winograd_steps"
    x, w = _operands(where, x, w, np.arange(1.0, 5.0), np.array([1.0, 0, -1]), one="T")
    if x.shape != (4,) or w.shape != (3,):
        raise ValueError(f"{where}: x and w have shapes {x.shape} and {w.shape}. Type four inputs and three taps.")
    d, g = (a[:, None] for a in (x, w))
    figure = new_figure(where, figure, 6.6, layout=None)
    _row(
        figure, [("$B^T$", B_T, signed()), ("input d", d, "cividis"), ("$B^T d$", B_T @ d, "cividis")], "·=", 0.64, 0.95
    )
    _row(figure, [("$G$", G, signed()), ("kernel g", g, signed()), ("$G g$", G @ g, signed())], "·=", 0.32, 0.63)
    product = (B_T @ d) * (G @ g)
    last = [
        ("$G g$", G @ g, signed()),
        ("$B^T d$", B_T @ d, "cividis"),
        ("products m", product, "cividis"),
        ("$A^T$", A_T, signed()),
        ("m", product, "cividis"),
        ("output", A_T @ product, "cividis"),
    ]
    _row(figure, last, "⊙= ·=", 0.0, 0.31)
    figure.suptitle("Winograd F(2, 3): 4 products for 2 outputs of 3 taps, where the sum takes 6")
    return figure


def fft_steps(x: Num[Any, " t"] | None = None, w: Num[Any, " k"] | None = None, *, figure: Any = None) -> Figure:
    """Draw a convolution through the frequency domain: transform both, multiply point by point, transform back.

    The kernel is filled up to the length of the input. The product is a circular correlation, whose first
    `t - k + 1` numbers are the unpadded one; the others, hatched, wrap around the end and are dropped.

    Args:
      x: `(t,)`, at most 64; two pulses in 16 if None.
      w: `(k,)`, no longer than `x`; five taps of a blur if None.
      figure: a matplotlib figure or subfigure to draw on; a new one if None.

    Returns:
      the figure; a row for the input, the kernel and the output, signals on the left and spectra on the right.

    Raises:
      ValueError: other shapes. TypeError: complex numbers.

    Example:
      >>> from convjax import viz
      >>> [ax.get_title() for ax in viz.fft_steps([1, 2, 3, 4], [1, 1]).axes[::2]]
      ['input', 'kernel, filled up with zeros', 'output: 3 kept, 1 wrapped']

    Source: Mathieu, Henaff and LeCun, Fast training of convolutional networks through FFTs, arXiv:1312.5851.
    """
    where = "fft_steps"
    x, w = _operands(where, x, w, PULSES, BLUR, at_most=64, one="T")
    size, kept = x.size, x.size - w.size + 1
    filled = np.pad(w, (0, size - w.size))
    spectra = [np.fft.rfft(x), np.fft.rfft(filled)]
    spectra.append(spectra[0] * np.conj(spectra[1]))  # the conjugate: convolution here is correlation
    signals = [x, filled, np.fft.irfft(spectra[2], size)]
    titles = ["input", "kernel, filled up with zeros", f"output: {kept} kept, {w.size - 1} wrapped"]
    spectral = ["|FFT of the input|", "|FFT of the kernel|", "|product of the two|"]
    figure = new_figure(where, figure, 6.0)
    axes = figure.subplots(3, 2)
    first, second = palette()[:2]
    for (left, right), signal, spectrum, title, name in zip(axes, signals, spectra, titles, spectral, strict=True):
        bars = left.bar(range(size), signal, color=first)
        if signal is signals[2]:
            for bar in bars[kept:]:
                bar.set(facecolor="none", edgecolor=second, hatch="////")
        right.bar(np.arange(spectrum.size) / size, np.abs(spectrum), width=0.7 / size, color=second)
        left.set(title=title, ylabel="value")
        right.set(title=name, ylabel="magnitude")
        left.axhline(0, color="gray", linewidth=0.6)
    axes[2, 0].set_xlabel("sample")
    axes[2, 1].set_xlabel("frequency, cycles per sample")
    finish(axes.ravel())
    return figure


def _operands(
    where: str, x: Any, w: Any, input_: np.ndarray, kernel: np.ndarray, at_most: int = MAX_CELLS, **shape: str
) -> tuple[np.ndarray, np.ndarray]:
    """What was given or the examples, the kernel not beyond the input."""
    x = read(where, "x", input_ if x is None else x, **shape)
    w = read(where, "w", kernel if w is None else w, **shape)
    if max(x.shape) > at_most:
        raise ValueError(f"{where}: x of shape {x.shape} is too large to read. Type at most {at_most} along an axis.")
    if any(k > n for k, n in zip(w.shape, x.shape, strict=True)):
        raise ValueError(f"{where}: w of shape {w.shape} does not fit into x of shape {x.shape}. Type a smaller w.")
    return x, w


def _row(figure: Any, panels: list[Panel], signs: str, bottom: float = 0.0, top: float = 1.0) -> list[Any]:
    """Matrices side by side between two heights of the figure, all cells alike, a sign before each but the first."""
    width, height = figure.bbox.width / figure.dpi, figure.bbox.height / figure.dpi * (top - bottom)
    columns = [values.shape[1] for _, values, _ in panels]
    rows = max(values.shape[0] for _, values, _ in panels)
    cell = min((width - 0.3 - GAP * (len(panels) - 1)) / sum(columns), (height - 0.5) / rows, MAX_CELL)  # inches
    left = (width - cell * sum(columns) - GAP * (len(panels) - 1)) / 2
    axes = []
    for (title, values, colours), sign in zip(panels, f" {signs}", strict=True):
        across, down = cell * values.shape[1] / width, cell * values.shape[0] / height * (top - bottom)
        middle = (bottom + top) / 2 - 0.1 / height * (top - bottom)
        ax = figure.add_axes((left / width, middle - down / 2, across, down))
        low, high = limits(values)
        if not isinstance(colours, str):
            low, high = -np.abs(values).max(), np.abs(values).max()
        cells(ax, values, colours, low, high, text=lambda v: number(round(v, 2)), size=8)
        ax.set_title(title)
        if sign.strip():
            figure.text((left - GAP / 2) / width, middle, sign, fontsize=14, ha="center", va="center")
        left += across * width + GAP
        axes.append(ax)
    finish(axes)
    return axes
