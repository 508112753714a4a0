"""Long filters that are computed, not stored (Hyena, Poli et al., arXiv:2302.10866, section 3.3).

A small network maps positional features of each time step to the filter's value there; sine activations let it be of
high frequency, and a window that decays at another rate in each channel makes it forget.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

import convjax
from convjax._layers.conv import check_input

# A window has fallen to FLOOR after FASTEST (first channel) to SLOWEST (last) of `max_length`, as in Hyena's own code.
FLOOR, FASTEST, SLOWEST = 0.01, 0.3, 1.5


def check(where: str, x: Array, features: int, max_length: int) -> None:
    """The input's channels and length."""
    check_input(where, x, 1, features)
    if x.shape[-2] > max_length:
        raise ValueError(
            f"{where}: the input has {x.shape[-2]} steps, but the filters end at max_length={max_length}. "
            f"Type max_length={x.shape[-2]}, or shorten the input."
        )


def positions(length: int, max_length: int, bands: int) -> np.ndarray:
    """Features `(length, 1 + 2 * bands)` of each step: its time in [0, 1), and waves of `bands` frequencies."""
    time = np.arange(length)[:, None] / max_length
    phase = 2 * math.pi * time * np.linspace(1e-4, bands - 1, bands)
    return np.concatenate([time, np.cos(phase), np.sin(phase)], axis=1).astype(np.float32)


def decay(length: int, max_length: int, features: int) -> np.ndarray:
    """The window `(length, features)`: `exp(-rate * time)`."""
    time = np.arange(length)[:, None] / max_length
    rates = -math.log(FLOOR) / np.linspace(FASTEST, SLOWEST, features)
    return np.exp(-rates * time).astype(np.float32)


def filters(
    layers: Sequence[Callable[[Any], Array]],
    length: int,
    max_length: int,
    bands: int,
    frequency: float,
    order: int,
    features: int,
) -> Array:
    """Values `(length, order, features)` of the filters, the response to an impulse, first step first."""
    *hidden, last = layers
    h: Any = positions(length, max_length, bands)
    for layer in hidden:
        h = jnp.sin(frequency * layer(h))
    window = decay(length, max_length, features)[:, None]
    return last(h).reshape(length, order, features) * window


def gated(projected: Array, filters: Array, skip: Array, algorithm: Any) -> Array:
    """Hyena's recurrence: in turn a long convolution and a gate, `v <- gate * (filter * v + skip v)` (definition 3.1).

    Args:
      projected: values, then `order` gates, side by side, `(*batch, T, (order + 1) * C)`.
      filters: `(T, order, C)`.
      skip: `(order, C)`, how much of the values passes unfiltered.
      algorithm: as in `convjax.conv`.
    """
    order = filters.shape[1]
    values, *gates = jnp.split(projected, order + 1, axis=-1)
    for i, gate in enumerate(gates):
        # the last tap of a kernel is now, the first value of a response is
        filtered = convjax.causal_conv(values, filters[::-1, i], algorithm=algorithm)
        values = gate * (filtered + skip[i] * values)
    return values
