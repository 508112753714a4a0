"""Which dtype a convolution sums in, which it returns, and in which it is moved."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

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


def as_bits(a: Array) -> Array:
    """bfloat16 as integers, to be padded, sliced and stored; anything else as it is.

    XLA on CPU cannot move bfloat16 (float16 it can): it widens, moves and narrows. A padded copy is then twice as
    large, and a loop widens its whole input first and rewrites, in every round, all that it has written so far.
    A training step of depthwise 3x3 128 @56 N8, two cores: 28 ms and 54 MB of temporaries, 8 ms and 27 MB with bits.
    """
    return lax.bitcast_convert_type(a, jnp.uint16) if a.dtype == jnp.bfloat16 else a


def as_floats(bits: Array, dtype: Any) -> Array:
    """The inverse of `as_bits` for what was of this dtype."""
    return bits if bits.dtype == dtype else lax.bitcast_convert_type(bits, dtype)
