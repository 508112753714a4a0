"""From a user's arguments to a problem and where it samples. Every argument error of the deformable ones ends here."""

from __future__ import annotations

import dataclasses
import itertools
import math
from numbers import Real
from typing import Any

import jax.numpy as jnp
from jax import Array

from convjax._core import arguments, canonical
from convjax._core import padding as pad
from convjax._core.canonical import Problem
from convjax._deformable.blocks import Sampling


def convolution(where: str, x: Any, w: Any, **options: Any) -> Problem:
    """The convolution of the same sizes; what negative padding crops is outside already."""
    problem = canonical.conv(
        where,
        x,
        w,
        input_dilation=1,
        padding_mode="zeros",
        flip_kernel=False,
        layout="channels_last",
        algorithm="auto",
        **options,
    )
    if not jnp.issubdtype(problem.lhs.dtype, jnp.inexact):
        raise TypeError(
            f"{where}: x is {problem.lhs.dtype}, but samples lie between pixels. Type x.astype(jnp.float32), and w too."
        )
    crop = tuple((min(lo, 0), min(hi, 0)) for lo, hi in problem.spec.padding)
    lhs = pad.pad_by_mode(where, problem.lhs, crop, ("zeros",) * len(crop))
    spec = problem.spec.replace(padding=tuple((max(lo, 0), max(hi, 0)) for lo, hi in problem.spec.padding))
    return dataclasses.replace(problem, lhs=lhs, spec=spec)


def sampling_of_kernel(where: str, problem: Problem, offset_groups: Any) -> Sampling:
    """Where the taps of `deform_conv` lie: row by row, counted from the first."""
    spec, kernel = problem.spec, problem.rhs.shape[:-2]
    axes = [range(0, k * d, d) for k, d in zip(kernel, spec.rhs_dilation, strict=True)]
    return Sampling(
        out=spec.out_space(problem.lhs.shape, problem.rhs.shape),
        start=tuple(-lo for lo, _ in spec.padding),
        stride=spec.strides,
        taps=tuple(itertools.product(*axes)),
        groups=parts(where, "offset_groups", offset_groups, problem.lhs.shape[-1]),
    )


def window(
    where: str,
    x: Any,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    offset_scale: Any,
    remove_center: Any,
) -> tuple[Problem, Sampling]:
    """A problem without a kernel, and taps around the centre of the window, column by column; offsets are (x, y)."""
    kernel = arguments.per_axis(where, "kernel_size", kernel_size, 2, minimum=1)
    x = arguments.array(where, "x", x)
    if x.ndim < 3:
        raise ValueError(
            f"{where}: x has shape {x.shape}, but must be (*batch, H, W, C). Type x[None] for one channel."
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{where}: x is {x.dtype}, but must be floating. Type x.astype(jnp.float32).")
    problem = convolution(
        where,
        x,
        jnp.zeros((*kernel, 1, x.shape[-1]), x.dtype),  # sizes are those of a depthwise convolution
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=x.shape[-1],
        precision=None,
        preferred_element_type=None,
    )
    arguments.static(where, "offset_scale", offset_scale)
    if not isinstance(offset_scale, Real) or not math.isfinite(offset_scale):
        raise ValueError(f"{where}: offset_scale must be a finite number, got {offset_scale!r}. Type offset_scale=1.0.")
    spec = problem.spec
    centre = [d * (k - 1) // 2 for k, d in zip(kernel, spec.rhs_dilation, strict=True)]
    rows, columns = (
        [(t * d - c) * float(offset_scale) for t in range(k)]
        for k, d, c in zip(kernel, spec.rhs_dilation, centre, strict=True)
    )
    taps = [(row, column) for column in columns for row in rows]
    if arguments.flag(where, "remove_center", remove_center):
        if not all(k % 2 for k in kernel):
            raise ValueError(
                f"{where}: remove_center=True, but a window of {kernel} has no tap at its centre. Type an odd "
                "kernel_size, or remove_center=False."
            )
        del taps[len(taps) // 2]
    return problem, Sampling(
        out=spec.out_space(problem.lhs.shape, problem.rhs.shape),
        start=tuple(c - lo for c, (lo, _) in zip(centre, spec.padding, strict=True)),
        stride=spec.strides,
        taps=tuple(taps),
        groups=parts(where, "groups", groups, x.shape[-1]),
        scale=float(offset_scale),
    )


def parts(where: str, name: str, value: Any, channels: int) -> int:
    """How many equal parts the channels of `x` have."""
    parts = arguments.integer(where, name, value, minimum=1)
    if channels % parts:
        fit = [d for d in range(1, channels + 1) if channels % d == 0]
        raise ValueError(
            f"{where}: {name}={parts} does not divide the {channels} channels of x. Type {name}= one of "
            f"{', '.join(map(str, fit[:12]))}."
        )
    return parts


def displacements(where: str, name: str, value: Any, problem: Problem, sampling: Sampling, each: int) -> Array:
    """An offset or a mask: `each` numbers for every tap of every group, returned with one batch axis."""
    value = arguments.array(where, name, value)
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(f"{where}: {name} must be floating, got {value.dtype}. Type {name}.astype(jnp.float32).")
    taps = len(sampling.taps)
    expected = (*problem.batch, *sampling.out, sampling.groups * taps * each)
    if value.shape != expected:
        axes = f" * {each} axes" if each > 1 else ""
        raise ValueError(
            f"{where}: {name} has shape {value.shape}, but must be (*batch, *out, {sampling.groups} groups * {taps} "
            f"taps{axes}) = {expected}. Type {name} of that shape, channels last, or another stride or padding."
        )
    return value.reshape(problem.lhs.shape[0], *expected[len(problem.batch) :])
