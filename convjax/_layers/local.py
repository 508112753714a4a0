"""Unshared convolution with the parameters of `flax.linen.ConvLocal`: `(*out, C_in // groups * prod(k), C_out)`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.nn.initializers import Initializer, lecun_normal

from convjax._layers.conv import check_input, convolve, pad_by_name, per_axis
from convjax.unshared import local_conv


def out_space(where: str, input_size: Sequence[int], kernel_size: Sequence[int], **options: Any) -> tuple[int, ...]:
    """Spatial shape of the output, that of a shared convolution."""
    x = jax.ShapeDtypeStruct((*input_size, 1), jnp.float32)
    w = jax.ShapeDtypeStruct((*kernel_size, 1, 1), jnp.float32)
    return jax.eval_shape(lambda x, w: convolve(where, x, w, None, **options), x, w).shape[:-1]


def initializer(given: Initializer | None, ndim: int) -> Initializer:
    """LeCun's with the fan-in of one position; Flax's counts all of them, which shrinks the output by their root."""
    return lecun_normal(batch_axis=tuple(range(ndim))) if given is None else given


def convolve_local(
    where: str,
    x: Array,
    kernel: Array,
    bias: Array | None,
    *,
    kernel_size: Sequence[int],
    strides: Any,
    padding: Any,
    padding_mode: Any,
    input_dilation: Any,
    kernel_dilation: Any,
    feature_group_count: int,
    precision: Any,
    preferred_element_type: Any,
) -> Array:
    """`x (*batch, *space, C_in)` with a kernel for each position, plus a `bias (*out, C_out)`.

    The rows of a position's kernel are ordered by channel, then by tap, as in `jax.lax.conv_general_dilated_local`.
    """
    ndim = len(kernel_size)
    channels = kernel.shape[-2] // math.prod(kernel_size)
    check_input(where, x, ndim, channels * feature_group_count)
    dilation = per_axis(where, "kernel_dilation", kernel_dilation, ndim)
    x, padding = pad_by_name(where, x, padding, padding_mode, kernel_size, dilation)
    w = kernel.reshape(*kernel.shape[:-2], channels, *kernel_size, kernel.shape[-1])
    y = local_conv(
        x,
        jnp.moveaxis(w, ndim, -2),
        stride=per_axis(where, "strides", strides, ndim),
        padding=padding,
        dilation=dilation,
        input_dilation=per_axis(where, "input_dilation", input_dilation, ndim),
        groups=feature_group_count,
        padding_mode=padding_mode,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    return y if bias is None else y + bias
