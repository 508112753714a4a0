"""Small blocks of networks: `ConvNormAct`, `SqueezeExcite`, `ChannelShuffle`, `MixConv`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.core import meta
from flax.typing import Dtype, PrecisionLike
from jax import Array

from convjax._core import arguments
from convjax._core.epilogue import read_activation
from convjax._layers import blocks, reparametrize
from convjax.functional import Activation
from convjax.linen.conv import Conv
from convjax.linen.depthwise import DepthwiseConv
from convjax.linen.options import ConvOptions


class ConvNormAct(ConvOptions):
    """Convolution, batch norm, activation; `fold` gives the same for inference without the norm.

    Submodules: `conv` (`Conv`, with a bias only where there is no norm, or if asked for) and `norm`
    (`flax.linen.BatchNorm`).

    Attributes:
      features, kernel_size, strides, feature_group_count: as `Conv`.
      activation: a callable, a name in `convjax.ACTIVATIONS`, or None.
      use_norm: whether there is a norm.
      momentum, epsilon, axis_name: as in `flax.linen.BatchNorm`.
      others: as `Conv`, by name.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import convjax.linen
      >>> block, x = convjax.linen.ConvNormAct(8, (3, 3), strides=2, activation="silu"), jnp.ones((4, 8, 8, 3))
      >>> variables = block.init(jax.random.key(0), x)
      >>> y = block.apply(variables, x, use_running_average=True)
      >>> folded, fewer = block.fold(variables)
      >>> bool(jnp.allclose(folded.apply(fewer, x), y, atol=1e-5))
      True

    Source: Ioffe and Szegedy, Batch normalization, arXiv:1502.03167; folding: Jacob et al., arXiv:1712.05877,
    section 3.2.
    """

    features: int  # type: ignore[misc]  # mypy does not see that use_bias, below, is for keywords alone
    kernel_size: int | Sequence[int]  # type: ignore[misc]
    strides: int | Sequence[int] | None = 1
    feature_group_count: int = 1
    activation: Activation = "relu"
    use_norm: bool = True
    momentum: float = 0.9
    epsilon: float = 1e-5
    axis_name: str | None = None
    use_bias: bool | None = dataclasses.field(default=None, kw_only=True)  # type: ignore[assignment]

    @nn.compact
    def __call__(self, inputs: Array, use_running_average: bool = False) -> Array:
        """Apply to `inputs (*batch, *space, C)`; the norm trains (make "batch_stats" mutable) unless told otherwise."""
        activation = read_activation(type(self).__name__, self.activation)
        y = Conv(
            self.features,
            self.kernel_size,
            self.strides,
            feature_group_count=self.feature_group_count,
            use_bias=not self.use_norm if self.use_bias is None else self.use_bias,
            name="conv",
            **self.options("use_bias"),
        )(inputs)
        if self.use_norm:
            y = nn.BatchNorm(
                use_running_average,
                momentum=self.momentum,
                epsilon=self.epsilon,
                axis_name=self.axis_name,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name="norm",
            )(y)
        return y if activation is None else activation(y)

    def fold(self, variables: Mapping[str, Any]) -> tuple[ConvNormAct, dict[str, Any]]:
        """The block without its norm, and variables in which kernel and bias do what the norm's running averages do."""
        if not self.use_norm:
            return self, dict(variables)
        params, statistics = meta.unbox(variables["params"]), meta.unbox(variables["batch_stats"]["norm"])
        kernel, bias = reparametrize.fold_batch_norm(
            params["conv"]["kernel"],
            params["conv"].get("bias"),
            statistics["mean"],
            statistics["var"],
            params["norm"]["scale"],
            params["norm"]["bias"],
            self.epsilon,
        )
        return self.clone(use_norm=False, use_bias=True), {"params": {"conv": {"kernel": kernel, "bias": bias}}}


class SqueezeExcite(nn.Module):
    """Weighs channels by what the whole image shows: a mean over space, two layers, a gate for each channel.

    Submodules: `reduce` and `expand`, both `flax.linen.Dense`.

    Attributes:
      reduced_features: channels between the two layers; a sixteenth of the input's, at least 1, if None.
      ndim: number of spatial axes.
      activation: between the layers, a callable or a name in `convjax.ACTIVATIONS`.
      gate: after them, a callable or such a name.
      dtype, param_dtype, precision: as in `flax.linen.Dense`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import convjax.linen
      >>> convjax.linen.SqueezeExcite().init_with_output(jax.random.key(0), jnp.ones((2, 5, 5, 32)))[0].shape
      (2, 5, 5, 32)

    Source: Hu et al., Squeeze-and-excitation networks, arXiv:1709.01507, section 3.
    """

    reduced_features: int | None = None
    ndim: int = 2
    activation: str | Callable[[Array], Array] = "relu"
    gate: str | Callable[[Array], Array] = "sigmoid"
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    precision: PrecisionLike = None

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Weigh `inputs (*batch, *space, C)`."""
        where, features = type(self).__name__, jnp.shape(inputs)[-1]
        ndim = arguments.integer(where, "ndim", self.ndim, minimum=1)
        options: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype, precision=self.precision)
        reduce = nn.Dense(blocks.reduced_features(where, features, self.reduced_features), name="reduce", **options)
        expand = nn.Dense(features, name="expand", **options)
        return blocks.squeeze_excite(where, inputs, ndim, reduce, expand, self.activation, self.gate)


class ChannelShuffle(nn.Module):
    """Deals the channels of each group to all groups, so that grouped convolutions in a row mix. Has no parameters.

    Channel `g * (C // groups) + i` becomes channel `i * groups + g`.

    Attributes:
      groups: number of groups of the convolution before it.

    Example:
      >>> import jax.numpy as jnp
      >>> import convjax.linen
      >>> convjax.linen.ChannelShuffle(2).apply({}, jnp.arange(6))
      Array([0, 3, 1, 4, 2, 5], dtype=int32)

    Source: Zhang et al., ShuffleNet, arXiv:1707.01083, section 3.1.
    """

    groups: int

    def __call__(self, inputs: Array) -> Array:
        """Reorder the channels of `inputs (..., C)`."""
        return blocks.shuffle_channels(type(self).__name__, inputs, self.groups)


class MixConv(ConvOptions):
    """Depthwise convolution with kernels of several sizes: the channels are split evenly among them.

    Submodules: `conv_0`, `conv_1`, ..., a `DepthwiseConv` each.

    Attributes:
      kernel_sizes: a kernel size for each part of the channels, as `Conv`'s.
      strides: as `Conv`.
      others: as `Conv`, by name.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import convjax.linen
      >>> layer = convjax.linen.MixConv([(3, 3), (5, 5), (7, 7)])
      >>> layer.init_with_output(jax.random.key(0), jnp.ones((1, 9, 9, 10)))[0].shape
      (1, 9, 9, 10)

    Source: Tan and Le, MixConv: mixed depthwise convolutional kernels, arXiv:1907.09595, section 3.
    """

    kernel_sizes: Sequence[int | Sequence[int]]
    strides: int | Sequence[int] | None = 1

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Convolve `inputs (*batch, *space, C)`."""
        where = type(self).__name__
        parts = blocks.split_channels(where, jnp.shape(inputs)[-1], self.kernel_sizes)
        branches = [
            DepthwiseConv(size, self.strides, name=f"conv_{i}", **self.options())
            for i, size in enumerate(self.kernel_sizes)
        ]
        return blocks.mix(where, inputs, parts, branches)
