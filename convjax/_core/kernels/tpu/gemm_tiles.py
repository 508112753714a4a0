"""How the problems of the matrix-unit kernels are arranged and cut, and whether their tiles fit into VMEM.

A grid step takes some rows of outputs of one image, all columns, and one tile of output channels. Inside it loops over
groups of rows, and over chunks of columns where rows are long, whose matrix products are unrolled over the taps.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from convjax._core.kernels.tpu.gemm_problem import Gemm, of_convolution, of_kernel_gradient, side_by_side
from convjax._core.kernels.tpu.tiles import LANES, SUBLANES, VMEM_BYTES, rows_at_once, up
from convjax._core.spec import ConvSpec, Shape

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


def forward(spec: ConvSpec, lhs: Any, rhs: Any, packs: int) -> Gemm:
    """The products of a convolution, `rhs` with the channels of a pack; a signal is an image of one row.

    1x1 convolutions of whole images are one image of as long rows as divide them into whole registers.
    """
    return _arranged(of_convolution(spec, lhs, rhs, packs), gradient=False)


def of_gradient(spec: ConvSpec, lhs: Any, rhs: Any, packs: int) -> Gemm:
    """The products of the convolution whose kernel gradient `spec` is: `lhs (C, *space, N)`, `rhs (*out, N, O)`.

    `lhs` has all channels of the input, those of every pack.
    """
    return _arranged(of_kernel_gradient(spec, lhs, rhs, packs), gradient=True)


def _arranged(p: Gemm, *, gradient: bool) -> Gemm:
    """With images side by side where that is how XLA has them, and as one matrix where taps and strides allow."""
    if p.packs == 1:
        p = dataclasses.replace(p, fold=max(1, min(p.kernel[0], LANES // p.features)))
    beside = next((n for n in BESIDE if p.batch % n == 0), 1)
    if beside > 1 and p.space[1] % SUBLANES:
        wide = side_by_side(p, beside)
        p = wide if choose(wide, residual=True, gradient=gradient).vmem <= VMEM_BYTES else p
    if gradient or p.kernel != (1, 1) or p.strides != (1, 1) or any(p.low) or p.out != p.space:
        return p
    positions = p.batch * math.prod(p.space)
    columns = next((c for c in range(COLUMNS, 0, -2 * SUBLANES) if positions % c == 0), None)
    if columns is None:
        return p
    space = (positions // columns, columns)
    return dataclasses.replace(p, batch=1, beside=1, space=space, out=space, is_direct=True)


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


def too_large(p: Gemm, *, gradient: bool = False) -> str | None:
    """Why no tiles serve, in words for a user."""
    if math.prod(p.kernel) > MAX_TAPS:
        return f"{'x'.join(map(str, p.kernel))} taps: the kernel unrolls up to {MAX_TAPS}"
    if p.packs > 1 and (p.features % LANES or p.outputs % LANES):
        return f"packs of {p.features} to {p.outputs} channels: several need multiples of {LANES}"
    if (need := choose(p, residual=True, gradient=gradient).vmem) > VMEM_BYTES:
        return f"the smallest tiles need {need >> 20} MiB of VMEM, more than the {VMEM_BYTES >> 20} taken"
    return None
