"""Kernel to rows: one matrix product for each tap, of the inputs that it meets, added where they belong.

No product is spent on padding, which is most of what a dilated kernel sees on a small map: with dilation 18 on 33x33
three of five taps lie outside.

Cost: the products with real inputs; a copy of the input, and a pass over the output, for each tap.
Error: that of direct summation in the accumulation dtype.
Source: Vasudevan, Anderson and Gregg, arXiv:1704.04428; the accumulating form, cropped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from convjax._core.arrange import inside, met_by
from convjax._core.dtypes import accumulator, output_dtype
from convjax._core.geometry import Geometry, Work
from convjax._core.spec import ConvSpec

# Each tap is a product in the program, and XLA takes minutes to compile a hundred of them.
MAX_TAPS = 32


def supports(spec: ConvSpec, lhs: Any, rhs: Any, platform: str) -> str | None:
    """None where this algorithm can serve, else the reason why not, in words for a user."""
    if spec.groups > 1:
        return f"{spec.groups} groups would be as many products a tap"
    if any(dilation > 1 for dilation in spec.lhs_dilation):
        return "the input is dilated: sub-pixel phases serve that"
    if (taps := math.prod(rhs.shape[:-2])) > MAX_TAPS:
        return f"{taps} taps would be as many products: at most {MAX_TAPS} are unrolled"
    return None


def work(g: Geometry) -> Work:
    axes = [[outputs_met(g.spec, i, t, g.lhs, g.out) for t in range(k)] for i, k in enumerate(g.kernel)]
    met = g.batch * math.prod(sum(stop - first for first, stop in axis) for axis in axes)
    return Work("kn2row", met * g.features * g.outputs, met * (g.features + g.outputs), g.taps)


def outputs_met(spec: ConvSpec, axis: int, tap: int, lhs: Sequence[int], out: Sequence[int]) -> tuple[int, int]:
    """First and stop of the outputs for which a tap falls on an input and not on padding."""
    start = tap * spec.rhs_dilation[axis] - spec.padding[axis][0]
    return inside(start, spec.strides[axis], out[axis], lhs[1 + axis])


def run(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    out, dtype = spec.out_space(lhs.shape, rhs.shape), accumulator(spec, lhs.dtype)
    total = jnp.zeros(spec.out_shape(lhs.shape, rhs.shape), dtype)
    for tap in np.ndindex(*rhs.shape[:-2]):
        met = [outputs_met(spec, i, t, lhs.shape, out) for i, t in enumerate(tap)]
        counts = [stop - first for first, stop in met]
        if 0 in counts:
            continue
        starts = [
            first * s + t * d - lo
            for (first, _), s, t, d, (lo, _) in zip(
                met, spec.strides, tap, spec.rhs_dilation, spec.padding, strict=True
            )
        ]
        x = met_by(lhs, starts, counts, spec.strides).reshape(-1, lhs.shape[-1])
        product = jnp.dot(x, rhs[tap], precision=spec.precision, preferred_element_type=dtype)
        where = (slice(None), *(slice(*span) for span in met))
        total = total.at[where].add(product.reshape(lhs.shape[0], *counts, -1))
    return total.astype(output_dtype(spec, lhs.dtype))
