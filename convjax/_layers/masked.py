"""Convolution that leaves out weights (`masked_conv`) or inputs (`partial_conv`), by Flax's conventions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from convjax._core import arguments
from convjax._layers.conv import check_input, per_axis
from convjax.masked import masked_conv, nonzero, raster_mask
from convjax.partial import partial_conv

DEFAULTS: Mapping[str, Any] = {"padding_mode": "zeros", "input_dilation": 1, "conv_general_dilated": None}


def check(where: str, options: Mapping[str, Any], *without: str) -> None:
    """Refuse what `Conv` takes and this layer does not: the border is zeros, and what runs is convjax's own."""
    for name, default in {**DEFAULTS, **dict.fromkeys(without)}.items():
        given = options.get(name)
        if given is not None and not (isinstance(given, str | int) and given == default):
            shown = repr(given) if isinstance(given, str | int | tuple) else type(given).__name__
            raise ValueError(f"{where}: {name}={shown} has no meaning here. Leave {name} out.")


def check_sharding(where: str, out_sharding: Any) -> None:
    """Only lax's own convolution takes one."""
    if out_sharding is not None:
        raise ValueError(f"{where}: out_sharding={out_sharding!r} has no meaning here. Leave out_sharding out.")


def kept(where: str, kernel: Array, mask: Any, channel_groups: int, groups: int) -> Array:
    """The kernel with zeros where the mask leaves weights out."""
    if isinstance(mask, str):
        kind = arguments.choice(where, "mask", mask, ("A", "B"))
        return jnp.where(raster_mask(where, kind, kernel.shape, groups, channel_groups), kernel, 0)
    return jnp.where(nonzero(where, mask), kernel, 0)


def convolve_masked(
    where: str, x: Array, kernel: Array, bias: Array | None, *, mask: Any, channel_groups: int, **options: Any
) -> Array:
    """`convjax.masked_conv` of `x (*batch, *space, C_in)`."""
    return masked_conv(
        x, kernel, bias=bias, mask=mask, channel_groups=channel_groups, **_options(where, x, kernel.shape, **options)
    )


def convolve_known(
    where: str, x: Array, kernel: Array, bias: Array | None, mask: Array | None, **options: Any
) -> tuple[Array, Array]:
    """`convjax.partial_conv` of `x (*batch, *space, C_in)`; without a mask all but the padding is known."""
    options = _options(where, x, kernel.shape, **options)
    mask = jnp.ones((*x.shape[:-1], 1), bool) if mask is None else mask
    return partial_conv(x, kernel, bias=bias, mask=mask, **options)


def _options(
    where: str,
    x: Array,
    shape: Sequence[int],
    *,
    strides: Any,
    padding: Any,
    kernel_dilation: Any,
    feature_group_count: int,
    precision: Any,
    preferred_element_type: Any,
    algorithm: Any,
) -> dict[str, Any]:
    """What Flax says otherwise, as the functions take it."""
    ndim = len(shape) - 2
    check_input(where, x, ndim, shape[-2] * feature_group_count)
    return dict(
        stride=per_axis(where, "strides", strides, ndim),
        padding=padding,
        dilation=per_axis(where, "kernel_dilation", kernel_dilation, ndim),
        groups=feature_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
        algorithm=algorithm,
    )
