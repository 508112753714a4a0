"""`LongConv`: convolutions as long as the sequence, with filters that a small network computes."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from flax.typing import Dtype, PrecisionLike
from jax import Array

from convjax._core import arguments
from convjax._layers import implicit
from convjax.functional import Algorithm
from convjax.linen.causal import CausalConv


class ImplicitFilter(nn.Module):
    """The filters of `LongConv`: positional features, three linear layers with sines between them, a decaying window.

    Submodules: `layer_0`, `layer_1`, `layer_2`, each a `flax.linen.Dense`.

    Attributes:
      features: number of channels.
      order: number of filters for each channel.
      max_length: the steps that time 0 to 1 is divided into.
      hidden_features: width of the network.
      bands: frequencies among the positional features.
      frequency: factor inside the sines; larger ones make rougher filters.
      dtype, param_dtype, precision: as in `flax.linen.Dense`.

    Example:
      >>> import jax
      >>> from convjax.linen.long import ImplicitFilter
      >>> ImplicitFilter(4, 2, 100).init_with_output(jax.random.key(0), 50)[0].shape
      (50, 2, 4)

    Source: Poli et al., Hyena hierarchy, arXiv:2302.10866, section 3.3.
    """

    features: int
    order: int
    max_length: int
    hidden_features: int = 64
    bands: int = 8
    frequency: float = 10.0
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    precision: PrecisionLike = None

    @nn.compact
    def __call__(self, length: int) -> Array:
        """The first `length` steps of the filters, `(length, order, features)`."""
        options: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype, precision=self.precision)
        widths = (self.hidden_features, self.hidden_features, self.order * self.features)
        layers = [nn.Dense(width, name=f"layer_{i}", **options) for i, width in enumerate(widths)]
        return implicit.filters(layers, length, self.max_length, self.bands, self.frequency, self.order, self.features)


class LongConv(nn.Module):
    """Sequence layer in the place of attention: gates and convolutions over all the past, in `O(T log T)`.

    See `convjax.nnx.LongConv`, which has the same submodules and parameters.

    Attributes:
      max_length: longest sequence.
      order: number of convolutions and gates.
      short_kernel_size: taps of the short convolution.
      hidden_features, bands, frequency: as `ImplicitFilter`.
      algorithm: of the long convolutions, as in `convjax.conv`.
      dtype, param_dtype, precision: as in `flax.linen.Dense`.

    Raises:
      ValueError: an input longer than `max_length`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import convjax.linen
      >>> layer = convjax.linen.LongConv(max_length=100)
      >>> layer.init_with_output(jax.random.key(0), jnp.ones((2, 60, 8)))[0].shape
      (2, 60, 8)

    Source: Poli et al., Hyena hierarchy, arXiv:2302.10866, section 3.
    """

    max_length: int
    order: int = 2
    short_kernel_size: int = 3
    hidden_features: int = 64
    bands: int = 8
    frequency: float = 10.0
    algorithm: Algorithm = "auto"
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    precision: PrecisionLike = None

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Mix `inputs (*batch, T, C)` along T."""
        where, features = type(self).__name__, jnp.shape(inputs)[-1]
        order = arguments.integer(where, "order", self.order, minimum=1)
        length = arguments.integer(where, "max_length", self.max_length, minimum=1)
        implicit.check(where, inputs, features, length)
        options: dict[str, Any] = dict(param_dtype=self.param_dtype, precision=self.precision)
        wide = (order + 1) * features
        projected = nn.Dense(wide, dtype=self.dtype, name="project_in", **options)(inputs)
        mixed = CausalConv(
            wide, self.short_kernel_size, feature_group_count=wide, dtype=self.dtype, name="short", **options
        )(projected)
        filters = ImplicitFilter(
            features, order, length, self.hidden_features, self.bands, self.frequency, name="filter", **options
        )(inputs.shape[-2])
        skip = self.param("skip", nn.initializers.ones_init(), (order, features), self.param_dtype)
        mixed, filters, skip = promote_dtype(mixed, filters, skip, dtype=mixed.dtype)
        y = implicit.gated(mixed, filters, skip, self.algorithm)
        return nn.Dense(features, dtype=self.dtype, name="project_out", **options)(y)
