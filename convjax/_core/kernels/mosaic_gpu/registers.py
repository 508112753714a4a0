"""How a warpgroup holds a tile in registers: four rows of one column, one row a warp, channels along the lanes.

Neighbouring columns are separate values, so that an input that several taps meet is read from shared memory once. Sums
are float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

ROWS = 4  # warps of a warpgroup
LANES = 32


class Registers:
    """Loads, stores and constants of shape `(4, channels)`; `channels` is 32 or 64."""

    def __init__(self, channels: int) -> None:
        from jax.experimental.pallas import mosaic_gpu as plgpu

        self.channels = channels
        self._plgpu: Any = plgpu  # whose functions depend on the version of JAX
        tiling = plgpu.Tiling(((ROWS, channels), (channels // LANES,)))
        self.layout = plgpu.Layout.TILED(tiling, warp_dims=(-3,), lane_dims=(-2,), vector_dim=-1)

    def load(self, ref: Any) -> Array:
        """`(4, channels)` of a reference, in float32."""
        return self._load(ref, self.layout).astype(jnp.float32)

    def load_row(self, ref: Any) -> Array:
        """`(channels,)` of a reference, in float32, the same for all four rows."""
        row = self._load(ref, self.layout.reduce(0)).astype(jnp.float32)
        return self._plgpu.layout_cast(lax.broadcast_in_dim(row, (ROWS, self.channels), (1,)), self.layout)

    def load_column(self, ref: Any) -> Array:
        """`(4,)` of a reference, the same for all channels."""
        column = self._load(ref, self.layout.reduce(1))
        return self._plgpu.layout_cast(lax.broadcast_in_dim(column, (ROWS, self.channels), (0,)), self.layout)

    def zeros(self) -> Array:
        return self._plgpu.layout_cast(jnp.zeros((ROWS, self.channels), jnp.float32), self.layout)

    def _load(self, ref: Any, layout: Any) -> Array:
        return self._plgpu.load(ref, layout=layout, optimized=False)


# Activations that a kernel applies in float32, before it rounds; the others are left to the compiler.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": lambda x: jnp.maximum(x, 0.0),
    "relu6": lambda x: jnp.minimum(jnp.maximum(x, 0.0), 6.0),
    "leaky_relu": lambda x: jnp.maximum(x, 0.01 * x),
    "silu": lambda x: x * lax.logistic(x),
    "swish": lambda x: x * lax.logistic(x),
    "sigmoid": lax.logistic,
    "tanh": jnp.tanh,
    "gelu": lambda x: 0.5 * x * (1.0 + jnp.tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))),
    "hard_swish": lambda x: x * jnp.minimum(jnp.maximum(x + 3.0, 0.0), 6.0) * (1.0 / 6.0),
}
FUSES = frozenset(ACTIVATIONS)


def products(
    sums: tuple[Array, ...], load: Callable[[int], Array], weights: list[Array], stride: int, dilation: int
) -> tuple[Array, ...]:
    """Each column's sum plus its products with the taps of one kernel row; every input column is loaded once."""
    totals = list(sums)
    for at, pairs in meetings(len(sums), len(weights), stride, dilation):
        x = load(at)
        for column, tap in pairs:
            totals[column] = totals[column] + x * weights[tap]
    return tuple(totals)


def meetings(columns: int, taps: int, stride: int, dilation: int) -> list[tuple[int, list[tuple[int, int]]]]:
    """Which pairs of output column and tap meet each input column, in the order of these."""
    meets: dict[int, list[tuple[int, int]]] = {}
    for column in range(columns):
        for tap in range(taps):
            meets.setdefault(column * stride + tap * dilation, []).append((column, tap))
    return sorted(meets.items())
