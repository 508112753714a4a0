"""Where a deformable convolution looks."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Num
from matplotlib.figure import Figure

from convjax._core import arguments
from convjax._core import padding as pad
from convjax.functional import Ints, Padding
from convjax.viz._canvas import finish, new_axes, read
from convjax.viz.themes import palette

STYLES = ("o", "s", "^", "D", "v", "P")  # of the outputs, which colours tell apart as well


def deformable_points(
    image: Num[Any, "h w *c"],
    offset: Num[Any, "out_h out_w k*2"],
    *,
    at: Any,
    kernel_size: Ints = 3,
    stride: Ints = 1,
    padding: Padding = "SAME",
    dilation: Ints = 1,
    mask: Num[Any, "out_h out_w k"] | None = None,
    ax: Any = None,
) -> Figure:
    """Draw on an image where the taps of some outputs look: crosses without offsets, arrows, and dots with them.

    Args:
      image: `(H, W)`, drawn grey, or `(H, W, 3)` with colours from 0 to 1: what `offset` refers to, such as the input.
      offset: `(out_h, out_w, K * 2)` of one example and one offset group, as `convjax.deform_conv` takes it.
      at: (row, column) of an output, or a list of up to six.
      kernel_size: one int for a square kernel, or (k_h, k_w).
      stride, padding, dilation: as `convjax.deform_conv`.
      mask: `(out_h, out_w, K)`; the size of a dot is in proportion to it. All alike if None.
      ax: matplotlib axes to draw on; new ones if None.

    Returns:
      the figure.

    Raises:
      ValueError: `image`, `offset` or `mask` is not of the shape above, there is no such output.
      TypeError: complex numbers, sizes that are no integers.

    Example:
      >>> import jax.numpy as jnp
      >>> from convjax import viz
      >>> figure = viz.deformable_points(jnp.ones((8, 8)), jnp.full((8, 8, 18), 0.5), at=(3, 4))
      >>> figure.axes[0].collections[-1].get_offsets()[0].tolist()  # x, y of the first tap
      [3.5, 2.5]

    Source: Dai et al., Deformable convolutional networks, arXiv:1703.06211, figure 5.
    """
    where = "deformable_points"
    pixels = read(where, "image", image, grey="H W", colours="H W C")
    if pixels.ndim == 3 and pixels.shape[-1] not in (1, 3):
        raise ValueError(f"{where}: image has {pixels.shape[-1]} channels. Type one of them, image[..., 0], or three.")
    places = _places(where, at)
    kernel = arguments.per_axis(where, "kernel_size", kernel_size, 2, minimum=1)
    strides = arguments.per_axis(where, "stride", stride, 2, minimum=1)
    dilations = arguments.per_axis(where, "dilation", dilation, 2, minimum=1)
    windows = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    pairs = pad.pads(where, padding, pixels.shape[:2], windows, strides)
    out = tuple(
        (lo + size + hi - window) // s + 1
        for size, (lo, hi), window, s in zip(pixels.shape, pairs, windows, strides, strict=False)
    )
    taps = kernel[0] * kernel[1]
    shifts = _fit(where, "offset", offset, (*out, 2 * taps)).reshape(*out, taps, 2)
    weights = np.ones((*out, taps)) if mask is None else _fit(where, "mask", mask, (*out, taps))
    regular = np.stack(np.unravel_index(np.arange(taps), kernel), -1) * np.array(dilations)

    ax = new_axes(where, ax, 5.4, 6.0)
    if pixels.ndim == 3 and pixels.shape[-1] == 3:
        ax.imshow(np.clip(pixels, 0, 1), interpolation="nearest")
    else:
        ax.imshow(pixels.reshape(pixels.shape[:2]), cmap="gray", interpolation="nearest")
    reach = [(np.array([-0.5, -0.5]), np.array(pixels.shape[:2]) - 0.5)]
    edge = dict(edgecolor="white", linewidth=0.8)
    for i, place in enumerate(places):
        if not all(0 <= p < n for p, n in zip(place, out, strict=True)):
            raise ValueError(
                f"{where}: at={place}, but the outputs are {out[0]} x {out[1]}. Type (row, column) within."
            )
        start = np.array(place) * strides - np.array([lo for lo, _ in pairs]) + regular
        end = start + shifts[place]
        reach.append((np.min([start, end], axis=(0, 1)) - 1, np.max([start, end], axis=(0, 1)) + 1))
        colour = palette()[(i + 1) % len(palette())]
        (y0, x0), (y1, x1) = start.T, end.T
        ax.plot([x0, x1], [y0, y1], color=colour, linewidth=1.2, zorder=3)
        ax.scatter(x0, y0, marker="+", color=colour, s=40, zorder=3)
        sizes = 70 * np.clip(weights[place], 0.05, 2)
        ax.scatter(x1, y1, s=sizes, color=colour, marker=STYLES[i], label=f"output {place}", zorder=4, **edge)
    (top, left), (bottom, right) = np.min([lo for lo, _ in reach], 0), np.max([hi for _, hi in reach], 0)
    ax.set(
        xlim=(left, right),
        ylim=(bottom, top),
        xlabel="column",
        ylabel="row",
        title="Taps: + without offset, filled where they look",
    )
    if len(places) > 1:
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=min(3, len(places)))
    finish([ax])
    return ax.figure


def _places(where: str, at: Any) -> list[tuple[int, ...]]:
    several = isinstance(at, list)
    places = [arguments.per_axis(where, "at", place, 2, minimum=0) for place in (at if several else [at])]
    if not 1 <= len(places) <= len(STYLES):
        raise ValueError(f"{where}: at has {len(places)} outputs. Type from 1 to {len(STYLES)} of them.")
    return places


def _fit(where: str, name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    array = read(where, name, value, three="out_h out_w K")
    if array.shape != shape:
        raise ValueError(
            f"{where}: {name} has shape {array.shape}, but the outputs and taps of this kernel, stride and padding "
            f"take {shape}. Type {name} of that shape, of one example and one offset group."
        )
    return array
