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
    lhs, spec = cropped(spec, lhs)
    return lax.conv_general_dilated(lhs, rhs, **lax_params(spec))


def cropped(spec: ConvSpec, lhs: Array) -> tuple[Array, ConvSpec]:
    """The same problem with each axis that is cropped written out: XLA on CPU reads beyond it (jaxlib 0.10.1)."""
    written = [any(not jax.export.is_symbolic_dim(p) and p < 0 for p in pair) for pair in spec.padding]
    if not any(written):
        return lhs, spec
    now = [pair if w else (0, 0) for pair, w in zip(spec.padding, written, strict=True)]
    spread = [dilation if w else 1 for dilation, w in zip(spec.lhs_dilation, written, strict=True)]
    later = tuple((0, 0) if w else pair for pair, w in zip(spec.padding, written, strict=True))
    dilation = tuple(1 if w else dilation for dilation, w in zip(spec.lhs_dilation, written, strict=True))
    return pad_space(lhs, now, spread), spec.replace(padding=later, lhs_dilation=dilation)
