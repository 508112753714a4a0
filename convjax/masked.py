"""Convolution with some weights held at zero, as autoregressive networks of images have it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Num

from convjax._core import arguments, canonical, epilogue
from convjax._core.canonical import Problem
from convjax.functional import Activation, Algorithm, Ints, Padding, Precision


def masked_conv(
    x: Num[Array, "*batch_space_c"],
    w: Num[Array, "*k_i_o"],
    *,
    mask: str | Array,
    channel_groups: int = 1,
    bias: Num[Array, " o"] | None = None,
    stride: Ints = 1,
    padding: Padding = "SAME",
    dilation: Ints = 1,
    groups: int = 1,
    activation: Activation = None,
    residual: Num[Array, "*batch_out_o"] | None = None,
    algorithm: Algorithm = "auto",
    precision: Precision = None,
    preferred_element_type: DTypeLike | None = None,
) -> Num[Array, "*batch_out_o"]:
    """Convolve `x` with those weights of `w` that the mask keeps.

    "A" and "B" keep the taps before the centre in raster order (the last axis fastest), so that a position sees only
    what comes before it; at the centre, A keeps the weights from earlier groups of channels to later ones, and B those
    within a group too. The first layer of a PixelCNN has A, all others B. There is no `padding_mode`: what any other
    than zeros shows beyond the border is yet to come.

    Args:
      x: input `(*batch, *space, C_in)`.
      w: kernel `(*k, C_in // groups, C_out)`; for "A" and "B" of odd sizes.
      mask: "A", "B", or an array that broadcasts to the shape of `w`, zero where a weight is left out, which may be
        traced.
      channel_groups: equal parts of the channels, in order: 3 for the colours of an image. Channel c of C is in part
        `c * channel_groups // C`, for inputs and outputs alike.
      others: as `convjax.conv`.

    Returns:
      `(*batch, *out, C_out)` in the dtype of `x`.

    Raises:
      ValueError: as `convjax.conv`; `mask` is not known or does not broadcast; an even kernel with "A" or "B";
        `channel_groups` does not divide the channels, or comes with an array.
      TypeError: as `convjax.conv`.

    Example:
      >>> import jax.numpy as jnp
      >>> from convjax.masked import masked_conv
      >>> masked_conv(jnp.arange(1.0, 5.0)[:, None], jnp.ones((3, 1, 1)), mask="A")[:, 0]
      Array([0., 1., 2., 3.], dtype=float32)

    Source: van den Oord et al., Pixel recurrent neural networks, arXiv:1601.06759, section 3.4.
    """
    where = "masked_conv"
    problem = canonical.conv(
        where,
        x,
        w,
        stride=stride,
        padding=padding,
        dilation=dilation,
        input_dilation=1,
        groups=groups,
        padding_mode="zeros",
        flip_kernel=False,
        layout="channels_last",
        algorithm=algorithm,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    parts = arguments.integer(where, "channel_groups", channel_groups, minimum=1)
    if isinstance(mask, str):
        kind = arguments.choice(where, "mask", mask, ("A", "B"))
        problem = _keep(problem, raster_mask(where, kind, problem.rhs.shape, problem.spec.groups, parts))
        problem = _without_later_rows(problem)
    else:
        problem = _keep(problem, _broadcast(where, nonzero(where, mask), problem.rhs.shape, parts))
    apply = epilogue.read_activation(where, activation)
    shape = problem.out_shape
    bias, residual = epilogue.read_addends(where, bias, residual, shape, problem.out_dtype, len(shape) - 1)
    return epilogue.apply(problem.run(), bias, residual, apply)


def raster_mask(where: str, kind: str, shape: Sequence[int], groups: int, channel_groups: int) -> np.ndarray:
    """Where a kernel of `shape (*k, C_in // groups, C_out)` sees what comes before ("A"), or itself too ("B")."""
    *kernel, inputs, outputs = shape
    if any(k % 2 == 0 for k in kernel):
        raise ValueError(
            f"{where}: mask={kind!r} starts at the centre of the kernel, but w of shape {tuple(shape)} has an even "
            "number of taps. Type odd sizes, or the mask as an array."
        )
    for name, count in (("input", inputs * groups), ("output", outputs)):
        if count % channel_groups:
            raise ValueError(
                f"{where}: channel_groups={channel_groups} does not divide the {count} {name} channels. Type a divisor "
                "of both input and output channels."
            )
    first = np.arange(outputs) * groups // max(outputs, 1) * inputs  # channel that an output's own group begins with
    sources = (np.arange(inputs)[:, None] + first) * channel_groups // max(inputs * groups, 1)
    targets = np.arange(outputs) * channel_groups // max(outputs, 1)
    taps = np.arange(math.prod(kernel)).reshape(*kernel, 1, 1)
    centre = math.prod(kernel) // 2
    return (taps < centre) | ((taps == centre) & ((sources < targets) if kind == "A" else (sources <= targets)))


def nonzero(where: str, mask: Any) -> Array:
    """Where a mask of any dtype, bool among them, is not zero."""
    if str(getattr(mask, "dtype", "")) == "bool":
        return jnp.asarray(mask)
    return arguments.array(where, "mask", mask) != 0


def _broadcast(where: str, mask: Array, shape: Sequence[int], channel_groups: int) -> Array:
    if channel_groups != 1:
        raise ValueError(
            f"{where}: channel_groups={channel_groups} orders the channels of mask='A' and 'B', but mask is an array. "
            "Leave channel_groups out."
        )
    try:
        return jnp.broadcast_to(mask, tuple(shape))
    except ValueError:
        raise ValueError(
            f"{where}: mask of shape {mask.shape} does not broadcast to w of shape {tuple(shape)}. "
            "Type mask[..., None, None] if it has an entry for each tap."
        ) from None


def _keep(problem: Problem, mask: Any) -> Problem:
    """Selected, not multiplied: what is left out may be anything, and its gradient is zero."""
    return dataclasses.replace(problem, rhs=jnp.where(mask, problem.rhs, jnp.zeros((), problem.rhs.dtype)))


def _without_later_rows(problem: Problem) -> Problem:
    """All after the centre's row is masked, nearly half of the work; cropped padding keeps the outputs in place."""
    spec = problem.spec
    if not spec.ndim:
        return problem
    later = problem.rhs.shape[0] // 2
    (lo, hi), *rest = spec.padding
    spec = spec.replace(padding=((lo, hi - later * spec.rhs_dilation[0]), *rest))
    return dataclasses.replace(problem, rhs=problem.rhs[: later + 1], spec=spec)
