"""Small blocks of networks: `ConvNormAct`, `SqueezeExcite`, `ChannelShuffle`, `MixConv`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Unpack

import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, PrecisionLike
from jax import Array

from convjax._core import arguments
from convjax._core.epilogue import read_activation
from convjax._layers import blocks, reparametrize
from convjax.functional import Activation
from convjax.nnx.conv import Conv, ConvOptions
from convjax.nnx.depthwise import DepthwiseConv


class ConvNormAct(nnx.Module):
    """Convolution, batch norm, activation; `fold()` gives the same for inference without the norm.

    Submodules: `conv` (`Conv`, with a bias only where there is no norm, or if asked for) and `norm`
    (`flax.nnx.BatchNorm`).

    Args:
      in_features, out_features, kernel_size, strides, feature_group_count, options: as `Conv`.
      activation: a callable, a name in `convjax.ACTIVATIONS`, or None.
      use_norm: whether there is a norm.
      momentum, epsilon, axis_name: as in `flax.nnx.BatchNorm`.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> import convjax.nnx
      >>> block = convjax.nnx.ConvNormAct(3, 8, (3, 3), strides=2, activation="silu", rngs=nnx.Rngs(0))
      >>> x = jnp.ones((4, 8, 8, 3))
      >>> block(x).shape
      (4, 4, 4, 8)
      >>> block.eval()
      >>> bool(jnp.allclose(block.fold()(x), block(x), atol=1e-5))
      True

    Source: Ioffe and Szegedy, Batch normalization, arXiv:1502.03167; folding: Jacob et al., arXiv:1712.05877,
    section 3.2.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        activation: Activation = "relu",
        use_norm: bool = True,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        axis_name: str | None = None,
        feature_group_count: int = 1,
        rngs: nnx.Rngs,
        **options: Unpack[ConvOptions],
    ):
        read_activation(type(self).__name__, activation)
        options.setdefault("use_bias", not use_norm)
        self.conv = Conv(
            in_features,
            out_features,
            kernel_size,
            strides,
            feature_group_count=feature_group_count,
            rngs=rngs,
            **options,
        )
        self.norm: nnx.BatchNorm | None = nnx.data(None)
        if use_norm:
            self.norm = nnx.BatchNorm(
                out_features,
                momentum=momentum,
                epsilon=epsilon,
                axis_name=axis_name,
                dtype=self.conv.dtype,
                param_dtype=self.conv.param_dtype,
                rngs=rngs,
            )
        self.activation = activation

    def __call__(self, inputs: Array, use_running_average: bool | None = None) -> Array:
        """Apply to `inputs (*batch, *space, in_features)`; the norm trains unless told otherwise, as in Flax."""
        y = self.conv(inputs)
        if self.norm is not None:
            y = self.norm(y, use_running_average)
        activation = read_activation(type(self).__name__, self.activation)
        return y if activation is None else activation(y)

    def fold(self) -> ConvNormAct:
        """A copy in which kernel and bias do what the norm does with its running statistics."""
        folded = nnx.clone(self)
        norm = self.norm
        if norm is None:
            return folded
        kernel, bias = reparametrize.fold_batch_norm(
            self.conv.kernel[...],
            None if self.conv.bias is None else self.conv.bias[...],
            norm.mean[...],
            norm.var[...],
            None if norm.scale is None else norm.scale[...],
            None if norm.bias is None else norm.bias[...],
            norm.epsilon,
        )
        folded.conv.kernel[...] = kernel
        folded.conv.bias = nnx.Param(bias)
        folded.conv.use_bias = True
        folded.norm = nnx.data(None)
        return folded


