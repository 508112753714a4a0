"""Depthwise, separable and pointwise convolution layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from flax import nnx
from jax import Array

from convjax._core import arguments
from convjax.nnx.conv import Conv, ConvOptions


class DepthwiseConv(Conv):
    """Each channel with its own kernels: output channel `c * channel_multiplier + m` sees input channel `c` alone.

    Its parameters are those of `Conv` with `feature_group_count=in_features`: `kernel (*k, 1, C * M)`, `bias (C * M,)`.

    Args:
      in_features: number of input channels, C.
      kernel_size, strides: as `Conv`.
      channel_multiplier: output channels for each input channel, M.
      options: as `Conv`.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> import convjax.nnx
      >>> convjax.nnx.DepthwiseConv(4, (7, 7), rngs=nnx.Rngs(0))(jnp.ones((1, 9, 9, 4))).shape
      (1, 9, 9, 4)

    Source: Howard et al., MobileNets, arXiv:1704.04861, section 3.1.
    """

    def __init__(
        self,
        in_features: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        channel_multiplier: int = 1,
        rngs: nnx.Rngs,
        **options: Unpack[ConvOptions],
    ):
        multiplier = arguments.integer(type(self).__name__, "channel_multiplier", channel_multiplier, minimum=1)
        super().__init__(
            in_features,
            in_features * multiplier,
            kernel_size,
            strides,
            feature_group_count=in_features,
            rngs=rngs,
            **options,
        )


class PointwiseConv(Conv):
    """1x1 convolution: one matrix for the channels at every position, in `ndim` spatial dimensions.

    Its parameters are those of `Conv` with a kernel size of 1 on every axis.

    Args:
      in_features: number of input channels.
      out_features: number of output channels.
      strides: as `Conv`.
      ndim: number of spatial axes.
      feature_group_count, options: as `Conv`.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> import convjax.nnx
      >>> convjax.nnx.PointwiseConv(4, 8, strides=2, rngs=nnx.Rngs(0))(jnp.ones((1, 6, 6, 4))).shape
      (1, 3, 3, 8)

    Source: Lin, Chen and Yan, Network in network, arXiv:1312.4400.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        strides: int | Sequence[int] | None = 1,
        *,
        ndim: int = 2,
        feature_group_count: int = 1,
        rngs: nnx.Rngs,
        **options: Unpack[ConvOptions],
    ):
        ones = (1,) * arguments.integer(type(self).__name__, "ndim", ndim, minimum=0)
        super().__init__(
            in_features, out_features, ones, strides, feature_group_count=feature_group_count, rngs=rngs, **options
        )


class SeparableConv(nnx.Module):
    """A depthwise convolution, then a pointwise one that mixes its channels.

    Submodules: `depthwise` (`DepthwiseConv` without a bias) and `pointwise` (`PointwiseConv`).

    Args:
      in_features: number of input channels.
      out_features: number of output channels.
      kernel_size, strides: of the depthwise step, as `Conv`.
      channel_multiplier: of the depthwise step.
      options: as `Conv`; those of space (padding and its mode, dilations, mask, algorithm) are the depthwise step's,
        those of bias the pointwise one's, the rest go to both.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> import convjax.nnx
      >>> convjax.nnx.SeparableConv(4, 8, (3, 3), rngs=nnx.Rngs(0))(jnp.ones((1, 9, 9, 4))).shape
      (1, 9, 9, 8)

    Source: Chollet, Xception, arXiv:1610.02357; Howard et al., arXiv:1704.04861.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        channel_multiplier: int = 1,
        rngs: nnx.Rngs,
        **options: Unpack[ConvOptions],
    ):
        depthwise, pointwise = separable_options(options)
        self.depthwise = DepthwiseConv(
            in_features, kernel_size, strides, channel_multiplier=channel_multiplier, rngs=rngs, **depthwise
        )
        ndim = len(self.depthwise.kernel_size)
        self.pointwise = PointwiseConv(
            in_features * channel_multiplier, out_features, ndim=ndim, rngs=rngs, **pointwise
        )

    def __call__(self, inputs: Array) -> Array:
        """Convolve `inputs (*batch, *space, in_features)`."""
        return self.pointwise(self.depthwise(inputs))


def separable_options(options: ConvOptions) -> tuple[ConvOptions, ConvOptions]:
    """Options of the depthwise and of the pointwise step."""
    depthwise, pointwise = options.copy(), options.copy()
    for name in ("use_bias", "bias_init", "bias_metadata"):
        depthwise.pop(name, None)  # type: ignore[misc]
    for name in ("padding", "padding_mode", "input_dilation", "kernel_dilation", "mask", "algorithm"):
        pointwise.pop(name, None)  # type: ignore[misc]
    depthwise["use_bias"] = False
    return depthwise, pointwise
