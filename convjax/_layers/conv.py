"""A convolution by Flax's conventions, on top of `convjax.conv`.

Flax differs from the functional API in this: None stands for strides and dilations of 1; "CIRCULAR" and "REFLECT" are
paddings, of `((k - 1) // 2, k // 2)` whatever the stride, k being the dilated kernel size; the bias is added by jax's
rules of promotion.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

import convjax
from convjax._core import arguments
from convjax._core import padding as pad
from convjax._core.spec import dilate

PERIODIC_OR_MIRRORED = {"CIRCULAR": "wrap", "REFLECT": "reflect"}


def sizes(where: str, kernel_size: Any) -> tuple[int, ...]:
    """The kernel's spatial shape; one int is that of a 1-D convolution."""
    entries = kernel_size if isinstance(kernel_size, Sequence) else (kernel_size,)
    return tuple(arguments.integer(where, f"kernel_size[{i}]", k, minimum=1) for i, k in enumerate(entries))


def per_axis(where: str, name: str, value: Any, ndim: int) -> tuple[int, ...]:
    """One int for all spatial axes or one each; None, as in Flax, is 1."""
    return arguments.per_axis(where, name, 1 if value is None else value, ndim, minimum=1)


def kernel_shape(
    where: str, kernel_size: Sequence[int], in_features: Any, out_features: Any, groups: Any
) -> tuple[int, ...]:
    """`(*k, C_in // groups, C_out)`."""
    inputs = arguments.integer(where, "in_features", in_features, minimum=1)
    outputs = arguments.integer(where, "features", out_features, minimum=1)
    count = arguments.integer(where, "feature_group_count", groups, minimum=1)
    if inputs % count or outputs % count:
        fit = [d for d in range(1, min(inputs, outputs) + 1) if inputs % d == 0 and outputs % d == 0]
        raise ValueError(
            f"{where}: feature_group_count={count} must divide the {inputs} input and the {outputs} output features. "
            f"Type feature_group_count= one of {', '.join(map(str, fit[:12]))}."
        )
    return (*kernel_size, inputs // count, outputs)


def masked(where: str, kernel: Array, mask: Any) -> Array:
    """The kernel times its mask, which has the kernel's shape."""
    if mask is None:
        return kernel
    if jnp.shape(mask) != kernel.shape:
        raise ValueError(
            f"{where}: mask has shape {jnp.shape(mask)}, the kernel {kernel.shape}. Type one of that shape."
        )
    return kernel * mask


def check_input(where: str, x: Array, ndim: int, features: int) -> None:
    """Batch axes are free, spatial axes and channels are not."""
    shape = jnp.shape(x)
    if len(shape) < ndim + 1 or shape[-1] != features:
        raise ValueError(
            f"{where}: the input has shape {shape}, but the layer takes (*batch, *space, C) with {ndim} spatial axes "
            f"and {features} channels last. Move the channels to the end, or make the layer for the channels there are."
        )


def convolve(
    where: str,
    x: Array,
    kernel: Array,
    bias: Array | None,
    *,
    strides: Any = 1,
    padding: Any = "SAME",
    padding_mode: Any = "zeros",
    input_dilation: Any = 1,
    kernel_dilation: Any = 1,
    feature_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    algorithm: Any = "auto",
    conv_general_dilated: Callable[..., Array] | None = None,
    out_sharding: Any = None,
) -> Array:
    """`x (*batch, *space, C_in)` with `kernel (*k, C_in // groups, C_out)`, plus `bias`.

    Args:
      where: the layer's name, for errors.
      conv_general_dilated: a function to call instead of ours, with lax's signature.
      out_sharding: a sharding of the result for explicitly sharded programs. It takes lax's own convolution.
      others: as the layers.
    """
    ndim = kernel.ndim - 2
    check_input(where, x, ndim, kernel.shape[-2] * feature_group_count)
    strides = per_axis(where, "strides", strides, ndim)
    input_dilation = per_axis(where, "input_dilation", input_dilation, ndim)
    kernel_dilation = per_axis(where, "kernel_dilation", kernel_dilation, ndim)
    x, padding = pad_by_name(where, x, padding, padding_mode, kernel.shape[:-2], kernel_dilation)
    options = dict(precision=precision, preferred_element_type=preferred_element_type)
    if conv_general_dilated is None and out_sharding is None:
        y = convjax.conv(
            x,
            kernel,
            stride=strides,
            padding=padding,
            dilation=kernel_dilation,
            input_dilation=input_dilation,
            groups=feature_group_count,
            padding_mode=padding_mode,
            algorithm=algorithm,
            **options,
        )
    else:
        if any(mode != "zeros" for mode in pad.modes(where, padding_mode, ndim)):
            raise ValueError(
                f"{where}: padding_mode={padding_mode!r} is not known to lax, which conv_general_dilated= and "
                "out_sharding= call. Type padding_mode='zeros', or leave these out."
            )
        y = _through_lax(
            conv_general_dilated or lax.conv_general_dilated,
            x,
            kernel,
            strides,
            padding if isinstance(padding, str) else pad.explicit(where, padding, ndim),
            lhs_dilation=input_dilation,
            rhs_dilation=kernel_dilation,
            feature_group_count=feature_group_count,
            out_sharding=out_sharding,
            **{name: value for name, value in options.items() if value is not None or name == "precision"},
        )
    return y if bias is None else y + bias


def pad_by_name(
    where: str, x: Array, padding: Any, padding_mode: Any, kernel_size: Sequence[int], dilation: Sequence[int]
) -> tuple[Array, Any]:
    """Flax's paddings that are none of lax's are written into the input, by the widths that Flax takes."""
    windows = [dilate(k, d) for k, d in zip(kernel_size, dilation, strict=True)]
    name = padding.upper() if isinstance(padding, str) else None
    if name == "CAUSAL":
        return x, [(window - 1, 0) for window in windows]
    if name not in PERIODIC_OR_MIRRORED:
        return x, padding
    if padding_mode != "zeros":
        raise ValueError(
            f"{where}: padding={padding!r} and padding_mode={padding_mode!r} both say what lies beyond the border. "
            f"Type padding='SAME' with the padding_mode, or leave that out."
        )
    widths = [(0, 0)] * x.ndim
    widths[x.ndim - 1 - len(windows) : -1] = [((window - 1) // 2, window // 2) for window in windows]
    return jnp.pad(x, widths, mode=PERIODIC_OR_MIRRORED[name]), "VALID"


def _through_lax(call: Callable[..., Array], x: Array, kernel: Array, *args: Any, **options: Any) -> Array:
    """One batch axis for a function of lax's signature, and the batch as it came for the result."""
    ndim = kernel.ndim - 2
    batch = x.shape[: x.ndim - ndim - 1]
    if len(batch) != 1:
        x = x.reshape(math.prod(batch), *x.shape[len(batch) :])
    axes = tuple(range(1, ndim + 1))
    numbers = lax.ConvDimensionNumbers((0, ndim + 1, *axes), (ndim + 1, ndim, *range(ndim)), (0, ndim + 1, *axes))
    y = call(x, kernel, *args, dimension_numbers=numbers, **options)
    return y if len(batch) == 1 else y.reshape(*batch, *y.shape[1:])
