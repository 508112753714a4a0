"""`WSConv`, with standardised weights, and `DynamicConv`, with a kernel for each example."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from convjax._core import arguments
from convjax._layers import conv, dynamic, reparametrize
from convjax.linen.options import ConvOptions, convolve, promoted, settings


class WSConv(ConvOptions):
    """Convolution with weight standardisation: each output channel's kernel has mean 0 and variance 1.

    Its parameters are those of `Conv`.

    Attributes:
      features, kernel_size, strides, feature_group_count: as `Conv`.
      epsilon: added to the variance.
      others: as `Conv`, by name.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import convjax.linen
      >>> layer = convjax.linen.WSConv(8, (3, 3))
      >>> layer.init_with_output(jax.random.key(0), jnp.ones((1, 9, 9, 4)))[0].shape
      (1, 9, 9, 8)

    Source: Qiao et al., Micro-batch training with batch-channel normalization and weight standardization,
    arXiv:1903.10520.
    """

    features: int
    kernel_size: int | Sequence[int]
    strides: int | Sequence[int] | None = 1
    feature_group_count: int = 1
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Convolve `inputs (*batch, *space, C)`."""
        return convolve(
            self,
            inputs,
            features=self.features,
            kernel_size=self.kernel_size,
            strides=self.strides,
            groups=self.feature_group_count,
            transform=lambda kernel: reparametrize.standardize(kernel, self.epsilon),
        )


class DynamicConv(ConvOptions):
    """Convolution with a kernel for each example: a mixture of experts, weighted by what the example shows.

    Parameters: `kernel (num_experts, *k, C_in // groups, C_out)`, `bias (num_experts, C_out)`, and those of `router`, a
    `flax.linen.Dense` from the input's mean over space to the weights.

    Attributes:
      features, kernel_size, strides, feature_group_count: as `Conv`.
      num_experts: number of kernels to mix.
      routing: from the router's output to weights; `jax.nn.softmax` is that of Chen et al., arXiv:1912.03458.
      others: as `Conv`, by name. The initialisers make the arrays of one expert; the mask is for all together.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import convjax.linen
      >>> layer = convjax.linen.DynamicConv(6, (3, 3), num_experts=3)
      >>> layer.init_with_output(jax.random.key(0), jnp.ones((2, 8, 8, 4)))[0].shape
      (2, 8, 8, 6)

    Source: Yang et al., CondConv, arXiv:1904.04971, section 3.
    """

    features: int
    kernel_size: int | Sequence[int]
    strides: int | Sequence[int] | None = 1
    feature_group_count: int = 1
    num_experts: int = 8
    routing: Callable[[Array], Array] = jax.nn.sigmoid

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Convolve `inputs (*batch, *space, C)`; the weights are those of each entry of the batch axes."""
        where = type(self).__name__
        size = conv.sizes(where, self.kernel_size)
        channels, experts = jnp.shape(inputs)[-1], arguments.integer(where, "num_experts", self.num_experts, minimum=1)
        shape = conv.kernel_shape(where, size, channels, self.features, self.feature_group_count)
        conv.check_input(where, inputs, len(size), channels)
        dynamic.check_hook(where, self.conv_general_dilated)
        router = nn.Dense(
            experts, dtype=self.dtype, param_dtype=self.param_dtype, precision=self.precision, name="router"
        )
        weights = self.routing(router(inputs.mean(tuple(range(-1 - len(size), -1)))))
        kernel = self.param("kernel", dynamic.per_expert(self.kernel_init, experts), shape, self.param_dtype)
        kernel = conv.masked(where, kernel, self.mask)
        bias: Array | None = None
        if self.use_bias:
            bias_init = dynamic.per_expert(self.bias_init, experts)
            bias = self.param("bias", bias_init, (self.features,), self.param_dtype)
        x, kernel, bias = promoted(self, inputs, kernel, bias)
        return dynamic.convolve_each(
            where,
            x,
            weights,
            kernel,
            bias,
            strides=self.strides,
            padding=self.padding,
            feature_group_count=self.feature_group_count,
            **settings(self),
        )
