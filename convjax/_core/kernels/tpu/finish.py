"""The epilogue on sums in registers: bias, residual, activation, then the output's dtype."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from convjax._core.epilogue import ACTIVATIONS, apply

# What Mosaic lowers; the others are left to XLA.
FUSES: frozenset[str] = frozenset(
    ("relu", "relu6", "leaky_relu", "elu", "gelu", "silu", "swish", "hard_swish", "sigmoid", "tanh")
)


def finish(total: Array, bias: Array | None, residual: Array | None, activation: str | None, dtype: Any) -> Array:
    """In float32 until the end: one rounding, where a program of single operations has one after each."""
    wide = None if residual is None else residual.astype(jnp.float32)
    if activation in ("silu", "swish", "sigmoid"):
        total = apply(total, bias, wide, None)
        return ((1.0 if activation == "sigmoid" else total) * sigmoid(total, dtype)).astype(dtype)
    return apply(total, bias, wide, None if activation is None else ACTIVATIONS[activation]).astype(dtype)


def sigmoid(x: Array, dtype: Any) -> Array:
    """For 16-bit results by tanh, as XLA does: one instruction where exponential and quotient are ten (v5e).

    Its error is that of 1 + tanh, relative to 1 and not to a small result, which a 16-bit input to it has anyway.
    """
    return jax.nn.sigmoid(x) if jnp.dtype(dtype).itemsize > 2 else 0.5 + 0.5 * jnp.tanh(0.5 * x)
