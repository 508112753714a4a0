"""What becomes of the samples: a product with the kernel, or their sum."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array

from convjax._core.dtypes import output_dtype
from convjax._core.spec import ConvSpec
from convjax._deformable.blocks import Sampling
from convjax._deformable.primitive import deform


@functools.partial(jax.jit, static_argnums=(4, 5))
def convolve(x: Array, offset: Array, mask: Array | None, w: Array, spec: ConvSpec, sampling: Sampling) -> Array:
    """Samples times `w (*k, C // groups, O)`; offsets in the order of the spatial axes."""
    *_, channels, features = w.shape
    if 0 in (*x.shape, *w.shape):
        return jnp.zeros((x.shape[0], *sampling.out, features), output_dtype(spec, x.dtype))
    return deform(x, offset, mask, w.reshape(1, -1, channels, features), sampling, spec)


@functools.partial(jax.jit, static_argnums=3)
def weighted_sum(x: Array, offset: Array, mask: Array, sampling: Sampling) -> Array:
    """Samples times the mask, summed over the taps of each group; offsets are (x, y)."""
    if 0 in x.shape:
        return jnp.zeros((x.shape[0], *sampling.out, x.shape[-1]), x.dtype)
    offset = offset.reshape(*offset.shape[:-1], -1, 2)[..., ::-1].reshape(offset.shape)
    return deform(x, offset, mask, None, sampling, None)


def softmax(mask: Array, sampling: Sampling) -> Array:
    """Over the taps of each group, in float32 at least."""
    logits = mask.reshape(*mask.shape[:-1], sampling.groups, len(sampling.taps))
    return jax.nn.softmax(logits.astype(jnp.promote_types(mask.dtype, jnp.float32))).reshape(mask.shape)
