"""`MaskedConv`, which leaves weights out, and `PartialConv`, which leaves inputs out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

from flax import nnx
from jax import Array

from convjax._layers import masked
from convjax.nnx.conv import Conv, ConvOptions


class MaskedConv(Conv):
    """Convolution with some weights held at zero, as autoregressive networks of images have it (PixelCNN).

    Its parameters are those of `Conv`. Weights that the mask leaves out are never read and have zero gradients.

    Args:
      in_features, out_features, kernel_size, strides, feature_group_count: as `Conv`.
      mask: "A" (the first layer), "B" (all others) or an array, as `convjax.masked_conv`.
      channel_groups: equal parts of the channels, in order: 3 for the colours of an image.
      options: as `Conv`, but for `padding_mode`, `input_dilation` and `conv_general_dilated`.

    Raises:
      ValueError: as `Conv`; an even kernel with "A" or "B"; `channel_groups` does not divide the channels.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> import convjax.nnx
      >>> layer = convjax.nnx.MaskedConv(3, 6, (3, 3), mask="A", channel_groups=3, rngs=nnx.Rngs(0))
      >>> x = jnp.ones((1, 5, 5, 3))
      >>> later = x.at[0, 2, 2, 1].set(9)  # the green of one pixel
      >>> jnp.abs(layer(x) - layer(later))[0, 2, 2] > 1e-5
      Array([False, False, False, False,  True,  True], dtype=bool)

    Source: van den Oord et al., Pixel recurrent neural networks, arXiv:1601.06759, section 3.4.
    """

    def __init__(  # type: ignore[misc]  # the mask of the options is another one, and refused
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        mask: str | Array,
        channel_groups: int = 1,
        feature_group_count: int = 1,
        rngs: nnx.Rngs,
        **options: Unpack[ConvOptions],
    ):
        masked.check(type(self).__name__, options)
        super().__init__(
            in_features,
            out_features,
            kernel_size,
            strides,
            mask=mask,  # type: ignore[arg-type]
            feature_group_count=feature_group_count,
            rngs=rngs,
            **options,  # type: ignore[misc]
        )
        self.channel_groups = channel_groups

    def effective_kernel(self) -> Array:
        """The kernel with zeros where weights are left out."""
        where = type(self).__name__
        return masked.kept(where, self.kernel[...], self.mask, self.channel_groups, self.feature_group_count)

    def __call__(self, inputs: Array, out_sharding: Any = None) -> Array:
        """Convolve `inputs (*batch, *space, in_features)`, with any number of batch axes."""
        masked.check_sharding(type(self).__name__, out_sharding)
        bias = None if self.bias is None else self.bias[...]
        x, kernel, bias = self.promote_dtype((inputs, self.kernel[...], bias), dtype=self.dtype)
        return masked.convolve_masked(
            type(self).__name__,
            x,
            kernel,
            bias,
            mask=self.mask,
            channel_groups=self.channel_groups,
            strides=self.strides,
            padding=self.padding,
            kernel_dilation=self.kernel_dilation,
            feature_group_count=self.feature_group_count,
            precision=self.precision,
            preferred_element_type=self.preferred_element_type,
            algorithm=self.algorithm,
        )


class PartialConv(Conv):
    """Convolution of data with holes (inpainting): outputs from what is known, and which of them are known.

    Its parameters are those of `Conv`. A call returns a pair, to be handed to the next layer.

    Args:
      in_features, out_features, kernel_size, strides, feature_group_count: as `Conv`.
      options: as `Conv`, but for `padding_mode`, `input_dilation`, `mask` and `conv_general_dilated`.

    Raises:
      ValueError: as `Conv`; when called, a mask of another shape than that of the inputs.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> import convjax.nnx
      >>> layer = convjax.nnx.PartialConv(3, 8, (3, 3), rngs=nnx.Rngs(0))
      >>> known = jnp.ones((1, 9, 9, 1)).at[:, 2:7, 2:7].set(0)
      >>> y, known = layer(jnp.ones((1, 9, 9, 3)), known)
      >>> y.shape, int((known == 0).sum())  # the hole shrank from 5x5 to 3x3
      ((1, 9, 9, 8), 9)

    Source: Liu et al., Image inpainting for irregular holes using partial convolutions, arXiv:1804.07723, equations 1
    and 2.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        feature_group_count: int = 1,
        rngs: nnx.Rngs,
        **options: Unpack[ConvOptions],
    ):
        masked.check(type(self).__name__, options, "mask")
        super().__init__(
            in_features,
            out_features,
            kernel_size,
            strides,
            feature_group_count=feature_group_count,
            rngs=rngs,
            **options,
        )

    def __call__(self, inputs: Array, mask: Array | None = None) -> tuple[Array, Array]:  # type: ignore[override]
        """Convolve what is known of `inputs (*batch, *space, in_features)`.

        Args:
          inputs: what to convolve; what stands in a hole does not matter.
          mask: zero, or False, in holes: `(*batch, *space, 1)`, or of the shape of `inputs`. Without one all is known
            but the padding, which then counts for nothing at the border (Liu et al., arXiv:1811.11718).

        Returns:
          The outputs `(*batch, *out, out_features)`, and the mask of those that are known, as `convjax.partial_conv`.
        """
        bias = None if self.bias is None else self.bias[...]
        x, kernel, bias = self.promote_dtype((inputs, self.kernel[...], bias), dtype=self.dtype)
        return masked.convolve_known(
            type(self).__name__,
            x,
            kernel,
            bias,
            mask,
            strides=self.strides,
            padding=self.padding,
            kernel_dilation=self.kernel_dilation,
            feature_group_count=self.feature_group_count,
            precision=self.precision,
            preferred_element_type=self.preferred_element_type,
            algorithm=self.algorithm,
        )
