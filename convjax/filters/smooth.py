"""Filters that blur: box, Gaussian and its derivatives, motion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax import Array
from jaxtyping import Inexact, Num

from convjax._core import arguments
from convjax.filters.kernels import gaussian_taps, motion_taps
from convjax.filters.weigh import before, modes, per_axis, read, to_float, weigh

Mode = str | Sequence[str]
Axes = int | Sequence[int] | None


def box(
    x: Num[Array, "*shape"],
    size: int | Sequence[int] = 3,
    *,
    mode: Mode = "reflect",
    cval: Any = 0.0,
    origin: int | Sequence[int] = 0,
    axes: Axes = None,
) -> Inexact[Array, "*shape"]:
    """Take the mean over a box.

    Args:
      x: any number of axes.
      size: of the box, in elements, one for all axes or one each; of an even one the middle is the second half's first.
      mode: what lies beyond the border, see the head of `convjax.filters`; one for all axes or one each.
      cval: the value for mode "constant".
      origin: moves the box, from `-(size // 2)` to `(size - 1) // 2`.
      axes: which axes of `x` to filter; all by default.

    Returns:
      an array of the shape of `x`; for dtypes see the head of `convjax.filters`.

    Raises:
      ValueError: a size below 1; a mode that is not known; an origin beyond the box; axes that do not exist.
      TypeError: an argument of the wrong type.

    Example:
      >>> import jax.numpy as jnp
      >>> from convjax.filters import box
      >>> box(jnp.array([3.0, 0.0, 0.0, 6.0]), 3)
      Array([2., 1., 2., 4.], dtype=float32)

    Source: Gonzalez and Woods, Digital image processing, 4th edition, section 3.5; `scipy.ndimage.uniform_filter`.
    """
    where = "box"
    x, axes = read(where, x, axes)
    sizes = [arguments.integer(where, "size", n, minimum=1) for n in per_axis(where, "size", size, axes)]
    x, low = to_float(x), before(where, sizes, origin, axes)
    for axis, n, lo, name in zip(axes, sizes, low, modes(where, mode, axes), strict=True):
        x = weigh(x, np.full(n, 1 / n), (axis,), (lo,), (name,), cval)
    return x


def gaussian(
    x: Num[Array, "*shape"],
    sigma: Any,
    *,
    order: int | Sequence[int] = 0,
    mode: Mode = "reflect",
    cval: Any = 0.0,
    truncate: float = 4.0,
    radius: int | Sequence[int] | None = None,
    axes: Axes = None,
) -> Inexact[Array, "*shape"]:
    """Convolve with a Gaussian, or with a derivative of one.

    Args:
      x: any number of axes.
      sigma: standard deviation, in elements, one for all axes or one each; an axis with 0 is left as it is. May be
        traced, and differentiated, where `radius` is given.
      order: which derivative to take, one for all axes or one each.
      mode: as in `box`.
      cval: as in `box`; along one axis after the other.
      truncate: where to end the Gaussian, in standard deviations.
      radius: where to end it, in elements, instead; one for all axes or one each.
      axes: as in `box`.

    Returns:
      an array of the shape of `x`; for dtypes see the head of `convjax.filters`.

    Raises:
      ValueError: a negative sigma, order or radius; a mode that is not known; axes that do not exist.
      TypeError: an argument of the wrong type, or traced.

    Example:
      >>> import jax.numpy as jnp
      >>> from convjax.filters import gaussian
      >>> round(float(gaussian(jnp.arange(25.0) ** 2, 1.0, order=2)[12]), 1)
      2.0

    Source: Lindeberg, Scale-space theory, 1994; `scipy.ndimage.gaussian_filter`.
    """
    where = "gaussian"
    x, axes = read(where, x, axes)
    x, names = to_float(x), modes(where, mode, axes)
    options = (per_axis(where, name, v, axes) for name, v in (("sigma", sigma), ("order", order), ("radius", radius)))
    for axis, name, s, o, r in zip(axes, names, *options, strict=True):
        if not isinstance(s, Array) and s == 0:
            continue
        taps = gaussian_taps(where, s, o, truncate, r)
        x = weigh(x, taps[::-1], (axis,), (len(taps) // 2,), (name,), cval)
    return x


def motion(
    x: Num[Array, "*shape"],
    length: float,
    angle: float = 0.0,
    *,
    mode: Mode = "reflect",
    cval: Any = 0.0,
    axes: Axes = None,
) -> Inexact[Array, "*shape"]:
    """Blur an image as by a camera that moved steadily along a line.

    Args:
      x: an image; with more axes `axes` must name two.
      length: of the line, in elements, at least 1.
      angle: of the line, in radians, from the second axis towards the first (so, with rows downwards, clockwise).
      mode: as in `box`.
      cval: as in `box`.
      axes: as in `box`; two.

    Returns:
      an array of the shape of `x`; for dtypes see the head of `convjax.filters`.

    Raises:
      ValueError: `length` is less than 1; not two axes; a mode that is not known.
      TypeError: an argument of the wrong type, or traced.

    Example:
      >>> import jax.numpy as jnp
      >>> from convjax.filters import motion
      >>> motion(jnp.zeros((3, 5)).at[1, 2].set(1.0), 3)[1]
      Array([0.        , 0.33333334, 0.33333334, 0.33333334, 0.        ],      dtype=float32)

    Source: Gonzalez and Woods, Digital image processing, 4th edition, section 5.6 (motion blur).
    """
    where = "motion"
    x, axes = read(where, x, axes, count=2)
    weights = motion_taps(where, length, angle)  # symmetric, so that correlation is convolution
    return weigh(to_float(x), weights, axes, [n // 2 for n in weights.shape], modes(where, mode, axes), cval)
