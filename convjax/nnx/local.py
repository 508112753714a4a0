"""`LocalConv`: a convolution with unshared weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes
from flax.typing import Dtype, Initializer, PaddingLike, PrecisionLike, PromoteDtypeFn
from jax import Array

from convjax._layers import conv, local
from convjax.functional import PaddingMode
from convjax.nnx.conv import DEFAULT_BIAS_INIT, NO_METADATA


class LocalConv(nnx.Module):
    """Convolution with another kernel at each output position (locally connected).

    Parameters, as in `flax.linen.ConvLocal`: `kernel (*out, C_in // groups * prod(k), C_out)`, the rows ordered by
    channel, then by tap; `bias (*out, C_out)`.

    Args:
      in_features: number of input channels.
      out_features: number of output channels.
      kernel_size: spatial shape of the kernel.
      strides: as `Conv`.
      input_size: spatial shape of the input, which settles how many kernels there are.
      kernel_init: given the whole kernel's shape; LeCun's normal for each position if None.
      others: as `Conv`.

    Raises:
      ValueError: as `Conv`; an input of another size.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> import convjax.nnx
      >>> layer = convjax.nnx.LocalConv(3, 4, (3,), input_size=(8,), padding="VALID", rngs=nnx.Rngs(0))
      >>> layer.kernel.shape, layer(jnp.ones((2, 8, 3))).shape
      ((6, 9, 4), (2, 6, 4))

    Source: Taigman et al., DeepFace, 2014, section 3.1.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        input_size: int | Sequence[int],
        padding: PaddingLike = "SAME",
        padding_mode: PaddingMode = "zeros",
        input_dilation: int | Sequence[int] | None = 1,
        kernel_dilation: int | Sequence[int] | None = 1,
        feature_group_count: int = 1,
        use_bias: bool = True,
        mask: Array | None = None,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        precision: PrecisionLike = None,
        kernel_init: Initializer | None = None,
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
        self.strides, self.padding, self.padding_mode = strides, padding, padding_mode
        self.input_dilation, self.kernel_dilation = input_dilation, kernel_dilation
        self.feature_group_count = feature_group_count
        self.use_bias, self.mask = use_bias, mask
        self.dtype, self.param_dtype, self.promote_dtype = dtype, param_dtype, promote_dtype
        self.precision, self.preferred_element_type = precision, preferred_element_type
        ndim = len(self.kernel_size)
        *k, channels, _ = conv.kernel_shape(where, self.kernel_size, in_features, out_features, feature_group_count)
        size = conv.per_axis(where, "input_size", input_size, ndim)
        out = local.out_space(where, size, self.kernel_size, **self._space())
        init = local.initializer(kernel_init, ndim)
        shape = (*out, channels * math.prod(k), out_features)
        self.kernel = nnx.Param(init(rngs.params(), shape, param_dtype), **kernel_metadata)
        self.bias: nnx.Param[Array] | None
        if use_bias:
            self.bias = nnx.Param(bias_init(rngs.params(), (*out, out_features), param_dtype), **bias_metadata)
        else:
            self.bias = nnx.data(None)

    def _space(self) -> dict[str, Any]:
        return dict(
            strides=self.strides,
            padding=self.padding,
            padding_mode=self.padding_mode,
            input_dilation=self.input_dilation,
            kernel_dilation=self.kernel_dilation,
        )

    def __call__(self, inputs: Array) -> Array:
        """Convolve `inputs (*batch, *input_size, in_features)`."""
        where = type(self).__name__
        bias = None if self.bias is None else self.bias[...]
        kernel = conv.masked(where, self.kernel[...], self.mask)
        x, kernel, bias = self.promote_dtype((inputs, kernel, bias), dtype=self.dtype)
        return local.convolve_local(
            where,
            x,
            kernel,
            bias,
            kernel_size=self.kernel_size,
            feature_group_count=self.feature_group_count,
            precision=self.precision,
            preferred_element_type=self.preferred_element_type,
            **self._space(),
        )
