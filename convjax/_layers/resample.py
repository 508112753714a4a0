"""Sizes that change around a convolution: a low-pass filter before fewer samples, more samples before a kernel."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

import convjax
from convjax._core import arguments
from convjax._layers.conv import check_input, per_axis, sizes
from convjax._layers.reparametrize import binomial


def blur_pool(where: str, x: Array, kernel_size: Any, strides: Any, padding_mode: Any, algorithm: Any) -> Array:
    """`x (*batch, *space, C)` filtered by a binomial kernel and subsampled: `ceil(size / stride)` outputs."""
    size = sizes(where, kernel_size)
    check_input(where, x, len(size), jnp.shape(x)[-1])
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        raise TypeError(f"{where}: the input is {x.dtype}, which cannot hold a mean. Type inputs.astype(jnp.float32).")
    channels = x.shape[-1]
    kernel = jnp.asarray(binomial(size), x.dtype)[..., None, None]
    return convjax.depthwise_conv(
        x,
        jnp.broadcast_to(kernel, (*size, channels, 1)),
        stride=per_axis(where, "strides", strides, len(size)),
        padding=[((k - 1) // 2, k // 2) for k in size],
        padding_mode=padding_mode,
        algorithm=algorithm,
    )


def upsample(where: str, x: Array, scale: Any, ndim: int, method: Any) -> Array:
    """`x (*batch, *space, C)`, each spatial axis `scale` times as long, by one of `jax.image`'s methods."""
    check_input(where, x, ndim, jnp.shape(x)[-1])
    factors = arguments.per_axis(where, "scale", scale, ndim, minimum=1)
    name = arguments.choice(where, "method", method, ("nearest", "linear", "cubic", "lanczos3", "lanczos5"))
    space = tuple(size * factor for size, factor in zip(x.shape[-1 - ndim : -1], factors, strict=True))
    return jax.image.resize(x, (*x.shape[: x.ndim - ndim - 1], *space, x.shape[-1]), name)
