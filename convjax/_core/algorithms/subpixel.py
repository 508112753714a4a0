"""Sub-pixel phases: a convolution of a dilated input as convolutions of the input itself.

Of a transposed convolution's products all but one in `prod(lhs_dilation)` have an inserted zero as a factor. Outputs
that are `lhs_dilation / gcd(stride, lhs_dilation)` apart meet the same taps, so along each axis they form a phase: an
ordinary convolution of the undilated input with every so many-th tap. The phases are interleaved at the end.

Cost: the products of nonzero inputs only, and one pass over the output to interleave.
Error: that of the convolution that serves the phases.
Source: Shi et al., arXiv:1609.07009, generalised to any stride, kernel dilation and padding.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from convjax._core.dtypes import output_dtype
from convjax._core.geometry import Geometry, Work
from convjax._core.primitive import convolve
from convjax._core.spec import ConvSpec

# Each phase is a convolution of its own in the program, and each is compiled.
MAX_PHASES = 64


@dataclasses.dataclass(frozen=True)
class Phase:
    """What outputs `r, r + period, r + 2 * period, ...` of one axis see of its input and kernel."""

    taps: slice  # which taps of the kernel meet an input and not an inserted zero
    stride: int
    dilation: int
    padding: tuple[int, int]


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
    for offsets in itertools.product(*map(range, periods)):
        axes = [axis_phase(spec, i, r, g.lhs[1 + i], g.rhs[i], lengths[i]) for i, r in enumerate(offsets)]
        met = [axis for axis in axes if axis is not None]
        if len(met) == len(axes):
            taps = tuple(len(range(*axis.taps.indices(k))) for axis, k in zip(met, g.kernel, strict=True))
            parts.append((1, Geometry(phase_spec(spec, met), g.lhs, (*taps, *g.rhs[-2:]), g.dtype)))
    return Work("subpixel", 0, g.elements[2], math.prod(periods), tuple(parts))


def run(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    out = spec.out_space(lhs.shape, rhs.shape)
    periods = tuple(map(period, spec.strides, spec.lhs_dilation))
    lengths = tuple(-(-size // step) for size, step in zip(out, periods, strict=True))
    phases = []
    for offsets in itertools.product(*map(range, periods)):
        axes = [axis_phase(spec, i, r, lhs.shape[1 + i], rhs.shape[i], lengths[i]) for i, r in enumerate(offsets)]
        phases.append(convolve_phase(spec, axes, lengths, lhs, rhs))
    return interleave(phases, periods, out)


def period(stride: int, dilation: int) -> int:
    """How many outputs on the same taps come round again."""
    return dilation // math.gcd(stride, dilation)


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
    axes: list[Phase | None],
    lengths: tuple[int, ...],
    lhs: Array,
    rhs: Array,
) -> Array:
    met = [axis for axis in axes if axis is not None]
    if len(met) < len(axes):
        return jnp.zeros((lhs.shape[0] // spec.batch_groups, *lengths, rhs.shape[-1]), output_dtype(spec, lhs.dtype))
    return convolve(lhs, rhs[tuple(axis.taps for axis in met)], phase_spec(spec, met))


def phase_spec(spec: ConvSpec, axes: list[Phase]) -> ConvSpec:
    return spec.auto(
        strides=tuple(axis.stride for axis in axes),
        padding=tuple(axis.padding for axis in axes),
        lhs_dilation=(1,) * spec.ndim,
        rhs_dilation=tuple(axis.dilation for axis in axes),
    )


def interleave(phases: list[Array], periods: tuple[int, ...], out: tuple[int, ...]) -> Array:
    """Output `(.., m * period + r, ..)` from phase `r` at `m`."""
    n = len(periods)
    batch, *lengths, features = phases[0].shape
    grid = jnp.stack(phases).reshape(*periods, batch, *lengths, features)
    order = [n, *itertools.chain.from_iterable((n + 1 + i, i) for i in range(n)), 2 * n + 1]
    whole = grid.transpose(order).reshape(batch, *map(int.__mul__, lengths, periods), features)
    return lax.slice(whole, (0,) * (n + 2), (batch, *out, features))
