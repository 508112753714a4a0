"""Frames: a convolution as a loop over its first spatial axis, each round a convolution with one axis fewer.

Where the kernel is short along that axis, a round makes an output frame (or some): the input frames that the kernel
meets there are laid side by side, as features. Where the output is short (a kernel gradient), a round takes a frame of
the kernel: the input frames that it meets go into the batch, and the results are summed. Either way what serves the
rounds has all taps of a frame in one product, and memory is that of a round.

Cost: the products of direct summation, and a copy of the input for each position along the first axis of kernel or
output, whichever is shorter.
Error: that of the convolution that serves the rounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from convjax._core.arrange import largest_divisor, pad_space
from convjax._core.blocks import cut, stacked, summed
from convjax._core.dtypes import accumulator, output_dtype
from convjax._core.geometry import Geometry, Work
from convjax._core.primitive import convolve
from convjax._core.spec import ConvSpec, dilate

# Of frames laid side by side, or of outputs, in a round. 3-D 7x7x7/2 3->64 at 16x224x224 takes 91 ms in 8 rounds of
# 4.2 MB; as a sum over slices of the kernel 137 ms.
ROUND_BYTES = 2**22
# Each frame that is laid side by side with others is a slice in the program.
MAX_FRAMES = 32


def supports(spec: ConvSpec, lhs: Any, rhs: Any, platform: str) -> str | None:
    """None where this algorithm can serve, else the reason why not, in words for a user."""
    if spec.ndim < 2:
        return "one spatial axis: there is none to spare"
    if spec.groups > 1:
        return "groups: the frames' features would have to be put among each other"
    if spec.lhs_dilation[0] > 1:
        return "the input is dilated: sub-pixel phases serve that"
    shorter = min(rhs.shape[0], spec.out_space(lhs.shape, rhs.shape)[0])
    if not 1 < shorter <= MAX_FRAMES:
        return f"{shorter} taps or outputs along the first axis: from 2 to {MAX_FRAMES} are worth a loop"
    return None


def work(g: Geometry) -> Work:
    plane, out, taps = plane_spec(g.spec), g.out[0], g.rhs[0]
    if taps > out:
        part = Geometry(plane, (g.lhs[0] * out, *g.lhs[2:]), g.rhs[1:], g.dtype)
        return Work("frames, gradient", 0, taps * (math.prod(part.lhs) + g.elements[2]), taps, ((taps, part),))
    images, frames = a_round(g.spec, g.lhs, g.rhs, g.dtype.itemsize)
    features, rounds = taps * g.features, g.batch * out // (images * frames)
    part = Geometry(plane, (images * frames, *g.lhs[2:-1], features), (*g.rhs[1:-2], features, g.outputs), g.dtype)
    return Work("frames", 0, rounds * math.prod(part.lhs) + g.elements[2], rounds, ((rounds, part),))


def a_round(spec: ConvSpec, lhs: Sequence[int], rhs: Sequence[int], itemsize: int) -> tuple[int, int]:
    """Images, and output frames of each, that a round makes: frames of one image, or all of several."""
    out, *space = spec.out_space(tuple(lhs), tuple(rhs))
    frame_bytes = max(math.prod(lhs[2:]) * rhs[0], math.prod(space) * rhs[-1]) * itemsize
    frames = largest_divisor(out, max(1, ROUND_BYTES // frame_bytes))
    return (largest_divisor(lhs[0], max(1, ROUND_BYTES // (frame_bytes * out))) if frames == out else 1), frames


def plane_spec(spec: ConvSpec) -> ConvSpec:
    """The convolution of a round."""
    return spec.auto(
        strides=spec.strides[1:],
        padding=spec.padding[1:],
        lhs_dilation=spec.lhs_dilation[1:],
        rhs_dilation=spec.rhs_dilation[1:],
    )


def run(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    out = spec.out_space(lhs.shape, rhs.shape)[0]
    result = short_kernel(spec, out, lhs, rhs) if rhs.shape[0] <= out else short_output(spec, out, lhs, rhs)
    return result.astype(output_dtype(spec, lhs.dtype))


def short_kernel(spec: ConvSpec, out: int, lhs: Array, rhs: Array) -> Array:
    """A few output frames a round."""
    taps, stride, dilation = rhs.shape[0], spec.strides[0], spec.rhs_dilation[0]
    *space, features, outputs = rhs.shape[1:]
    kernel = jnp.moveaxis(rhs, 0, -3).reshape(*space, taps * features, outputs)
    images, frames = a_round(spec, lhs.shape, rhs.shape, lhs.dtype.itemsize)
    met = dilate(frames, stride) + dilate(taps, dilation) - 1  # input frames of a round

    def of_frames(padded: Array, index: Any) -> Array:
        piece = cut(padded, index, frames * stride, met, axis=1)
        sides = [
            lax.slice_in_dim(piece, tap * dilation, tap * dilation + dilate(frames, stride), stride, axis=1)
            for tap in range(taps)
        ]
        wide = lax.concatenate(sides, lhs.ndim - 1)
        done = convolve(wide.reshape(-1, *wide.shape[2:]), kernel, plane_spec(spec))
        return done.reshape(images, frames, *done.shape[1:])

    def of_images(index: Any) -> Array:
        padded = pad_first(spec, cut(lhs, index, images, images, axis=0))
        return stacked(lambda part: of_frames(padded, part), out // frames, axis=1)

    return stacked(of_images, lhs.shape[0] // images, axis=0)


def short_output(spec: ConvSpec, out: int, lhs: Array, rhs: Array) -> Array:
    """A frame of the kernel a round."""
    stride, dilation = spec.strides[0], spec.rhs_dilation[0]
    plane = plane_spec(spec).replace(preferred_element_type=accumulator(spec, lhs.dtype))
    padded = pad_first(spec, lhs)

    def of_tap(index: Any) -> Array:
        met = cut(padded, index, dilation, dilate(out, stride), axis=1)
        met = lax.slice_in_dim(met, 0, None, stride, axis=1)
        return convolve(met.reshape(-1, *met.shape[2:]), cut(rhs, index, 1, 1, axis=0)[0], plane)

    total = summed(of_tap, rhs.shape[0])
    return total.reshape(-1, out, *total.shape[1:])


def pad_first(spec: ConvSpec, x: Array) -> Array:
    """Zeros around the first spatial axis; the rounds pad the others."""
    return pad_space(x, (spec.padding[0],), (1,))
