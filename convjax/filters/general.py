"""Correlation and convolution with weights of one's own, aligned as in `scipy.ndimage`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array
from jaxtyping import Num

from convjax._core import arguments
from convjax.filters.low_rank import Separable
from convjax.filters.weigh import before, extended, modes, read, to_float, weigh
from convjax.signal.method import apply, by_size
from convjax.signal.part import part

Weights = Any


def correlate(
    x: Num[Array, "*shape"],
    weights: Weights,
    *,
    mode: str | Sequence[str] = "reflect",
    cval: Any = 0.0,
    origin: int | Sequence[int] = 0,
    axes: int | Sequence[int] | None = None,
) -> Num[Array, "*shape"]:
    """Correlate an array with weights: `out[i] = sum_j weights[j] x[i + j - size // 2 - origin]`.

    Args:
      x: any number of axes.
      weights: an array with one axis for each of `axes`, or a `Separable`.
      mode: what lies beyond the border, see the head of `convjax.filters`; one for all axes or one each.
      cval: the value for mode "constant".
      origin: moves the middle of the weights, from `-(size // 2)` to `(size - 1) // 2`.
      axes: which axes of `x` to filter; all by default.

    Returns:
      an array of the shape of `x`; for dtypes see the head of `convjax.filters`.

    Raises:
      ValueError: weights that are empty or have another number of axes; a mode that is not known; an origin beyond the
        weights; axes that do not exist.
      TypeError: an argument of the wrong type.

    Example:
      >>> import jax.numpy as jnp
      >>> from convjax.filters import correlate
      >>> correlate(jnp.array([1.0, 2.0, 3.0, 4.0]), jnp.array([1.0, 10.0]))
      Array([11., 21., 32., 43.], dtype=float32)

    Source: Gonzalez and Woods, Digital image processing, 4th edition, section 3.4; `scipy.ndimage.correlate`.
    """
    return _weighted("correlate", x, weights, mode, cval, origin, axes)


def convolve(
    x: Num[Array, "*shape"],
    weights: Weights,
    *,
    mode: str | Sequence[str] = "reflect",
    cval: Any = 0.0,
    origin: int | Sequence[int] = 0,
    axes: int | Sequence[int] | None = None,
) -> Num[Array, "*shape"]:
    """Convolve an array with weights: `out[i] = sum_j weights[j] x[i - j + size // 2 + origin]`.

    Args:
      x: any number of axes.
      weights: as in `correlate`.
      mode: as in `correlate`.
      cval: as in `correlate`.
      origin: as in `correlate`, the other way.
      axes: as in `correlate`.

    Returns:
      as `correlate`.

    Raises:
      ValueError: as `correlate`.
      TypeError: as `correlate`.

    Example:
      >>> import jax.numpy as jnp
      >>> from convjax.filters import convolve
      >>> convolve(jnp.array([1.0, 2.0, 3.0, 4.0]), jnp.array([1.0, 10.0]))
      Array([12., 23., 34., 44.], dtype=float32)

    Source: as `correlate`; `scipy.ndimage.convolve`.
    """
    return _weighted("convolve", x, weights, mode, cval, origin, axes)


def _weighted(where: str, x: Any, weights: Weights, mode: Any, cval: Any, origin: Any, axes: Any) -> Array:
    x, axes = read(where, x, axes)
    low_rank = isinstance(weights, Separable)
    factors = weights.factors if low_rank else (arguments.array(where, "weights", weights),)
    shape = weights.shape if low_rank else factors[0].shape
    if len(shape) != len(axes) or 0 in shape:
        raise ValueError(
            f"{where}: weights of shape {shape} cannot filter x of shape {x.shape} along {len(axes)} axes. Type "
            "weights with an axis for each, and axes=... where x has more."
        )
    low = before(where, shape, origin, axes)
    if where == "convolve":
        low = tuple(size - 1 - lo for size, lo in zip(shape, low, strict=True))
        factors = tuple(jnp.flip(f, axis=1 if low_rank else None) for f in factors)
    if any(jnp.issubdtype(f.dtype, jnp.inexact) for f in factors):
        x = to_float(x)
    names = modes(where, mode, axes)
    if x.size == 0:
        return x
    if not low_rank:
        return weigh(x, factors[0], axes, low, names, cval)
    pads = [(lo, size - 1 - lo) for size, lo in zip(shape, low, strict=True)]
    return _in_turn(extended(x, axes, pads, names, jnp.asarray(cval, x.dtype)), factors, axes)


def _in_turn(x: Array, factors: Sequence[Array], axes: Sequence[int]) -> Array:
    """The sum over products of 1-D correlations, without any border."""
    dtype = jnp.result_type(x, *factors) if any(map(jnp.iscomplexobj, factors)) else x.dtype
    x = x.astype(jnp.promote_types(dtype, jnp.float32))
    products = []
    for r in range(len(factors[0])):
        y = x
        for axis, factor in zip(axes, factors, strict=True):
            shape = [1] * x.ndim
            shape[axis] = factor.shape[1]
            wanted = part("valid", y.shape, tuple(shape), (axis,))
            y = apply(y, jnp.flip(factor[r]).reshape(shape).astype(x.dtype), wanted, by_size(wanted, x.dtype))
        products.append(y)
    return sum(products, jnp.zeros((), x.dtype)).astype(dtype)
