"""Convolution of data with holes: each output from what its window knows, and which outputs know anything."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Inexact, Num

from convjax._core import canonical, epilogue
from convjax._core.canonical import Problem
from convjax._core.dtypes import accumulator
from convjax.functional import Algorithm, Ints, Padding, Precision
from convjax.masked import nonzero


def partial_conv(
    x: Inexact[Array, "*batch_space_c"],
    w: Inexact[Array, "*k_i_o"],
    *,
    mask: Num[Array, "*batch_space_m"],
    bias: Inexact[Array, " o"] | None = None,
    stride: Ints = 1,
    padding: Padding = "SAME",
    dilation: Ints = 1,
    groups: int = 1,
    algorithm: Algorithm = "auto",
    precision: Precision = None,
    preferred_element_type: DTypeLike | None = None,
) -> tuple[Inexact[Array, "*batch_out_o"], Num[Array, "*batch_out_m"]]:
    """Convolve what is known of `x`, scaled by how much of each window that is, and say which outputs are known.

    An output is the sum over the known inputs, times the size of the window over their number, plus the bias; it is 0,
    without a bias, where nothing is known. Padding is not known. What stands in a hole does not matter, not even NaN,
    and its gradient is zero.

    Args:
      x: input `(*batch, *space, C_in)`, floating or complex.
      w: kernel `(*k, C_in // groups, C_out)`.
      mask: `(*batch, *space, 1)`, or `(*batch, *space, C_in)` for holes in single channels; zero, or False, in holes.
      others: as `convjax.conv`.

    Returns:
      y: `(*batch, *out, C_out)` in the dtype of `x`; 16-bit floats are summed and scaled in float32.
      new_mask: 1 where an output is known and 0 elsewhere, in the dtype of `mask`; `(*batch, *out, 1)`, or
        `(*batch, *out, C_out)` where `mask` has all channels. To be handed to the next layer.

    Raises:
      ValueError: as `convjax.conv`; `mask` is not of the shape above.
      TypeError: as `convjax.conv`; `x` holds integers.

    Example:
      >>> import jax.numpy as jnp
      >>> from convjax.partial import partial_conv
      >>> x, known = jnp.array([[1.0], [jnp.nan], [3.0]]), jnp.array([[True], [False], [True]])
      >>> y, known = partial_conv(x, jnp.ones((3, 1, 1)), mask=known)
      >>> y[:, 0]
      Array([3., 6., 9.], dtype=float32)

    Source: Liu et al., Image inpainting for irregular holes using partial convolutions, arXiv:1804.07723, equations 1
    and 2.
    """
    where = "partial_conv"
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
    lhs, shape, dtype = problem.lhs, problem.out_shape, problem.out_dtype
    if not jnp.issubdtype(lhs.dtype, jnp.inexact):
        raise TypeError(f"{where}: x is {lhs.dtype}, which cannot be scaled. Type x.astype(jnp.float32), and w too.")
    bias, _ = epilogue.read_addends(where, bias, None, shape, dtype, len(shape) - 1)
    known = _known(where, mask, jnp.shape(x)).reshape(*lhs.shape[:-1], jnp.shape(mask)[-1])
    count, window = _count(problem, known)
    wide = accumulator(problem.spec, lhs.dtype)
    lhs = jnp.where(known, lhs, jnp.zeros((), lhs.dtype))
    total = dataclasses.replace(problem, lhs=lhs, spec=problem.spec.replace(preferred_element_type=wide)).run()
    y = total * (window / jnp.maximum(count, 1).astype(np.zeros((), wide).real.dtype))
    if bias is not None:
        y = y + bias
    y = jnp.where(count > 0, y, jnp.zeros((), y.dtype)).astype(dtype)
    return y, (count > 0).astype(jnp.asarray(mask).dtype)


def _known(where: str, mask: Any, shape: tuple[int, ...]) -> Array:
    known = nonzero(where, mask)
    if known.shape not in ((*shape[:-1], 1), shape):
        raise ValueError(
            f"{where}: mask has shape {known.shape}, but x has {shape}. Type one of shape {(*shape[:-1], 1)}, or "
            f"{shape} for holes in single channels."
        )
    return known


def _count(problem: Problem, known: Array) -> tuple[Array, int]:
    """Known inputs in each output's window, and how many there could be; summed in integers, as 0 must be 0."""
    spec, (*kernel, inputs, outputs) = problem.spec, problem.rhs.shape
    groups = spec.groups
    if known.shape[-1] != inputs * groups or known.shape[-1] == 1:
        inputs, outputs, groups = 1, 1, 1
    spec = spec.auto(feature_groups=groups, precision=None, preferred_element_type=np.dtype(np.int32))
    ones = jnp.ones((*kernel, inputs, groups), jnp.int8)
    count = dataclasses.replace(problem, lhs=known.astype(jnp.int8), rhs=ones, spec=spec).run()
    return jnp.repeat(count, outputs // groups, axis=-1), math.prod(kernel) * inputs
