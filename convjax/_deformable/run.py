"""What becomes of the samples of a block: a product with the kernel, or their sum."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array

from convjax._core.dtypes import accumulator, output_dtype
from convjax._core.spec import ConvSpec
from convjax._deformable.blocks import Sampling, in_blocks


@functools.partial(jax.jit, static_argnums=(4, 5))
def convolve(x: Array, offset: Array, mask: Array | None, w: Array, spec: ConvSpec, sampling: Sampling) -> Array:
    """Samples times `w (*k, C // groups, O)`; offsets in the order of the spatial axes."""
    dtype, result = accumulator(spec, x.dtype), output_dtype(spec, x.dtype)
    *_, channels, features = w.shape
    groups, taps = spec.groups, len(sampling.taps)
    if 0 in (*x.shape, *w.shape):
        return jnp.zeros((x.shape[0], *sampling.out, features), result)

    def contract(samples: Array, w: Array) -> Array:
        if channels == 1 < groups:  # a matrix product would sum over the taps alone
            y = (samples[..., None] * w.reshape(taps, groups, -1).astype(dtype)).sum(1)
        elif groups == 1:  # an einsum over the axis of 1 would transpose the samples
            y = jnp.dot(
                samples.reshape(-1, taps * channels).astype(x.dtype),
                w.reshape(taps * channels, features),
                precision=spec.precision,
                preferred_element_type=dtype,
            )
        else:
            y = jnp.einsum(
                "pkgc,kcgo->pgo",
                samples.reshape(-1, taps, groups, channels).astype(x.dtype),
                w.reshape(taps, channels, groups, features // groups),
                precision=spec.precision,
                preferred_element_type=dtype,
            )
        return y.reshape(-1, features).astype(result)

    return in_blocks(x, offset, mask, sampling, dtype, contract, w)


@functools.partial(jax.jit, static_argnums=3)
def weighted_sum(x: Array, offset: Array, mask: Array, sampling: Sampling) -> Array:
    """Samples times the mask, summed over the taps of each group; offsets are (x, y)."""
    if 0 in x.shape:
        return jnp.zeros((x.shape[0], *sampling.out, x.shape[-1]), x.dtype)
    offset = offset.reshape(*offset.shape[:-1], -1, 2)[..., ::-1].reshape(offset.shape)
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    return in_blocks(x, offset, mask, sampling, dtype, lambda samples: samples.sum(1).astype(x.dtype))


def softmax(mask: Array, sampling: Sampling) -> Array:
    """Over the taps of each group, in float32 at least."""
    logits = mask.reshape(*mask.shape[:-1], sampling.groups, len(sampling.taps))
    return jax.nn.softmax(logits.astype(jnp.promote_types(mask.dtype, jnp.float32))).reshape(mask.shape)
