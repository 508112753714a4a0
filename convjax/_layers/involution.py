"""Involution whose kernels are computed from its input (Li et al., arXiv:2103.06255, section 3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from convjax._core import arguments
from convjax._layers.conv import check_input, per_axis
from convjax.per_position import involution

Layer = Callable[[Array], Array]


def widths(where: str, channels: Any, group_features: Any, reduction: Any, size: Sequence[int]) -> tuple[int, int]:
    """Channels between the two pointwise convolutions, and after them: a kernel for each group."""
    count = arguments.integer(where, "in_features", channels, minimum=1)
    each = arguments.integer(where, "group_features", group_features, minimum=1)
    ratio = arguments.integer(where, "reduction", reduction, minimum=1)
    for name, value in (("group_features", each), ("reduction", ratio)):
        if count % value:
            fit = [d for d in range(1, count + 1) if count % d == 0]
            raise ValueError(
                f"{where}: {name}={value} does not divide the {count} channels. Type {name}= one of "
                f"{', '.join(map(str, fit[:12]))}."
            )
    return count // ratio, count // each * math.prod(size)


def involve(
    where: str,
    inputs: Array,
    reduce: Layer,
    span: Layer,
    *,
    in_features: int,
    kernel_size: Sequence[int],
    strides: Any,
    kernel_dilation: Any,
    padding_mode: Any,
) -> Array:
    """`inputs (*batch, *space, C)` with the kernels that `span` makes of what `reduce` makes of them.

    Channel `g * K + t` of `span` is tap t of group g; with a stride both see the means of windows of its size.
    """
    ndim = len(kernel_size)
    check_input(where, inputs, ndim, in_features)
    stride = per_axis(where, "strides", strides, ndim)
    weights = span(reduce(_means(inputs, stride)))
    weights = weights.reshape(*weights.shape[:-1], -1, *kernel_size)
    kernel = jnp.moveaxis(weights, -1 - ndim, -1)
    return involution(
        inputs.astype(kernel.dtype),
        kernel,
        stride=stride,
        dilation=per_axis(where, "kernel_dilation", kernel_dilation, ndim),
        padding_mode=padding_mode,
    )


def _means(x: Array, window: Sequence[int]) -> Array:
    """Over windows side by side; the last may be cut short by the border."""
    if math.prod(window) == 1:
        return x
    space = x.shape[-1 - len(window) : -1]
    missing = [-n % s for n, s in zip(space, window, strict=True)]
    split = [part for n, s in zip(space, window, strict=True) for part in (-(-n // s), s)]
    batch = x.ndim - 1 - len(window)
    axes = tuple(range(batch + 1, batch + len(split), 2))
    padded = jnp.pad(x, [(0, 0)] * batch + [(0, m) for m in missing] + [(0, 0)])
    total = padded.reshape(*x.shape[:batch], *split, x.shape[-1]).sum(axes)
    there = np.pad(np.ones(space), [(0, m) for m in missing]).reshape(split)
    return total / there.sum(tuple(a - batch for a in axes))[..., None].astype(total.dtype)
