"""What a kernel does to each frequency."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Num
from matplotlib.figure import Figure

from convjax.viz._canvas import finish, new_figure, read
from convjax.viz.themes import palette

POINTS = 512  # of the spectrum along a signal
POINTS_2D = 128  # along each axis of an image
FLOOR_DB = -80.0  # below that a response counts as zero


def response(kernel: np.ndarray, points: int) -> np.ndarray:
    """Its complex response at `points` frequencies an axis from -1/2 cycle a sample on, of `convjax.conv`.

    Tap `(k - 1) // 2` counts as the place of the output, as SAME padding has it, so that symmetric kernels of odd
    length have no phase.
    """
    # conv sums w[t] x[i + t]: the conjugate of the transform of w, and a shift to the centre tap
    spectrum = np.conj(np.fft.fftn(kernel, [max(points, k) for k in kernel.shape], range(kernel.ndim)))
    for axis, taps in enumerate(kernel.shape):
        frequencies = np.fft.fftfreq(spectrum.shape[axis])
        shift = np.exp(-2j * np.pi * frequencies * ((taps - 1) // 2))
        spectrum = spectrum * shift.reshape([-1 if a == axis else 1 for a in range(kernel.ndim)])
    return np.fft.fftshift(spectrum)


def frequency_response(w: Num[Any, "*k"], *, figure: Any = None) -> Figure:
    """Draw by how much a kernel amplifies each frequency and, in 1-D, by how much it turns its phase.

    Args:
      w: `(k,)`, whose response is in decibels and degrees, or `(k_h, k_w)`, whose magnitude is a picture with the mean
        of the image at its centre.
      figure: a matplotlib figure or subfigure to draw on; a new one if None.

    Returns:
      the figure.

    Raises:
      ValueError: `w` has another number of axes or is not finite. TypeError: it is complex.

    Example:
      >>> import jax.numpy as jnp
      >>> from convjax import viz
      >>> magnitude = viz.frequency_response(jnp.ones(4) / 4).axes[0].lines[0].get_ydata()
      >>> round(float(magnitude[0]), 6)  # the mean passes
      0.0

    Source: Oppenheim and Schafer, Discrete-time signal processing, chapter 5.
    """
    where = "frequency_response"
    kernel = read(where, "w", w, one="k", two="k_h k_w")
    if not np.isfinite(kernel).all():
        raise ValueError(f"{where}: w holds numbers that are not finite. Type jnp.nan_to_num(w).")
    if kernel.ndim == 1:
        return _of_signal(new_figure(where, figure, 4.2), kernel)
    figure = new_figure(where, figure, 4.6, 5.8)
    ax = figure.subplots()
    magnitude = np.abs(response(kernel, POINTS_2D))
    image = ax.imshow(magnitude, cmap="cividis", vmin=0, extent=(-0.5, 0.5, 0.5, -0.5), interpolation="bilinear")
    ax.set(xlabel="horizontal, cycles per pixel", ylabel="vertical, cycles per pixel", title="Gain at each frequency")
    figure.colorbar(image, ax=ax, label="gain")
    finish(figure.axes)
    return figure


def _of_signal(figure: Any, kernel: np.ndarray) -> Figure:
    spectrum = response(kernel, 2 * POINTS)
    half = slice(spectrum.size // 2, None)
    frequencies = np.arange(spectrum.size)[half] / spectrum.size - (spectrum.size // 2) / spectrum.size
    gain = np.abs(spectrum[half])
    heard = gain > 10 ** (FLOOR_DB / 20) * max(gain.max(), np.finfo(float).tiny)
    decibels = 20 * np.log10(np.maximum(gain, np.finfo(float).tiny))
    top, bottom = figure.subplots(2, 1, sharex=True)
    top.plot(frequencies, decibels, color=palette()[0], linewidth=2)
    top.set(ylabel="gain, dB", title=f"Response of {kernel.size} taps")
    if heard.any() and not heard.all():
        top.set_ylim(decibels.max() + FLOOR_DB, decibels.max() + 5)
    phase = np.degrees(np.angle(spectrum[half]))
    jumps = np.abs(np.diff(phase, prepend=phase[0])) > 180
    bottom.plot(frequencies, np.where(heard & ~jumps, phase, np.nan), color=palette()[1], linewidth=2)
    bottom.set(xlabel="frequency, cycles per sample", ylabel="phase, degrees", xlim=(0, 0.5), ylim=(-190, 190))
    bottom.set_yticks([-180, -90, 0, 90, 180])
    for ax in (top, bottom):
        ax.grid(linewidth=0.6)
    finish([top, bottom])
    return figure
