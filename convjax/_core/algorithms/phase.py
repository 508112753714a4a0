"""Interleaved phases: a convolution with a dilated kernel as a dense one of sub-images, stacked in the batch.

The taps of a kernel of dilation `d` step over the input `d` at a time, so that outputs `d` apart share one sub-image,
every `d`-th input, and the outputs between belong to other sub-images. Split, convolve without dilation, interleave.
A kernel gradient of a strided convolution has the stride for its dilation, and there this is space-to-depth.

Cost: the same products, now on adjacent inputs, and a pass over input and output each to split and to interleave.
Error: that of the convolution that serves the sub-images.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from convjax._core.geometry import Geometry, Work
from convjax._core.primitive import convolve
from convjax._core.spec import ConvSpec, dilate

# A stride other than 1 makes sub-images overlap out of step, each a slice of its own in the program.
MAX_SLICES = 64


def supports(spec: ConvSpec, lhs: Any, rhs: Any, platform: str) -> str | None:
    """None where this algorithm can serve, else the reason why not, in words for a user."""
    if all(dilation == 1 for dilation in spec.rhs_dilation):
        return "the kernel is not dilated: there is one phase"
    if any(dilation != 1 for dilation in spec.lhs_dilation):
        return "the input is dilated: the phases of one axis would not be alike"
    for stride, dilation in zip(spec.strides, spec.rhs_dilation, strict=True):
        if stride > 1 and period(stride, dilation) > MAX_SLICES:
            return f"stride {stride} with dilation {dilation} needs more than {MAX_SLICES} slices"
    return None


def work(g: Geometry) -> Work:
    periods = list(map(period, g.spec.strides, g.spec.rhs_dilation))
    strides = tuple(s // math.gcd(s, d) for s, d in zip(g.spec.strides, g.spec.rhs_dilation, strict=True))
    lengths = [
        (-(-out // phases) - 1) * stride + taps
        for out, phases, stride, taps in zip(g.out, periods, strides, g.kernel, strict=True)
    ]
    dense = g.spec.auto(strides=strides, padding=((0, 0),) * g.spec.ndim, rhs_dilation=(1,) * g.spec.ndim)
    part = Geometry(dense, (g.lhs[0] * math.prod(periods), *lengths, g.lhs[-1]), g.rhs, g.dtype)
    return Work("phase", 0, g.padded + g.elements[2], math.prod(periods), ((1, part),))


def run(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    out = spec.out_space(lhs.shape, rhs.shape)
    strides = tuple(s // math.gcd(s, d) for s, d in zip(spec.strides, spec.rhs_dilation, strict=True))
    split = lhs
    for i, (lo, hi) in enumerate(spec.padding):
        split = split_axis(split, 1 + i, lo, hi, spec.strides[i], spec.rhs_dilation[i], out[i], rhs.shape[i])
    dense = spec.auto(strides=strides, padding=((0, 0),) * spec.ndim, rhs_dilation=(1,) * spec.ndim)
    phases = convolve(split, rhs, dense)
    for i in reversed(range(spec.ndim)):
        phases = interleave_axis(phases, 1 + i, period(spec.strides[i], spec.rhs_dilation[i]), out[i])
    return phases


def period(stride: int, dilation: int) -> int:
    """How many outputs on the same sub-image is met again."""
    return dilation // math.gcd(stride, dilation)


def split_axis(x: Array, axis: int, lo: int, hi: int, stride: int, dilation: int, out: int, taps: int) -> Array:
    """Sub-images of one axis, the fastest part of the batch: phase `r` starts at `r * stride`, steps by `dilation`."""
    phases = period(stride, dilation)
    length = (-(-out // phases) - 1) * (stride // math.gcd(stride, dilation)) + taps  # of each sub-image
    reach = (phases - 1) * stride + dilate(length, dilation)  # may exceed the padded input: the surplus is cut off
    if stride == 1:
        reach = length * dilation
    padding = [(0, 0, 0)] * x.ndim
    padding[axis] = (lo, reach - x.shape[axis] - lo, 0)
    x = lax.pad(x, jnp.zeros((), x.dtype), padding)
    if stride == 1:
        grid = x.reshape(*x.shape[:axis], length, dilation, *x.shape[axis + 1 :])
        stacked = jnp.moveaxis(grid, axis + 1, 1)
    else:
        starts = [r * stride for r in range(phases)]
        stacked = jnp.stack(
            [lax.slice_in_dim(x, start, start + dilate(length, dilation), dilation, axis) for start in starts], 1
        )
    return stacked.reshape(-1, *stacked.shape[2:])


def interleave_axis(x: Array, axis: int, phases: int, out: int) -> Array:
    grid = jnp.moveaxis(x.reshape(-1, phases, *x.shape[1:]), 1, axis + 1)
    whole = grid.reshape(*grid.shape[:axis], -1, *grid.shape[axis + 2 :])
    return lax.slice_in_dim(whole, 0, out, axis=axis)
