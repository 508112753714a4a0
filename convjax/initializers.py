"""Initialisers for kernels `(*k, C_in // groups, C_out)`: Flax's, ICNR and delta-orthogonal.

Flax's own are named here so that one import serves; each takes `(key, shape, dtype)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax.nnx.nn.initializers import (
    constant,
    glorot_normal,
    glorot_uniform,
    he_normal,
    he_uniform,
    kaiming_normal,
    kaiming_uniform,
    lecun_normal,
    lecun_uniform,
    normal,
    ones,
    ones_init,
    orthogonal,
    truncated_normal,
    uniform,
    variance_scaling,
    xavier_normal,
    xavier_uniform,
    zeros,
    zeros_init,
)
from jax import Array

from convjax._core import arguments

Initializer = Callable[..., Array]

__all__ = [
    "constant",
    "delta_orthogonal",
    "glorot_normal",
    "glorot_uniform",
    "he_normal",
    "he_uniform",
    "icnr",
    "kaiming_normal",
    "kaiming_uniform",
    "lecun_normal",
    "lecun_uniform",
    "normal",
    "ones",
    "ones_init",
    "orthogonal",
    "truncated_normal",
    "uniform",
    "variance_scaling",
    "xavier_normal",
    "xavier_uniform",
    "zeros",
    "zeros_init",
]


def icnr(initializer: Initializer | None = None, *, scale: int | Sequence[int] = 2, ndim: int = 2) -> Initializer:
    """For a convolution before a pixel shuffle: all pixels of a block start equal, so that no checkerboard shows.

    The shuffle is taken to read channel `c * prod(scale) + phase` for channel c of the result, as torch's PixelShuffle.

    Args:
      initializer: draws the kernel of one phase; He's normal if None.
      scale: how much the shuffle enlarges each axis.
      ndim: number of spatial axes, for one int as `scale`.

    Returns:
      an initialiser; it raises ValueError where `prod(scale)` does not divide the output channels.

    Example:
      >>> import jax
      >>> w = icnr(scale=2)(jax.random.key(0), (3, 3, 8, 12))
      >>> bool((w[..., 0] == w[..., 3]).all()), bool((w[..., 0] == w[..., 4]).all())
      (True, False)

    Source: Aitken et al., Checkerboard artifact free sub-pixel convolution, arXiv:1707.02937.
    """
    draw = he_normal() if initializer is None else initializer
    axes = len(scale) if isinstance(scale, Sequence) else ndim
    phases = math.prod(arguments.per_axis("icnr", "scale", scale, axes, minimum=1))

    def init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32, **options: Any) -> Array:
        if shape[-1] % phases:
            raise ValueError(
                f"icnr: a kernel of shape {tuple(shape)} has {shape[-1]} output channels, which the {phases} phases of "
                f"scale={scale!r} must divide. Type {-(-shape[-1] // phases) * phases} output channels."
            )
        return jnp.repeat(draw(key, (*shape[:-1], shape[-1] // phases), dtype, **options), phases, axis=-1)

    return init


def delta_orthogonal(scale: float = 1.0, *, groups: int = 1) -> Initializer:
    """An orthogonal matrix at the kernel's centre, zeros elsewhere: a SAME convolution keeps the norm of its input.

    Unlike jax's: in any number of dimensions, with groups (an independent matrix each), and with fewer outputs than
    inputs, where the transposed map keeps norms.

    Args:
      scale: factor of the matrix.
      groups: independent convolutions in the kernel, as in `convjax.conv`.

    Returns:
      an initialiser; it raises ValueError where `groups` does not divide the output channels.

    Example:
      >>> import jax, jax.numpy as jnp, convjax
      >>> w = delta_orthogonal()(jax.random.key(0), (3, 3, 4, 4))
      >>> x = jax.random.normal(jax.random.key(1), (5, 5, 4))
      >>> bool(jnp.allclose(jnp.linalg.norm(convjax.conv(x, w)), jnp.linalg.norm(x), rtol=1e-5))
      True

    Source: Xiao et al., Dynamical isometry and a mean field theory of CNNs, arXiv:1806.05393, algorithm 1.
    """
    count = arguments.integer("delta_orthogonal", "groups", groups, minimum=1)

    def init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        *k, inputs, outputs = shape
        if outputs % count:
            raise ValueError(
                f"delta_orthogonal: groups={count} does not divide the {outputs} output channels of a kernel of shape "
                f"{tuple(shape)}. Type groups= one of its divisors."
            )
        draw = orthogonal(scale)
        parts = [draw(part, (inputs, outputs // count), dtype) for part in jax.random.split(key, count)]
        centre = tuple((size - 1) // 2 for size in k)
        return jnp.zeros(shape, dtype).at[centre].set(jnp.concatenate(parts, axis=-1))

    return init
