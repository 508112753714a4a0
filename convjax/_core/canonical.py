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
        return self.layout.restore(convolve(self.lhs, self.rhs, self.spec), self.batch)


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
    _check_output(where, lhs, rhs, spec)
    return Problem(lhs, rhs, spec, order, batch)


def depthwise(where: str, x: Any, w: Any, *, layout: Any, **rest: Any) -> Problem:
    """`w (*k, C, M)` is the grouped kernel `(*k, 1, C * M)` with as many groups as channels."""
    x, w = arguments.operands(where, x=x, w=w)
    if w.ndim < 2:
        raise ValueError(
            f"{where}: w of shape {w.shape} has {w.ndim} axes, but a depthwise kernel is (*k, C, M). "
            "Type w[..., None] for M = 1."
        )
    order = parse(where, layout, x.shape, w.shape, w.ndim - 2)
    w = order.canonical_rhs(w)
    channels, features = w.shape[-2], x.shape[order.lhs[-1]]
    if channels != features:
        raise ValueError(
            f"{where}: x has {features} channels but w of shape {tuple(w.shape)} (*k, C, M) has a row for {channels}. "
            f"Type a kernel of shape {(*w.shape[:-2], features, w.shape[-1])}, or layout=... if the channels of x are "
            "not last."
        )
    w = w.reshape(*w.shape[:-2], 1, channels * w.shape[-1])
    lhs_layout = order.with_canonical_kernel()
    return conv(where, x, w, input_dilation=1, groups=channels, layout=lhs_layout, **rest)


def data_layout(where: str, layout: Any) -> Any:
    """The layout of `x` and the result alone, for functions of several kernels."""
    if isinstance(layout, str):
        return layout
    raise ValueError(
        f"{where}: layout={layout!r} names a kernel's axes, but there are two kernels. Type 'channels_last', "
        "'channels_first', or letters for x and the result, such as 'NCHW'."
    )


def spatial_axes(where: str, w: Any, stride: Any, layout: Any) -> int:
    """How many spatial axes a pointwise convolution has: as `w`, else `stride`, else `layout` tells, else 0."""
    if jnp.ndim(w) > 2:
        return jnp.ndim(w) - 2
    if isinstance(stride, Sequence):
        return len(stride)
    if isinstance(layout, str) and layout not in ("channels_last", "channels_first"):
        return len(layout) - 2
    if isinstance(layout, Sequence) and not isinstance(layout, str) and layout:
        return len(layout[0]) - 2
    if layout == "channels_first" or (
        layout == "channels_last" and arguments.integer(where, "stride", stride, minimum=1) != 1
    ):
        raise ValueError(
            f"{where}: with stride={stride!r}, layout={layout!r} and w of shape {jnp.shape(w)} nothing tells how many "
            "spatial axes there are. Type one stride for each, such as stride=(1, 1), or add axes of size 1 to w."
        )
    return 0


def pointwise_kernel(where: str, w: Array, ndim: int, name: str = "w") -> Array:
    """`w (*ones, I, O)` with `ndim` leading axes of size 1."""
    if w.ndim < 2 or any(size != 1 for size in w.shape[:-2]):
        raise ValueError(
            f"{where}: {name} of shape {w.shape} is not a pointwise kernel (C_in // groups, C_out), with or without "
            "leading axes of size 1. Call conv for a larger kernel."
        )
    return w.reshape(*(1,) * ndim, *w.shape[-2:])


def pointwise(where: str, x: Any, w: Any, *, stride: Any, layout: Any, **rest: Any) -> Problem:
    """`w (I, O)` is the kernel `(1, ..., 1, I, O)`; with all its axes it is ordered as `layout` says."""
    x, w = arguments.operands(where, x=x, w=w)
    n = spatial_axes(where, w, stride, layout)
    if w.ndim == n + 2:
        order = parse(where, layout, x.shape, w.shape, n)
        w = pointwise_kernel(where, order.canonical_rhs(w), n)
    else:
        w = pointwise_kernel(where, w, n)
        order = parse(where, layout, x.shape, w.shape, n)
    rest.update(padding="VALID", dilation=1, input_dilation=1, padding_mode="zeros", flip_kernel=False)
    return conv(where, x, w, stride=stride, layout=order.with_canonical_kernel(), **rest)


def separable(
    where: str, x: Any, w_depthwise: Any, w_pointwise: Any, *, layout: Any, algorithm: Any, stride: Any, **rest: Any
) -> Problem:
    """The pointwise problem, on what the depthwise one gives."""
    layout = data_layout(where, layout)
    x, w_depthwise, w_pointwise = arguments.operands(where, x=x, w_depthwise=w_depthwise, w_pointwise=w_pointwise)
    spatial = depthwise(where, x, w_depthwise, layout=layout, algorithm=algorithm, stride=stride, **rest)
    w = pointwise_kernel(where, w_pointwise, spatial.spec.ndim, "w_pointwise").astype(spatial.out_dtype)
    features = spatial.rhs.shape[-1]
    if w.shape[-2] != features:
        raise ValueError(
            f"{where}: w_depthwise of shape {tuple(w_depthwise.shape)} (*k, C, M) gives C * M = {features} channels, "
            f"but w_pointwise of shape {tuple(w_pointwise.shape)} expects {w.shape[-2]}. "
            f"Type a w_pointwise of shape {(features, w.shape[-1])}."
        )
    rest = {name: rest[name] for name in ("precision", "preferred_element_type")}
    # the caller's algorithm is about the spatial step
    ones = (1,) * spatial.spec.ndim
    return pointwise(where, spatial.run(), w, stride=ones, groups=1, layout=layout, algorithm="auto", **rest)


