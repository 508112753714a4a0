"""`BlurPool` and `ResizeConv`: fewer samples without aliasing, more samples without checkerboards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

from flax import nnx
from jax import Array

from convjax._layers import resample
from convjax.functional import Algorithm, PaddingMode
from convjax.nnx.conv import Conv, ConvOptions


class BlurPool(nnx.Module):
    """Subsampling after a binomial low-pass filter, so that a shifted input gives a (nearly) shifted output.

    Has no parameters. In the place of a stride put it after a convolution (or max pooling) of stride 1.

    Args:
      kernel_size: taps of the filter on each spatial axis: 2 is a mean, 3 is (1, 2, 1) / 4, 5 is (1, 4, 6, 4, 1) / 16.
      strides: step along each spatial axis.
      padding_mode, algorithm: as in `convjax.conv`.

    Example:
      >>> import jax.numpy as jnp
      >>> import convjax.nnx
      >>> convjax.nnx.BlurPool((3, 3))(jnp.ones((1, 8, 8, 4))).shape
      (1, 4, 4, 4)

    Source: Zhang, Making convolutional networks shift-invariant again, arXiv:1904.11486, section 3.
    """

    def __init__(
        self,
        kernel_size: int | Sequence[int] = (3, 3),
        strides: int | Sequence[int] | None = 2,
        *,
        padding_mode: PaddingMode = "reflect",
        algorithm: Algorithm = "auto",
    ):
        self.kernel_size = kernel_size
        self.strides = strides
        self.padding_mode = padding_mode
        self.algorithm = algorithm

    def __call__(self, inputs: Array) -> Array:
        """Blur and subsample `inputs (*batch, *space, C)` to `ceil(size / stride)` along each axis."""
        return resample.blur_pool(
            type(self).__name__, inputs, self.kernel_size, self.strides, self.padding_mode, self.algorithm
        )


class ResizeConv(Conv):
    """Upsampling, then a convolution: enlarges as `ConvTranspose` does, without its checkerboard patterns.

    Its parameters are those of `Conv`.

    Args:
      in_features, out_features, kernel_size, strides, feature_group_count, options: as `Conv`.
      scale: how many times as long each spatial axis becomes.
      method: "nearest", "linear", "cubic", "lanczos3" or "lanczos5", as in `jax.image.resize`.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> import convjax.nnx
      >>> convjax.nnx.ResizeConv(8, 3, (3, 3), rngs=nnx.Rngs(0))(jnp.ones((1, 7, 7, 8))).shape
      (1, 14, 14, 3)

    Source: Odena, Dumoulin and Olah, Deconvolution and checkerboard artifacts, Distill, 2016.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        scale: int | Sequence[int] = 2,
        method: str = "nearest",
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
        self.scale = scale
        self.method = method

    def __call__(self, inputs: Array, out_sharding: Any = None) -> Array:
        """Enlarge `inputs (*batch, *space, in_features)` and convolve."""
        larger = resample.upsample(type(self).__name__, inputs, self.scale, len(self.kernel_size), self.method)
        return super().__call__(larger, out_sharding)
