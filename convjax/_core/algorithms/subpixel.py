"""Sub-pixel phases: a convolution of a dilated input as convolutions of the input itself.

Of a transposed convolution's products all but one in `prod(lhs_dilation)` have an inserted zero as a factor. Outputs
that are `lhs_dilation / gcd(stride, lhs_dilation)` apart meet the same taps, so along each axis they form a phase: an
ordinary convolution of the undilated input with every so many-th tap. The phases are interleaved at the end.

Many phases that differ only in where they begin are one loop: three axes have eight, whose dozens of matrix products
take seconds to compile one by one.

Cost: the products of nonzero inputs only, and one pass over the output to interleave.
Error: that of the convolution that serves the phases.
Source: Shi et al., arXiv:1609.07009, generalised to any stride, kernel dilation and padding.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from convjax._core.arrange import pad_space
from convjax._core.dtypes import as_bits, as_floats, output_dtype
from convjax._core.geometry import Geometry, Work
from convjax._core.primitive import convolve
from convjax._core.spec import ConvSpec, Shape

# Phases that are not alike are convolutions of their own in the program, and each is compiled.
MAX_PHASES = 64
# Fewer than these stay apart: on two axes the four phases of a kernel 4x4 run side by side, on padding of their own.
LOOPED_PHASES = 8


@dataclasses.dataclass(frozen=True)
class Phase:
    """What outputs `r, r + period, r + 2 * period, ...` of one axis see of its input and kernel."""

    taps: slice  # which taps of the kernel meet an input and not an inserted zero
    stride: int
    dilation: int
    padding: tuple[int, int]

    def count(self, taps: int) -> int:
        """How many of the kernel's taps."""
        return len(range(*self.taps.indices(taps)))


def supports(spec: ConvSpec, lhs: Any, rhs: Any, platform: str) -> str | None:
    """None where this algorithm can serve, else the reason why not, in words for a user."""
    if all(dilation == 1 for dilation in spec.lhs_dilation):
        return "the input is not dilated: there are no zeros to skip"
    if (number := math.prod(map(period, spec.strides, spec.lhs_dilation))) > MAX_PHASES:
        return f"{number} phases would make {number} convolutions: at most {MAX_PHASES} are unrolled"
    return None


