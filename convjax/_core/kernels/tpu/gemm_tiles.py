"""A dense or packed problem as the matrix-unit kernels take it, its tiles, and whether they fit into VMEM.

A grid step takes some rows of outputs of one image, all columns, and one tile of output channels. Inside it loops over
groups of rows, and over chunks of columns where rows are long, whose matrix products are unrolled over the taps.

Some images may lie side by side: a row of a block then holds its first column of each of them, its second column of
each, and so on. So XLA keeps a batch whose columns fill no whole registers, which makes this a view and not a copy; no
column is filled up, and from a tap to the next are whole registers.

Of 64 channels or fewer, taps of several kernel rows make one product: the copy of the input has the rows that they meet
side by side in its lanes.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
from jax import lax

from convjax._core.dtypes import output_dtype
from convjax._core.kernels.tpu.tiles import LANES, SUBLANES, VMEM_BYTES, rows_at_once, up
from convjax._core.spec import ConvSpec, Shape

DTYPES = ("float32", "bfloat16")
MAX_TAPS = 49
COLUMNS = 256  # of outputs in one product, at most
STEP_POSITIONS = 4096  # outputs of a channel that a grid step makes, where the image has so many
KERNEL_BYTES = 8 * 2**20  # of the weights in VMEM at once
# Products of one 8-row register by one 128 x 128 tile of weights in a loop body: few mean that each tile of weights is
# loaded for few rows, many take the compiler tens of seconds.
UNROLLED_PRODUCTS = 2048
WORTH_TWICE = 0.85  # of the cost: then twice as many
BESIDE = (2 * SUBLANES, SUBLANES)  # images side by side: a whole register of bfloat16, or half of one
LOADED_REGISTERS = 16  # of a tile of weights, loaded before its products


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


def forward(spec: ConvSpec, lhs: Any, rhs: Any, packs: int) -> Gemm:
    """The products of a convolution, `rhs` with the channels of a pack; a signal is an image of one row.

    1x1 convolutions of whole images are one image of as long rows as divide them into whole registers.
    """
    return _arranged(_forward(spec, lhs, rhs, packs), gradient=False)


def _forward(spec: ConvSpec, lhs: Any, rhs: Any, packs: int) -> Gemm:
    return Gemm(
        batch=lhs.shape[0],
        packs=packs,
        features=rhs.shape[-2],
        outputs=rhs.shape[-1] // packs,
        space=_two(lhs.shape[1:-1]),
        out=_two(spec.out_space(lhs.shape, rhs.shape)),
        kernel=_two(rhs.shape[:-2]),
        strides=_two(spec.strides),
        dilation=_two(spec.rhs_dilation),
        low=_two(tuple(lo for lo, _ in spec.padding), 0),
        itemsize=jnp.dtype(lhs.dtype).itemsize,
    )


def of_gradient(spec: ConvSpec, lhs: Any, rhs: Any, packs: int) -> Gemm:
    """The products of the convolution whose kernel gradient `spec` is: `lhs (C, *space, N)`, `rhs (*out, N, O)`.

    `lhs` has all channels of the input, those of every pack.
    """
    return _arranged(_of_gradient(spec, lhs, rhs, packs), gradient=True)


def _of_gradient(spec: ConvSpec, lhs: Any, rhs: Any, packs: int) -> Gemm:
    return Gemm(
        batch=lhs.shape[-1],
        packs=packs,
        features=lhs.shape[0] // packs,
        outputs=rhs.shape[-1] // packs,
        space=_two(lhs.shape[1:-1]),
        out=_two(rhs.shape[:-2]),
        kernel=_two(spec.out_space(lhs.shape, rhs.shape)),
        strides=_two(spec.rhs_dilation),
        dilation=_two(spec.strides),
        low=_two(tuple(lo for lo, _ in spec.padding), 0),
        itemsize=jnp.dtype(lhs.dtype).itemsize,
    )


def _arranged(p: Gemm, *, gradient: bool) -> Gemm:
    """With images side by side where that is how XLA has them, and as one matrix where taps and strides allow."""
    if p.packs == 1:
        p = dataclasses.replace(p, fold=max(1, min(p.kernel[0], LANES // p.features)))
    beside = next((n for n in BESIDE if p.batch % n == 0), 1)
    if beside > 1 and p.space[1] % SUBLANES:
        wide = _side_by_side(p, beside)
        p = wide if choose(wide, residual=True, gradient=gradient).vmem <= VMEM_BYTES else p
    if gradient or p.kernel != (1, 1) or p.strides != (1, 1) or any(p.low) or p.out != p.space:
        return p
    positions = p.batch * math.prod(p.space)
    columns = next((c for c in range(COLUMNS, 0, -2 * SUBLANES) if positions % c == 0), None)
    if columns is None:
        return p
    space = (positions // columns, columns)
    return dataclasses.replace(p, batch=1, beside=1, space=space, out=space, is_direct=True)


def _side_by_side(p: Gemm, images: int) -> Gemm:
    space, out, dilation, low = ((rows, columns * images) for rows, columns in (p.space, p.out, p.dilation, p.low))
    p = dataclasses.replace(p, space=space, out=out, dilation=dilation, low=low)
    return dataclasses.replace(p, batch=p.batch // images, beside=images, batch_second=True)


def _two(sizes: Shape, missing: int = 1) -> Shape:
    return (missing, *sizes) if len(sizes) == 1 else tuple(sizes)


@dataclasses.dataclass(frozen=True)
class Tiles:
    """How the products are cut.

    Attributes:
      outputs: output channels a grid step.
      lanes: of these, in one product.
      rows: of outputs, a grid step.
      group: of these, in one product; a divisor of `rows`.
      columns: of outputs in one product, whole registers.
      left: columns of zeros in front of the copy of the input, aligned.
      scratch: shape of that copy, `(chunks, rows, columns, lanes)`: strided loads are of up to 128 lanes.
      at_once: of its rows, filled in one step; a divisor.
      vmem: bytes.
    """

    outputs: int
    lanes: int
    rows: int
    group: int
    columns: int
    left: int
    scratch: Shape
    at_once: int
    vmem: int


def choose(p: Gemm, *, residual: bool = False, gradient: bool = False) -> Tiles:
    """Groups that multiply few rows beyond the output's and load weights seldom; as few steps as rows allow."""
    down, across, deep, _ = p.folded
    kernel_bytes = down * across * up(deep, SUBLANES) * (4 if gradient else p.itemsize)
    outputs = _channel_tile(p.outputs, KERNEL_BYTES // kernel_bytes)
    lanes = next((n for n in (2 * LANES, LANES) if outputs % n == 0), outputs)
    chunks = -(-p.out[1] // COLUMNS)
    columns = up(-(-p.out[1] // chunks), max(p.beside, SUBLANES))
    registers = columns // SUBLANES * (up(deep, LANES) // LANES) * (up(lanes, LANES) // LANES)
    tiles = lambda group, count: _tiles(p, outputs, lanes, count * group, group, columns, residual, gradient)
    cost = lambda group: -(-p.out[0] // group) * (group * columns // SUBLANES + LOADED_REGISTERS)

    def best(most: int) -> int:
        groups = range(1, min(p.out[0], max(1, most // (registers * down * across))) + 1)
        return min([g for g in groups if tiles(g, 1).vmem <= VMEM_BYTES] or [1], key=cost)

    group, larger = best(UNROLLED_PRODUCTS), best(2 * UNROLLED_PRODUCTS)
    group = larger if cost(larger) <= WORTH_TWICE * cost(group) else group
    most = max(1, STEP_POSITIONS // (group * up(p.out[1], columns)))
    candidates = [tiles(group, count) for count in range(1, min(most, up(p.out[0], group) // group) + 1)]
    fitting_too = [t for t in candidates if t.vmem <= VMEM_BYTES] or candidates[:1]
    return min(fitting_too, key=lambda t: (up(p.out[0], t.rows), -t.rows))


def _channel_tile(outputs: int, most: int) -> int:
    """All outputs where the weights fit, else the largest multiple of 128 that divides them and fits."""
    if outputs <= most:
        return outputs
    fitting = [n for n in range(LANES, outputs, LANES) if outputs % n == 0 and n <= max(most, LANES)]
    return max(fitting, default=outputs)


def _tiles(
    p: Gemm, outputs: int, lanes: int, rows: int, group: int, columns: int, residual: bool, gradient: bool
) -> Tiles:
    left = up(max(0, p.low[1]), SUBLANES)
    seen = max(left - p.low[1] + p.reach(1, up(p.out[1], columns)), left + p.space[1])
    down, across, deep, _ = p.folded
    copied = (rows - 1) * p.strides[0] + (down - 1) * p.fold * p.dilation[0] + 1
    at_once = rows_at_once(copied, up(p.space[1], SUBLANES) // SUBLANES)
    copied = up(copied, at_once)
    seen = up(seen, SUBLANES)
    scratch = (-(-deep // LANES), copied, seen, min(deep, LANES))
    wide, features = up(outputs, LANES), up(p.features, LANES)
    block = min(p.space[0], p.reach(0, rows)) * up(p.space[1], 2 * SUBLANES) * features * p.itemsize
    kernel = down * across * up(deep, SUBLANES) * wide * (4 if gradient else p.itemsize)
    copies = 0 if p.is_direct else copied * seen * up(deep, LANES) * 4
    results = rows * up(p.out[1], 2 * SUBLANES) * wide * 4 * (2 if residual else 1)
    sums = group * columns * up(lanes, LANES) * 4
    if gradient:
        copies += rows * up(p.out[1], columns) * wide * 4
        sums = down * across * up(outputs, SUBLANES) * up(deep, LANES) * 4
    vmem = 2 * (block + kernel + results + sums) + copies
    return Tiles(outputs, lanes, rows, group, columns, left, scratch, at_once, vmem)


def unfit(spec: ConvSpec, lhs: Any, rhs: Any, platform: str) -> str | None:
    """What no kernel for the matrix unit serves, in words for a user."""
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
    if spec.precision is not None and len({*spec.precision, lax.Precision.HIGH}) != 2:
        return f"precision {spec.precision}: the kernel's products have one, default or highest"
    return None


def too_large(p: Gemm, *, gradient: bool = False) -> str | None:
    """Why no tiles serve, in words for a user."""
    if math.prod(p.kernel) > MAX_TAPS:
        return f"{'x'.join(map(str, p.kernel))} taps: the kernel unrolls up to {MAX_TAPS}"
    if p.packs > 1 and (p.features % LANES or p.outputs % LANES):
        return f"packs of {p.features} to {p.outputs} channels: several need multiples of {LANES}"
    if (need := choose(p, residual=True, gradient=gradient).vmem) > VMEM_BYTES:
        return f"the smallest tiles need {need >> 20} MiB of VMEM, more than the {VMEM_BYTES >> 20} taken"
    return None
