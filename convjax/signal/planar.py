"""Convolution and correlation of images, with a choice of what lies beyond the border of the first."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Num

from convjax.signal.border import extend
from convjax.signal.method import apply, by_size
from convjax.signal.operands import MODES, check_valid, named, read
from convjax.signal.part import Part, part

BOUNDARIES = {
    "fill": "constant",
    "pad": "constant",
    "wrap": "wrap",
    "circular": "wrap",
    "symm": "symmetric",
    "symmetric": "symmetric",
}


def convolve2d(
    in1: Num[Array, "h1 w1"],
    in2: Num[Array, "h2 w2"],
    mode: str = "full",
    boundary: str = "fill",
    fillvalue: Any = 0,
) -> Num[Array, "h w"]:
    """Convolve two images.

    Args:
      in1: first image; more axes by `jax.vmap`.
      in2: second image, the kernel.
      mode: as in `convolve`.
      boundary: what lies beyond the border of `in1`: "fill" (the `fillvalue`), "wrap" (the opposite side), "symm" (a
        mirror outside the last pixel, numpy's "symmetric"); also by the names "pad", "circular" and "symmetric".
      fillvalue: a number, which may be traced.

    Returns:
      the convolution in the common dtype of the inputs; integers wrap around. An empty image is one of zeros.

    Raises:
      ValueError: inputs without exactly two axes; a mode or boundary that is not known; a `fillvalue` that is not one
        number, or complex where the inputs are real; in mode "valid" inputs of which none contains the other.
      TypeError: inputs that are no numbers.

    Example:
      >>> import jax.numpy as jnp
      >>> from convjax.signal import convolve2d
      >>> convolve2d(jnp.eye(3), jnp.ones((2, 2)), mode="same", boundary="symm")
      Array([[4., 2., 0.],
             [2., 2., 1.],
             [0., 1., 2.]], dtype=float32)

    Source: Gonzalez and Woods, Digital image processing, 4th edition, section 3.4.
    """
    a, b, mode, boundary = _read("convolve2d", in1, in2, mode, boundary)
    return _planar("convolve2d", a, b, part(mode, a.shape, b.shape, (0, 1)), mode, boundary, fillvalue)


def correlate2d(
    in1: Num[Array, "h1 w1"],
    in2: Num[Array, "h2 w2"],
    mode: str = "full",
    boundary: str = "fill",
    fillvalue: Any = 0,
) -> Num[Array, "h w"]:
    """Correlate two images.

    With "same" and an even size of `in2` the result is that of `convolve2d` with `in2` flipped moved by one pixel, as
    in SciPy, where `correlate` is not.

    Args:
      in1: first image; more axes by `jax.vmap`.
      in2: second image, the template; its conjugate is taken.
      mode: as in `convolve`.
      boundary: as in `convolve2d`.
      fillvalue: as in `convolve2d`.

    Returns:
      the correlation, as `convolve2d`.

    Raises:
      ValueError: as `convolve2d`.
      TypeError: as `convolve2d`.

    Example:
      >>> import jax.numpy as jnp
      >>> from convjax.signal import correlate2d
      >>> correlate2d(jnp.arange(9.0).reshape(3, 3), jnp.array([[0.0, 1.0], [0.0, 0.0]]), mode="valid")
      Array([[1., 2.],
             [4., 5.]], dtype=float32)

    Source: Gonzalez and Woods, Digital image processing, 4th edition, section 3.4.
    """
    a, b, mode, boundary = _read("correlate2d", in1, in2, mode, boundary)
    wanted = part(mode, a.shape, b.shape, (0, 1))
    if mode == "same":
        wanted = Part(a.shape, b.shape, (0, 1), tuple(n // 2 for n in b.shape), a.shape)
    return _planar("correlate2d", a, jnp.flip(b).conj(), wanted, mode, boundary, fillvalue)


def _read(where: str, in1: Any, in2: Any, mode: Any, boundary: Any) -> tuple[Array, Array, str, str]:
    a, b = read(where, in1, in2)
    if a.ndim != 2:
        raise ValueError(f"{where}: in1 and in2 have {a.ndim} axes. Type two images, or map over more by jax.vmap.")
    if a.dtype == bool:
        raise ValueError(f"{where}: in1 and in2 hold bools. Type .astype(jnp.int32) to count, or call convolve.")
    mode = named(where, "mode", mode, MODES)
    if mode == "valid":
        check_valid(where, a.shape, b.shape, (0, 1))
    return a, b, mode, BOUNDARIES[named(where, "boundary", boundary, tuple(BOUNDARIES))]


def _planar(where: str, a: Array, b: Array, wanted: Part, mode: str, boundary: str, fillvalue: Any) -> Array:
    fill = _fill(where, fillvalue, a.dtype)
    if 0 in (a.size, b.size):
        if min(wanted.sizes) < 0:
            raise ValueError(f"{where}: both in1 and in2 are empty. Type an image with pixels.")
        return jnp.zeros(wanted.out_shape, a.dtype)
    if mode != "valid" and (boundary != "constant" or not isinstance(fillvalue, int | float) or fillvalue != 0):
        pads = [
            (n - 1 - start, start + size - m)
            for m, n, start, size in zip(a.shape, b.shape, wanted.starts, wanted.sizes, strict=True)
        ]
        for axis, (lo, hi) in enumerate(pads):
            a = extend(a, axis, lo, hi, boundary, fill)
        wanted = Part(a.shape, b.shape, (0, 1), tuple(n - 1 for n in b.shape), wanted.sizes)
    return apply(a, b, wanted, by_size(wanted, a.dtype))


def _fill(where: str, value: Any, dtype: Any) -> Array:
    """`fillvalue` in the dtype of the images."""
    fill = jnp.asarray(value)
    if fill.size != 1:
        raise ValueError(f"{where}: fillvalue has shape {fill.shape}. Type one number, such as fillvalue=0.")
    if jnp.iscomplexobj(fill) and not jnp.issubdtype(dtype, jnp.complexfloating):
        raise ValueError(f"{where}: fillvalue is complex, but the images are {np.dtype(dtype)}. Type a real number.")
    return fill.reshape(()).astype(dtype)
