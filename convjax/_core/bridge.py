"""Between lax's parameters of a convolution and ours: the same family, axes in any order there, channels-last here."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from convjax._core.spec import ConvSpec

Order = tuple[int, ...]


def lax_params(spec: ConvSpec) -> dict[str, Any]:
    """The problem, with channels-last operands, in the parameters of `lax.conv_general_dilated`."""
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


def spec_from_lax(params: dict[str, Any], algorithms: tuple[str, str, str] = ("auto", "auto", "auto")) -> ConvSpec:
    """The inverse, but for the order of axes, which `orders` reads."""
    preferred = params["preferred_element_type"]
    return ConvSpec(
        strides=tuple(params["window_strides"]),
        padding=tuple((lo, hi) for lo, hi in params["padding"]),
        lhs_dilation=tuple(params["lhs_dilation"]),
        rhs_dilation=tuple(params["rhs_dilation"]),
        feature_groups=params["feature_group_count"],
        batch_groups=params["batch_group_count"],
        precision=params["precision"],
        preferred_element_type=None if preferred is None else np.dtype(preferred),
        algorithms=algorithms,
    )


def orders(numbers: lax.ConvDimensionNumbers) -> tuple[Order, Order, Order]:
    """Permutations of input, kernel and output to channels-last."""
    lhs, rhs, out = numbers
    return (lhs[0], *lhs[2:], lhs[1]), (*rhs[2:], rhs[1], rhs[0]), (out[0], *out[2:], out[1])


def is_channels_first(to_lhs: Order, to_out: Order, batch_ndim: int = 1) -> bool:
    """Whether these permutations, to channels-last, are those of `(*batch, C, *space)`."""
    n, b = len(to_lhs), batch_ndim
    return n > b + 1 and to_lhs == to_out == (*range(b), *range(b + 1, n), b)


def inverse(order: Order) -> Order:
    return tuple(int(i) for i in np.argsort(order))


def transpose(a: Array, order: Order) -> Array:
    """`jnp.transpose`, without an operation where nothing moves."""
    return a if order == tuple(range(a.ndim)) else jnp.transpose(a, order)
