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
    """Operands as `(batch, *space, groups, features)` and `(*k, features, groups, outputs)`."""
    if spec.batch_groups > 1:
        lhs = jnp.moveaxis(lhs.reshape(spec.batch_groups, -1, *lhs.shape[1:]), 0, -2)
    else:
        lhs = lhs.reshape(*lhs.shape[:-1], spec.feature_groups, -1)
    return lhs, rhs.reshape(*rhs.shape[:-1], spec.groups, -1)


def group_sizes(spec: ConvSpec, lhs_shape: Shape, rhs_shape: Shape) -> Shape:
    """Batch, features and outputs of one group."""
    return lhs_shape[0] // spec.batch_groups, rhs_shape[-2], rhs_shape[-1] // spec.groups


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
