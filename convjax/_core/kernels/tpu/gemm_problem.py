"""A dense or packed problem as the matrix-unit kernels take it.

Some images may lie side by side: a row of a block then holds its first column of each of them, its second column of
each, and so on. So XLA keeps a batch whose columns fill no whole registers, which makes this a view and not a copy; no
column is filled up, and from a tap to the next are whole registers.

Of 64 channels or fewer, taps of several kernel rows make one product: the copy of the input has the rows that they meet
side by side in its lanes.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import lax

from convjax._core.kernels.tpu import plane
from convjax._core.kernels.tpu.plane import two
from convjax._core.spec import ConvSpec, Shape


@dataclasses.dataclass(frozen=True)
class Gemm:
    """Sizes; pairs are of rows and columns, those of images side by side times `beside`.

    Attributes:
      batch: images, or groups of them that lie side by side.
      packs: independent products side by side: groups, or packs of groups.
      features: input channels of a pack.
      outputs: output channels of a pack.
      space: of the input.
      out: of the output.
      kernel: taps.
      strides: between outputs, in inputs.
      dilation: between taps, in inputs.
      low: zeros in front; what a negative number crops.
      itemsize: bytes of an element of the input.
      beside: images that lie side by side in a block.
      fold: kernel rows whose taps make one product.
      batch_second: whether operands and result are taken with the batch second to the channels.
      is_direct: whether outputs meet the inputs as they lie in a block: 1x1, no padding, whole registers.
    """

    batch: int
    packs: int
    features: int
    outputs: int
    space: Shape
    out: Shape
    kernel: Shape
    strides: Shape
    dilation: Shape
    low: Shape
    itemsize: int
    beside: int = 1
    fold: int = 1
    batch_second: bool = False
    is_direct: bool = False

    def reach(self, axis: int, outputs: int) -> int:
        """Inputs that so many neighbouring outputs see along an axis."""
        return self.first(axis, outputs - 1) + (self.kernel[axis] - 1) * self.dilation[axis] + 1

    def first(self, axis: int, output: Any) -> Any:
        """The input that the first tap meets of an output, counted from that of the first output."""
        if axis == 0 or self.strides[1] == 1:
            return output * self.strides[axis]
        return output + quotient(output, self.beside) * (self.strides[1] - 1) * self.beside

    @property
    def folded(self) -> Shape:
        """Products along the kernel's rows and columns, the channels of one, all outputs: the shape of the weights."""
        return (-(-self.kernel[0] // self.fold), self.kernel[1], self.fold * self.features, self.outputs * self.packs)


def quotient(index: Any, size: int) -> Any:
    """Of an index, known or traced: `//` of a traced one looks at its sign, which Mosaic has to know the TPU for."""
    return index // size if isinstance(index, int) else lax.div(index, size)


def of_convolution(spec: ConvSpec, lhs: Any, rhs: Any, packs: int) -> Gemm:
    """`rhs` has the channels of a pack; a signal is an image of one row."""
    return Gemm(
        batch=lhs.shape[0],
        packs=packs,
        features=rhs.shape[-2],
        outputs=rhs.shape[-1] // packs,
        space=two(lhs.shape[1:-1]),
        out=two(spec.out_space(lhs.shape, rhs.shape)),
        kernel=two(rhs.shape[:-2]),
        strides=two(spec.strides),
        dilation=two(spec.rhs_dilation),
        low=two(tuple(lo for lo, _ in spec.padding), 0),
        itemsize=jnp.dtype(lhs.dtype).itemsize,
    )


def of_kernel_gradient(spec: ConvSpec, lhs: Any, rhs: Any, packs: int) -> Gemm:
    """`lhs (C, *space, N)` has all channels of the input, those of every pack; `rhs (*out, N, O)`."""
    return Gemm(
        batch=lhs.shape[-1],
        packs=packs,
        features=lhs.shape[0] // packs,
        outputs=rhs.shape[-1] // packs,
        space=two(lhs.shape[1:-1]),
        out=two(rhs.shape[:-2]),
        kernel=two(spec.out_space(lhs.shape, rhs.shape)),
        strides=two(spec.rhs_dilation),
        dilation=two(spec.strides),
        low=two(tuple(lo for lo, _ in spec.padding), 0),
        itemsize=jnp.dtype(lhs.dtype).itemsize,
    )


def side_by_side(p: Gemm, images: int) -> Gemm:
    """So many images in each row."""
    space, out, dilation, low = ((rows, columns * images) for rows, columns in (p.space, p.out, p.dilation, p.low))
    p = dataclasses.replace(p, space=space, out=out, dilation=dilation, low=low)
    return dataclasses.replace(p, batch=p.batch // images, beside=images, batch_second=True)


def unfit(spec: ConvSpec, lhs: Any, rhs: Any, platform: str) -> str | None:
    """What no kernel for the matrix unit serves, in words for a user."""
    if reason := plane.unfit(spec, lhs, rhs, platform):
        return reason
    if spec.precision is not None and len({*spec.precision, lax.Precision.HIGH}) != 2:
        return f"precision {spec.precision}: the kernel's products have one, default or highest"
    return None
