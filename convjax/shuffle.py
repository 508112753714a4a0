"""Mixing the groups of a grouped convolution by an order of channels."""

from __future__ import annotations

from jax import Array
from jaxtyping import Num

from convjax._core import arguments
from convjax._layers.blocks import shuffle_channels


def channel_shuffle(x: Num[Array, "*any c"], groups: int) -> Num[Array, "*any c"]:
    """Deal the channels of each group out to all groups, so that the next grouped convolution sees every one.

    Channel `g * (C // groups) + i` becomes channel `i * groups + g`; shuffling by `C // groups` undoes it. Equals
    `torch.nn.functional.channel_shuffle` with the channels last.

    Args:
      x: `(..., C)`.
      groups: equal parts of the channels, at least 1.

    Returns:
      An array of the shape and dtype of `x`.

    Raises:
      ValueError: `groups` does not divide the channels; `x` has no axes.
      TypeError: `groups` is not a static integer; `x` is not numeric.

    Example:
      >>> import jax.numpy as jnp
      >>> from convjax.shuffle import channel_shuffle
      >>> channel_shuffle(jnp.arange(6), 2)
      Array([0, 3, 1, 4, 2, 5], dtype=int32)

    Source: Zhang et al., ShuffleNet, arXiv:1707.01083, section 3.1.
    """
    where = "channel_shuffle"
    x = arguments.array(where, "x", x)
    if x.ndim == 0:
        raise ValueError(f"{where}: x is a scalar, which has no channels. Type an array of shape (..., C).")
    return shuffle_channels(where, x, groups)