def work(g: Geometry) -> Work:
    spec = g.spec
    periods = tuple(map(period, spec.strides, spec.lhs_dilation))
    lengths = tuple(-(-size // step) for size, step in zip(g.out, periods, strict=True))
    parts = []
    for axes in itertools.product(*axis_phases(spec, periods, lengths, g.lhs, g.rhs)):
        met = [axis for axis in axes if axis is not None]
        if len(met) == len(axes):
            taps = tuple(axis.count(k) for axis, k in zip(met, g.kernel, strict=True))
            parts.append((1, Geometry(phase_spec(spec, met), g.lhs, (*taps, *g.rhs[-2:]), g.dtype)))
    return Work("subpixel", 0, g.elements[2], math.prod(periods), tuple(parts))


def run(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    out = spec.out_space(lhs.shape, rhs.shape)
    periods = tuple(map(period, spec.strides, spec.lhs_dilation))
    lengths = tuple(-(-size // step) for size, step in zip(out, periods, strict=True))
    phases = axis_phases(spec, periods, lengths, lhs.shape, rhs.shape)
    if is_looped(spec, phases, rhs.shape):
        return interleave(looped(spec, phases, lhs, rhs), periods, out)
    apart = [convolve_phase(spec, axes, lengths, lhs, rhs) for axes in itertools.product(*phases)]
    return interleave(jnp.stack(apart), periods, out)


def is_looped(spec: ConvSpec, phases: list[list[Phase | None]], rhs: Shape) -> bool:
    """Whether the phases are many, and alike; those of narrow groups are fused, and compiled soon."""
    if spec.groups > 1 or math.prod(map(len, phases)) < LOOPED_PHASES or any(None in axis for axis in phases):
        return False
    counts = ({phase.count(k) for phase in axis if phase} for axis, k in zip(phases, rhs, strict=False))
    return all(len(count) == 1 for count in counts)


def looped(spec: ConvSpec, phases: list[list[Phase | None]], lhs: Array, rhs: Array) -> Array:
    """The phases, stacked: each sees a window of one padded input."""
    axes = [[phase for phase in axis if phase is not None] for axis in phases]
    low = [max(phase.padding[0] for phase in axis) for axis in axes]
    high = [max(phase.padding[1] for phase in axis) for axis in axes]
    bits = as_bits(pad_space(lhs, list(zip(low, high, strict=True)), (1,) * spec.ndim))
    each = list(itertools.product(*axes))
    window = [lhs.shape[1 + i] + sum(phase.padding) for i, phase in enumerate(each[0])]
    starts = np.array([[lo - phase.padding[0] for lo, phase in zip(low, met, strict=True)] for met in each])
    kernels = jnp.stack([rhs[tuple(axis.taps for axis in met)] for met in each])
    unpadded = phase_spec(spec, each[0]).replace(padding=((0, 0),) * spec.ndim)

    def phase(taken: tuple[Array, Array]) -> Array:
        start, kernel = taken
        seen = lax.dynamic_slice(bits, (0, *start, 0), (lhs.shape[0], *window, lhs.shape[-1]))
        return as_bits(convolve(as_floats(seen, lhs.dtype), as_floats(kernel, rhs.dtype), unpadded))

    done = lax.map(phase, (jnp.asarray(starts), as_bits(kernels)))
    return as_floats(done, output_dtype(spec, lhs.dtype))


def period(stride: int, dilation: int) -> int:
    """How many outputs on the same taps come round again."""
    return dilation // math.gcd(stride, dilation)


def axis_phases(spec: ConvSpec, periods: Shape, lengths: Shape, lhs: Shape, rhs: Shape) -> list[list[Phase | None]]:
    """Of each axis, its phases in order."""
    return [
        [axis_phase(spec, i, r, lhs[1 + i], rhs[i], lengths[i]) for r in range(period)]
        for i, period in enumerate(periods)
    ]


def axis_phase(spec: ConvSpec, axis: int, offset: int, size: int, taps: int, length: int) -> Phase | None:
    """The phase of outputs `offset + m * period`, `m < length`; None where every tap falls on an inserted zero.

    Output `o` and tap `t` meet the dilated input at `o * stride + t * rhs_dilation - lo`, which holds an input where
    it is a multiple of `lhs_dilation`.
    """
    stride, lhs_dilation, rhs_dilation = spec.strides[axis], spec.lhs_dilation[axis], spec.rhs_dilation[axis]
    tap_step = period(rhs_dilation, lhs_dilation)
    origin = offset * stride - spec.padding[axis][0]
    first = next((t for t in range(min(tap_step, taps)) if (origin + t * rhs_dilation) % lhs_dilation == 0), None)
    if first is None:
        return None
    phase_stride = stride // math.gcd(stride, lhs_dilation)
    phase_dilation = rhs_dilation // math.gcd(rhs_dilation, lhs_dilation)
    lo = -(origin + first * rhs_dilation) // lhs_dilation
    window = (len(range(first, taps, tap_step)) - 1) * phase_dilation + 1
    hi = (length - 1) * phase_stride + window - size - lo
    return Phase(slice(first, None, tap_step), phase_stride, phase_dilation, (lo, hi))


def convolve_phase(
    spec: ConvSpec,
    axes: Sequence[Phase | None],
    lengths: tuple[int, ...],
    lhs: Array,
    rhs: Array,
) -> Array:
    met = [axis for axis in axes if axis is not None]
    if len(met) < len(axes):
        return jnp.zeros((lhs.shape[0] // spec.batch_groups, *lengths, rhs.shape[-1]), output_dtype(spec, lhs.dtype))
    return convolve(lhs, rhs[tuple(axis.taps for axis in met)], phase_spec(spec, met))


def phase_spec(spec: ConvSpec, axes: Sequence[Phase]) -> ConvSpec:
    return spec.auto(
        strides=tuple(axis.stride for axis in axes),
        padding=tuple(axis.padding for axis in axes),
        lhs_dilation=(1,) * spec.ndim,
        rhs_dilation=tuple(axis.dilation for axis in axes),
    )


def interleave(phases: Array, periods: tuple[int, ...], out: tuple[int, ...]) -> Array:
    """Output `(.., m * period + r, ..)` from phase `r` at `m`; the phases are stacked along the first axis."""
    n = len(periods)
    _, batch, *lengths, features = phases.shape
    grid = phases.reshape(*periods, batch, *lengths, features)
    order = [n, *itertools.chain.from_iterable((n + 1 + i, i) for i in range(n)), 2 * n + 1]
    whole = grid.transpose(order).reshape(batch, *map(int.__mul__, lengths, periods), features)
    return lax.slice(whole, (0,) * (n + 2), (batch, *out, features))
