"""Feature by feature: a convolution as a running sum over the features it contracts.

In a kernel gradient the contracted features are the images of the batch, and XLA on CPU gathers the patches of all of
them before its one product. Image by image, they are still in the cache when they are multiplied.

Cost: the products of direct summation, and a read and write of the output for each feature: for small outputs.
Error: that of direct summation in the accumulation dtype.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from convjax._core.dtypes import accumulator, output_dtype
from convjax._core.geometry import Geometry, Work
from convjax._core.primitive import convolve
from convjax._core.spec import ConvSpec

# 7x7/2 3->64 at 224x224 N8, kernel gradient: 7.4 MB of patches an image; 28 ms image by image, 50 ms all at once.
MIN_PATCH_BYTES = 2**20


def supports(spec: ConvSpec, lhs: Any, rhs: Any, platform: str) -> str | None:
    """None where this algorithm can serve, else the reason why not, in words for a user."""
    if spec.feature_groups > 1:
        return "feature groups: their features are not contracted together"
    if lhs.shape[-1] == 1:
        return "one feature: there is nothing to sum"
    batch, *space, _ = spec.out_shape(lhs.shape, rhs.shape)
    patch_bytes = batch * math.prod(space) * math.prod(rhs.shape[:-2]) * jnp.dtype(lhs.dtype).itemsize
    if patch_bytes < MIN_PATCH_BYTES:
        return f"the patches of a feature take {patch_bytes} bytes: a product pays from {MIN_PATCH_BYTES}"
    return None


def work(g: Geometry) -> Work:
    features, one = g.lhs[-1], g.spec.auto()
    part = Geometry(one, (*g.lhs[:-1], 1), (*g.kernel, 1, g.rhs[-1]), g.dtype)
    return Work(
        "by_feature", 0, features * g.elements[2] + g.elements[0] + g.elements[1], features, ((features, part),)
    )


def run(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    dtype = accumulator(spec, lhs.dtype)
    one = spec.auto(preferred_element_type=dtype)

    def add_feature(total: Array, feature: tuple[Array, Array]) -> tuple[Array, None]:
        x, w = feature
        return total + convolve(x[..., None], jnp.expand_dims(w, -2), one), None

    empty = jnp.zeros(spec.out_shape(lhs.shape, rhs.shape), dtype)
    total, _ = lax.scan(add_feature, empty, (jnp.moveaxis(lhs, -1, 0), jnp.moveaxis(rhs, -2, 0)))
    return total.astype(output_dtype(spec, lhs.dtype))
