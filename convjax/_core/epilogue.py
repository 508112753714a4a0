"""What follows a convolution: bias, residual, activation, in this order, left to the compiler to fuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from convjax._core.arguments import array, choice

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "leaky_relu": jax.nn.leaky_relu,
    "elu": jax.nn.elu,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "mish": jax.nn.mish,
    "hard_swish": jax.nn.hard_swish,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "softplus": jax.nn.softplus,
}
"""What `activation=` takes by name: functions of `jax.nn` and `jax.numpy`, element by element."""


def read_activation(where: str, activation: Any) -> Callable[[Array], Array] | None:
    """A callable as it is, or the one that goes by a common name."""
    if activation is None or callable(activation):
        return activation
    return ACTIVATIONS[choice(where, "activation", activation, tuple(ACTIVATIONS))]


def read_addends(
    where: str, bias: Any, residual: Any, shape: tuple[int, ...], dtype: Any, axis: int
) -> tuple[Array | None, Array | None]:
    """Bias and residual, checked against the output and shaped to be added to it; channels are on `axis`."""
    if bias is not None:
        bias = array(where, "bias", bias)
        if bias.shape != (shape[axis],):
            raise ValueError(
                f"{where}: bias has shape {bias.shape}, but the output {shape} has {shape[axis]} channels. "
                f"Type a bias of shape ({shape[axis]},)."
            )
        bias = _of_dtype(where, "bias", bias, dtype).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    if residual is not None:
        residual = array(where, "residual", residual)
        if residual.shape != shape:
            raise ValueError(
                f"{where}: residual has shape {residual.shape}, but the output has {shape}. Type one of equal shape."
            )
        residual = _of_dtype(where, "residual", residual, dtype)
    return bias, residual


def _of_dtype(where: str, name: str, addend: Array, dtype: Any) -> Array:
    if jnp.promote_types(addend.dtype, dtype) != dtype:
        raise TypeError(
            f"{where}: {name} is {addend.dtype}, which the output's {dtype} cannot hold. Type "
            f"{name}.astype(jnp.{dtype})."
        )
    return addend.astype(dtype)


def apply(y: Array, bias: Array | None, residual: Array | None, activation: Callable | None) -> Array:
    if bias is not None:
        y = y + bias
    if residual is not None:
        y = y + residual
    return y if activation is None else activation(y)
