"""From a user's arguments to channels-last operands and a ConvSpec. Every argument error ends here."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from convjax._core import arguments
from convjax._core import padding as pad
from convjax._core.algorithms import ALGORITHMS
from convjax._core.dtypes import default_integer_output, output_dtype
from convjax._core.layout import Layout, parse
from convjax._core.primitive import convolve
from convjax._core.spec import ConvSpec, dilate


@dataclasses.dataclass(frozen=True)
class Problem:
    """A convolution ready to run: canonical operands, spec, and the way back to the user's layout."""

    lhs: Array
    rhs: Array
    spec: ConvSpec
    layout: Layout
    batch: tuple[int, ...]

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of the result in the user's layout."""
        shape = (*self.batch, *self.spec.out_shape(self.lhs.shape, self.rhs.shape)[1:])
        return tuple(shape[self.layout.out.index(axis)] for axis in range(len(shape)))

    @property
    def out_dtype(self) -> np.dtype:
        return output_dtype(self.spec, self.lhs.dtype)

    def run(self) -> Array:
        spec = self.spec.replace(channels_first=self.layout.is_channels_first)
        return self.layout.restore(convolve(self.lhs, self.rhs, spec), self.batch)


def read(where: str, x: Any, w: Any, *, groups: Any, layout: Any) -> tuple[Array, Array, int, Layout, tuple[int, ...]]:
    """Operands in canonical order, the number of groups, and the layout they came in."""
    x, w = arguments.operands(where, x=x, w=w)
    if w.ndim < 2:
        raise ValueError(
            f"{where}: w of shape {w.shape} has {w.ndim} axes, but a kernel is (*k, C_in, C_out). "
            "Type w[:, None, None] for a single 1-D filter."
        )
    order = parse(where, layout, x.shape, w.shape, w.ndim - 2)
    groups = arguments.integer(where, "groups", groups, minimum=1)
    return order.canonical_lhs(x), order.canonical_rhs(w), groups, order, order.batch(x)


def options(where: str, precision: Any, preferred_element_type: Any, algorithm: Any, dtype: Any) -> dict[str, Any]:
    """The fields of a spec that do not depend on sizes."""
    preferred = arguments.preferred_element_type(where, preferred_element_type, dtype)
    return dict(
        precision=arguments.precision(where, precision),
        preferred_element_type=preferred or default_integer_output(dtype),
        algorithms=arguments.algorithms(where, algorithm, tuple(ALGORITHMS)),
    )


def conv(
    where: str,
    x: Any,
    w: Any,
    *,
    stride: Any,
    padding: Any,
    dilation: Any,
    input_dilation: Any,
    groups: Any,
    padding_mode: Any,
    flip_kernel: Any,
    layout: Any,
    **rest: Any,
) -> Problem:
    """Read and check everything that `convjax.conv` takes, but for its epilogue."""
    lhs, rhs, groups, order, batch = read(where, x, w, groups=groups, layout=layout)
    n = rhs.ndim - 2
    strides = arguments.per_axis(where, "stride", stride, n, minimum=1)
    rhs_dilation = arguments.per_axis(where, "dilation", dilation, n, minimum=1)
    lhs_dilation = arguments.per_axis(where, "input_dilation", input_dilation, n, minimum=1)
    _check_channels(where, lhs, rhs, groups)
    if arguments.flag(where, "flip_kernel", flip_kernel):
        rhs = jnp.flip(rhs, tuple(range(n)))
    spec = ConvSpec(
        strides, ((0, 0),) * n, lhs_dilation, rhs_dilation, groups, **options(where, dtype=lhs.dtype, **rest)
    )
    pairs = _pads(where, padding, spec, lhs, rhs)
    modes = pad.modes(where, padding_mode, n)
    lhs, spec = _extend(where, lhs, spec, pairs, modes)
    check_output(where, lhs, rhs, spec)
    return Problem(lhs, rhs, spec, order, batch)


def _pads(where: str, value: Any, spec: ConvSpec, lhs: Array, rhs: Array) -> pad.Pairs:
    sizes = [dilate(s, d) for s, d in zip(lhs.shape[1:-1], spec.lhs_dilation, strict=True)]
    return pad.pads(where, value, sizes, spec.window(rhs.shape), spec.strides)


