"""`WSConv`, with standardised weights, and `DynamicConv`, with a kernel for each example."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Unpack

import jax
from flax import nnx
from jax import Array

from convjax._core import arguments
from convjax._layers import conv, dynamic, reparametrize
from convjax.nnx.conv import DEFAULT_BIAS_INIT, DEFAULT_KERNEL_INIT, Conv, ConvOptions


class WSConv(Conv):
    """Convolution with weight standardisation: each output channel's kernel has mean 0 and variance 1.

    Its parameters are those of `Conv`; serves before a group norm, where batches are too small for a batch norm.

    Args:
      in_features, out_features, kernel_size, strides, feature_group_count, options: as `Conv`.
      epsilon: added to the variance.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> import convjax.nnx
      >>> layer = convjax.nnx.WSConv(4, 8, (3, 3), rngs=nnx.Rngs(0))
      >>> bool(jnp.allclose(layer.effective_kernel().mean((0, 1, 2)), 0, atol=1e-6))
      True

    Source: Qiao et al., Micro-batch training with batch-channel normalization and weight standardization,
    arXiv:1903.10520.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        epsilon: float = 1e-5,
        feature_group_count: int = 1,
        rngs: nnx.Rngs,
        **options: Unpack[ConvOptions],
    ):
        super().__init__(
            in_features,
            out_features,
            kernel_size,
            strides,
            feature_group_count=feature_group_count,
            rngs=rngs,
            **options,
        )
        self.epsilon = epsilon

    def effective_kernel(self) -> Array:
        """The kernel, standardised, then masked."""
        kernel = reparametrize.standardize(self.kernel[...], self.epsilon)
        return conv.masked(type(self).__name__, kernel, self.mask)


class DynamicConv(Conv):
    """Convolution with a kernel for each example: a mixture of experts, weighted by what the example shows.

    Parameters: `kernel (num_experts, *k, C_in // groups, C_out)`, `bias (num_experts, C_out)`, and those of `router`, a
    `flax.nnx.Linear` from the input's mean over space to the weights.

    Args:
      in_features, out_features, kernel_size, strides, feature_group_count, options: as `Conv`. The initialisers make
        the arrays of one expert; metadata and mask are for all together.
      num_experts: number of kernels to mix.
      routing: from the router's output to weights; `jax.nn.softmax` is that of Chen et al., arXiv:1912.03458.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> import convjax.nnx
      >>> convjax.nnx.DynamicConv(4, 6, (3, 3), num_experts=3, rngs=nnx.Rngs(0))(jnp.ones((2, 8, 8, 4))).shape
      (2, 8, 8, 6)

    Source: Yang et al., CondConv, arXiv:1904.04971, section 3.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        num_experts: int = 8,
        routing: Callable[[Array], Array] = jax.nn.sigmoid,
        feature_group_count: int = 1,
        rngs: nnx.Rngs,
        **options: Unpack[ConvOptions],
    ):
        experts = arguments.integer(type(self).__name__, "num_experts", num_experts, minimum=1)
        options["kernel_init"] = dynamic.per_expert(options.get("kernel_init", DEFAULT_KERNEL_INIT), experts)
        options["bias_init"] = dynamic.per_expert(options.get("bias_init", DEFAULT_BIAS_INIT), experts)
        super().__init__(
            in_features,
            out_features,
            kernel_size,
            strides,
            feature_group_count=feature_group_count,
            rngs=rngs,
            **options,
        )
        self.routing = routing
        self.router = nnx.Linear(
            in_features, experts, dtype=self.dtype, param_dtype=self.param_dtype, precision=self.precision, rngs=rngs
        )

    def __call__(self, inputs: Array, out_sharding: Any = None) -> Array:
        """Convolve `inputs (*batch, *space, in_features)`; the weights are those of each entry of the batch axes."""
        where, ndim = type(self).__name__, len(self.kernel_size)
        conv.check_input(where, inputs, ndim, self.in_features)
        dynamic.check_hook(where, self.conv_general_dilated, out_sharding)
        weights = self.routing(self.router(inputs.mean(tuple(range(-1 - ndim, -1)))))
        bias = None if self.bias is None else self.bias[...]
        x, kernels, bias = self.promote_dtype((inputs, self.effective_kernel(), bias), dtype=self.dtype)
        return dynamic.convolve_each(
            where,
            x,
            weights,
            kernels,
            bias,
            strides=self.strides,
            padding=self.padding,
            padding_mode=self.padding_mode,
            input_dilation=self.input_dilation,
            kernel_dilation=self.kernel_dilation,
            feature_group_count=self.feature_group_count,
            precision=self.precision,
            preferred_element_type=self.preferred_element_type,
            algorithm=self.algorithm,
        )
