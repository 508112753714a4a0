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


def read(
    where: str, x: Any, w: Any, *, groups: Any, layout: Any
) -> tuple[Array, Array, int, Layout, tuple[int, ...]]:
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
    flip_kernel: bool,
    layout: Any,
    **rest: Any,
) -> Problem:
    lhs, rhs, groups, order, batch = read(where, x, w, groups=groups, layout=layout)
    n = rhs.ndim - 2
    strides = arguments.per_axis(where, "stride", stride, n, minimum=1)
    rhs_dilation = arguments.per_axis(where, "dilation", dilation, n, minimum=1)
    lhs_dilation = arguments.per_axis(where, "input_dilation", input_dilation, n, minimum=1)
    _check_channels(where, lhs, rhs, groups)
    if flip_kernel:
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
        raise ValueError(f"{where}: w of shape {w.shape} has {w.ndim} axes, but a depthwise kernel is (*k, C, M).")
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
    if not isinstance(layout, str):
        return len(layout[0]) - 2
    if layout == "channels_first" or arguments.integer(where, "stride", stride, minimum=1) != 1:
        raise ValueError(
            f"{where}: with stride={stride!r}, layout={layout!r} and w of shape {jnp.shape(w)} nothing tells how many "
            "spatial axes there are. Type one stride for each, such as stride=(1, 1), or add axes of size 1 to w."
        )
    return 0


def pointwise_kernel(where: str, w: Any, ndim: int) -> Array:
    """`w` with `ndim` leading axes of size 1."""
    (w,) = arguments.operands(where, w=w)
    if w.ndim < 2 or any(size != 1 for size in w.shape[:-2]):
        raise ValueError(
            f"{where}: a pointwise kernel is (C_in // groups, C_out), with any number of leading axes of size 1, "
            f"got shape {w.shape}. For a larger kernel call conv."
        )
    return w.reshape(*(1,) * ndim, *w.shape[-2:])


def causal_kernel(where: str, w: Any, groups: Any) -> tuple[Array, int]:
    """`(k, C)` is depthwise: `(k, 1, C)` with as many groups as channels."""
    (w,) = arguments.operands(where, w=w)
    if w.ndim == 2:
        if arguments.integer(where, "groups", groups, minimum=1) not in (1, w.shape[1]):
            raise ValueError(
                f"{where}: w of shape {w.shape} (k, C) is depthwise, which makes {w.shape[1]} groups, but groups={groups}. "
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
    other = tuple(mode != "zeros" for mode in modes)
    if not any(other):
        return lhs, spec.replace(padding=pairs)
    for i, (mode, dilation) in enumerate(zip(modes, spec.lhs_dilation, strict=True)):
        if mode != "zeros" and dilation > 1:
            raise ValueError(
                f"{where}: padding_mode={mode!r} on spatial axis {i} is not defined together with "
                f"input_dilation={dilation}. Type padding_mode='zeros', or use conv_transpose."
            )
    now = tuple(pair if o else (0, 0) for pair, o in zip(pairs, other, strict=True))
    later = tuple((0, 0) if o else pair for pair, o in zip(pairs, other, strict=True))
    return pad.pad_by_mode(where, lhs, now, modes), spec.replace(padding=later)


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
    flip_kernel: bool,
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
            f"expects {rhs.shape[-2]}. Reshape w, or for a grouped one give every input channel its row in w."
        )
    _check_divides(where, "x", "channels", lhs.shape[-1], groups)
    spec = ConvSpec(
        (1,) * n, ((0, 0),) * n, strides, rhs_dilation, groups, **options(where, dtype=lhs.dtype, **rest)
    )
    windows, sizes = spec.window(rhs.shape), lhs.shape[1:-1]
    crops, extra = _crops(where, padding, sizes, windows, strides)
    extra = _output_padding(
        where, output_padding, output_shape, sizes, windows, strides, rhs_dilation, crops, extra
    )
    if not flip_kernel:
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
            raise ValueError(f"{where}: output_padding={output_padding!r} and output_shape={output_shape!r} both say how long the output is. Type one.")
        shape = arguments.per_axis(where, "output_shape", output_shape, n, minimum=0)
        added = tuple(want - have for want, have in zip(shape, base, strict=True))
    for i, (a, limit) in enumerate(zip(added, limits, strict=True)):
        if not 0 <= a < limit:
            given = f"output_shape[{i}]={base[i] + a}" if output_shape is not None else f"output_padding[{i}]={a}"
            raise ValueError(
                f"{where}: {given} is out of reach: with stride {strides[i]} and dilation {dilations[i]} an input of "
                f"{sizes[i]} gives from {base[i]} to {base[i] + limit - 1} outputs on spatial axis {i} "
                f"(output_padding from 0 to {limit - 1})."
            )
    return tuple(e + a for e, a in zip(extra, added, strict=True))


