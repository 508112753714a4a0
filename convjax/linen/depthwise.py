"""Depthwise, separable and pointwise convolution layers."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from convjax._core import arguments
from convjax.linen.options import ConvOptions, convolve


class DepthwiseConv(ConvOptions):
    """Each channel with its own kernels: output channel `c * channel_multiplier + m` sees input channel `c` alone.

    Its parameters are those of `Conv` with as many groups as channels.

    Attributes:
      kernel_size, strides: as `Conv`.
      channel_multiplier: output channels for each input channel.
      others: as `Conv`, by name.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import convjax.linen
      >>> layer = convjax.linen.DepthwiseConv((7, 7), channel_multiplier=2)
      >>> layer.init_with_output(jax.random.key(0), jnp.ones((1, 9, 9, 4)))[0].shape
      (1, 9, 9, 8)

    Source: Howard et al., MobileNets, arXiv:1704.04861, section 3.1.
    """

    kernel_size: int | Sequence[int]
    strides: int | Sequence[int] | None = 1
    channel_multiplier: int = 1

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Convolve `inputs (*batch, *space, C)`."""
        multiplier = arguments.integer(type(self).__name__, "channel_multiplier", self.channel_multiplier, minimum=1)
        channels = jnp.shape(inputs)[-1]
        return convolve(
            self,
            inputs,
            features=channels * multiplier,
            kernel_size=self.kernel_size,
            strides=self.strides,
            groups=channels,
        )


class PointwiseConv(ConvOptions):
    """1x1 convolution: one matrix for the channels at every position, in `ndim` spatial dimensions.

    Its parameters are those of `Conv` with a kernel size of 1 on every axis.

    Attributes:
      features: number of output channels.
      strides: as `Conv`.
      ndim: number of spatial axes.
      feature_group_count: as `Conv`.
      others: as `Conv`, by name.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import convjax.linen
      >>> layer = convjax.linen.PointwiseConv(8, strides=2)
      >>> layer.init_with_output(jax.random.key(0), jnp.ones((1, 6, 6, 4)))[0].shape
      (1, 3, 3, 8)

    Source: Lin, Chen and Yan, Network in network, arXiv:1312.4400.
    """

    features: int
    strides: int | Sequence[int] | None = 1
    ndim: int = 2
    feature_group_count: int = 1

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Convolve `inputs (*batch, *space, C)`."""
        ones = (1,) * arguments.integer(type(self).__name__, "ndim", self.ndim, minimum=0)
        return convolve(
            self,
            inputs,
            features=self.features,
            kernel_size=ones,
            strides=self.strides,
            groups=self.feature_group_count,
        )


class SeparableConv(ConvOptions):
    """A depthwise convolution, then a pointwise one that mixes its channels.

    Submodules: `depthwise` (`DepthwiseConv` without a bias) and `pointwise` (`PointwiseConv`).

    Attributes:
      features: number of output channels.
      kernel_size, strides, channel_multiplier: of the depthwise step.
      others: as `Conv`, by name; those of space (padding and its mode, dilations, mask, algorithm) are the depthwise
        step's, those of bias the pointwise one's, the rest go to both.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import convjax.linen
      >>> layer = convjax.linen.SeparableConv(8, (3, 3))
      >>> layer.init_with_output(jax.random.key(0), jnp.ones((1, 9, 9, 4)))[0].shape
      (1, 9, 9, 8)

    Source: Chollet, Xception, arXiv:1610.02357; Howard et al., arXiv:1704.04861.
    """

    features: int
    kernel_size: int | Sequence[int]
    strides: int | Sequence[int] | None = 1
    channel_multiplier: int = 1

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Convolve `inputs (*batch, *space, C)`."""
        y = DepthwiseConv(
            self.kernel_size,
            self.strides,
            self.channel_multiplier,
            use_bias=False,
            name="depthwise",
            **self.options("use_bias", "bias_init"),
        )(inputs)
        spatial = ("padding", "padding_mode", "input_dilation", "kernel_dilation", "mask", "algorithm")
        ndim = len(self.kernel_size) if isinstance(self.kernel_size, Sequence) else 1
        return PointwiseConv(self.features, ndim=ndim, name="pointwise", **self.options(*spatial))(y)
