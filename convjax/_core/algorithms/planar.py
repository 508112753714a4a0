"""A sum of shifted products with space in the vector lanes: each channel a plane, as in planar images.

For colour and grey: of fewer outputs than a vector has lanes, channels-last leaves most of each vector empty, and
fills the others across the borders of pixels. Here both operands of a product run along a row of one channel, and only
what comes in and what goes out changes the order of its axes; a grey image does not even that.

Cost: taps x features x outputs multiply-adds in whole vectors; the padded input and the output each written once more.
Error: that of direct summation in the accumulation dtype, each kernel row summed by itself.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from convjax._core.arrange import pad_space
from convjax._core.dtypes import accumulator, as_bits, as_floats, output_dtype
from convjax._core.geometry import Geometry, Work
from convjax._core.spec import ConvSpec, dilate

MAX_OUTPUTS = 16  # channels that fill a vector of any kind by themselves
MAX_PRODUCTS = 81  # for an output, in one fusion: 9x9 of one channel, where 11x11 gains nothing


def supports(spec: ConvSpec, lhs: Any, rhs: Any, platform: str) -> str | None:
    """None where this algorithm can serve, else the reason why not, in words for a user."""
    if not spec.ndim:
        return "no spatial axes: there is nothing to fill vectors with"
    if spec.batch_groups > 1 or any(dilation > 1 for dilation in spec.lhs_dilation):
        return "batch groups, or a dilated input, which sub-pixel phases serve"
    if rhs.shape[-1] > MAX_OUTPUTS:
        return f"{rhs.shape[-1]} output channels fill vectors by themselves: at most {MAX_OUTPUTS}"
    if (products := int(np.prod(rhs.shape[:-1]))) > MAX_PRODUCTS:
        return f"{products} products an output: at most {MAX_PRODUCTS} are unrolled"
    return None


def work(g: Geometry) -> Work:
    return Work("planar", g.macs, g.padded + g.elements[2])


def run(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    groups, dtype = spec.groups, accumulator(spec, lhs.dtype)
    batch, *space, features = spec.out_shape(lhs.shape, rhs.shape)
    shape = (batch, groups, features // groups, *space)
    # Not fused into the loads: each would look anew for what lies in the padding.
    padded = lax.optimization_barrier(
        pad_space(jnp.moveaxis(as_bits(lhs), -1, 1), spec.padding, (1,) * spec.ndim, first=2)
    )
    weights = lax.convert_element_type(rhs, dtype).reshape(*rhs.shape[:-1], groups, -1)

    def product(tap: tuple[int, ...], channel: int) -> Array:
        """With one channel of each group, broadcast over the group's outputs."""
        starts = [t * d for t, d in zip(tap, spec.rhs_dilation, strict=True)]
        limits = [start + dilate(n, s) for start, n, s in zip(starts, space, spec.strides, strict=True)]
        first, step = (0, channel, *starts), (1, rhs.shape[-2], *spec.strides)
        x = as_floats(lax.slice(padded, first, (batch, padded.shape[1], *limits), step), lhs.dtype)
        x = lax.broadcast_in_dim(lax.convert_element_type(x, dtype), shape, (0, 1, *range(3, len(shape))))
        return lax.mul(x, lax.broadcast_in_dim(weights[(*tap, channel)], shape, (1, 2)))

    taps = itertools.groupby(np.ndindex(*rhs.shape[:-2]), lambda tap: tap[:-1])
    rows = [[product(tap, channel) for tap in row for channel in range(rhs.shape[-2])] for _, row in taps]
    total = functools.reduce(lax.add, [functools.reduce(lax.add, row) for row in rows])
    planes = total.astype(output_dtype(spec, lhs.dtype)).reshape(batch, features, *space)
    return jnp.moveaxis(planes, 1, -1)