def causal(where: str, x: Any, w: Any, *, groups: Any, layout: Any, **rest: Any) -> Problem:
    """A depthwise `w (k, C)` is in this order whatever `layout` says."""
    x, w = arguments.operands(where, x=x, w=w)
    depthwise = w.ndim == 2
    w, groups = _causal_kernel(where, w, groups)
    order = parse(where, layout, x.shape, w.shape, 1)
    if depthwise:
        order = order.with_canonical_kernel()
    rest.update(padding="CAUSAL", input_dilation=1, padding_mode="zeros", flip_kernel=False)
    return conv(where, x, w, groups=groups, layout=order, **rest)


def _causal_kernel(where: str, w: Array, groups: Any) -> tuple[Array, int]:
    """`(k, C)` is depthwise: `(k, 1, C)` with as many groups as channels."""
    if w.ndim == 2:
        if arguments.integer(where, "groups", groups, minimum=1) not in (1, w.shape[1]):
            raise ValueError(
                f"{where}: w of shape {w.shape} (k, C) is depthwise, which makes {w.shape[1]} groups, but "
                f"groups={groups}. "
                "Leave groups out, or type w of shape (k, C_in // groups, C_out)."
            )
        return w[:, None, :], w.shape[1]
    if w.ndim != 3:
        raise ValueError(
            f"{where}: w of shape {w.shape} has {w.ndim} axes. Type (k, C_in // groups, C_out), or (k, C) for a "
            "depthwise convolution."
        )
    return w, groups


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
    written = [w and d == 1 for w, d in zip(_written(modes), spec.lhs_dilation, strict=True)]
    now = tuple(pair if w else (0, 0) for pair, w in zip(pairs, written, strict=True))
    later = tuple((0, 0) if w else pair for pair, w in zip(pairs, written, strict=True))
    return pad.pad_by_mode(where, lhs, now, modes), spec.replace(padding=later)


def _written(modes: Sequence[str | float]) -> list[bool]:
    """Axes padded in the input itself: all but zeros, and those where a constant follows, which takes the corner."""
    return [mode != "zeros" or any(not isinstance(m, str) for m in modes[i:]) for i, mode in enumerate(modes)]


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
    _check_divides(where, f"x of {lhs.shape[-1]} channels", lhs.shape[-1], groups)
    spec = ConvSpec((1,) * n, ((0, 0),) * n, strides, rhs_dilation, groups, **options(where, dtype=lhs.dtype, **rest))
    windows, sizes = spec.window(rhs.shape), lhs.shape[1:-1]
    crops, extra = _crops(where, padding, sizes, windows, strides)
    extra = _output_padding(where, output_padding, output_shape, sizes, windows, strides, rhs_dilation, crops, extra)
    if not arguments.flag(where, "flip_kernel", flip_kernel):
        rhs = jnp.flip(rhs, tuple(range(n)))
    rhs = rhs.reshape(*rhs.shape[:n], groups, rhs.shape[n] // groups, rhs.shape[n + 1])
    rhs = jnp.moveaxis(rhs, n, n + 1).reshape(*rhs.shape[:n], rhs.shape[n + 1], groups * rhs.shape[n + 2])
    pairs = tuple((w - 1 - lo, w - 1 - hi + e) for w, (lo, hi), e in zip(windows, crops, extra, strict=True))
    lhs, spec = _extend_transposed(where, lhs, spec, pairs, pad.modes(where, padding_mode, n))
    _check_output(where, lhs, rhs, spec)
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


def _extend_transposed(
    where: str, lhs: Array, spec: ConvSpec, pairs: pad.Pairs, modes: Sequence[str | float]
) -> tuple[Array, ConvSpec]:
    """Extend the undilated input by its mode as far as the kernel reaches; the rest are zeros between neighbours."""
    widths, after = [], []
    for (lo, hi), written, dilation in zip(pairs, _written(modes), spec.lhs_dilation, strict=True):
        width = (max(0, lo // dilation), max(0, hi // dilation)) if written else (0, 0)
        widths.append(width)
        after.append((lo - width[0] * dilation, hi - width[1] * dilation))
    lhs = pad.pad_by_mode(where, lhs, tuple(widths), modes)
    return lhs, spec.replace(padding=tuple(after))


def _check_divides(where: str, name: str, channels: int, groups: int) -> None:
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
    _check_divides(where, f"the {features} channels of x", features, groups)
    fit = (*shape[:-2], features // groups, outputs)
    return (
        f"Type a kernel of shape (*k, C_in // groups, C_out) = {fit}, or layout=... if the channels of x are not last."
    )


def _check_output(where: str, lhs: Array, rhs: Array, spec: ConvSpec) -> None:
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
