"""`DeformConv`: a convolution whose taps move as its own prediction says."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from flax.linen.linear import PromoteDtypeFn
from flax.typing import Dtype, Initializer, PaddingLike, PrecisionLike
from jax import Array

from convjax._layers import conv, deformable
from convjax.linen.conv import Conv
from convjax.linen.options import DEFAULT_BIAS_INIT, DEFAULT_KERNEL_INIT, promoted


class DeformConv(nn.Module):
    """Deformable convolution: a convolution of the same sizes predicts where each tap looks.

    Parameters and results are those of `convjax.nnx.DeformConv`; the submodule is named `offset` here too.

    Attributes:
      features: number of output channels.
      kernel_size: spatial shape of the kernel; an int is one axis.
      modulated: whether samples are scaled by a mask too (version 2).
      offset_groups: equal parts of the input channels that move on their own.
      others: as `Conv`; padding is with zeros.

    Raises:
      ValueError: `offset_groups` does not divide the input channels; else as `Conv`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import convjax.linen
      >>> layer = convjax.linen.DeformConv(8, (3, 3), strides=2)
      >>> y, variables = layer.init_with_output(jax.random.key(0), jnp.ones((1, 9, 9, 4)))
      >>> y.shape, variables["params"]["offset"]["kernel"].shape
      ((1, 5, 5, 8), (3, 3, 4, 27))

    Source: Dai et al., arXiv:1703.06211, section 2.1; Zhu et al., arXiv:1811.11168, section 3.2.
    """

    features: int
    kernel_size: int | Sequence[int]
    strides: int | Sequence[int] | None = 1
    modulated: bool = True
    offset_groups: int = 1
    padding: PaddingLike = "SAME"
    kernel_dilation: int | Sequence[int] | None = 1
    feature_group_count: int = 1
    use_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    precision: PrecisionLike = None
    kernel_init: Initializer = DEFAULT_KERNEL_INIT
    bias_init: Initializer = DEFAULT_BIAS_INIT
    promote_dtype: PromoteDtypeFn = promote_dtype
    preferred_element_type: Dtype | None = None

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Convolve `inputs (*batch, *space, C)`, with any number of batch axes."""
        where = type(self).__name__
        size = conv.sizes(where, self.kernel_size)
        channels = jnp.shape(inputs)[-1] if jnp.ndim(inputs) else 0
        conv.check_input(where, inputs, len(size), channels)
        shape = conv.kernel_shape(where, size, channels, self.features, self.feature_group_count)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype) if self.use_bias else None
        predict = Conv(
            deformable.predicted_features(where, size, channels, self.offset_groups, self.modulated),
            size,
            self.strides,
            padding=self.padding,
            kernel_dilation=self.kernel_dilation,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            precision=self.precision,
            kernel_init=nn.initializers.zeros_init(),
            promote_dtype=self.promote_dtype,
            name="offset",
        )
        x, kernel, bias = promoted(self, inputs, kernel, bias)
        return deformable.convolve_deformed(
            where,
            x,
            kernel,
            bias,
            predict(inputs),
            modulated=self.modulated,
            offset_groups=self.offset_groups,
            strides=self.strides,
            padding=self.padding,
            kernel_dilation=self.kernel_dilation,
            feature_group_count=self.feature_group_count,
            precision=self.precision,
            preferred_element_type=self.preferred_element_type,
        )
