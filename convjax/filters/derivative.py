"""First derivatives: differences along one axis, smoothed along the others."""

from __future__ import annotations

from typing import Any

import numpy as np
from jax import Array
from jaxtyping import Inexact, Num

from convjax.filters.smooth import Axes, Mode
from convjax.filters.weigh import modes, read, to_float, weigh

# Central difference, and what smooths it along the other axes.
DIFFERENCE = np.array([-1, 0, 1])
SMOOTHING = {"sobel": np.array([1, 2, 1]), "scharr": np.array([3, 10, 3]), "prewitt": np.array([1, 1, 1])}


def sobel(
    x: Num[Array, "*shape"], axis: int = -1, *, mode: Mode = "reflect", cval: Any = 0.0, axes: Axes = None
) -> Num[Array, "*shape"]:
    """Take the derivative along one axis, smoothed by (1, 2, 1) along the others.

    On a ramp of slope 1 it is 2 times 4 for each axis that smooths.

    Args:
      x: any number of axes.
      axis: along which to take the difference `(-1, 0, 1)`.
      mode: what lies beyond the border, see the head of `convjax.filters`; one for all axes or one each.
      cval: the value for mode "constant".
      axes: `axis` and those to smooth along; all by default.

    Returns:
      an array of the shape of `x`; for dtypes see the head of `convjax.filters`.

    Raises:
      ValueError: a mode that is not known; axes that do not exist, or do not hold `axis`.
      TypeError: an argument of the wrong type.

    Example:
      >>> import jax.numpy as jnp
      >>> from convjax.filters import sobel
      >>> sobel(jnp.arange(12).reshape(3, 4))[1]
      Array([4, 8, 8, 4], dtype=int32)

    Source: Sobel and Feldman, 1968; `scipy.ndimage.sobel`.
    """
    return _difference("sobel", x, axis, mode, cval, axes)


def scharr(
    x: Num[Array, "*shape"], axis: int = -1, *, mode: Mode = "reflect", cval: Any = 0.0, axes: Axes = None
) -> Num[Array, "*shape"]:
    """Take the derivative along one axis, smoothed by (3, 10, 3) along the others: closer to round than `sobel`.

    On a ramp of slope 1 it is 2 times 16 for each axis that smooths.

    Args:
      x: any number of axes.
      axis, mode, cval, axes: as in `sobel`.

    Returns:
      as `sobel`.

    Raises:
      ValueError: as `sobel`.
      TypeError: as `sobel`.

    Example:
      >>> import jax.numpy as jnp
      >>> from convjax.filters import scharr
      >>> scharr(jnp.arange(12).reshape(3, 4))[1]
      Array([16, 32, 32, 16], dtype=int32)

    Source: Scharr, Optimale Operatoren in der digitalen Bildverarbeitung, 2000.
    """
    return _difference("scharr", x, axis, mode, cval, axes)


def prewitt(
    x: Num[Array, "*shape"], axis: int = -1, *, mode: Mode = "reflect", cval: Any = 0.0, axes: Axes = None
) -> Num[Array, "*shape"]:
    """Take the derivative along one axis, smoothed by (1, 1, 1) along the others.

    On a ramp of slope 1 it is 2 times 3 for each axis that smooths.

    Args:
      x: any number of axes.
      axis, mode, cval, axes: as in `sobel`.

    Returns:
      as `sobel`.

    Raises:
      ValueError: as `sobel`.
      TypeError: as `sobel`.

    Example:
      >>> import jax.numpy as jnp
      >>> from convjax.filters import prewitt
      >>> prewitt(jnp.arange(12).reshape(3, 4))[1]
      Array([3, 6, 6, 3], dtype=int32)

    Source: Prewitt, Object enhancement and extraction, 1970; `scipy.ndimage.prewitt`.
    """
    return _difference("prewitt", x, axis, mode, cval, axes)


def emboss(
    x: Num[Array, "*shape"], strength: float = 1.0, *, mode: Mode = "reflect", cval: Any = 0.0, axes: Axes = None
) -> Inexact[Array, "*shape"]:
    """Show an image as a relief lit from its first corner: itself plus a difference along the diagonal.

    Args:
      x: an image; with more axes `axes` must name two.
      strength: how much of `((-2, -1, 0), (-1, 0, 1), (0, 1, 2))` to add; may be traced.
      mode: as in `sobel`.
      cval: as in `sobel`.
      axes: as in `sobel`; two.

    Returns:
      an array of the shape of `x`, integers as the default float.

    Raises:
      ValueError: not two axes; a mode that is not known.
      TypeError: an argument of the wrong type.

    Example:
      >>> import jax.numpy as jnp
      >>> from convjax.filters import emboss
      >>> emboss(jnp.arange(9.0).reshape(3, 3))[1, 1]
      Array(28., dtype=float32)

    Source: the weights that image editors know under this name.
    """
    x, axes = read("emboss", x, axes, count=2)
    x, relief = to_float(x), np.array([[-2, -1, 0], [-1, 0, 1], [0, 1, 2]])
    return x + strength * weigh(x, relief, axes, (1, 1), modes("emboss", mode, axes), cval)


def _difference(where: str, x: Any, axis: Any, mode: Any, cval: Any, axes: Any) -> Array:
    x, axes = read(where, x, axes)
    names = dict(zip(axes, modes(where, mode, axes), strict=True))
    (along,) = read(where, x, axis, count=1)[1]
    if along not in axes:
        raise ValueError(f"{where}: axis={axis} is not one of axes={axes}. Type axes=... with it.")
    x = weigh(x, DIFFERENCE, (along,), (1,), (names[along],), cval)
    for other in axes:
        if other != along:
            x = weigh(x, SMOOTHING[where], (other,), (1,), (names[other],), cval)
    return x
