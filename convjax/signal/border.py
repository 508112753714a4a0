"""Continuing an array beyond its ends, as far as one likes: a mirror beyond a mirror shows what is in it."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array, lax


def extend(x: Array, axis: int, lo: int, hi: int, mode: str, value: Array | None = None) -> Array:
    """`lo` elements before and `hi` after `axis`, by numpy's names: wrap, symmetric, reflect, edge, constant (`value`).

    Negative numbers crop. Only the new elements are gathered, so that the old ones are copied in one piece. Unlike
    `lax.pad` in jax 0.10.1, it can be differentiated in `value` alone.
    """
    size = x.shape[axis]
    sides = np.arange(-max(lo, 0), 0), np.arange(size, size + max(hi, 0))
    if mode == "constant":
        shapes = [(*x.shape[:axis], len(side), *x.shape[axis + 1 :]) for side in sides]
        before, after = (jnp.broadcast_to(jnp.asarray(value, x.dtype), shape) for shape in shapes)
    else:
        before, after = (jnp.take(x, _source(side, size, mode), axis=axis, mode="clip") for side in sides)
    middle = lax.slice_in_dim(x, min(max(-lo, 0), size), max(size - max(-hi, 0), 0), axis=axis)
    return jnp.concatenate([before, middle, after], axis)


def _source(at: np.ndarray, size: int, mode: str) -> np.ndarray:
    """Which element stands at positions outside `0 <= at < size`."""
    if mode == "wrap":
        return at % size
    if mode == "edge":
        return np.clip(at, 0, size - 1)
    period = 2 * size if mode == "symmetric" else max(2 * size - 2, 1)
    at = at % period
    return np.where(at < size, at, period - at - (mode == "symmetric"))
