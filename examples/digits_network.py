"""The network of the digits demo: a small ConvNeXt as pure functions over a dictionary of arrays.

Depthwise 7x7, pointwise, strided and grouped convolutions; every one takes the same `algorithm`, so that one network
can be run by convjax's choice and by lax's own lowering.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

import convjax

WIDTHS = (32, 64)  # channels before and after the strided convolution
GROUPS = 8
CLASSES = 10
STAGES = ("stem", "depthwise block", "strided", "grouped", "last block")
DEPTHWISE_SCALE = 0.02  # small beside what is learned; a norm follows, so the scale itself does not matter

Params = dict[str, Any]


def init(key: Array) -> Params:
    """Parameters: kernels of variance 1 / fan-in but for the depthwise ones, biases of zero, norms of one."""
    narrow, wide = WIDTHS
    keys = iter(jax.random.split(key, 16))
    return {
        "stem": _kernel(next(keys), 3, 3, 1, narrow),
        "first": _init_block(keys, narrow),
        "down": _kernel(next(keys), 3, 3, narrow, wide),
        "grouped": _kernel(next(keys), 3, 3, wide // GROUPS, wide),
        "second": _init_block(keys, wide),
        "norm": jnp.ones(wide),
        "head": {"w": _kernel(next(keys), wide, CLASSES), "b": jnp.zeros(CLASSES)},
    }


def features(params: Params, images: Array, algorithm: str = "auto") -> tuple[Array, ...]:
    """The feature maps after each of `STAGES`: `(N, 8, 8, 1)` images to `(N, 4, 4, 64)` at the end."""
    stem = convjax.conv(images, params["stem"], algorithm=algorithm)
    first = _block(params["first"], stem, algorithm)
    down = convjax.conv(_norm(first), params["down"], stride=2, algorithm=algorithm)
    grouped = convjax.conv(
        _norm(down), params["grouped"], groups=GROUPS, activation="gelu", residual=down, algorithm=algorithm
    )
    return stem, first, down, grouped, _block(params["second"], grouped, algorithm)


def logits(params: Params, images: Array, algorithm: str = "auto") -> Array:
    """Ten scores an image."""
    pooled = jnp.mean(features(params, images, algorithm)[-1], axis=(1, 2))
    return _norm(pooled, params["norm"]) @ params["head"]["w"] + params["head"]["b"]


def _init_block(keys: Any, width: int) -> Params:
    return {
        "depthwise": DEPTHWISE_SCALE * jax.random.normal(next(keys), (7, 7, width, 1)),
        "norm": jnp.ones(width),
        "expand": {"w": _kernel(next(keys), width, 4 * width), "b": jnp.zeros(4 * width)},
        "project": {"w": _kernel(next(keys), 4 * width, width), "b": jnp.zeros(width)},
    }


def _block(params: Params, x: Array, algorithm: str) -> Array:
    """Mix each channel in space by a 7x7 kernel of its own, then the channels at each point, beside a shortcut.

    Source: Liu et al., A ConvNet for the 2020s, arXiv:2201.03545, figure 4.
    """
    expand, project = params["expand"], params["project"]
    y = _norm(convjax.depthwise_conv(x, params["depthwise"], algorithm=algorithm), params["norm"])
    y = convjax.pointwise_conv(y, expand["w"], bias=expand["b"], activation="gelu", algorithm=algorithm)
    return convjax.pointwise_conv(y, project["w"], bias=project["b"], residual=x, algorithm=algorithm)


def _kernel(key: Array, *shape: int) -> Array:
    return jax.random.normal(key, shape) / math.sqrt(math.prod(shape[:-1]))


def _norm(x: Array, scale: Array | float = 1.0) -> Array:
    """Layer normalisation over channels, without a shift."""
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return scale * x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)
