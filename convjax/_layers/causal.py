"""A causal convolution in pieces: what a piece must see of the inputs before it is kept in a state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

from convjax._layers.conv import per_axis, sizes


def check(where: str, kernel_size: Any, options: Mapping[str, Any]) -> None:
    """One spatial axis, and nothing said about its border."""
    if len(sizes(where, kernel_size)) != 1:
        raise ValueError(f"{where}: kernel_size={kernel_size!r} must be of one axis, which is time. Type one int.")
    for name in ("padding", "padding_mode", "input_dilation"):
        if name in options:
            raise ValueError(f"{where}: {name}={options[name]!r} is settled by causality. Leave {name} out.")


def state_length(where: str, kernel_size: Any, kernel_dilation: Any) -> int:
    """How many inputs before now a kernel sees."""
    (size,), (dilation,) = sizes(where, kernel_size), per_axis(where, "kernel_dilation", kernel_dilation, 1)
    return (size - 1) * dilation


def advance(where: str, x: Array, state: Array, strides: Any) -> tuple[Array, Array]:
    """What outputs at `x (*batch, T, C)` see, `(*batch, n + T, C)`, from `state (*batch, n, C)`; and the next state."""
    if per_axis(where, "strides", strides, 1) != (1,):
        raise ValueError(f"{where}: decode=True continues step by step, but strides={strides!r}. Type strides=1.")
    if jnp.ndim(x) < 2 or x.shape[:-2] != state.shape[:-2] or x.shape[-1] != state.shape[-1]:
        raise ValueError(
            f"{where}: the input has shape {jnp.shape(x)}, but the cache was made for (*{state.shape[:-2]}, T, "
            f"{state.shape[-1]}). Make it anew, for this shape."
        )
    seen = jnp.concatenate([state.astype(x.dtype), x], axis=-2)
    return seen, seen[..., x.shape[-2] :, :].astype(state.dtype)
