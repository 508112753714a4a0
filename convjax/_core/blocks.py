"""Work cut into parts that follow one another, so that what lies between two steps of one stays in the cache.

XLA on CPUs takes memory afresh for each call's temporaries beyond 32 MiB, and a page fault for each 4 KiB of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from convjax._core.dtypes import as_bits, as_floats


def stacked(part: Callable[[Any], Array], count: int, axis: int) -> Array:
    """Parts side by side along an axis, before which all have length 1."""
    if count == 1:
        return part(0)
    dtype = jax.eval_shape(part, 0).dtype
    done = as_floats(lax.map(lambda index: as_bits(part(index)), jnp.arange(count)), dtype)
    return done.reshape(*done.shape[1 : axis + 1], -1, *done.shape[axis + 2 :])


def summed(part: Callable[[Any], Array], count: int) -> Array:
    """Sum of the parts."""
    if count == 1:
        return part(0)
    like = jax.eval_shape(part, 0)
    return lax.fori_loop(0, count, lambda index, total: total + part(index), jnp.zeros(like.shape, like.dtype))


def cut(x: Array, index: Any, step: int, length: int, axis: int) -> Array:
    """`length` along an axis from `index * step` on."""
    if x.shape[axis] == length:
        return x
    return as_floats(lax.dynamic_slice_in_dim(as_bits(x), index * step, length, axis), x.dtype)
