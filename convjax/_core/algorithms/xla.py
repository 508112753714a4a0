"""XLA's own convolution: serves every problem, and is the right choice for most dense ones.

Error: direct summation, in float32 for 16-bit operands (XLA widens them on the CPU, matrix units accumulate so).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from convjax._core.arrange import pad_space
from convjax._core.bridge import lax_params
from convjax._core.dtypes import output_dtype
from convjax._core.spec import ConvSpec, is_zero


def supports(spec: ConvSpec, lhs: Any, rhs: Any, platform: str) -> str | None:
    return None


def run(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    if any(is_zero(size) for size in (*lhs.shape, *rhs.shape)):
        return jnp.zeros(spec.out_shape(lhs.shape, rhs.shape), output_dtype(spec, lhs.dtype))  # XLA refuses no taps
    if any(not jax.export.is_symbolic_dim(p) and p < 0 for pair in spec.padding for p in pair):
        lhs, spec = cropped(spec, lhs)
    return lax.conv_general_dilated(lhs, rhs, **lax_params(spec))


def cropped(spec: ConvSpec, lhs: Array) -> tuple[Array, ConvSpec]:
    """The same problem without negative padding: XLA on CPU reads beyond what they crop (jaxlib 0.10.1)."""
    cut = [(min(lo, 0), min(hi, 0)) for lo, hi in spec.padding]
    left = tuple((max(lo, 0), max(hi, 0)) for lo, hi in spec.padding)
    return pad_space(lhs, cut, spec.lhs_dilation), spec.replace(padding=left, lhs_dilation=(1,) * spec.ndim)
