"""`CausalConv`: a convolution that sees no future, with a state to generate step by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

import jax.numpy as jnp
from flax import nnx
from jax import Array

from convjax._layers import causal
from convjax.nnx.conv import Conv, ConvOptions


class CausalConv(Conv):
    """1-D convolution whose last tap is now: output t sees inputs up to `strides * t`.

    A sequence that is generated goes through it in pieces of any length, usually of one step: after `init_cache` and
    `set_attributes(decode=True)` each call continues where the last one ended. The state is `cached_inputs`, an
    `nnx.Cache` of the last `(kernel_size - 1) * kernel_dilation` inputs.

    Args:
      in_features: number of input channels.
      out_features: number of output channels.
      kernel_size: number of taps.
      strides: as `Conv`; 1 to decode.
      feature_group_count: as `Conv`; `in_features` for a depthwise one.
      decode: whether calls continue from the cache and update it.
      options: as `Conv`, but for `padding`, `padding_mode` and `input_dilation`, which causality settles.

    Raises:
      ValueError: as `Conv`; decoding without a cache, with another batch than that of the cache, or with a stride.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> import convjax.nnx
      >>> layer = convjax.nnx.CausalConv(2, 4, 3, kernel_dilation=8, rngs=nnx.Rngs(0))
      >>> x = jnp.ones((1, 50, 2))
      >>> full = layer(x)
      >>> layer.init_cache(x.shape)
      >>> layer.set_attributes(decode=True)
      >>> pieces = [layer(x[:, :20]), *(layer(x[:, t : t + 1]) for t in range(20, 50))]
      >>> bool(jnp.allclose(jnp.concatenate(pieces, 1), full, atol=1e-6))
      True

    Source: van den Oord et al., WaveNet, arXiv:1609.03499, section 2.1; Paine et al., Fast Wavenet generation,
    arXiv:1611.09482.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        feature_group_count: int = 1,
        decode: bool = False,
        rngs: nnx.Rngs,
        **options: Unpack[ConvOptions],
    ):
        causal.check(type(self).__name__, kernel_size, options)
        options["padding"] = "CAUSAL"
        super().__init__(
            in_features,
            out_features,
            kernel_size,
            strides,
            feature_group_count=feature_group_count,
            rngs=rngs,
            **options,
        )
        self.decode = decode
        self.cached_inputs: nnx.Cache[Array] | None = nnx.data(None)

    def init_cache(self, input_shape: Sequence[int], dtype: Any = jnp.float32) -> None:
        """Forget what was seen, and make the cache for inputs of `(*batch, T, in_features)`, whatever T."""
        length = causal.state_length(type(self).__name__, self.kernel_size, self.kernel_dilation)
        self.cached_inputs = nnx.Cache(jnp.zeros((*input_shape[:-2], length, self.in_features), dtype))

    def __call__(self, inputs: Array, out_sharding: Any = None, *, decode: bool | None = None) -> Array:
        """Convolve `inputs (*batch, T, in_features)`; in decoding mode, as the continuation of what came before.

        Args:
          inputs: what to convolve.
          out_sharding: as `Conv`.
          decode: instead of the layer's own `decode`.
        """
        if not (self.decode if decode is None else decode):
            return super().__call__(inputs, out_sharding)
        if self.cached_inputs is None:
            raise ValueError(f"{type(self).__name__}: decode=True needs a cache. Call init_cache(inputs.shape) first.")
        seen, self.cached_inputs[...] = causal.advance(
            type(self).__name__, inputs, self.cached_inputs[...], self.strides
        )
        return self._convolve(seen, "VALID", out_sharding)
