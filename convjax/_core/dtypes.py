"""Which dtype a convolution sums in, and which it returns."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from convjax._core.spec import ConvSpec


def output_dtype(spec: ConvSpec, dtype: Any) -> np.dtype:
    """That of the input, unless the spec prefers another."""
    return np.dtype(spec.preferred_element_type or dtype)


def accumulator(spec: ConvSpec, dtype: Any) -> np.dtype:
    """float32 for 16-bit (and narrower) floats; otherwise the output's dtype, so that wide integers stay exact."""
    out = output_dtype(spec, dtype)
    if jnp.issubdtype(out, jnp.floating) and jnp.finfo(out).bits < 32:
        return np.dtype(np.float32)
    return out


def default_integer_output(dtype: Any) -> np.dtype | None:
    """int32 for integers narrower than 32 bits, whose sums would wrap around; None for any other dtype."""
    if jnp.issubdtype(dtype, jnp.integer) and jnp.iinfo(dtype).bits < 32:
        return np.dtype(np.int32)
    return None
