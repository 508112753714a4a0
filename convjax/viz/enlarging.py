"""The checkerboard of a transposed convolution, beside an enlarged image that is convolved."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Num
from matplotlib.figure import Figure

from convjax._core import arguments
from convjax.functional import conv, conv_transpose
from convjax.viz._canvas import cells, finish, limits, new_figure, number, read

NUMBERED = 16  # columns that are wide enough for numbers


def checkerboard(
    x: Num[Any, "h w"] | None = None, *, kernel_size: int = 3, stride: int = 2, figure: Any = None
) -> Figure:
    """Draw an image enlarged by a transposed convolution, and by repeating pixels and then convolving.

    Both kernels are constant and scaled so that the mean is kept. Where the stride does not divide the kernel size,
    the windows of a transposed convolution overlap unevenly, and a flat image comes out as a checkerboard.

    Args:
      x: `(H, W)`; 5 x 5 ones if None.
      kernel_size: taps along each axis.
      stride: by how much to enlarge.
      figure: a matplotlib figure or subfigure to draw on; a new one if None.

    Returns:
      the figure.

    Raises:
      ValueError, TypeError: `x` is no image, a size is below 1 or no integer.

    Example:
      >>> from convjax import viz
      >>> [ax.get_title() for ax in viz.checkerboard().axes[:3]]
      ['input 5 x 5', 'transposed convolution', 'resize, then convolve']

    Source: Odena, Dumoulin and Olah, Deconvolution and checkerboard artifacts, Distill, 2016.
    """
    where = "checkerboard"
    kernel_size = arguments.integer(where, "kernel_size", kernel_size, minimum=1)
    stride = arguments.integer(where, "stride", stride, minimum=1)
    image = jnp.asarray(read(where, "x", jnp.ones((5, 5)) if x is None else x, two="H W"), jnp.float32)[..., None]
    w = jnp.full((kernel_size, kernel_size, 1, 1), 1 / kernel_size**2)
    height, width = image.shape[0] * stride, image.shape[1] * stride
    spread = conv_transpose(image, w * stride**2, stride=stride)
    resized = conv(jax.image.resize(image, (height, width, 1), "nearest"), w, padding_mode="replicate")
    pictures = {f"input {image.shape[0]} x {image.shape[1]}": image, "transposed convolution": spread}
    pictures["resize, then convolve"] = resized
    figure = new_figure(where, figure, 3.6)
    axes = figure.subplots(1, 3)
    low, high = limits(np.concatenate([np.asarray(p).ravel() for p in pictures.values()]))
    for ax, (title, picture) in zip(axes, pictures.items(), strict=True):
        values = np.asarray(picture[..., 0], np.float64)
        text = (lambda v: number(round(v, 2))) if values.shape[1] <= NUMBERED else None
        shown = cells(ax, values, "cividis", low, high, text=text, size=7)
        ax.set_title(title)
    figure.colorbar(shown, ax=axes, label="value", shrink=0.8)
    finish(figure.axes)
    return figure
