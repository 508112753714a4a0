"""Reading the arguments of a transposed convolution, the gradient of a forward one: paddings crop its output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from convjax._core import arguments
from convjax._core import padding as pad
from convjax._core.canonical import Problem, check_divides, check_output, options, read
from convjax._core.spec import ConvSpec, dilate


def conv_transpose(
    where: str,
    x: Any,
    w: Any,
    *,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    output_padding: Any,
    output_shape: Any,
    padding_mode: Any,
    flip_kernel: Any,
    layout: Any,
    **rest: Any,
) -> Problem:
    """The gradient of a forward convolution, as a convolution with input dilation: `crop` is the forward padding."""
    lhs, rhs, groups, order, batch = read(where, x, w, groups=groups, layout=layout)
    n = rhs.ndim - 2
    strides = arguments.per_axis(where, "stride", stride, n, minimum=1)
    rhs_dilation = arguments.per_axis(where, "dilation", dilation, n, minimum=1)
    if lhs.shape[-1] != rhs.shape[-2]:
        raise ValueError(
            f"{where}: x has {lhs.shape[-1]} channels but w of shape {tuple(rhs.shape)} (*k, C_in, C_out // groups) "
            f"expects {rhs.shape[-2]}. Type a kernel of shape {(*rhs.shape[:n], lhs.shape[-1], rhs.shape[-1])}, or "
            "layout=... if the channels of x are not last."
        )
    check_divides(where, f"x of {lhs.shape[-1]} channels", lhs.shape[-1], groups)
    spec = ConvSpec((1,) * n, ((0, 0),) * n, strides, rhs_dilation, groups, **options(where, dtype=lhs.dtype, **rest))
    windows, sizes = spec.window(rhs.shape), lhs.shape[1:-1]
    crops, extra = _crops(where, padding, sizes, windows, strides)
    extra = _output_padding(where, output_padding, output_shape, sizes, windows, strides, rhs_dilation, crops, extra)
    if not arguments.flag(where, "flip_kernel", flip_kernel):
        rhs = jnp.flip(rhs, tuple(range(n)))
    rhs = rhs.reshape(*rhs.shape[:n], groups, rhs.shape[n] // groups, rhs.shape[n + 1])
    rhs = jnp.moveaxis(rhs, n, n + 1).reshape(*rhs.shape[:n], rhs.shape[n + 1], groups * rhs.shape[n + 2])
    pairs = tuple((w - 1 - lo, w - 1 - hi + e) for w, (lo, hi), e in zip(windows, crops, extra, strict=True))
    lhs, spec = _extend(where, lhs, spec, pairs, pad.modes(where, padding_mode, n))
    check_output(where, lhs, rhs, spec)
    return Problem(lhs, rhs, spec, order, batch)


def _crops(
    where: str, value: Any, sizes: Sequence[int], windows: Sequence[int], strides: Sequence[int]
) -> tuple[pad.Pairs, tuple[int, ...]]:
    """What to cut from each end of the full output, and how much to add at its end."""
    if not isinstance(value, str):
        return pad.explicit(where, value, len(sizes)), (0,) * len(sizes)
    name = arguments.choice(where, "padding", value, ("SAME", "SAME_LOWER", "VALID", "CAUSAL"))
    surplus = [w - s for w, s in zip(windows, strides, strict=True)]
    extra = tuple(max(0, -s) for s in surplus)
    cut = [max(0, s) for s in surplus]
    if name == "VALID":
        return ((0, 0),) * len(sizes), extra
    low = {"SAME": [c // 2 for c in cut], "SAME_LOWER": [c - c // 2 for c in cut], "CAUSAL": [0] * len(cut)}[name]
    return tuple((lo, c - lo) for lo, c in zip(low, cut, strict=True)), extra


def _output_padding(
    where: str,
    output_padding: Any,
    output_shape: Any,
    sizes: Sequence[int],
    windows: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    crops: pad.Pairs,
    extra: Sequence[int],
) -> tuple[int, ...]:
    n = len(sizes)
    limits = [max(s, d) for s, d in zip(strides, dilations, strict=True)]
    base = [
        dilate(size, s) + w - 1 - lo - hi + e
        for size, s, w, (lo, hi), e in zip(sizes, strides, windows, crops, extra, strict=True)
    ]
    added = arguments.per_axis(where, "output_padding", output_padding, n, minimum=0)
    if output_shape is not None:
        if any(added):
            raise ValueError(
                f"{where}: output_padding={output_padding!r} and output_shape={output_shape!r} both say how long the "
                "output is. Type one."
            )
        shape = arguments.per_axis(where, "output_shape", output_shape, n, minimum=0)
        added = tuple(want - have for want, have in zip(shape, base, strict=True))
    for i, (a, limit) in enumerate(zip(added, limits, strict=True)):
        if not 0 <= a < limit:
            given = f"output_shape[{i}]={base[i] + a}" if output_shape is not None else f"output_padding[{i}]={a}"
            raise ValueError(
                f"{where}: {given} is out of reach: with stride {strides[i]} and dilation {dilations[i]} an input of "
                f"{sizes[i]} gives from {base[i]} to {base[i] + limit - 1} outputs on spatial axis {i} "
                f"(output_padding from 0 to {limit - 1}). Type one of these, or another stride or padding."
            )
    return tuple(e + a for e, a in zip(extra, added, strict=True))


def _extend(
    where: str, lhs: Array, spec: ConvSpec, pairs: pad.Pairs, modes: Sequence[str | float]
) -> tuple[Array, ConvSpec]:
    """Extend the undilated input by its mode as far as the kernel reaches; the rest are zeros between neighbours."""
    widths, after = [], []
    for (lo, hi), written, dilation in zip(pairs, pad.written(modes), spec.lhs_dilation, strict=True):
        width = (max(0, lo // dilation), max(0, hi // dilation)) if written else (0, 0)
        widths.append(width)
        after.append((lo - width[0] * dilation, hi - width[1] * dilation))
    lhs = pad.pad_by_mode(where, lhs, tuple(widths), modes)
    return lhs, spec.replace(padding=tuple(after))
