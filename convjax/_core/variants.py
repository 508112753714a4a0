"""Reading the arguments of depthwise, separable, pointwise and causal convolutions: all end in `canonical.conv`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from convjax._core import arguments
from convjax._core.canonical import Problem, conv
from convjax._core.layout import parse


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
