"""`Conv` and `ConvTranspose`: Flax's layers, served by convjax."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype
from jax import Array

from convjax._layers import conv, transposed
from convjax.functional import Algorithm, PaddingMode
from convjax.linen.options import convolve, promoted


class Conv(nn.Conv):
    """Convolution. Fields, parameters and results are those of `flax.linen.Conv`; a checkpoint of one fits the other.

    A subclass, so that it has all of Flax's fields in their order and is found where `flax.linen.Conv` is looked for.

    Attributes:
      features: number of output channels.
      kernel_size: spatial shape of the kernel, which tells the number of spatial axes; an int is one axis.
      strides, padding, input_dilation, kernel_dilation, feature_group_count, use_bias, mask, dtype, param_dtype,
        precision, kernel_init, bias_init, promote_dtype: as in Flax. `padding` may also be "SAME_LOWER" or "FULL",
        "CAUSAL" in any number of dimensions, and a string with `input_dilation`.
      conv_general_dilated: a function to call instead of ours, with the signature of `jax.lax.conv_general_dilated`.
      padding_mode, algorithm, preferred_element_type: as in `convjax.conv`.

    Raises:
      ValueError: groups do not divide the features; the input's axes do not fit; else as `convjax.conv`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import convjax.linen
      >>> layer = convjax.linen.Conv(8, kernel_size=(3, 3), strides=2, padding_mode="reflect")
      >>> y, variables = layer.init_with_output(jax.random.key(0), jnp.ones((1, 16, 16, 3)))
      >>> y.shape, variables["params"]["kernel"].shape
      ((1, 8, 8, 8), (3, 3, 3, 8))
    """

    padding_mode: PaddingMode = "zeros"
    preferred_element_type: Dtype | None = None
    algorithm: Algorithm = "auto"

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Convolve `inputs (*batch, *space, C)`, with any number of batch axes."""
        return convolve(
            self,
            inputs,
            features=self.features,
            kernel_size=self.kernel_size,
            strides=self.strides,
            groups=self.feature_group_count,
        )


class ConvTranspose(nn.ConvTranspose):
    """Transposed convolution, to enlarge. Fields, parameters and results are those of `flax.linen.ConvTranspose`.

    Attributes:
      features: number of output channels.
      kernel_size, strides, padding, feature_group_count, transpose_kernel, padding_mode, algorithm: as
        `convjax.nnx.ConvTranspose`.
      others: as in Flax.

    Raises:
      ValueError: groups do not divide the features; the input's axes do not fit; else as `convjax.conv_transpose`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import convjax.linen
      >>> layer = convjax.linen.ConvTranspose(6, kernel_size=(4, 4), strides=(2, 2), feature_group_count=2)
      >>> y, variables = layer.init_with_output(jax.random.key(0), jnp.ones((1, 7, 7, 8)))
      >>> y.shape, variables["params"]["kernel"].shape
      ((1, 14, 14, 6), (4, 4, 4, 6))
    """

    feature_group_count: int = 1
    padding_mode: PaddingMode = "zeros"
    algorithm: Algorithm = "auto"

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Convolve `inputs (*batch, *space, C)`, with any number of batch axes."""
        where = type(self).__name__
        size = conv.sizes(where, self.kernel_size)
        channels = jnp.shape(inputs)[-1] if jnp.ndim(inputs) else 0
        shape = transposed.kernel_shape(
            where, size, channels, self.features, self.feature_group_count, self.transpose_kernel
        )
        kernel = conv.masked(where, self.param("kernel", self.kernel_init, shape, self.param_dtype), self.mask)
        bias: Array | None = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
        x, kernel, bias = promoted(self, inputs, kernel, bias)
        return transposed.convolve_transposed(
            where,
            x,
            kernel,
            bias,
            strides=self.strides,
            padding=self.padding,
            padding_mode=self.padding_mode,
            kernel_dilation=self.kernel_dilation,
            feature_group_count=self.feature_group_count,
            transpose_kernel=self.transpose_kernel,
            precision=self.precision,
            preferred_element_type=self.preferred_element_type,
            algorithm=self.algorithm,
        )
