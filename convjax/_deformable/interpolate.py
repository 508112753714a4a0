"""Linear interpolation between the rows of a table: which rows a position lies between, and their weighted sum.

Outside the input everything is zero, and each corner is judged by itself: a sample half a pixel outside counts half.
So that no corner needs a mask, the table has zeros around the input (`BEFORE` and `AFTER` pixels on each axis), and
what lies wholly outside goes to the last two of these, as does NaN, whose cotangents then reach no pixel.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array, custom_jvp, lax

BEFORE, AFTER = 1, 2


def corner_steps(space: Sequence[int]) -> tuple[int, ...]:
    """From the first of the `2 ** ndim` corners to each, in pixels of the padded input."""
    sizes = [size + BEFORE + AFTER for size in space]
    strides = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    return tuple(sum(itertools.compress(strides, corner)) for corner in itertools.product((0, 1), repeat=len(sizes)))


def corners(position: Array, mask: Array | None, space: Sequence[int], groups: int) -> tuple[Array, Array]:
    """Which rows samples lie between, in one example whose rows are `(*padded space, groups)`.

    XLA's CPU compiler writes out a concatenation that something is done to; it computes anything else again for each
    channel, within the loop that gathers. Hence the mask comes last: 2x56x56x64 took 15 ms so, 24 otherwise.

    Args:
      position: `(..., groups, ndim)` in pixels, floating.
      mask: `(..., groups)`, factors of the samples, or None.
      space: spatial shape of the input.
      groups: parts of the channels.

    Returns:
      index: `(2 ** ndim, ..., groups)`.
      weights: the same shape.
    """
    size = np.asarray(space)
    floor = jnp.floor(position)
    inside = (floor >= -1) & (floor < size)  # not so for NaN
    lower = jnp.where(inside, floor, size).astype(jnp.int32) + BEFORE
    fraction = jnp.where(jnp.isinf(position), 0, position - floor)
    first = jnp.zeros(position.shape[:-1], jnp.int32)
    for axis, length in enumerate(space):
        first = first * (length + BEFORE + AFTER) + lower[..., axis]
    first = first * groups + jnp.arange(groups)
    either = [(1 - fraction[..., axis], fraction[..., axis]) for axis in range(len(space))]
    weights = jnp.stack([math.prod(factors) for factors in itertools.product(*either)])  # type: ignore[type-var]
    index = jnp.stack([first + step * groups for step in corner_steps(space)])
    return index, weights if mask is None else weights * mask.astype(weights.dtype)


def _take(rows: Array, index: Array) -> Array:
    return rows.at[index].get(mode="promise_in_bounds")


@custom_jvp
def interpolate(rows: Array, index: Array, weights: Array) -> Array:
    """Weighted sums of rows.

    The derivative is written so that it transposes well: one scatter into the table instead of one for each corner,
    and, for the weights, products with a column of ones instead of reductions, which XLA does not vectorise on CPUs.

    Args:
      rows: `(R, C)`.
      index: `(terms, P, ...)`, each below R.
      weights: `(terms, P, ...)`, real.

    Returns:
      `(P, ..., C)`.
    """
    return sum(w[..., None] * _take(rows, i) for w, i in zip(weights, index, strict=True))  # type: ignore[return-value]


@interpolate.defjvp
def _interpolate_jvp(primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]) -> tuple[Array, Array]:
    rows, index, weights = primals
    d_rows, _, d_weights = tangents
    y = interpolate(rows, index, weights)
    in_turn = index.reshape(-1, *index.shape[2:])
    of_rows = weights.reshape(*in_turn.shape, 1) * _take(d_rows, in_turn)
    ones = jnp.ones((1, rows.shape[-1]), weights.dtype)
    of_weights = (
        jnp.dot(d[..., None], ones, precision=lax.Precision.HIGHEST) * _take(rows, i)
        for d, i in zip(d_weights, index, strict=True)
    )
    return y, of_rows.reshape(len(index), *y.shape).sum(0) + sum(of_weights)