def _extend_transposed(
    where: str, lhs: Array, spec: ConvSpec, pairs: pad.Pairs, modes: Sequence[str | float]
) -> tuple[Array, ConvSpec]:
    """Extend the undilated input by its mode as far as the kernel reaches, then crop what the extension adds."""
    widths, after = [], []
    for (lo, hi), mode, dilation in zip(pairs, modes, spec.lhs_dilation, strict=True):
        width = (0, 0) if mode == "zeros" else (max(0, -(-lo // dilation)), max(0, -(-hi // dilation)))
        widths.append(width)
        after.append((lo - width[0] * dilation, hi - width[1] * dilation))
    lhs = pad.pad_by_mode(where, lhs, tuple(widths), modes)
    return lhs, spec.replace(padding=tuple(after))


def _check_divides(where: str, name: str, what: str, size: int, groups: int) -> None:
    if size % groups:
        divisors = [d for d in range(1, size + 1) if size % d == 0]
        raise ValueError(
            f"{where}: {name} has {size} {what}, which groups={groups} does not divide. "
            f"Type groups= one of {divisors[:12]}."
        )


def _check_channels(where: str, lhs: Array, rhs: Array, groups: int) -> None:
    features, expected = lhs.shape[-1], rhs.shape[-2]
    if jax.export.is_symbolic_dim(features) or jax.export.is_symbolic_dim(expected):
        return
    if features != expected * groups:
        raise ValueError(
            f"{where}: x has {features} channels but w of shape {tuple(rhs.shape)} expects {expected} * groups = "
            f"{expected * groups}.\n  {_channel_hint(features, rhs.shape, groups)}"
        )
    _check_divides(where, f"w of shape {tuple(rhs.shape)}", "output channels", rhs.shape[-1], groups)


def _channel_hint(features: int, w_shape: Sequence[int], groups: int) -> str:
    expected = w_shape[-2]
    reshaped = (*w_shape[:-2], features // groups, w_shape[-1])
    if expected and features % expected == 0 and w_shape[-1] % (features // expected) == 0:
        return f"For a grouped convolution type groups={features // expected}; else w is (*k, {features // groups}, C_out)."
    return f"Type a kernel of shape (*k, C_in // groups, C_out) = {reshaped}, or layout=... if the channels of x are not last."


def _check_output(where: str, lhs: Array, rhs: Array, spec: ConvSpec) -> None:
    """An empty output is a mistake, unless the input was empty."""
    if any(jax.export.is_symbolic_dim(d) for d in (*lhs.shape, *rhs.shape)):
        return
    windows, room = spec.window(rhs.shape), spec.padded_space(lhs.shape)
    for i, (k, size) in enumerate(zip(rhs.shape[:-2], lhs.shape[1:-1], strict=True)):
        if k == 0:
            raise ValueError(f"{where}: w of shape {tuple(rhs.shape)} has no taps on spatial axis {i}. Type at least one.")
        if size and room[i] < windows[i]:
            short = windows[i] - room[i]
            raise ValueError(
                f"{where}: the kernel is larger than the padded input on spatial axis {i}: {k} taps with dilation "
                f"{spec.rhs_dilation[i]} span {windows[i]}, the input of {size} padded by {spec.padding[i]} has "
                f"{room[i]}. Pad by {short} more (e.g. padding='SAME'), or use a smaller kernel or dilation."
            )
