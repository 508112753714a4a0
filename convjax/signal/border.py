"""Continuing an array beyond its ends, as far as one likes: a mirror beyond a mirror shows what is in it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax


def extend(x: Array, axis: int, lo: int, hi: int, mode: str, value: Array | None = None) -> Array:
    """`lo` elements before and `hi` after `axis`, by numpy's names: wrap, symmetric, reflect, edge, constant (`value`).

    Negative numbers crop. Only the new elements are gathered, so that the old ones are copied in one piece. Unlike
    `lax.pad` in jax 0.10.1, it can be differentiated in `value` alone.
    """
    size = x.shape[axis]
    length = jnp.asarray(size) if jax.export.is_symbolic_dim(size) else size
    sides = np.arange(-max(lo, 0), 0), length + np.arange(max(hi, 0))
    if mode == "constant":
        shapes = [(*x.shape[:axis], len(side), *x.shape[axis + 1 :]) for side in sides]
        before, after = (jnp.broadcast_to(jnp.asarray(value, x.dtype), shape) for shape in shapes)
    else:
        before, after = (jnp.take(x, _source(side, length, mode), axis=axis, mode="clip") for side in sides)
    middle = lax.slice_in_dim(x, min(max(-lo, 0), size), max(size - max(-hi, 0), 0), axis=axis)
    return jnp.concatenate([before, middle, after], axis)


def _source(at: Any, size: Any, mode: str) -> Any:
    """Which element stands at positions outside `0 <= at < size`: known now, unless the size is symbolic."""
    xp: Any = jnp if isinstance(size, Array) else np
    if mode == "wrap":
        return at % size
    if mode == "edge":
        return xp.clip(at, 0, size - 1)
    period = 2 * size if mode == "symmetric" else xp.maximum(2 * size - 2, 1)
    at = at % period
    return xp.where(at < size, at, period - at - (mode == "symmetric"))
