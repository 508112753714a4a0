"""Squeeze-and-excitation, channel shuffling and mixed kernels, given the layers that they are made of."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from convjax._core import arguments
from convjax._core.epilogue import read_activation
from convjax._layers.conv import check_input

Layer = Callable[[Array], Array]


def reduced_features(where: str, features: Any, reduced: Any) -> int:
    """A sixteenth of the features unless told (Hu et al., arXiv:1709.01507, section 6.1)."""
    count = arguments.integer(where, "features", features, minimum=1)
    return max(1, count // 16) if reduced is None else arguments.integer(where, "reduced_features", reduced, minimum=1)


def squeeze_excite(where: str, x: Array, ndim: int, reduce: Layer, expand: Layer, activation: Any, gate: Any) -> Array:
    """`x (*batch, *space, C)` times a gate for each channel, computed from the mean over space."""
    check_input(where, x, ndim, jnp.shape(x)[-1])
    between, last = read_activation(where, activation), read_activation(where, gate)
    if between is None or last is None:
        raise ValueError(
            f"{where}: activation={activation!r} and gate={gate!r} must both be given. Type 'relu' and 'sigmoid'."
        )
    squeezed = x.mean(tuple(range(-1 - ndim, -1)))
    gates = last(expand(between(reduce(squeezed))))
    return x * jnp.expand_dims(gates, tuple(range(-1 - ndim, -1))).astype(x.dtype)


def shuffle_channels(where: str, x: Array, groups: Any) -> Array:
    """Channel `g * (C // groups) + i` becomes channel `i * groups + g`."""
    count = arguments.integer(where, "groups", groups, minimum=1)
    *rest, channels = x.shape
    if channels % count:
        raise ValueError(
            f"{where}: groups={count} does not divide the {channels} channels of the input. Type one of its divisors."
        )
    return x.reshape(*rest, count, channels // count).swapaxes(-1, -2).reshape(x.shape)


def split_channels(where: str, features: Any, kernel_sizes: Sequence[Any]) -> list[int]:
    """Channels for each kernel size, as even as can be, the first ones more."""
    count, total = len(kernel_sizes), arguments.integer(where, "in_features", features, minimum=1)
    if not 1 <= count <= total:
        raise ValueError(
            f"{where}: kernel_sizes={kernel_sizes!r} has {count} entries for {total} channels. Type 1 to {total} sizes."
        )
    return [total // count + (i < total % count) for i in range(count)]


def mix(where: str, x: Array, parts: Sequence[int], branches: Sequence[Layer]) -> Array:
    """Each branch on its part of the channels, the results side by side."""
    if jnp.shape(x)[-1] != sum(parts):
        raise ValueError(
            f"{where}: the input has shape {jnp.shape(x)}, but the layer takes {sum(parts)} channels last."
        )
    pieces = jnp.split(x, list(itertools.accumulate(parts))[:-1], axis=-1)
    return jnp.concatenate([branch(piece) for branch, piece in zip(branches, pieces, strict=True)], axis=-1)
