"""`Conv`: Flax's convolution layer, served by `convjax.conv`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypedDict

import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes, initializers
from flax.typing import ConvGeneralDilatedT, Dtype, Initializer, PaddingLike, PrecisionLike, PromoteDtypeFn
from jax import Array, lax

from convjax._layers import conv
from convjax.functional import Algorithm, PaddingMode

Ints = int | Sequence[int]
NO_METADATA: Mapping[str, Any] = MappingProxyType({})
DEFAULT_KERNEL_INIT = initializers.lecun_normal()
DEFAULT_BIAS_INIT = initializers.zeros_init()


class ConvOptions(TypedDict, total=False):
    """Arguments of `Conv` that the layers built on it hand through."""

    padding: PaddingLike
    padding_mode: PaddingMode
    input_dilation: Ints | None
    kernel_dilation: Ints | None
    use_bias: bool
    mask: Array | None
    dtype: Dtype | None
    param_dtype: Dtype
    precision: PrecisionLike
    kernel_init: Initializer
    bias_init: Initializer
    conv_general_dilated: ConvGeneralDilatedT
    promote_dtype: PromoteDtypeFn
    preferred_element_type: Dtype | None
    algorithm: Algorithm
    kernel_metadata: Mapping[str, Any]
    bias_metadata: Mapping[str, Any]


class Conv(nnx.Conv):
    """Convolution. Arguments, parameters and results are those of `flax.nnx.Conv`; a checkpoint of one fits the other.

    A subclass, so that code which looks for `flax.nnx.Conv` (adapters, quantisers, summaries) finds it, and parameters
    are made by Flax itself; what is computed is ours.

    Args:
      in_features: number of input channels.
      out_features: number of output channels.
      kernel_size: spatial shape of the kernel, which tells the number of spatial axes; an int is one axis.
      strides, padding, input_dilation, kernel_dilation, feature_group_count, use_bias, mask, dtype, param_dtype,
        precision, kernel_init, bias_init, promote_dtype, preferred_element_type, rngs, kernel_metadata, bias_metadata:
        as in Flax. `padding` may also be "SAME_LOWER" or "FULL", "CAUSAL" in any number of dimensions, and a string
        with `input_dilation`.
      conv_general_dilated: a function to call instead of ours, with the signature of `jax.lax.conv_general_dilated`
        (which itself, the default, stands for ours; for XLA's type `algorithm="xla"`).
      padding_mode: what lies beyond the border, as in `convjax.conv`.
      algorithm: as in `convjax.conv`.

    Raises:
      ValueError: groups do not divide the features; the input's channels or axes do not fit; else as `convjax.conv`.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> import convjax.nnx
      >>> layer = convjax.nnx.Conv(3, 8, kernel_size=(3, 3), strides=2, padding_mode="reflect", rngs=nnx.Rngs(0))
      >>> layer(jnp.ones((1, 16, 16, 3))).shape
      (1, 8, 8, 8)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
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
        kernel_init: Initializer = DEFAULT_KERNEL_INIT,
        bias_init: Initializer = DEFAULT_BIAS_INIT,
        conv_general_dilated: ConvGeneralDilatedT = lax.conv_general_dilated,
        promote_dtype: PromoteDtypeFn = dtypes.promote_dtype,
        preferred_element_type: Dtype | None = None,
        algorithm: Algorithm = "auto",
        rngs: nnx.Rngs,
        kernel_metadata: Mapping[str, Any] = NO_METADATA,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
    ):
        where = type(self).__name__
        kernel_size = conv.sizes(where, kernel_size)
        conv.kernel_shape(where, kernel_size, in_features, out_features, feature_group_count)
        super().__init__(
            in_features,
            out_features,
            kernel_size,
            strides,
            padding=padding,
            input_dilation=input_dilation,
            kernel_dilation=kernel_dilation,
            feature_group_count=feature_group_count,
            use_bias=use_bias,
            mask=mask,
            dtype=dtype,
            param_dtype=param_dtype,
            precision=precision,
            kernel_init=kernel_init,
            bias_init=bias_init,
            conv_general_dilated=conv_general_dilated,
            promote_dtype=promote_dtype,
            preferred_element_type=preferred_element_type,
            rngs=rngs,
            kernel_metadata=kernel_metadata,
            bias_metadata=bias_metadata,
        )
        self.padding_mode = padding_mode
        self.algorithm = algorithm

    def effective_kernel(self) -> Array:
        """The kernel as it is convolved with, before promotion: masked. Layers that reparametrise it override this."""
        return conv.masked(type(self).__name__, self.kernel[...], self.mask)

    def __call__(self, inputs: Array, out_sharding: Any = None) -> Array:
        """Convolve `inputs (*batch, *space, in_features)`, with any number of batch axes.

        Args:
          inputs: what to convolve, channels last.
          out_sharding: sharding of the output where the mesh has explicit axes, as in Flax.
        """
        return self._convolve(inputs, self.padding, out_sharding)

    def _convolve(self, inputs: Array, padding: PaddingLike, out_sharding: Any = None) -> Array:
        bias = None if self.bias is None else self.bias[...]
        x, kernel, bias = self.promote_dtype((inputs, self.effective_kernel(), bias), dtype=self.dtype)
        ours = self.conv_general_dilated is lax.conv_general_dilated
        return conv.convolve(
            type(self).__name__,
            x,
            kernel,
            bias,
            strides=self.strides,
            padding=padding,
            padding_mode=self.padding_mode,
            input_dilation=self.input_dilation,
            kernel_dilation=self.kernel_dilation,
            feature_group_count=self.feature_group_count,
            precision=self.precision,
            preferred_element_type=self.preferred_element_type,
            algorithm=self.algorithm,
            conv_general_dilated=None if ours else self.conv_general_dilated,
            out_sharding=out_sharding,
        )
