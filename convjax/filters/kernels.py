"""The weights of filters that have a formula, as arrays to correlate or convolve with."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Complex, Float

from convjax._core import arguments
from convjax.filters.weigh import number


def gaussian_kernel(
    sigma: float, *, order: int = 0, truncate: float = 4.0, radius: int | None = None
) -> Float[Array, " k"]:
    """Samples of a Gaussian with sum 1, or of that times its derivative's polynomial: weights to convolve with.

    Args:
      sigma: standard deviation, in elements; may be traced where `radius` is given.
      order: which derivative, 0 for the Gaussian itself.
      truncate: where to end it, in standard deviations.
      radius: where to end it, in elements, instead.

    Returns:
      `2 * radius + 1` weights in the default float.

    Raises:
      ValueError: `sigma` is not positive; a negative order or radius.
      TypeError: something is not a number, or traced.

    Example:
      >>> from convjax.filters import gaussian_kernel
      >>> gaussian_kernel(1.0, radius=1)
      Array([0.27406862, 0.45186275, 0.27406862], dtype=float32)

    Source: Lindeberg, Scale-space theory, 1994; the weights of `scipy.ndimage.gaussian_filter1d`.
    """
    return jnp.asarray(gaussian_taps("gaussian_kernel", sigma, order, truncate, radius), jnp.result_type(float))


def gaussian_taps(where: str, sigma: Any, order: Any, truncate: Any, radius: Any) -> Any:
    """The weights in float64, or traced where sigma is."""
    order = arguments.integer(where, "order", order, minimum=0)
    if radius is None:
        radius = int(number(where, "truncate", truncate, above=0) * number(where, "sigma", sigma) + 0.5)
    else:
        radius = arguments.integer(where, "radius", radius, minimum=0)
    traced = isinstance(sigma, jax.Array)
    xp: Any = jnp if traced else np
    if not traced:
        sigma = number(where, "sigma", sigma, above=0)
    t = np.arange(-radius, radius + 1) / sigma
    weights = xp.exp(-(t**2) / 2)
    hermite, last = xp.ones_like(t), xp.zeros_like(t)
    for n in range(order):  # probabilists' polynomials: He[n + 1] = t He[n] - n He[n - 1]
        hermite, last = t * hermite - n * last, hermite
    return weights / weights.sum() * hermite * (-1 / sigma) ** order


def gabor_kernel(
    wavelength: float,
    angle: float = 0.0,
    *,
    bandwidth: float = 1.0,
    sigma: float | None = None,
    aspect: float = 1.0,
    truncate: float = 3.0,
) -> Complex[Array, "k k"]:
    """A plane wave under a Gaussian, to convolve with: the real part is even, the imaginary part odd.

    Args:
      wavelength: of the wave, in elements.
      angle: direction in which the wave runs, in radians from the second axis towards the first.
      bandwidth: in octaves, from which `sigma` follows.
      sigma: standard deviation of the Gaussian along the wave, in elements, instead.
      aspect: `sigma` over the standard deviation across.
      truncate: where to end it, in the larger of the standard deviations.

    Returns:
      complex weights in the default precision, of an odd size; the Gaussian has sum 1 up to sampling.

    Raises:
      ValueError: a number that is not positive.
      TypeError: something is not a number, or traced.

    Example:
      >>> from convjax.filters import gabor_kernel
      >>> gabor_kernel(4.0, sigma=2.0).shape
      (13, 13)

    Source: Daugman, Uncertainty relation for resolution in space, spatial frequency, and orientation, 1985, equation 1.
    """
    return jnp.asarray(gabor_taps("gabor_kernel", wavelength, angle, bandwidth, sigma, aspect, truncate)).astype(
        jnp.result_type(complex)
    )


def gabor_taps(
    where: str, wavelength: Any, angle: Any, bandwidth: Any, sigma: Any, aspect: Any, truncate: Any
) -> np.ndarray:
    wavelength, angle = number(where, "wavelength", wavelength, above=0), number(where, "angle", angle)
    if sigma is None:
        octaves = 2 ** number(where, "bandwidth", bandwidth, above=0)
        sigma = wavelength / math.pi * math.sqrt(math.log(2) / 2) * (octaves + 1) / (octaves - 1)
    sigma = number(where, "sigma", sigma, above=0)
    across = sigma / number(where, "aspect", aspect, above=0)
    radius = int(number(where, "truncate", truncate, above=0) * max(sigma, across) + 0.5)
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    u, v = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    envelope = np.exp(-((u / sigma) ** 2 + (v / across) ** 2) / 2) / (2 * math.pi * sigma * across)
    return envelope * np.exp(2j * math.pi * u / wavelength)


def motion_kernel(length: float, angle: float = 0.0) -> Float[Array, "k k"]:
    """A line one element wide, with sum 1: what a camera that moves draws of a point.

    Args:
      length: of the line, in elements, at least 1.
      angle: of the line, in radians, from the second axis towards the first (so, with rows downwards, clockwise).

    Returns:
      weights in the default float, of an odd size.

    Raises:
      ValueError: `length` is less than 1.
      TypeError: something is not a number, or traced.

    Example:
      >>> from convjax.filters import motion_kernel
      >>> motion_kernel(3)[1]
      Array([0.33333334, 0.33333334, 0.33333334], dtype=float32)

    Source: Gonzalez and Woods, Digital image processing, 4th edition, section 5.6 (motion blur).
    """
    return jnp.asarray(motion_taps("motion_kernel", length, angle), jnp.result_type(float))


def motion_taps(where: str, length: Any, angle: Any) -> np.ndarray:
    """Each weight is 1 less its distance from the line, none below 0."""
    half, angle = (number(where, "length", length) - 1) / 2, number(where, "angle", angle)
    if half < 0:
        raise ValueError(f"{where}: length must be at least 1, got {length!r}. Type length=1 for no motion.")
    radius = math.ceil(half)
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    weights = np.maximum(1 - np.hypot(np.maximum(np.abs(along) - half, 0), across), 0)
    return weights / weights.sum()
