"""Kernels computed from other kernels: weight standardisation, a batch norm folded in, binomial low-pass filters."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array, lax


def standardize(kernel: Array, epsilon: float) -> Array:
    """Mean 0 and variance 1 over the inputs of each output channel (Qiao et al., arXiv:1903.10520)."""
    axes = tuple(range(kernel.ndim - 1))
    wide = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
    centred = wide - wide.mean(axes, keepdims=True)
    return (centred * lax.rsqrt(jnp.square(centred).mean(axes, keepdims=True) + epsilon)).astype(kernel.dtype)


def fold_batch_norm(
    kernel: Array,
    bias: Array | None,
    mean: Array,
    variance: Array,
    scale: Array | None,
    offset: Array | None,
    epsilon: float,
) -> tuple[Array, Array]:
    """Kernel and bias that give at once what a convolution and then a batch norm with these statistics give."""
    factor = lax.rsqrt(variance + epsilon)
    if scale is not None:
        factor = factor * scale
    shift = -mean if bias is None else bias - mean
    shift = shift * factor if offset is None else shift * factor + offset
    return (kernel * factor).astype(kernel.dtype), shift.astype(kernel.dtype)


def binomial(kernel_size: Sequence[int]) -> np.ndarray:
    """The outer product of rows of Pascal's triangle, of sum 1."""
    rows = [functools.reduce(np.convolve, [[0.5, 0.5]] * (size - 1), np.ones(1)) for size in kernel_size]
    return functools.reduce(np.multiply.outer, rows, np.ones(()))
