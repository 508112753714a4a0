"""Sum of shifted products: one fused pass over the input per kernel tap.

For depthwise and narrow groups, where a matrix product would have next to nothing to multiply. The fusion reads the
input where it lies. Outputs whose tap falls outside read the nearest input instead and select a zero: a copy with
zeros around costs as much as the products of 3x3 taps, and its pages more than both once it is larger than malloc
recycles (3x3/2 96 @112 N8: 16 ms with the copy, 2.4 ms without). Groups of several channels, and a scan over taps that
are too many for one fusion, take theirs from a padded copy.
Cost: taps x output elements x channels per group multiply-adds, read and written once by XLA's fusion.
Error: that of direct summation in the accumulation dtype, each kernel row summed by itself.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from convjax._core.arrange import block_counts, block_shape, group_sizes, grouped, pad_space, unravel
from convjax._core.dtypes import accumulator, output_dtype
from convjax._core.geometry import Geometry, Work
from convjax._core.spec import ConvSpec, Shape, dilate

# 8 was timed (3x3 256 @28 N8, 5.7 ms), nothing above it.
MAX_CHANNELS_PER_GROUP = 8
# Products in one fusion: 49 (7x7) take 4.2 ms at once and 5.8 ms in blocks of 32; 72 (3x3, 8 channels) 7.5 and 4.3.
UNROLLED_PRODUCTS = 64
SCANNED_PRODUCTS = 32  # in the body of the scan that serves more: 31x31 6.4 ms, 12.5 ms with 64


def supports(spec: ConvSpec, lhs: Any, rhs: Any, platform: str) -> str | None:
    """None where this algorithm can serve, else the reason why not, in words for a user."""
    _, channels, _ = group_sizes(spec, lhs.shape, rhs.shape)
    if channels > MAX_CHANNELS_PER_GROUP:
        return f"{channels} channels a group: a matrix product is cheaper above {MAX_CHANNELS_PER_GROUP}"
    return None


def work(g: Geometry) -> Work:
    scanned = g.taps * g.features > UNROLLED_PRODUCTS
    passes = max(1, g.taps * g.features // SCANNED_PRODUCTS) if scanned else 1
    kind = "taps, gradient" if g.is_kernel_gradient else "taps"
    kind += ", thin" if g.rhs[-1] < 16 else "" if g.features == 1 else ", grouped"
    kind += ", scanned" if scanned else ""
    read = g.padded if scanned or g.features > 1 else g.elements[0]
    return Work(kind, g.macs, read + passes * g.elements[2], passes)


def run(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    dtype = accumulator(spec, lhs.dtype)
    out_shape = spec.out_shape(lhs.shape, rhs.shape)
    space = out_shape[1:-1]
    lhs, rhs = grouped(spec, lhs, rhs)
    if rhs.shape[-3] * math.prod(rhs.shape[:-3]) <= UNROLLED_PRODUCTS:
        total = _unrolled(spec, lhs, rhs, space, dtype)
    else:
        total = _scanned(spec, lhs, rhs, space, dtype)
    return total.reshape(out_shape).astype(output_dtype(spec, lhs.dtype))


def _unrolled(spec: ConvSpec, lhs: Array, rhs: Array, space: Sequence[int], dtype: Any) -> Array:
    kernel, sizes = rhs.shape[:-3], lhs.shape[1:-2]
    if lhs.shape[-1] > 1:  # channels are picked out of what a tap meets: each would make XLA gather it anew
        lhs = lax.optimization_barrier(pad_space(lhs, spec.padding, spec.lhs_dilation))
        return _sum(lhs, rhs, _inside(spec, kernel), space, dtype)
    axes = []
    for i, (low, _) in enumerate(spec.padding):
        starts = range(-low, kernel[i] * spec.rhs_dilation[i] - low, spec.rhs_dilation[i])
        axes.append([_meet(start, spec.strides[i], space[i], sizes[i], spec.lhs_dilation[i]) for start in starts])
    return _sum(lhs, rhs, axes, space, dtype)


def _scanned(spec: ConvSpec, lhs: Array, rhs: Array, space: Sequence[int], dtype: Any) -> Array:
    kernel = rhs.shape[:-3]
    block = block_shape(kernel, max(1, SCANNED_PRODUCTS // max(1, lhs.shape[-1])))
    counts = block_counts(kernel, block)
    extra = [n * b - k for n, b, k in zip(counts, block, kernel, strict=True)]  # zero taps that complete the last block
    padding = [(lo, hi + e * d) for (lo, hi), e, d in zip(spec.padding, extra, spec.rhs_dilation, strict=True)]
    lhs = lax.optimization_barrier(pad_space(lhs, padding, spec.lhs_dilation))
    rhs = pad_space(rhs, [(0, e) for e in extra], (1,) * spec.ndim, first=0)
    reach = [
        (o - 1) * s + (b - 1) * d + 1 for o, s, b, d in zip(space, spec.strides, block, spec.rhs_dilation, strict=True)
    ]
    axes = _inside(spec, block)

    def step(total: Array, index: Array) -> tuple[Array, None]:
        first = [i * b for i, b in zip(unravel(index, counts), block, strict=True)]
        part = lax.dynamic_slice(
            lhs,
            (0, *(i * d for i, d in zip(first, spec.rhs_dilation, strict=True)), 0, 0),
            (lhs.shape[0], *reach, *lhs.shape[-2:]),
        )
        taps = lax.dynamic_slice(rhs, (*first, 0, 0, 0), (*block, *rhs.shape[-3:]))
        return lax.add(total, _sum(part, taps, axes, space, dtype)), None

    total = jnp.zeros((lhs.shape[0], *space, rhs.shape[-2], rhs.shape[-1]), dtype)
    return lax.scan(step, total, jnp.arange(math.prod(counts)))[0]


# --- what a tap meets -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Met:
    """What one tap of one axis meets: inputs at `start + i * step`, or, where some outputs meet none, at `index`.

    Attributes:
      start: of the first output.
      step: from one output to the next.
      index: of an input for each output, the nearest for those that meet none; None where all of them meet one.
      valid: which outputs meet one, a condition or more.
    """

    start: int
    step: int
    index: Array | None = None
    valid: tuple[Array, ...] = ()

    def at(self, count: int) -> Array:
        """The `index` of each of so many outputs, also where all of them meet an input."""
        if self.index is not None:
            return self.index
        return lax.add(lax.mul(lax.iota(np.int32, count), np.int32(self.step)), np.int32(self.start))


def _inside(spec: ConvSpec, kernel: Sequence[int]) -> list[list[_Met | None]]:
    """For an input that is padded and dilated already."""
    return [
        [_Met(t * dilation, stride) for t in range(taps)]
        for taps, stride, dilation in zip(kernel, spec.strides, spec.rhs_dilation, strict=True)
    ]


def _meet(start: int, stride: int, count: int, size: int, dilation: int) -> _Met | None:
    """For outputs `i < count` at `start + i * stride` of `size` inputs `dilation` apart; None where all miss."""
    last = start + (count - 1) * stride
    end = dilate(size, dilation) - 1
    aligned = stride % dilation == 0 or count == 1
    if last < 0 or start > end or (aligned and start % dilation):
        return None
    if aligned and start >= 0 and last <= end:
        return _Met(start // dilation, max(1, stride // dilation))
    index = lax.iota(np.int32, count)
    of = lambda value: lax.full_like(index, value)
    at = lax.add(lax.mul(index, of(stride)), of(start))
    index, valid = at, []
    if start < 0:
        valid.append(lax.ge(at, of(0)))
        index = lax.max(index, of(0))
    if last > end:
        valid.append(lax.le(at, of(end)))
        index = lax.min(index, of(end))
    if dilation > 1:
        if not aligned:
            valid.append(lax.eq(lax.rem(index, of(dilation)), of(0)))
        index = lax.div(index, of(dilation))
    return _Met(start, stride, index, tuple(valid))


def _sum(lhs: Array, rhs: Array, axes: Sequence[Sequence[_Met | None]], space: Sequence[int], dtype: Any) -> Array:
    """The product of every tap with the inputs that it meets, summed; `axes` has what each tap of each axis meets.

    The channels of a tap and the taps of a kernel row are summed apart: in one chain of 49 or 72 additions each would
    wait for the one before it.
    """
    n, shape = len(space), (lhs.shape[0], *space, *rhs.shape[-2:])
    zeros = lax.full(shape, 0, dtype)
    masks = [[_mask(met, 1 + i, shape) for met in axis] for i, axis in enumerate(axes)]
    load = _loads(lhs, axes, space)
    rhs = lax.convert_element_type(rhs, dtype)

    def product(x: Array, tap: Shape, channel: int) -> Array:
        w = lax.slice(rhs, (*tap, channel, 0, 0), (*(t + 1 for t in tap), channel + 1, *shape[-2:])).reshape(shape[-2:])
        if lhs.shape[-1] > 1 or shape[-1] > 1:
            x = lax.broadcast_in_dim(lax.index_in_dim(x, channel, n + 2, keepdims=False), shape, range(n + 2))
        # A mask before a product that is added at once, not after it: the sum stays one instruction.
        return lax.mul(
            _where(masks[-1][tap[-1]] if n else [], x, zeros), lax.broadcast_in_dim(w, shape, (n + 1, n + 2))
        )

    rows = []
    for lead, row in itertools.groupby(np.ndindex(*rhs.shape[:-3]), lambda tap: tap[:-1]):
        met = [(tap, lax.convert_element_type(x, dtype)) for tap in row if (x := load(tap)) is not None]
        sums = [functools.reduce(lax.add, [product(x, tap, c) for c in range(lhs.shape[-1])]) for tap, x in met]
        if sums:
            outside = itertools.chain(*(mask[t] for mask, t in zip(masks, lead, strict=False)))
            rows.append(_where(outside, functools.reduce(lax.add, sums), zeros))
    return functools.reduce(lax.add, rows) if rows else zeros


def _loads(lhs: Array, axes: Sequence[Sequence[_Met | None]], space: Sequence[int]) -> Callable[[Shape], Array | None]:
    """What a tap meets, as `(batch, *space, groups, features)`; None where it meets nothing.

    One gather over all spatial axes at once: LLVM proves of a single index, and not of one after another, that what is
    read is not what is written, without which it makes no vectors.
    """
    n, sizes = len(space), lhs.shape[1:-2]
    pitch = [math.prod(sizes[i + 1 :]) for i in range(n)]
    flat = lhs.reshape(lhs.shape[0], -1, *lhs.shape[-2:])
    numbers = lax.GatherDimensionNumbers((0, n + 1, n + 2), collapsed_slice_dims=(1,), start_index_map=(1,))

    @functools.cache
    def positions(axis: int, tap: int) -> Array:
        met = axes[axis][tap]
        assert met is not None  # asked for where all axes meet something
        index = met.at(space[axis])
        return lax.broadcast_in_dim(lax.mul(index, lax.full_like(index, pitch[axis])), (*space, 1), (axis,))

    def load(tap: Shape) -> Array | None:
        met = [m for axis, t in zip(axes, tap, strict=True) if (m := axis[t]) is not None]
        if len(met) < n:
            return None
        if all(m.index is None for m in met):
            limits = [m.start + dilate(count, m.step) for m, count in zip(met, space, strict=True)]
            steps = (1, *(m.step for m in met), 1, 1)
            return lax.slice(lhs, (0, *(m.start for m in met), 0, 0), (lhs.shape[0], *limits, *lhs.shape[-2:]), steps)
        index = functools.reduce(lax.add, [positions(i, t) for i, t in enumerate(tap)])
        mode = lax.GatherScatterMode.PROMISE_IN_BOUNDS
        return lax.gather(flat, index, numbers, (flat.shape[0], 1, *flat.shape[2:]), mode=mode)

    return load


def _mask(met: _Met | None, axis: int, shape: Shape) -> list[Array]:
    return [lax.broadcast_in_dim(valid, shape, (axis,)) for valid in met.valid] if met else []


def _where(masks: Iterable[Array], a: Array, zeros: Array) -> Array:
    masks = list(masks)
    return lax.select(functools.reduce(lax.bitwise_and, masks), a, zeros) if masks else a
