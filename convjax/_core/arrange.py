"""What algorithms share: padding, the part of the input that a tap meets, groups on an axis of their own, blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array, lax

from convjax._core.spec import ConvSpec, Shape, dilate


def pad_space(x: Array, padding: Sequence[tuple[int, int]], dilation: Sequence[int], first: int = 1) -> Array:
    """Zeros around the spatial axes (from `first` on) and, where dilated, between; negative padding crops."""
    config = [(0, 0, 0)] * x.ndim
    for i, ((lo, hi), d) in enumerate(zip(padding, dilation, strict=True)):
        config[first + i] = (lo, hi, d - 1)
    return lax.pad(x, jnp.zeros((), x.dtype), config)


def met_by(padded: Array, starts: Sequence[int], counts: Sequence[int], steps: Sequence[int]) -> Array:
    """Inputs at `starts + i * steps`, `i < counts`, along the spatial axes of `(batch, *space, features)`."""
    limits = [start + dilate(count, step) for start, count, step in zip(starts, counts, steps, strict=True)]
    return lax.slice(padded, (0, *starts, 0), (padded.shape[0], *limits, padded.shape[-1]), (1, *steps, 1))


def inside(start: int, step: int, count: int, size: int) -> tuple[int, int]:
    """First and stop of those `i < count` for which `start + i * step` is an index of an axis of `size`."""
    first = min(max(0, -(start // step)), count)
    return first, max(first, min(-((start - size) // step), count))


def split_axis(a: Array, axis: int, parts: int) -> Array:
    """`(..., parts * n, ...)` to `(..., parts, n, ...)`."""
    return a.reshape(*a.shape[:axis], parts, a.shape[axis] // parts, *a.shape[axis + 1 :])


def merge_axes(a: Array, axis: int) -> Array:
    """`(..., m, n, ...)` to `(..., m * n, ...)`, the inverse of `split_axis`."""
    return a.reshape(*a.shape[:axis], a.shape[axis] * a.shape[axis + 1], *a.shape[axis + 2 :])


# --- groups: of features or of the batch, the same from here on -------------------------------------------------------


def groups_first(spec: ConvSpec, lhs: Array, rhs: Array) -> tuple[Array, Array]:
    """Operands as `(groups, batch, *space, features)` and `(groups, *k, features, outputs)`."""
    g, n = spec.groups, spec.ndim
    if spec.feature_groups > 1:
        lhs = jnp.moveaxis(lhs.reshape(*lhs.shape[:-1], g, -1), -2, 0)
    else:
        lhs = lhs.reshape(g, -1, *lhs.shape[1:])
    rhs = jnp.moveaxis(rhs.reshape(*rhs.shape[: n + 1], g, -1), -2, 0)
    return lhs, rhs


def groups_last(out: Array) -> Array:
    """`(groups, batch, *out, outputs)` as `(batch, *out, groups * outputs)`."""
    out = jnp.moveaxis(out, 0, -2)
    return out.reshape(*out.shape[:-2], -1)


def grouped(spec: ConvSpec, lhs: Array, rhs: Array) -> tuple[Array, Array]:
    """Operands as `(batch, *space, groups, features)` and `(*k, features, groups, outputs)`.

    A kernel gradient comes with batch and features exchanged in both operands. Exchanging them back before anything
    else is reshaped lets XLA cancel the two transpositions; after a reshape it copies both operands twice.
    """
    if spec.batch_groups == 1 and math.prod(rhs.shape[:-2]) <= math.prod(spec.out_space(lhs.shape, rhs.shape)):
        lhs, rhs = (split_axis(a, a.ndim - 1, spec.feature_groups) for a in (lhs, rhs))
        return lhs, rhs
    lhs, rhs = (split_axis(a, a.ndim - 1, spec.groups) for a in exchanged(spec, lhs, rhs))
    return jnp.swapaxes(lhs, 0, -1), jnp.moveaxis(rhs, 0, -3)


def exchanged(spec: ConvSpec, lhs: Array, rhs: Array) -> tuple[Array, Array]:
    """`(features, *space, groups * batch)` and `(features, *k, groups * outputs)`.

    Of a kernel gradient these are the input and the cotangent as the convolution had them.
    """
    lhs, rhs = jnp.swapaxes(lhs, 0, -1), jnp.moveaxis(rhs, -2, 0)
    if spec.feature_groups > 1:  # the convolution had batch groups
        lhs = merge_axes(jnp.moveaxis(split_axis(lhs, 0, spec.feature_groups), 0, -2), lhs.ndim - 1)
    return lhs, rhs


def group_sizes(spec: ConvSpec, lhs_shape: Shape, rhs_shape: Shape) -> Shape:
    """Batch, features and outputs of one group."""
    return lhs_shape[0] // spec.batch_groups, rhs_shape[-2], rhs_shape[-1] // spec.groups


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of `number` that is at most `limit`, itself at least 1."""
    return next(d for d in range(min(number, limit), 0, -1) if number % d == 0)


# --- blocks of indices, for programs that loop where they cannot unroll -----------------------------------------------


def block_shape(sizes: Sequence[int], budget: int) -> Shape:
    """Largest block of at most `budget` indices that is whole in the trailing axes, part of one, and 1 before it."""
    block: list[int] = []
    for size in reversed(sizes):
        block.append(max(1, min(size, budget)))
        budget //= max(1, size)
    return tuple(reversed(block))


def block_counts(sizes: Sequence[int], block: Sequence[int]) -> Shape:
    return tuple(-(-size // length) for size, length in zip(sizes, block, strict=True))


def unravel(index: Array, counts: Sequence[int]) -> tuple[Array, ...]:
    """Position of the (traced) flat `index` in a grid of `counts`, the last axis fastest."""
    strides = [math.prod(counts[i + 1 :]) for i in range(len(counts))]
    return tuple(index // stride % count for stride, count in zip(strides, counts, strict=True))
