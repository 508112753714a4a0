"""A depthwise problem as the kernels take it: images of rows and columns, every channel with its own kernel.

A signal is an image of one row. The kernel gradient is described by the convolution whose gradient it is. Some images
may lie side by side, a row holding its first column of each of them, then its second column of each, and so on: as XLA
keeps a batch whose columns fill no whole registers. Then none are filled up, and shifts are whole registers.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import Array

from convjax._core.dtypes import output_dtype
from convjax._core.spec import ConvSpec, Shape

DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Plane:
    """Sizes; pairs are of rows and columns, those of images side by side times `beside`.

    Attributes:
      batch: images, or groups of them that lie side by side.
      channels: of the output; the input has so many too, each repeated by the channel multiplier.
      space: of the input.
      out: of the output.
      kernel: taps.
      strides: between outputs, in inputs.
      dilation: between taps, in inputs.
      low: zeros in front; what a negative number crops.
      itemsize: bytes of an element of the input.
      beside: images that lie side by side.
    """

    batch: int
    channels: int
    space: Shape
    out: Shape
    kernel: Shape
    strides: Shape
    dilation: Shape
    low: Shape
    itemsize: int
    beside: int = 1

    def reach(self, axis: int, outputs: int) -> int:
        """Inputs that so many neighbouring outputs see along an axis."""
        return (outputs - 1) * self.strides[axis] + (self.kernel[axis] - 1) * self.dilation[axis] + 1


def forward(spec: ConvSpec, lhs: Any, rhs: Any) -> Plane:
    """The plane of a depthwise convolution with one or two spatial axes."""
    out = spec.out_space(lhs.shape, rhs.shape)
    low = tuple(lo for lo, _ in spec.padding)
    return Plane(
        lhs.shape[0],
        rhs.shape[-1],
        space=two(lhs.shape[1:-1]),
        out=two(out),
        kernel=two(rhs.shape[:-2]),
        strides=two(spec.strides),
        dilation=two(spec.rhs_dilation),
        low=two(low, 0),
        itemsize=jnp.dtype(lhs.dtype).itemsize,
    )


def of_gradient(spec: ConvSpec, lhs: Any, rhs: Any) -> Plane:
    """The plane of the convolution whose kernel gradient `spec` is: `lhs (C, *space, N)`, `rhs (*out, N, O)`."""
    kernel = spec.out_space(lhs.shape, rhs.shape)
    low = tuple(lo for lo, _ in spec.padding)
    return Plane(
        lhs.shape[-1],
        rhs.shape[-1],
        space=two(lhs.shape[1:-1]),
        out=two(rhs.shape[:-2]),
        kernel=two(kernel),
        strides=two(spec.rhs_dilation),
        dilation=two(spec.strides),
        low=two(low, 0),
        itemsize=jnp.dtype(lhs.dtype).itemsize,
    )


def side_by_side(p: Plane) -> Plane:
    """With 16 or 8 images side by side, where columns fill no whole registers; else as it is."""
    images = next((n for n in (16, 8) if p.batch % n == 0), 1)
    if p.space[1] % 8 == 0 or p.strides[1] > 1:
        return p
    space, out, dilation, low = ((rows, columns * images) for rows, columns in (p.space, p.out, p.dilation, p.low))
    return dataclasses.replace(
        p, batch=p.batch // images, space=space, out=out, dilation=dilation, low=low, beside=images
    )


def laid(p: Plane, x: Array, space: Shape) -> Array:
    """Images `(N, ..., channels)` as `(batch, *space, channels)`, some side by side."""
    if p.beside > 1:
        x = x.reshape(p.batch, p.beside, space[0], space[1] // p.beside, x.shape[-1])
        x = jnp.moveaxis(x, 1, 3)
    return x.reshape(p.batch, *space, x.shape[-1])


def images(p: Plane, x: Array, shape: Shape) -> Array:
    """The inverse of `laid`, to images of this shape."""
    if p.beside > 1:
        x = x.reshape(p.batch, x.shape[1], x.shape[2] // p.beside, p.beside, x.shape[-1])
        x = jnp.moveaxis(x, 3, 1)
    return x.reshape(shape)


def two(sizes: Shape, missing: int = 1) -> Shape:
    """Sizes of rows and columns; a signal is an image of one row."""
    return (missing, *sizes) if len(sizes) == 1 else tuple(sizes)


def unfit(spec: ConvSpec, lhs: Any, rhs: Any, platform: str) -> str | None:
    """What no kernel for images and signals serves, in words for a user."""
    if platform != "tpu":
        return f"a kernel for TPUs, and this is {platform}"
    if spec.ndim not in (1, 2):
        return f"{spec.ndim} spatial axes: the kernel has one or two"
    if lhs.dtype != rhs.dtype or str(lhs.dtype) not in DTYPES:
        return f"the operands are {lhs.dtype} and {rhs.dtype}: the kernel takes float32 or bfloat16, both alike"
    if str(output_dtype(spec, lhs.dtype)) not in DTYPES:
        return f"the output is {output_dtype(spec, lhs.dtype)}: the kernel writes float32 or bfloat16"
    if any(d > 1 for d in spec.lhs_dilation):
        return "the input is dilated: subpixel makes problems of it that the kernel serves"
    return None
