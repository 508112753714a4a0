"""A sum of shifted products kept apart from the program around it, on CPUs: XLA would fuse it into whatever reads it.

A gradient reads an output at every tap, in the order of axes that suits itself; fused, each read computes the sum
anew. XLA drops `optimization_barrier` before it fuses. What it does not fuse is a loop: one of a single round, known
only when it runs, that writes a number over itself. Two depthwise layers 7x7 192 @28 N8 with their gradients take 8 s,
and 46 ms with their outputs kept apart; a layer alone takes as long either way.

Operands that the caller has with channels first are computed so: of two NCHW blocks, 1x1, depthwise 3x3 and 1x1 with
128 channels @56 N8, a training step takes 376 ms, and 536 where XLA lays out all; the forward pass alone 88 and 77, as
neighbours that are matrix products want channels last.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental.layout import Layout, with_layout_constraint

from convjax._core.spec import ConvSpec


def in_place(run: Callable[[ConvSpec, Array, Array], Array], spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    """What `run` computes, written to memory, in the order of axes that the caller has."""
    if not spec.channels_first:
        return written(run(spec, lhs, rhs), rhs)
    lhs = as_it_lies(jnp.moveaxis(lhs, -1, 1))
    y = as_it_lies(jnp.moveaxis(run(spec, jnp.moveaxis(lhs, 1, -1), rhs), -1, 1))
    return jnp.moveaxis(written(y, rhs), 1, -1)


def as_it_lies(x: Array) -> Array:
    """`x` with its last axis contiguous; XLA may choose another layout, and copy."""
    return with_layout_constraint(x, Layout(major_to_minor=tuple(range(x.ndim))))


def written(y: Array, other: Array) -> Array:
    """`y` by itself; `other` has a number that is not known before the program runs."""
    number = lax.slice(other.reshape(-1), (0,), (1,)).reshape(())
    always = lax.bitwise_or(lax.eq(number, number), lax.ne(number, number))  # NaN differs from itself
    rounds = lax.select(always, np.int32(1), np.int32(2))
    corner, at = (1,) * y.ndim, (np.int32(0),) * y.ndim

    def body(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        i, y = carry
        first = lax.dynamic_slice(y, at, corner)
        first = lax.select(lax.broadcast(i < rounds, corner), first, lax.full_like(first, 0))
        return i + 1, lax.dynamic_update_slice(y, first, at)

    return lax.while_loop(lambda carry: carry[0] < rounds, body, (jnp.int32(0), y))[1]