def _extend(
    where: str, lhs: Array, spec: ConvSpec, pairs: pad.Pairs, modes: Sequence[str | float]
) -> tuple[Array, ConvSpec]:
    """Leave zero padding to the spec; write any other into the input, between dilated neighbours zeros as always."""
    if all(mode == "zeros" for mode in modes):
        return lhs, spec.replace(padding=pairs)
    for i, (mode, dilation) in enumerate(zip(modes, spec.lhs_dilation, strict=True)):
        if mode != "zeros" and dilation > 1:
            raise ValueError(
                f"{where}: padding_mode={mode!r} on spatial axis {i} is not defined together with "
                f"input_dilation={dilation}. Type padding_mode='zeros', or use conv_transpose."
            )
    written = [w and d == 1 for w, d in zip(pad.written(modes), spec.lhs_dilation, strict=True)]
    now = tuple(pair if w else (0, 0) for pair, w in zip(pairs, written, strict=True))
    later = tuple((0, 0) if w else pair for pair, w in zip(pairs, written, strict=True))
    return pad.pad_by_mode(where, lhs, now, modes), spec.replace(padding=later)


def check_divides(where: str, name: str, channels: int, groups: int) -> None:
    if channels % groups:
        divisors = [d for d in range(1, channels + 1) if channels % d == 0]
        raise ValueError(
            f"{where}: groups={groups} does not divide {name}. Type groups= one of "
            f"{', '.join(map(str, divisors[:12]))}."
        )


def _check_channels(where: str, lhs: Array, rhs: Array, groups: int) -> None:
    features, expected, outputs = lhs.shape[-1], rhs.shape[-2], rhs.shape[-1]
    if any(jax.export.is_symbolic_dim(size) for size in (features, expected, outputs)):
        return
    shape = tuple(rhs.shape)
    if features != expected * groups:
        raise ValueError(
            f"{where}: x has {features} channels but w of shape {shape} expects {expected} * groups = "
            f"{expected * groups}.\n  {_channel_hint(where, features, shape, groups)}"
        )
    if outputs % groups:
        more = (*shape[:-1], -(-outputs // groups) * groups)
        raise ValueError(
            f"{where}: groups={groups} does not divide the {outputs} output channels of w, of shape {shape}. "
            f"Type a kernel of shape {more}, or other groups."
        )


def _channel_hint(where: str, features: int, shape: tuple[int, ...], groups: int) -> str:
    expected, outputs = shape[-2:]
    if groups > 1 and features == expected:
        return "Leave groups out, or type a kernel of shape (*k, C_in // groups, C_out)."
    if expected and features and features % expected == 0 and outputs % (features // expected) == 0:
        fit = features // expected
        return (
            f"For a grouped convolution type groups={fit}; else a kernel of shape {(*shape[:-2], features, outputs)}."
        )
    check_divides(where, f"the {features} channels of x", features, groups)
    fitting = (*shape[:-2], features // groups, outputs)
    return (
        f"Type a kernel of shape (*k, C_in // groups, C_out) = {fitting}, "
        "or layout=... if the channels of x are not last."
    )


def check_output(where: str, lhs: Array, rhs: Array, spec: ConvSpec) -> None:
    """An empty output is a mistake, unless the input was empty."""
    if any(jax.export.is_symbolic_dim(d) for d in (*lhs.shape, *rhs.shape)):
        return
    windows, room = spec.window(rhs.shape), spec.padded_space(lhs.shape)
    for i, (k, size) in enumerate(zip(rhs.shape[:-2], lhs.shape[1:-1], strict=True)):
        if k == 0:
            raise ValueError(
                f"{where}: w of shape {tuple(rhs.shape)} has no taps on spatial axis {i}. Type at least one."
            )
        if size and room[i] < windows[i]:
            short = windows[i] - room[i]
            raise ValueError(
                f"{where}: the kernel is larger than the padded input on spatial axis {i}: {k} taps with dilation "
                f"{spec.rhs_dilation[i]} span {windows[i]}, the input of {size} padded by {spec.padding[i]} has "
                f"{room[i]}. Pad by {short} more (e.g. padding='SAME'), or use a smaller kernel or dilation."
            )
