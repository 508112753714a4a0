"""`MaskedConv`, which leaves weights out, and `PartialConv`, which leaves inputs out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from convjax._layers import conv, masked
from convjax.linen.options import ConvOptions, promoted


class MaskedConv(ConvOptions):
    """Convolution with some weights held at zero, as autoregressive networks of images have it (PixelCNN).

    Parameters and results are those of `convjax.nnx.MaskedConv`.

    Attributes:
      features, kernel_size, strides, feature_group_count: as `Conv`.
      mask: "A" (the first layer), "B" (all others) or an array, as `convjax.masked_conv`.
      channel_groups: equal parts of the channels, in order: 3 for the colours of an image.
      others: as `Conv`, by name, but for `padding_mode`, `input_dilation` and `conv_general_dilated`.

    Raises:
      ValueError: as `Conv`; an even kernel with "A" or "B"; `channel_groups` does not divide the channels.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import convjax.linen
      >>> layer = convjax.linen.MaskedConv(6, (3, 3), mask="A", channel_groups=3)
      >>> layer.init_with_output(jax.random.key(0), jnp.ones((1, 5, 5, 3)))[0].shape
      (1, 5, 5, 6)

    Source: van den Oord et al., Pixel recurrent neural networks, arXiv:1601.06759, section 3.4.
    """

    features: int  # type: ignore[misc]  # mypy does not see that mask, below, is for keywords alone
    kernel_size: int | Sequence[int]  # type: ignore[misc]
    strides: int | Sequence[int] | None = 1
    feature_group_count: int = 1
    channel_groups: int = 1
    mask: str | Array = dataclasses.field(kw_only=True)  # type: ignore[assignment]

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Convolve `inputs (*batch, *space, C)`, with any number of batch axes."""
        masked.check(type(self).__name__, vars(self))
        return masked.convolve_masked(
            type(self).__name__,
            *operands(self, inputs),
            mask=self.mask,
            channel_groups=self.channel_groups,
            **_options(self),
        )


class PartialConv(ConvOptions):
    """Convolution of data with holes (inpainting): outputs from what is known, and which of them are known.

    Parameters and results are those of `convjax.nnx.PartialConv`.

    Attributes:
      features, kernel_size, strides, feature_group_count: as `Conv`.
      others: as `Conv`, by name, but for `padding_mode`, `input_dilation`, `mask` and `conv_general_dilated`.

    Raises:
      ValueError: as `Conv`; when called, a mask of another shape than that of the inputs.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import convjax.linen
      >>> known = jnp.ones((1, 9, 9, 1)).at[:, 2:7, 2:7].set(0)
      >>> layer = convjax.linen.PartialConv(8, (3, 3))
      >>> (y, known), _ = layer.init_with_output(jax.random.key(0), jnp.ones((1, 9, 9, 3)), known)
      >>> y.shape, int((known == 0).sum())  # the hole shrank from 5x5 to 3x3
      ((1, 9, 9, 8), 9)

    Source: Liu et al., Image inpainting for irregular holes using partial convolutions, arXiv:1804.07723, equations 1
    and 2.
    """

    features: int
    kernel_size: int | Sequence[int]
    strides: int | Sequence[int] | None = 1
    feature_group_count: int = 1

    @nn.compact
    def __call__(self, inputs: Array, mask: Array | None = None) -> tuple[Array, Array]:
        """Convolve what is known of `inputs (*batch, *space, C)`; `mask` as in `convjax.nnx.PartialConv`."""
        masked.check(type(self).__name__, vars(self), "mask")
        return masked.convolve_known(type(self).__name__, *operands(self, inputs), mask, **_options(self))


def operands(module: Any, inputs: Array) -> tuple[Any, Any, Any]:
    """Inputs, kernel and bias of a module with the fields of `ConvOptions`, in one dtype."""
    where = type(module).__name__
    size = conv.sizes(where, module.kernel_size)
    channels = jnp.shape(inputs)[-1] if jnp.ndim(inputs) else 0
    shape = conv.kernel_shape(where, size, channels, module.features, module.feature_group_count)
    kernel = module.param("kernel", module.kernel_init, shape, module.param_dtype)
    bias = module.param("bias", module.bias_init, (module.features,), module.param_dtype) if module.use_bias else None
    return promoted(module, inputs, kernel, bias)


def _options(module: Any) -> dict[str, Any]:
    return dict(
        strides=module.strides,
        padding=module.padding,
        kernel_dilation=module.kernel_dilation,
        feature_group_count=module.feature_group_count,
        precision=module.precision,
        preferred_element_type=module.preferred_element_type,
        algorithm=module.algorithm,
    )
