"""Channels of a group on an axis of their own, in front of the groups: a box of TMA can take one of each group."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array, lax


def planes_first(x: Array, groups: int, channels: int) -> Array:
    """`(*, groups * n)` as `(*, n, channels)`: `n` planes of all groups, zeros where there are more channels."""
    x = x.reshape(*x.shape[:-1], groups, -1)
    return channels_to(jnp.swapaxes(x, -1, -2), channels)


def channels_to(x: Array, channels: int) -> Array:
    """With so many channels, zeros for those that it lacks."""
    missing = channels - x.shape[-1]
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)]) if missing else x


def divmod_(a: Any, b: int) -> tuple[Any, Any]:
    """Of numbers that are not negative; plain numbers stay plain."""
    return divmod(a, b) if isinstance(a, int) else (lax.div(a, jnp.int32(b)), lax.rem(a, jnp.int32(b)))
