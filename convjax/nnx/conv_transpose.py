"""`ConvTranspose`: Flax's transposed convolution layer, served by `convjax.conv_transpose`; grouped too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes
from flax.typing import Dtype, Initializer, PaddingLike, PrecisionLike, PromoteDtypeFn
from jax import Array

from convjax._layers import conv, transposed
from convjax.functional import Algorithm, PaddingMode
from convjax.nnx.conv import DEFAULT_BIAS_INIT, DEFAULT_KERNEL_INIT, NO_METADATA


class ConvTranspose(nnx.ConvTranspose):
    """Transposed convolution, to enlarge. Arguments, parameters and results are those of `flax.nnx.ConvTranspose`.

    Args:
      in_features: number of input channels.
      out_features: number of output channels.
      kernel_size: spatial shape of the kernel; an int is one axis.
      strides: spacing of neighbouring inputs in the output.
      padding: "SAME" (`i * stride` outputs), "VALID", "CIRCULAR"; "CAUSAL" (output t sees inputs up to `t // stride`);
        numbers pad the dilated input, unlike torch's, which are `dilation * (k - 1)` minus these.
      feature_group_count: number of independent convolutions. The kernel then is `(*k, C_in // groups, C_out)`, as in
        `Conv`, or `(*k, C_out // groups, C_in)` if transposed.
      transpose_kernel: take the kernel of a forward convolution, `(*k, C_out, C_in)`, and compute its input gradient.
      padding_mode, algorithm: as in `convjax.conv_transpose`.
      others: as in Flax.

    Raises:
      ValueError: groups do not divide the features; the input's channels or axes do not fit; else as
        `convjax.conv_transpose`.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> import convjax.nnx
      >>> layer = convjax.nnx.ConvTranspose(8, 3, kernel_size=(4, 4), strides=2, rngs=nnx.Rngs(0))
      >>> layer(jnp.ones((1, 7, 7, 8))).shape
      (1, 14, 14, 3)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] | None = None,
        *,
        padding: PaddingLike = "SAME",
        padding_mode: PaddingMode = "zeros",
        kernel_dilation: int | Sequence[int] | None = None,
        feature_group_count: int = 1,
        use_bias: bool = True,
        mask: Array | None = None,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        precision: PrecisionLike | None = None,
        kernel_init: Initializer = DEFAULT_KERNEL_INIT,
        bias_init: Initializer = DEFAULT_BIAS_INIT,
        transpose_kernel: bool = False,
        promote_dtype: PromoteDtypeFn = dtypes.promote_dtype,
        preferred_element_type: Dtype | None = None,
        algorithm: Algorithm = "auto",
        rngs: nnx.Rngs,
        kernel_metadata: Mapping[str, Any] = NO_METADATA,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
    ):
        where = type(self).__name__
        kernel_size = conv.sizes(where, kernel_size)
        shape = transposed.kernel_shape(
            where, kernel_size, in_features, out_features, feature_group_count, transpose_kernel
        )
        # Flax knows no groups: it makes the kernel, in the shape that this initialiser puts in the place of its own.
        super().__init__(
            in_features,
            out_features,
            kernel_size,
            strides,
            padding=padding,
            kernel_dilation=kernel_dilation,
            use_bias=use_bias,
            mask=mask,
            dtype=dtype,
            param_dtype=param_dtype,
            precision=precision,
            kernel_init=lambda key, _, dtype: kernel_init(key, shape, dtype),
            bias_init=bias_init,
            transpose_kernel=transpose_kernel,
            promote_dtype=promote_dtype,
            preferred_element_type=preferred_element_type,
            rngs=rngs,
            kernel_metadata=kernel_metadata,
            bias_metadata=bias_metadata,
        )
        self.kernel_shape = shape
        self.feature_group_count = feature_group_count
        self.padding_mode = padding_mode
        self.algorithm = algorithm

    def __call__(self, inputs: Array) -> Array:
        """Convolve `inputs (*batch, *space, in_features)`, with any number of batch axes."""
        where = type(self).__name__
        bias = None if self.bias is None else self.bias[...]
        kernel = conv.masked(where, self.kernel[...], self.mask)
        x, kernel, bias = self.promote_dtype((inputs, kernel, bias), dtype=self.dtype)
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
