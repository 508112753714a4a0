"""XLA's own convolution: serves every problem, and is the right choice for most dense ones.

Error: direct summation, in float32 for 16-bit operands (XLA widens them on the CPU, matrix units accumulate so).
"""

from __future__ import annotations

from typing import Any

from jax import Array, lax

from convjax._core.spec import ConvSpec


def lax_params(spec: ConvSpec) -> dict[str, Any]:
    """The problem in the parameters of `lax.conv_general_dilated`."""
    n = spec.ndim
    channels_last = (0, n + 1, *range(1, n + 1))
    return dict(
        window_strides=spec.strides,
        padding=spec.padding,
        lhs_dilation=spec.lhs_dilation,
        rhs_dilation=spec.rhs_dilation,
        dimension_numbers=lax.ConvDimensionNumbers(channels_last, (n + 1, n, *range(n)), channels_last),
        feature_group_count=spec.feature_groups,
        batch_group_count=spec.batch_groups,
        precision=spec.precision,
        preferred_element_type=spec.preferred_element_type,
    )


def supports(spec: ConvSpec, lhs: Any, rhs: Any, platform: str) -> str | None:
    return None


def run(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    return lax.conv_general_dilated(lhs, rhs, **lax_params(spec))
