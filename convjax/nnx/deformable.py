"""`DeformConv`: a convolution whose taps move as its own prediction says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes
from flax.typing import Dtype, Initializer, PaddingLike, PrecisionLike, PromoteDtypeFn
from jax import Array

from convjax._layers import conv, deformable
from convjax.nnx.conv import DEFAULT_BIAS_INIT, DEFAULT_KERNEL_INIT, NO_METADATA, Conv


class DeformConv(nnx.Module):
    """Deformable convolution: a convolution of the same sizes predicts where each tap looks.

    Parameters: `kernel (*k, C_in // groups, C_out)` and `bias (C_out,)`; submodule `offset`, a `Conv` with as many
    outputs as `convjax.deformable.deform_conv` takes offsets, then masks. It begins at zero: the layer is a convolution
    at first, and with `modulated` half of one, as every mask is sigmoid(0). The papers train it at a tenth of the
    learning rate.

    Args:
      in_features: number of input channels.
      out_features: number of output channels.
      kernel_size: spatial shape of the kernel, 1 to 3 axes or more; an int is one axis.
      strides, padding, kernel_dilation, feature_group_count: as `Conv`; padding is with zeros.
      modulated: whether samples are scaled by a mask too (version 2).
      offset_groups: equal parts of the input channels that move on their own.
      others: as `Conv`.

    Raises:
      ValueError: `offset_groups` does not divide the input channels; else as `Conv`.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> import convjax.nnx
      >>> layer = convjax.nnx.DeformConv(4, 8, (3, 3), strides=2, rngs=nnx.Rngs(0))
      >>> layer(jnp.ones((1, 9, 9, 4))).shape, layer.offset.kernel.shape
      ((1, 5, 5, 8), (3, 3, 4, 27))

    Source: Dai et al., arXiv:1703.06211, section 2.1; Zhu et al., arXiv:1811.11168, section 3.2.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        modulated: bool = True,
        offset_groups: int = 1,
        padding: PaddingLike = "SAME",
        kernel_dilation: int | Sequence[int] | None = 1,
        feature_group_count: int = 1,
        use_bias: bool = True,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        precision: PrecisionLike = None,
        kernel_init: Initializer = DEFAULT_KERNEL_INIT,
        bias_init: Initializer = DEFAULT_BIAS_INIT,
        promote_dtype: PromoteDtypeFn = dtypes.promote_dtype,
        preferred_element_type: Dtype | None = None,
        rngs: nnx.Rngs,
        kernel_metadata: Mapping[str, Any] = NO_METADATA,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
    ):
        where = type(self).__name__
        self.kernel_size = conv.sizes(where, kernel_size)
        self.in_features, self.out_features = in_features, out_features
        self.strides, self.padding, self.kernel_dilation = strides, padding, kernel_dilation
        self.feature_group_count, self.offset_groups = feature_group_count, offset_groups
        self.modulated, self.use_bias = modulated, use_bias
        self.dtype, self.param_dtype, self.promote_dtype = dtype, param_dtype, promote_dtype
        self.precision, self.preferred_element_type = precision, preferred_element_type
        shape = conv.kernel_shape(where, self.kernel_size, in_features, out_features, feature_group_count)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, param_dtype), **kernel_metadata)
        self.bias: nnx.Param[Array] | None
        if use_bias:
            self.bias = nnx.Param(bias_init(rngs.params(), (out_features,), param_dtype), **bias_metadata)
        else:
            self.bias = nnx.data(None)
        self.offset = Conv(
            in_features,
            deformable.predicted_features(where, self.kernel_size, in_features, offset_groups, modulated),
            self.kernel_size,
            strides,
            padding=padding,
            kernel_dilation=kernel_dilation,
            dtype=dtype,
            param_dtype=param_dtype,
            precision=precision,
            kernel_init=nnx.initializers.zeros_init(),
            promote_dtype=promote_dtype,
            rngs=rngs,
        )

    def __call__(self, inputs: Array) -> Array:
        """Convolve `inputs (*batch, *space, in_features)`, with any number of batch axes."""
        bias = None if self.bias is None else self.bias[...]
        x, kernel, bias = self.promote_dtype((inputs, self.kernel[...], bias), dtype=self.dtype)
        return deformable.convolve_deformed(
            type(self).__name__,
            x,
            kernel,
            bias,
            self.offset(inputs),
            modulated=self.modulated,
            offset_groups=self.offset_groups,
            strides=self.strides,
            padding=self.padding,
            kernel_dilation=self.kernel_dilation,
            feature_group_count=self.feature_group_count,
            precision=self.precision,
            preferred_element_type=self.preferred_element_type,
        )
