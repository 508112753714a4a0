"""`Involution`: another kernel at each position, computed from what is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes
from flax.typing import Dtype, Initializer, PrecisionLike, PromoteDtypeFn
from jax import Array

from convjax._layers import conv, involution
from convjax.functional import Activation, PaddingMode
from convjax.nnx.blocks import ConvNormAct
from convjax.nnx.conv import DEFAULT_BIAS_INIT, DEFAULT_KERNEL_INIT, NO_METADATA
from convjax.nnx.depthwise import PointwiseConv


class Involution(nnx.Module):
    """Involution: two pointwise convolutions predict a kernel for each position, shared by the channels of a group.

    Submodules: `reduce`, a `ConvNormAct` of 1x1, and `span`, a `PointwiseConv` whose channel `g * K + t` is tap t of
    group g. With a stride they see means over windows of its size. The size becomes `ceil(size / stride)`.

    Args:
      in_features: number of channels, in and out.
      kernel_size, strides, kernel_dilation: as `Conv`.
      group_features: channels that share a kernel.
      reduction: how many times fewer channels there are between `reduce` and `span`.
      activation, use_norm, momentum, epsilon, axis_name: of `reduce`, as `ConvNormAct`.
      padding_mode: what lies beyond the border, as in `convjax.conv`.
      dtype, param_dtype, precision, kernel_init, bias_init, promote_dtype, kernel_metadata, bias_metadata: of `reduce`
        and `span`, as `Conv`.

    Raises:
      ValueError: `group_features` or `reduction` does not divide the channels; as `Conv`.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> import convjax.nnx
      >>> layer = convjax.nnx.Involution(32, (7, 7), strides=2, rngs=nnx.Rngs(0))
      >>> layer(jnp.ones((1, 9, 9, 32))).shape, layer.span.kernel.shape
      ((1, 5, 5, 32), (1, 1, 8, 98))

    Source: Li et al., Involution: inverting the inherence of convolution for visual recognition, arXiv:2103.06255,
    section 3.
    """

    def __init__(
        self,
        in_features: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        group_features: int = 16,
        reduction: int = 4,
        kernel_dilation: int | Sequence[int] | None = 1,
        padding_mode: PaddingMode = "zeros",
        activation: Activation = "relu",
        use_norm: bool = True,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        axis_name: str | None = None,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        precision: PrecisionLike = None,
        kernel_init: Initializer = DEFAULT_KERNEL_INIT,
        bias_init: Initializer = DEFAULT_BIAS_INIT,
        promote_dtype: PromoteDtypeFn = dtypes.promote_dtype,
        rngs: nnx.Rngs,
        kernel_metadata: Mapping[str, Any] = NO_METADATA,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
    ):
        where = type(self).__name__
        self.in_features = in_features
        self.kernel_size = conv.sizes(where, kernel_size)
        self.strides, self.kernel_dilation, self.padding_mode = strides, kernel_dilation, padding_mode
        ndim = len(self.kernel_size)
        narrow, wide = involution.widths(where, in_features, group_features, reduction, self.kernel_size)
        options: dict[str, Any] = dict(
            dtype=dtype,
            param_dtype=param_dtype,
            precision=precision,
            kernel_init=kernel_init,
            bias_init=bias_init,
            promote_dtype=promote_dtype,
            rngs=rngs,
            kernel_metadata=kernel_metadata,
            bias_metadata=bias_metadata,
        )
        self.reduce = ConvNormAct(
            in_features,
            narrow,
            (1,) * ndim,
            activation=activation,
            use_norm=use_norm,
            momentum=momentum,
            epsilon=epsilon,
            axis_name=axis_name,
            **options,
        )
        self.span = PointwiseConv(narrow, wide, ndim=ndim, **options)

    def __call__(self, inputs: Array, use_running_average: bool | None = None) -> Array:
        """Apply to `inputs (*batch, *space, in_features)`; the norm trains unless told otherwise, as in Flax."""
        return involution.involve(
            type(self).__name__,
            inputs,
            lambda x: self.reduce(x, use_running_average),
            self.span,
            in_features=self.in_features,
            kernel_size=self.kernel_size,
            strides=self.strides,
            kernel_dilation=self.kernel_dilation,
            padding_mode=self.padding_mode,
        )
