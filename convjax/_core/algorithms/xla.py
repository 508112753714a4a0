"""XLA's own convolution: serves every problem, and is the right choice for most dense ones.

Error: direct summation, in float32 for 16-bit operands (XLA widens them on the CPU, matrix units accumulate so).
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from convjax._core.bridge import lax_params
from convjax._core.dtypes import output_dtype
from convjax._core.spec import ConvSpec, is_zero


def supports(spec: ConvSpec, lhs: Any, rhs: Any, platform: str) -> str | None:
    return None


def run(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    if any(is_zero(size) for size in (*lhs.shape, *rhs.shape)):
        return jnp.zeros(spec.out_shape(lhs.shape, rhs.shape), output_dtype(spec, lhs.dtype))  # XLA refuses no taps
    return lax.conv_general_dilated(lhs, rhs, **lax_params(spec))
