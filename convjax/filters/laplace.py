"""Second derivatives: what finds spots and edges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax import Array
from jaxtyping import Inexact, Num

from convjax.filters.smooth import Axes, Mode, gaussian
from convjax.filters.weigh import modes, number, per_axis, read, to_float, weigh

SECOND_DIFFERENCE = np.array([1, -2, 1])


def laplacian(
    x: Num[Array, "*shape"], *, mode: Mode = "reflect", cval: Any = 0.0, axes: Axes = None
) -> Num[Array, "*shape"]:
    """Sum the second differences (1, -2, 1) along each axis.

    Args:
      x: any number of axes.
      mode: as in `sobel`.
      cval: as in `sobel`.
      axes: along which to take them; all by default.

    Returns:
      as `sobel`.

    Raises:
      ValueError: a mode that is not known; axes that do not exist.
      TypeError: an argument of the wrong type.

    Example:
      >>> import jax.numpy as jnp
      >>> from convjax.filters import laplacian
      >>> laplacian(jnp.array([0, 1, 4, 9, 16]))
      Array([ 1,  2,  2,  2, -7], dtype=int32)

    Source: Gonzalez and Woods, Digital image processing, 4th edition, section 3.6; `scipy.ndimage.laplace`.
    """
    x, axes = read("laplacian", x, axes)
    names = modes("laplacian", mode, axes)
    return sum((weigh(x, SECOND_DIFFERENCE, (a,), (1,), (m,), cval) for a, m in zip(axes, names, strict=True)), 0 * x)


def laplacian_of_gaussian(
    x: Num[Array, "*shape"],
    sigma: Any,
    *,
    mode: Mode = "reflect",
    cval: Any = 0.0,
    truncate: float = 4.0,
    radius: int | Sequence[int] | None = None,
    axes: Axes = None,
) -> Inexact[Array, "*shape"]:
    """Sum the second derivatives of the Gaussian-filtered array: negative in bright spots of radius `sigma * sqrt(2)`.

    Args:
      x, sigma, mode, cval, truncate, radius, axes: as in `gaussian`.

    Returns:
      as `gaussian`.

    Raises:
      ValueError: as `gaussian`.
      TypeError: as `gaussian`.

    Example:
      >>> import jax.numpy as jnp
      >>> from convjax.filters import laplacian_of_gaussian
      >>> round(float(laplacian_of_gaussian(jnp.zeros((9, 9)).at[4, 4].set(1.0), 1.0)[4, 4]), 3)
      -0.318

    Source: Marr and Hildreth, Theory of edge detection, 1980; `scipy.ndimage.gaussian_laplace`.
    """
    x, axes = read("laplacian_of_gaussian", x, axes)
    options: dict[str, Any] = dict(mode=mode, cval=cval, truncate=truncate, radius=radius, axes=axes)
    orders = 2 * np.eye(len(axes), dtype=int)
    return sum((gaussian(x, sigma, order=tuple(order), **options) for order in orders), 0 * to_float(x))


def difference_of_gaussians(
    x: Num[Array, "*shape"],
    low_sigma: Any,
    high_sigma: Any = None,
    *,
    mode: Mode = "reflect",
    cval: Any = 0.0,
    truncate: float = 4.0,
    axes: Axes = None,
) -> Inexact[Array, "*shape"]:
    """Subtract a wide Gaussian from a narrow one: a band of frequencies.

    Args:
      x: any number of axes.
      low_sigma: standard deviation of the narrow one, in elements, one for all axes or one each.
      high_sigma: of the wide one; 1.6 times `low_sigma` by default, which is near to `laplacian_of_gaussian`.
      mode, cval, truncate, axes: as in `gaussian`.

    Returns:
      as `gaussian`.

    Raises:
      ValueError: as `gaussian`.
      TypeError: as `gaussian`.

    Example:
      >>> import jax.numpy as jnp
      >>> from convjax.filters import difference_of_gaussians
      >>> difference_of_gaussians(jnp.ones((5, 5)), 1.0).round(6)[2, 2]
      Array(0., dtype=float32)

    Source: Marr and Hildreth, Theory of edge detection, 1980, appendix B.
    """
    where = "difference_of_gaussians"
    x, axes = read(where, x, axes)
    if high_sigma is None:
        high_sigma = tuple(1.6 * number(where, "low_sigma", s) for s in per_axis(where, "low_sigma", low_sigma, axes))
    options: dict[str, Any] = dict(mode=mode, cval=cval, truncate=truncate, axes=axes)
    return gaussian(x, low_sigma, **options) - gaussian(x, high_sigma, **options)