class SqueezeExcite(nnx.Module):
    """Weighs channels by what the whole image shows: a mean over space, two layers, a gate for each channel.

    Submodules: `reduce` and `expand`, both `flax.nnx.Linear`.

    Args:
      features: number of channels.
      reduced_features: channels between the two layers; a sixteenth of `features`, at least 1, if None.
      ndim: number of spatial axes.
      activation: between the layers, a callable or a name in `convjax.ACTIVATIONS`.
      gate: after them, a callable or such a name.
      dtype, param_dtype, precision: as in `flax.nnx.Linear`.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> import convjax.nnx
      >>> convjax.nnx.SqueezeExcite(32, rngs=nnx.Rngs(0))(jnp.ones((2, 5, 5, 32))).shape
      (2, 5, 5, 32)

    Source: Hu et al., Squeeze-and-excitation networks, arXiv:1709.01507, section 3.
    """

    def __init__(
        self,
        features: int,
        reduced_features: int | None = None,
        *,
        ndim: int = 2,
        activation: str | Callable[[Array], Array] = "relu",
        gate: str | Callable[[Array], Array] = "sigmoid",
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        precision: PrecisionLike = None,
        rngs: nnx.Rngs,
    ):
        where = type(self).__name__
        reduced = blocks.reduced_features(where, features, reduced_features)
        options: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, precision=precision, rngs=rngs)
        self.ndim = arguments.integer(where, "ndim", ndim, minimum=1)
        self.activation, self.gate = activation, gate
        self.reduce = nnx.Linear(features, reduced, **options)
        self.expand = nnx.Linear(reduced, features, **options)

    def __call__(self, inputs: Array) -> Array:
        """Weigh `inputs (*batch, *space, features)`."""
        return blocks.squeeze_excite(
            type(self).__name__, inputs, self.ndim, self.reduce, self.expand, self.activation, self.gate
        )


class ChannelShuffle(nnx.Module):
    """Deals the channels of each group to all groups, so that grouped convolutions in a row mix. Has no parameters.

    Channel `g * (C // groups) + i` becomes channel `i * groups + g`.

    Args:
      groups: number of groups of the convolution before it.

    Example:
      >>> import jax.numpy as jnp
      >>> import convjax.nnx
      >>> convjax.nnx.ChannelShuffle(2)(jnp.arange(6))
      Array([0, 3, 1, 4, 2, 5], dtype=int32)

    Source: Zhang et al., ShuffleNet, arXiv:1707.01083, section 3.1.
    """

    def __init__(self, groups: int):
        self.groups = groups

    def __call__(self, inputs: Array) -> Array:
        """Reorder the channels of `inputs (..., C)`."""
        return blocks.shuffle_channels(type(self).__name__, inputs, self.groups)


class MixConv(nnx.Module):
    """Depthwise convolution with kernels of several sizes: the channels are split evenly among them.

    Submodules: `conv_0`, `conv_1`, ..., a `DepthwiseConv` each.

    Args:
      in_features: number of channels.
      kernel_sizes: a kernel size for each part of the channels, as `Conv`'s.
      strides, options: as `Conv`.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> import convjax.nnx
      >>> convjax.nnx.MixConv(10, [(3, 3), (5, 5), (7, 7)], rngs=nnx.Rngs(0))(jnp.ones((1, 9, 9, 10))).shape
      (1, 9, 9, 10)

    Source: Tan and Le, MixConv: mixed depthwise convolutional kernels, arXiv:1907.09595, section 3.
    """

    def __init__(
        self,
        in_features: int,
        kernel_sizes: Sequence[int | Sequence[int]],
        strides: int | Sequence[int] | None = 1,
        *,
        rngs: nnx.Rngs,
        **options: Unpack[ConvOptions],
    ):
        where = type(self).__name__
        self.parts = tuple(blocks.split_channels(where, in_features, kernel_sizes))
        for i, (size, part) in enumerate(zip(kernel_sizes, self.parts, strict=True)):
            setattr(self, f"conv_{i}", DepthwiseConv(part, size, strides, rngs=rngs, **options))

    def __call__(self, inputs: Array) -> Array:
        """Convolve `inputs (*batch, *space, in_features)`."""
        branches = [getattr(self, f"conv_{i}") for i in range(len(self.parts))]
        return blocks.mix(type(self).__name__, inputs, self.parts, branches)
