"""Filters for texture: waves of one length and direction."""

from __future__ import annotations

from typing import Any

from jax import Array
from jaxtyping import Complex, Num

from convjax.filters.kernels import gabor_taps
from convjax.filters.smooth import Axes, Mode
from convjax.filters.weigh import modes, read, to_float, weigh


def gabor(
    x: Num[Array, "*shape"],
    wavelength: float,
    angle: float = 0.0,
    *,
    bandwidth: float = 1.0,
    sigma: float | None = None,
    aspect: float = 1.0,
    truncate: float = 3.0,
    mode: Mode = "reflect",
    cval: Any = 0.0,
    axes: Axes = None,
) -> Complex[Array, "*shape"]:
    """Convolve an image with a plane wave under a Gaussian: texture of one scale and direction.

    Args:
      x: an image; with more axes `axes` must name two.
      wavelength, angle, bandwidth, sigma, aspect, truncate: as in `gabor_kernel`.
      mode: as in `sobel`.
      cval: as in `sobel`.
      axes: as in `sobel`; two.

    Returns:
      complex array of the shape of `x`: the real part by the even filter, the imaginary part by the odd one, the
      absolute value the energy.

    Raises:
      ValueError: a number that is not positive; not two axes; a mode that is not known.
      TypeError: an argument of the wrong type, or traced.

    Example:
      >>> import jax.numpy as jnp
      >>> from convjax.filters import gabor
      >>> stripes = jnp.cos(jnp.arange(32.0) * 2 * jnp.pi / 8) * jnp.ones((32, 1))
      >>> along, across = (jnp.abs(gabor(stripes, 8.0, angle)).mean() for angle in (0.0, jnp.pi / 2))
      >>> bool(along > 20 * across)
      True

    Source: Daugman, Uncertainty relation for resolution in space, spatial frequency, and orientation, 1985.
    """
    where = "gabor"
    x, axes = read(where, x, axes, count=2)
    weights = gabor_taps(where, wavelength, angle, bandwidth, sigma, aspect, truncate)[::-1, ::-1]
    return weigh(to_float(x), weights, axes, [n // 2 for n in weights.shape], modes(where, mode, axes), cval)
