"""`LocalConv`: a convolution with unshared weights."""

from __future__ import annotations

import math

import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer
from jax import Array

from convjax._layers import conv, local
from convjax.functional import PaddingMode
from convjax.linen.options import promoted


class LocalConv(nn.ConvLocal):
    """Convolution with another kernel at each output position: `flax.linen.ConvLocal`, with groups and padding modes.

    Parameters as there: `kernel (*out, C_in // groups * prod(k), C_out)`, whose rows are ordered by channel, then by
    tap; `bias (*out, C_out)`.

    Attributes:
      features, kernel_size and the others: as in Flax.
      kernel_init: given the whole kernel's shape; LeCun's normal for each position if None (Flax's default counts the
        positions as inputs, which makes the output too small).
      padding_mode, preferred_element_type: as in `convjax.conv`.

    Raises:
      ValueError: as `Conv`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import convjax.linen
      >>> layer = convjax.linen.LocalConv(4, (3,), padding="VALID")
      >>> y, variables = layer.init_with_output(jax.random.key(0), jnp.ones((2, 8, 3)))
      >>> y.shape, variables["params"]["kernel"].shape
      ((2, 6, 4), (6, 9, 4))

    Source: Taigman et al., DeepFace, 2014, section 3.1.
    """

    kernel_init: Initializer | None = None  # type: ignore[assignment]
    padding_mode: PaddingMode = "zeros"
    preferred_element_type: Dtype | None = None

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Convolve `inputs (*batch, *space, C)`."""
        where = type(self).__name__
        size = conv.sizes(where, self.kernel_size)
        ndim = len(size)
        conv.check_input(where, inputs, ndim, jnp.shape(inputs)[-1])
        space = dict(
            strides=self.strides,
            padding=self.padding,
            padding_mode=self.padding_mode,
            input_dilation=self.input_dilation,
            kernel_dilation=self.kernel_dilation,
        )
        *_, channels, features = conv.kernel_shape(
            where, size, inputs.shape[-1], self.features, self.feature_group_count
        )
        out = local.out_space(where, inputs.shape[-1 - ndim : -1], size, **space)
        shape = (*out, channels * math.prod(size), features)
        kernel = self.param("kernel", local.initializer(self.kernel_init, ndim), shape, self.param_dtype)
        kernel = conv.masked(where, kernel, self.mask)
        bias: Array | None = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (*out, features), self.param_dtype)
        x, kernel, bias = promoted(self, inputs, kernel, bias)
        return local.convolve_local(
            where,
            x,
            kernel,
            bias,
            kernel_size=size,
            feature_group_count=self.feature_group_count,
            precision=self.precision,
            preferred_element_type=self.preferred_element_type,
            **space,
        )
