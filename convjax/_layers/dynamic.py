"""Per-example kernels, each a mixture of a few expert kernels (CondConv, Yang et al., arXiv:1904.04971)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from convjax._layers.conv import convolve


def per_expert(initializer: Callable[..., Array], experts: int) -> Callable[..., Array]:
    """Draw each expert's array by itself: with one more axis an initialiser would take the wrong fan-in."""

    def init(key: Array, shape: Sequence[int], dtype: Any) -> Array:
        return jax.vmap(lambda part: initializer(part, shape, dtype))(jax.random.split(key, experts))

    return init


def check_hook(where: str, conv_general_dilated: Any, out_sharding: Any = None) -> None:
    """A function of lax's signature sees one kernel."""
    if out_sharding is not None or conv_general_dilated not in (None, lax.conv_general_dilated):
        raise ValueError(
            f"{where}: conv_general_dilated= and out_sharding= take one kernel for the batch, but here each example "
            "has its own. Leave them out."
        )


def convolve_each(where: str, x: Array, weights: Array, kernels: Array, biases: Array | None, **options: Any) -> Array:
    """Convolve each example of `x (*batch, *space, C)` with the experts' sum, weighted by its `weights (*batch, E)`.

    `kernels` is `(E, *k, I, O)`, `biases` is `(E, O)`. The weighted kernels, not the outputs, are summed: one
    convolution an example (section 3).
    """
    batch = weights.shape[:-1]
    weights = weights.reshape(math.prod(batch), -1).astype(kernels.dtype)
    x = x.reshape(math.prod(batch), *x.shape[len(batch) :])
    kernel = jnp.tensordot(weights, kernels, 1)
    bias = None if biases is None else jnp.tensordot(weights, biases, 1)
    y = jax.vmap(lambda x, w, b: convolve(where, x, w, b, **options), in_axes=(0, 0, None if bias is None else 0))(
        x, kernel, bias
    )
    return y.reshape(*batch, *y.shape[1:])
