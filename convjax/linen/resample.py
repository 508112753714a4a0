"""`BlurPool` and `ResizeConv`: fewer samples without aliasing, more samples without checkerboards."""

from __future__ import annotations

from collections.abc import Sequence

from flax import linen as nn
from jax import Array

from convjax._layers import conv, resample
from convjax.functional import Algorithm, PaddingMode
from convjax.linen.options import ConvOptions, convolve


class BlurPool(nn.Module):
    """Subsampling after a binomial low-pass filter, so that a shifted input gives a (nearly) shifted output.

    Has no parameters. In the place of a stride put it after a convolution (or max pooling) of stride 1.

    Attributes:
      kernel_size: taps of the filter on each spatial axis: 2 is a mean, 3 is (1, 2, 1) / 4, 5 is (1, 4, 6, 4, 1) / 16.
      strides: step along each spatial axis.
      padding_mode, algorithm: as in `convjax.conv`.

    Example:
      >>> import jax.numpy as jnp
      >>> import convjax.linen
      >>> convjax.linen.BlurPool((3, 3)).apply({}, jnp.ones((1, 8, 8, 4))).shape
      (1, 4, 4, 4)

    Source: Zhang, Making convolutional networks shift-invariant again, arXiv:1904.11486, section 3.
    """

    kernel_size: int | Sequence[int] = (3, 3)
    strides: int | Sequence[int] | None = 2
    padding_mode: PaddingMode = "reflect"
    algorithm: Algorithm = "auto"

    def __call__(self, inputs: Array) -> Array:
        """Blur and subsample `inputs (*batch, *space, C)` to `ceil(size / stride)` along each axis."""
        return resample.blur_pool(
            type(self).__name__, inputs, self.kernel_size, self.strides, self.padding_mode, self.algorithm
        )


class ResizeConv(ConvOptions):
    """Upsampling, then a convolution: enlarges as `ConvTranspose` does, without its checkerboard patterns.

    Its parameters are those of `Conv`.

    Attributes:
      features, kernel_size, strides, feature_group_count: as `Conv`.
      scale: how many times as long each spatial axis becomes.
      method: "nearest", "linear", "cubic", "lanczos3" or "lanczos5", as in `jax.image.resize`.
      others: as `Conv`, by name.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import convjax.linen
      >>> layer = convjax.linen.ResizeConv(3, (3, 3))
      >>> layer.init_with_output(jax.random.key(0), jnp.ones((1, 7, 7, 8)))[0].shape
      (1, 14, 14, 3)

    Source: Odena, Dumoulin and Olah, Deconvolution and checkerboard artifacts, Distill, 2016.
    """

    features: int
    kernel_size: int | Sequence[int]
    strides: int | Sequence[int] | None = 1
    feature_group_count: int = 1
    scale: int | Sequence[int] = 2
    method: str = "nearest"

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Enlarge `inputs (*batch, *space, C)` and convolve."""
        where = type(self).__name__
        ndim = len(conv.sizes(where, self.kernel_size))
        return convolve(
            self,
            resample.upsample(where, inputs, self.scale, ndim, self.method),
            features=self.features,
            kernel_size=self.kernel_size,
            strides=self.strides,
            groups=self.feature_group_count,
        )
