"""`Involution`: another kernel at each position, computed from what is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from flax.linen.linear import PromoteDtypeFn
from flax.typing import Dtype, Initializer, PrecisionLike
from jax import Array

from convjax._layers import conv, involution
from convjax.functional import Activation, PaddingMode
from convjax.linen.blocks import ConvNormAct
from convjax.linen.depthwise import PointwiseConv
from convjax.linen.options import DEFAULT_BIAS_INIT, DEFAULT_KERNEL_INIT


class Involution(nn.Module):
    """Involution: two pointwise convolutions predict a kernel for each position, shared by the channels of a group.

    Parameters and results are those of `convjax.nnx.Involution`, and so are the names of the submodules.

    Attributes:
      kernel_size, strides, kernel_dilation: as `Conv`.
      group_features: channels that share a kernel.
      reduction: how many times fewer channels there are between `reduce` and `span`.
      activation, use_norm, momentum, epsilon, axis_name: of `reduce`, as `ConvNormAct`.
      padding_mode: what lies beyond the border, as in `convjax.conv`.
      dtype, param_dtype, precision, kernel_init, bias_init, promote_dtype: of `reduce` and `span`, as `Conv`.

    Raises:
      ValueError: `group_features` or `reduction` does not divide the channels; as `Conv`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import convjax.linen
      >>> layer = convjax.linen.Involution((7, 7), strides=2)
      >>> y, variables = jax.eval_shape(layer.init_with_output, jax.random.key(0), jnp.ones((1, 9, 9, 32)))
      >>> y.shape, variables["params"]["span"]["kernel"].shape
      ((1, 5, 5, 32), (1, 1, 8, 98))

    Source: Li et al., Involution: inverting the inherence of convolution for visual recognition, arXiv:2103.06255,
    section 3.
    """

    kernel_size: int | Sequence[int]
    strides: int | Sequence[int] | None = 1
    group_features: int = 16
    reduction: int = 4
    kernel_dilation: int | Sequence[int] | None = 1
    padding_mode: PaddingMode = "zeros"
    activation: Activation = "relu"
    use_norm: bool = True
    momentum: float = 0.9
    epsilon: float = 1e-5
    axis_name: str | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    precision: PrecisionLike = None
    kernel_init: Initializer = DEFAULT_KERNEL_INIT
    bias_init: Initializer = DEFAULT_BIAS_INIT
    promote_dtype: PromoteDtypeFn = promote_dtype

    @nn.compact
    def __call__(self, inputs: Array, use_running_average: bool = False) -> Array:
        """Apply to `inputs (*batch, *space, C)`; the norm trains (make "batch_stats" mutable) unless told otherwise."""
        where = type(self).__name__
        size = conv.sizes(where, self.kernel_size)
        channels = jnp.shape(inputs)[-1] if jnp.ndim(inputs) else 0
        narrow, wide = involution.widths(where, channels, self.group_features, self.reduction, size)
        options: dict[str, Any] = dict(
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            precision=self.precision,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
            promote_dtype=self.promote_dtype,
        )
        reduce = ConvNormAct(
            features=narrow,
            kernel_size=(1,) * len(size),
            activation=self.activation,
            use_norm=self.use_norm,
            momentum=self.momentum,
            epsilon=self.epsilon,
            axis_name=self.axis_name,
            name="reduce",
            **options,
        )
        return involution.involve(
            where,
            inputs,
            lambda x: reduce(x, use_running_average),
            PointwiseConv(wide, ndim=len(size), name="span", **options),
            in_features=channels,
            kernel_size=size,
            strides=self.strides,
            kernel_dilation=self.kernel_dilation,
            padding_mode=self.padding_mode,
        )
