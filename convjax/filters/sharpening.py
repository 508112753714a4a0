"""Filters that make edges steeper, by adding what a blur takes away."""

from __future__ import annotations

from typing import Any

from jax import Array
from jaxtyping import Inexact, Num

from convjax.filters.laplace import laplacian
from convjax.filters.smooth import Axes, Mode, gaussian
from convjax.filters.weigh import read, to_float


def sharpen(
    x: Num[Array, "*shape"], amount: Any = 1.0, *, mode: Mode = "reflect", cval: Any = 0.0, axes: Axes = None
) -> Inexact[Array, "*shape"]:
    """Subtract the Laplacian: in two dimensions the weights `((0, -1, 0), (-1, 5, -1), (0, -1, 0))`.

    Args:
      x: any number of axes.
      amount: how much of it; may be traced.
      mode: what lies beyond the border, see the head of `convjax.filters`; one for all axes or one each.
      cval: the value for mode "constant".
      axes: which axes of `x` to filter; all by default.

    Returns:
      an array of the shape of `x`, integers as the default float.

    Raises:
      ValueError: a mode that is not known; axes that do not exist.
      TypeError: an argument of the wrong type.

    Example:
      >>> import jax.numpy as jnp
      >>> from convjax.filters import sharpen
      >>> sharpen(jnp.array([0.0, 0.0, 1.0, 1.0]))
      Array([ 0., -1.,  2.,  1.], dtype=float32)

    Source: Gonzalez and Woods, Digital image processing, 4th edition, section 3.6.
    """
    x, axes = read("sharpen", x, axes)
    x = to_float(x)
    return x - amount * laplacian(x, mode=mode, cval=cval, axes=axes)


def unsharp(
    x: Num[Array, "*shape"],
    sigma: Any = 1.0,
    amount: Any = 1.0,
    *,
    mode: Mode = "reflect",
    cval: Any = 0.0,
    truncate: float = 4.0,
    axes: Axes = None,
) -> Inexact[Array, "*shape"]:
    """Add what a Gaussian takes away: `x + amount * (x - gaussian(x, sigma))`.

    Args:
      x: any number of axes.
      sigma: standard deviation, in elements, one for all axes or one each.
      amount: how much of the difference; may be traced.
      mode, cval, truncate, axes: as in `gaussian`.

    Returns:
      as `gaussian`.

    Raises:
      ValueError: as `gaussian`.
      TypeError: as `gaussian`.

    Example:
      >>> import jax.numpy as jnp
      >>> from convjax.filters import unsharp
      >>> [round(v, 2) for v in unsharp(jnp.array([0.0, 0.0, 0.0, 1.0, 1.0, 1.0])).tolist()]
      [-0.0, -0.06, -0.3, 1.3, 1.06, 1.0]

    Source: Gonzalez and Woods, Digital image processing, 4th edition, section 3.6 (unsharp masking).
    """
    x, axes = read("unsharp", x, axes)
    x = to_float(x)
    return x + amount * (x - gaussian(x, sigma, mode=mode, cval=cval, truncate=truncate, axes=axes))
