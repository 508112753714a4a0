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
from jax import Array, lax

from convjax._core.arrange import inside
from convjax._core.dtypes import accumulator, as_bits, as_floats, output_dtype
from convjax._core.geometry import Geometry, Work
from convjax._core.spec import ConvSpec, Shape, dilate

# Taps that meet as many inputs share a loop, and what they do is compiled once: 4 such for 3x3 with padding 1, 9 for
# 5x5 with 2.
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
    kind = "kn2row, 16 bits" if g.dtype == jnp.bfloat16 else "kn2row"
    axes = [[outputs_met(g.spec, i, t, g.lhs, g.out) for t in range(k)] for i, k in enumerate(g.kernel)]
    met = g.batch * math.prod(sum(stop - first for first, stop in axis) for axis in axes)
    return Work(kind, met * g.features * g.outputs, met * (g.features + g.outputs), g.taps)


def outputs_met(spec: ConvSpec, axis: int, tap: int, lhs: Sequence[int], out: Sequence[int]) -> tuple[int, int]:
    """First and stop of the outputs for which a tap falls on an input and not on padding."""
    start = tap * spec.rhs_dilation[axis] - spec.padding[axis][0]
    return inside(start, spec.strides[axis], out[axis], lhs[1 + axis])


def run(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    shape, dtype = spec.out_shape(lhs.shape, rhs.shape), accumulator(spec, lhs.dtype)
    bits, matrices = as_bits(lhs), as_bits(rhs.reshape(-1, *rhs.shape[-2:]))
    total = jnp.zeros(shape, dtype)
    for counts, taps in alike(spec, lhs.shape, rhs.shape).items():
        extents = [dilate(count, stride) for count, stride in zip(counts, spec.strides, strict=True)]

        def add_tap(total: Array, tap: tuple[Any, ...], counts: Any = counts, extents: Any = extents) -> Any:
            number, into, start = tap
            x = lax.dynamic_slice(bits, start, (lhs.shape[0], *extents, lhs.shape[-1]))
            x = lax.slice(x, (0,) * x.ndim, x.shape, (1, *spec.strides, 1)).reshape(-1, lhs.shape[-1])
            x, matrix = (
                as_floats(a, lhs.dtype) for a in (x, lax.dynamic_index_in_dim(matrices, number, keepdims=False))
            )
            product = jnp.dot(x, matrix, precision=spec.precision, preferred_element_type=dtype)
            met = (lhs.shape[0], *counts, shape[-1])
            now = lax.dynamic_slice(total, into, met) + product.reshape(met)
            return lax.dynamic_update_slice(total, now, into), None

        if len(taps) == 1:
            total, _ = add_tap(total, taps[0])
        else:
            columns = tuple(jnp.asarray(column) for column in zip(*taps, strict=True))
            total, _ = lax.scan(add_tap, total, columns)
    return total.astype(output_dtype(spec, lhs.dtype))


def alike(spec: ConvSpec, lhs: Sequence[int], rhs: Sequence[int]) -> dict[Shape, list[tuple[int, Shape, Shape]]]:
    """Taps that meet as many inputs along each axis: number of the tap, first output and first input of each."""
    found: dict[Shape, list[tuple[int, Shape, Shape]]] = {}
    out = spec.out_space(tuple(lhs), tuple(rhs))
    for number, tap in enumerate(np.ndindex(*rhs[:-2])):
        met = [outputs_met(spec, i, t, lhs, out) for i, t in enumerate(tap)]
        counts = tuple(stop - first for first, stop in met)
        if 0 not in counts:
            into = (0, *(first for first, _ in met), 0)
            sizes = zip(met, spec.strides, tap, spec.rhs_dilation, spec.padding, strict=True)
            start = (0, *(first * s + t * d - lo for (first, _), s, t, d, (lo, _) in sizes), 0)
            found.setdefault(counts, []).append((number, into, start))
    return found
