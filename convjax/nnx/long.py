"""`LongConv`: convolutions as long as the sequence, with filters that a small network computes."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes
from flax.typing import Dtype, PrecisionLike
from jax import Array

from convjax._core import arguments
from convjax._layers import implicit
from convjax.functional import Algorithm
from convjax.nnx.causal import CausalConv


class ImplicitFilter(nnx.Module):
    """The filters of `LongConv`: positional features, three linear layers with sines between them, a decaying window.

    Submodules: `layer_0`, `layer_1`, `layer_2`, each a `flax.nnx.Linear`.

    Args:
      features: number of channels.
      order: number of filters for each channel.
      max_length: the steps that time 0 to 1 is divided into.
      hidden_features: width of the network.
      bands: frequencies among the positional features.
      frequency: factor inside the sines; larger ones make rougher filters.
      dtype, param_dtype, precision: as in `flax.nnx.Linear`.

    Example:
      >>> from flax import nnx
      >>> from convjax.nnx.long import ImplicitFilter
      >>> ImplicitFilter(4, 2, 100, rngs=nnx.Rngs(0))(50).shape
      (50, 2, 4)

    Source: Poli et al., Hyena hierarchy, arXiv:2302.10866, section 3.3.
    """

    def __init__(
        self,
        features: int,
        order: int,
        max_length: int,
        *,
        hidden_features: int = 64,
        bands: int = 8,
        frequency: float = 10.0,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        precision: PrecisionLike = None,
        rngs: nnx.Rngs,
    ):
        self.features, self.order, self.max_length = features, order, max_length
        self.bands, self.frequency = bands, frequency
        widths = (1 + 2 * bands, hidden_features, hidden_features, order * features)
        for i in range(3):
            layer = nnx.Linear(
                widths[i], widths[i + 1], dtype=dtype, param_dtype=param_dtype, precision=precision, rngs=rngs
            )
            setattr(self, f"layer_{i}", layer)

    def __call__(self, length: int) -> Array:
        """The first `length` steps of the filters, `(length, order, features)`."""
        layers = [getattr(self, f"layer_{i}") for i in range(3)]
        return implicit.filters(layers, length, self.max_length, self.bands, self.frequency, self.order, self.features)


class LongConv(nnx.Module):
    """Sequence layer in the place of attention: gates and convolutions over all the past, in `O(T log T)`.

    Projects to `order` gates and a value, mixes neighbours by a short causal depthwise convolution, then in turn
    convolves the value with a filter as long as the sequence and multiplies it by a gate, and projects back. It is
    causal, and what it gives for the start of a sequence does not depend on how long that is.

    Submodules: `project_in`, `short` (`CausalConv`), `filter` (`ImplicitFilter`), `project_out`. Parameter: `skip
    (order, features)`.

    Args:
      features: number of channels, in and out.
      max_length: longest sequence.
      order: number of convolutions and gates.
      short_kernel_size: taps of the short convolution.
      hidden_features, bands, frequency: as `ImplicitFilter`.
      algorithm: of the long convolutions, as in `convjax.conv`.
      dtype, param_dtype, precision: as in `flax.nnx.Linear`.

    Raises:
      ValueError: an input longer than `max_length`, or with other channels.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> import convjax.nnx
      >>> convjax.nnx.LongConv(8, max_length=100, rngs=nnx.Rngs(0))(jnp.ones((2, 60, 8))).shape
      (2, 60, 8)

    Source: Poli et al., Hyena hierarchy, arXiv:2302.10866, section 3.
    """

    def __init__(
        self,
        features: int,
        max_length: int,
        *,
        order: int = 2,
        short_kernel_size: int = 3,
        hidden_features: int = 64,
        bands: int = 8,
        frequency: float = 10.0,
        algorithm: Algorithm = "auto",
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        precision: PrecisionLike = None,
        rngs: nnx.Rngs,
    ):
        where = type(self).__name__
        self.features = arguments.integer(where, "features", features, minimum=1)
        self.max_length = arguments.integer(where, "max_length", max_length, minimum=1)
        self.order = arguments.integer(where, "order", order, minimum=1)
        self.algorithm, self.dtype = algorithm, dtype
        wide = (order + 1) * features
        self.project_in = nnx.Linear(
            features, wide, dtype=dtype, param_dtype=param_dtype, precision=precision, rngs=rngs
        )
        self.short = CausalConv(
            wide,
            wide,
            short_kernel_size,
            feature_group_count=wide,
            dtype=dtype,
            param_dtype=param_dtype,
            precision=precision,
            rngs=rngs,
        )
        self.filter = ImplicitFilter(
            features,
            order,
            max_length,
            hidden_features=hidden_features,
            bands=bands,
            frequency=frequency,
            param_dtype=param_dtype,
            precision=precision,
            rngs=rngs,
        )
        self.skip = nnx.Param(jnp.ones((order, features), param_dtype))
        self.project_out = nnx.Linear(
            features, features, dtype=dtype, param_dtype=param_dtype, precision=precision, rngs=rngs
        )

    def __call__(self, inputs: Array) -> Array:
        """Mix `inputs (*batch, T, features)` along T."""
        implicit.check(type(self).__name__, inputs, self.features, self.max_length)
        mixed = self.short(self.project_in(inputs))
        values, filters, skip = dtypes.promote_dtype(
            (mixed, self.filter(inputs.shape[-2]), self.skip[...]), dtype=mixed.dtype
        )
        return self.project_out(implicit.gated(values, filters, skip, self.algorithm))
