"""`CausalConv`: a convolution that sees no future, with a state to generate step by step."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from convjax._layers import causal
from convjax.linen.options import ConvOptions, convolve


class CausalConv(ConvOptions):
    """1-D convolution whose last tap is now: output t sees inputs up to `strides * t`.

    With `decode=True` a sequence goes through it in pieces of any length: `cached_inputs` in the collection "cache" are
    the last `(kernel_size - 1) * kernel_dilation` inputs, and each `apply` with `mutable=["cache"]` continues where the
    last one ended. `init` makes a cache that has seen nothing, as does `apply` where there is none.

    Attributes:
      features: number of output channels.
      kernel_size: number of taps.
      strides: as `Conv`; 1 to decode.
      feature_group_count: as `Conv`.
      decode: whether to continue from the cache.
      others: as `Conv`, by name, but for `padding`, `padding_mode` and `input_dilation`, which causality settles.

    Raises:
      ValueError: as `Conv`; decoding another batch than that of the cache, or with a stride.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import convjax.linen
      >>> layer, x = convjax.linen.CausalConv(4, 3, kernel_dilation=8), jnp.ones((1, 30, 2))
      >>> full, variables = layer.init_with_output(jax.random.key(0), x)
      >>> cache, pieces = {}, []
      >>> for t in range(30):
      ...     y, cache = layer.clone(decode=True).apply({**variables, **cache}, x[:, t : t + 1], mutable=["cache"])
      ...     pieces.append(y)
      >>> bool(jnp.allclose(jnp.concatenate(pieces, 1), full, atol=1e-6))
      True

    Source: van den Oord et al., WaveNet, arXiv:1609.03499, section 2.1; Paine et al., Fast Wavenet generation,
    arXiv:1611.09482.
    """

    features: int
    kernel_size: int | Sequence[int]
    strides: int | Sequence[int] | None = 1
    feature_group_count: int = 1
    decode: bool = False

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Convolve `inputs (*batch, T, C)`; in decoding mode, as the continuation of what came before."""
        where = type(self).__name__
        defaults = {"padding": "SAME", "padding_mode": "zeros", "input_dilation": 1}
        given = {name: getattr(self, name) for name, value in defaults.items() if getattr(self, name) != value}
        causal.check(where, self.kernel_size, given)

        def seen(x: Array) -> Array:
            length = causal.state_length(where, self.kernel_size, self.kernel_dilation)
            shape = (*x.shape[:-2], length, x.shape[-1])
            cache = self.variable("cache", "cached_inputs", jnp.zeros, shape, x.dtype)
            known, state = causal.advance(where, x, cache.value, self.strides)
            if not self.is_initializing():
                cache.value = state
            return known

        return convolve(
            self,
            inputs,
            features=self.features,
            kernel_size=self.kernel_size,
            strides=self.strides,
            groups=self.feature_group_count,
            padding="VALID" if self.decode else "CAUSAL",
            seen=seen if self.decode else lambda x: x,
        )
