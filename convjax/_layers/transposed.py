"""A transposed convolution by Flax's conventions, on top of `convjax.conv_transpose`.

Flax follows lax: numbers pad the dilated input (torch's crop the output), and the kernel is convolved as it stands,
unless `transpose_kernel` asks for the gradient of a forward convolution. Sizes below are of one spatial axis: input i,
stride s, dilated kernel k.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

import convjax
from convjax._core import arguments
from convjax._core import padding as pad
from convjax._core.spec import dilate
from convjax._layers import conv
from convjax._layers.conv import check_input, per_axis

NAMES = ("SAME", "VALID", "CIRCULAR", "CAUSAL")


def convolve_transposed(
    where: str,
    x: Array,
    kernel: Array,
    bias: Array | None,
    *,
    strides: Any = None,
    padding: Any = "SAME",
    padding_mode: Any = "zeros",
    kernel_dilation: Any = None,
    feature_group_count: int = 1,
    transpose_kernel: bool = False,
    precision: Any = None,
    preferred_element_type: Any = None,
    algorithm: Any = "auto",
) -> Array:
    """`x (*batch, *space, C_in)` with a kernel of `(*k, C_in // groups, C_out)`, plus `bias`.

    With `transpose_kernel` the kernel is `(*k, C_out // groups, C_in)`, that of the forward convolution.
    """
    ndim = kernel.ndim - 2
    inputs = kernel.shape[-1] if transpose_kernel else kernel.shape[-2] * feature_group_count
    check_input(where, x, ndim, inputs)
    strides = per_axis(where, "strides", strides, ndim)
    kernel_dilation = per_axis(where, "kernel_dilation", kernel_dilation, ndim)
    windows = [dilate(k, d) for k, d in zip(kernel.shape[:-2], kernel_dilation, strict=True)]
    if padding == "CIRCULAR":
        x, crops = _continue_periodically(where, x, padding_mode, windows, strides, transpose_kernel)
    else:
        pairs = _pads(where, padding, windows, strides)
        crops = [(k - 1 - lo, k - 1 - hi) for k, (lo, hi) in zip(windows, pairs, strict=True)]
    y = convjax.conv_transpose(
        x,
        kernel.swapaxes(-1, -2) if transpose_kernel else _by_groups(kernel, feature_group_count),
        stride=strides,
        padding=crops,
        dilation=kernel_dilation,
        groups=feature_group_count,
        padding_mode=padding_mode,
        flip_kernel=not transpose_kernel,
        algorithm=algorithm,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    return y if bias is None else y + bias


def kernel_shape(
    where: str, kernel_size: Sequence[int], in_features: int, out_features: int, groups: int, transpose_kernel: bool
) -> tuple[int, ...]:
    """`(*k, C_in // groups, C_out)`, or `(*k, C_out // groups, C_in)` if transposed."""
    if transpose_kernel:
        in_features, out_features = out_features, in_features
    return conv.kernel_shape(where, kernel_size, in_features, out_features, groups)


def _by_groups(kernel: Array, groups: int) -> Array:
    """From `(*k, C_in // groups, C_out)` to the functional API's `(*k, C_in, C_out // groups)`."""
    *k, inputs, outputs = kernel.shape
    split = kernel.reshape(*k, inputs, groups, outputs // groups)
    return jnp.moveaxis(split, -2, -3).reshape(*k, groups * inputs, outputs // groups)


def _pads(where: str, padding: Any, windows: Sequence[int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """What to put around the dilated input: numbers as they are; strings, by lax's rules, give `i * s` outputs.

    "VALID" gives `k - s` more, where that is positive. "CAUSAL", which Flax documents but lax refuses, leaves out all
    that lies ahead: output t sees inputs up to `t // s`.
    """
    if not isinstance(padding, str):
        return list(pad.explicit(where, padding, len(windows)))
    name = arguments.choice(where, "padding", padding, NAMES)
    result = []
    for k, s in zip(windows, strides, strict=True):
        total = k + s - 2 + (max(k - s, 0) if name == "VALID" else 0)
        lo = -(-total // 2) if name == "SAME" and s < k else k - 1
        result.append((lo, total - lo))
    return result


def _continue_periodically(
    where: str, x: Array, padding_mode: Any, windows: Sequence[int], strides: Sequence[int], transpose_kernel: bool
) -> tuple[Array, list[tuple[int, int]]]:
    """The input with as many periods around it as the kernel reaches, and crops that leave one period, `i * s` outputs.

    Which output is the first is Flax's choice: half of the surplus `k - s` lies before it, the odd one too where the
    kernel is transposed.
    """
    if padding_mode != "zeros":
        raise ValueError(
            f"{where}: padding='CIRCULAR' and padding_mode={padding_mode!r} both say what lies beyond the border. "
            "Type padding='SAME' with the padding_mode, or leave that out."
        )
    widths, crops = [(0, 0)] * x.ndim, []
    for axis, (k, s) in enumerate(zip(windows, strides, strict=True), start=x.ndim - 1 - len(windows)):
        surplus = max(k - s, 0)
        first = -(-surplus // 2) if transpose_kernel else surplus // 2
        before, after = (k - 1 - first) // s, (s - 1 + first) // s
        widths[axis] = (before, after)
        crops.append((first + before * s, k - s - first + after * s))
    return jnp.pad(x, widths, mode="wrap"), crops
