"""Blocks of features: a convolution as a running sum over blocks of the features it contracts.

In a kernel gradient the contracted features are the images of the batch, and XLA on CPU gathers the patches of all of
them before its one product. Image by image, the patches stay in the cache.

Cost: the products of direct summation, and a read and write of the output for each block: for small outputs.
Error: that of direct summation in the accumulation dtype.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from convjax._core.arrange import largest_divisor
from convjax._core.dtypes import accumulator, output_dtype
from convjax._core.primitive import convolve
from convjax._core.spec import ConvSpec

# 7x7/2 3->64 at 224x224 N8, kernel gradient: 7.4 MB of patches an image. One image at a time 29 ms, all at once 65 ms.
BLOCK_BYTES = 2**23


def supports(spec: ConvSpec, lhs: Any, rhs: Any, platform: str) -> str | None:
    """None where this algorithm can serve, else the reason why not, in words for a user."""
    if spec.feature_groups > 1:
        return "feature groups: their features are not contracted together"
    if block_size(spec, lhs, rhs) == lhs.shape[-1]:
        return f"the patches of all features take less than {BLOCK_BYTES} bytes: one block"
    return None


def run(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    size, dtype = block_size(spec, lhs, rhs), accumulator(spec, lhs.dtype)
    block = spec.auto(preferred_element_type=dtype)
    lhs_blocks = jnp.moveaxis(lhs.reshape(*lhs.shape[:-1], -1, size), -2, 0)
    rhs_blocks = jnp.moveaxis(rhs.reshape(*rhs.shape[:-2], -1, size, rhs.shape[-1]), -3, 0)
    empty = jnp.zeros(spec.out_shape(lhs.shape, rhs.shape), dtype)
    total, _ = lax.scan(lambda total, pair: (total + convolve(*pair, block), None), empty, (lhs_blocks, rhs_blocks))
    return total.astype(output_dtype(spec, lhs.dtype))


def block_size(spec: ConvSpec, lhs: Array, rhs: Array) -> int:
    """Features a block: a divisor of their number that keeps the patches of a block within `BLOCK_BYTES`."""
    batch, *space, _ = spec.out_shape(lhs.shape, rhs.shape)
    patch_bytes = batch * math.prod(space) * math.prod(rhs.shape[:-2]) * jnp.dtype(lhs.dtype).itemsize
    return largest_divisor(lhs.shape[-1], max(1, BLOCK_BYTES // patch_bytes))
