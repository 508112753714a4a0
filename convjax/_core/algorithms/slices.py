"""Slices: a convolution as a sum, or a stack, of convolutions with one spatial axis fewer.

XLA on CPU has a fast path for one and two spatial axes and none for three. Where the kernel is short along the first
axis, each of its slices is convolved with the input slices that it meets, which go into the batch, and the results
are summed. Where the output is short (a kernel gradient), each output slice is one convolution, and the slices that
it contracts go into the features.

Cost: the same products; one read and write of the output for each slice.
Error: that of the convolution that serves the slices, plus a sum over them.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from convjax._core.arrange import pad_space
from convjax._core.dtypes import accumulator, output_dtype
from convjax._core.geometry import Geometry, Work
from convjax._core.primitive import convolve
from convjax._core.spec import ConvSpec, dilate

# Each slice is a convolution of its own in the program, and each is compiled.
MAX_SLICES = 16


def supports(spec: ConvSpec, lhs: Any, rhs: Any, platform: str) -> str | None:
    """None where this algorithm can serve, else the reason why not, in words for a user."""
    if spec.ndim < 2:
        return "one spatial axis: there is none to spare"
    shortest = min(spec.out_space(lhs.shape, rhs.shape)[0], rhs.shape[0])
    if shortest > MAX_SLICES:
        return f"{shortest} slices along the first axis: at most {MAX_SLICES} are unrolled"
    return None


def work(g: Geometry) -> Work:
    plane, taps, out = plane_spec(g.spec), g.rhs[0], g.out[0]
    if taps <= out:
        lhs, rhs, count = (g.lhs[0] * out, *g.lhs[2:]), g.rhs[1:], taps
        moved = taps * g.elements[2]
    else:
        lhs, count = (g.lhs[0], *g.lhs[2:-1], g.lhs[-1] * taps), out
        rhs = (*g.rhs[1:-2], g.rhs[-2] * taps, g.rhs[-1])
        moved = out * math.prod(lhs) + g.elements[2]
    kind, part = "slices" if taps <= out else "slices, gradient", Geometry(plane, lhs, rhs, g.dtype)
    return Work(kind, 0, moved, count, ((count, part),))


def run(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    rest = ((0, 0),) * (spec.ndim - 1)
    padded = pad_space(lhs, (spec.padding[0], *rest), (spec.lhs_dilation[0],) + (1,) * (spec.ndim - 1))
    plane = plane_spec(spec)
    out = spec.out_space(lhs.shape, rhs.shape)[0]
    if rhs.shape[0] <= out:
        return sum_over_kernel(spec, plane, out, padded, rhs)
    return stack_over_output(spec, plane, out, padded, rhs)


def plane_spec(spec: ConvSpec) -> ConvSpec:
    """The convolution of a slice."""
    return spec.auto(
        strides=spec.strides[1:],
        padding=spec.padding[1:],
        lhs_dilation=spec.lhs_dilation[1:],
        rhs_dilation=spec.rhs_dilation[1:],
    )


def sum_over_kernel(spec: ConvSpec, plane: ConvSpec, out: int, padded: Array, rhs: Array) -> Array:
    """One convolution a kernel slice, all output slices in the batch."""
    stride, dilation = spec.strides[0], spec.rhs_dilation[0]
    dtype = accumulator(spec, padded.dtype)
    total: Any = 0
    for tap in range(rhs.shape[0]):
        met = lax.slice_in_dim(padded, tap * dilation, tap * dilation + dilate(out, stride), stride, axis=1)
        met = met.reshape(-1, *met.shape[2:])
        total += convolve(met, rhs[tap], plane.replace(preferred_element_type=dtype))
    return total.reshape(-1, out, *total.shape[1:]).astype(output_dtype(spec, padded.dtype))


def stack_over_output(spec: ConvSpec, plane: ConvSpec, out: int, padded: Array, rhs: Array) -> Array:
    """One convolution an output slice, all kernel slices in the features."""
    stride, dilation, taps = spec.strides[0], spec.rhs_dilation[0], rhs.shape[0]
    *space, features, outputs = rhs.shape[1:]
    kernel = jnp.moveaxis(rhs, 0, -3).reshape(*space, taps * features, outputs)
    rows = []
    for o in range(out):
        met = lax.slice_in_dim(padded, o * stride, o * stride + dilate(taps, dilation), dilation, axis=1)
        met = met.reshape(*met.shape[:-1], spec.feature_groups, features)
        met = jnp.moveaxis(met, 1, -2)  # (batch, *space, groups, taps, features)
        rows.append(convolve(met.reshape(*met.shape[:-3], -1), kernel, plane))
    return jnp.stack(rows, 1)
