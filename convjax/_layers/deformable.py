"""A deformable convolution by Flax's conventions, its offsets and mask taken from the output of a convolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax import Array

from convjax._core import arguments
from convjax._deformable import read
from convjax._layers.conv import per_axis
from convjax.deformable import deform_conv


def predicted_features(
    where: str, kernel_size: Sequence[int], channels: int, offset_groups: Any, modulated: Any
) -> int:
    """Channels of what is predicted: an offset for each axis, then one number for the mask, of every tap and group."""
    groups = read.parts(where, "offset_groups", offset_groups, channels)
    each = len(kernel_size) + arguments.flag(where, "modulated", modulated)
    return groups * math.prod(kernel_size) * each


def convolve_deformed(
    where: str,
    x: Array,
    kernel: Array,
    bias: Array | None,
    predicted: Array,
    *,
    modulated: bool,
    offset_groups: int,
    strides: Any,
    padding: Any,
    kernel_dilation: Any,
    feature_group_count: int,
    precision: Any,
    preferred_element_type: Any,
) -> Array:
    """`x (*batch, *space, C_in)` with `kernel`, displaced by `predicted`: offsets, then the mask's logits."""
    ndim = kernel.ndim - 2
    offsets = offset_groups * math.prod(kernel.shape[:-2]) * ndim
    y = deform_conv(
        x,
        predicted[..., :offsets],
        kernel,
        mask=jax.nn.sigmoid(predicted[..., offsets:]) if modulated else None,
        stride=per_axis(where, "strides", strides, ndim),
        padding=padding,
        dilation=per_axis(where, "kernel_dilation", kernel_dilation, ndim),
        groups=feature_group_count,
        offset_groups=offset_groups,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    return y if bias is None else y + bias


def window_size(where: str, kernel_size: Any) -> tuple[int, ...]:
    """Of versions 3 and 4, which are for images: one int is a square."""
    return arguments.per_axis(where, "kernel_size", kernel_size, 2, minimum=1)


def window_taps(where: str, kernel_size: Sequence[int], channels: int, groups: Any, remove_center: Any) -> int:
    """Numbers in the mask of versions 3 and 4: one for each tap of each group; there are twice as many offsets."""
    taps = math.prod(kernel_size) - arguments.flag(where, "remove_center", remove_center)
    return read.parts(where, "groups", groups, channels) * taps
