"""Involution: another kernel at each position, shared by the channels of a group."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Num

from convjax._core import arguments
from convjax._core import padding as pad
from convjax._core.arrange import met_by
from convjax._core.canonical import check_divides
from convjax._core.dtypes import accumulator, output_dtype
from convjax._core.spec import ConvSpec, Shape
from convjax.functional import Ints, Padding, PaddingMode
from convjax.patches import window_spec


def involution(
    x: Num[Array, "*batch_space_c"],
    kernel: Num[Array, "*batch_out_k_g"],
    *,
    stride: Ints = 1,
    padding: Padding = "SAME",
    dilation: Ints = 1,
    padding_mode: PaddingMode = "zeros",
) -> Num[Array, "*batch_out_c"]:
    """Sum each window of `x`, weighted by the kernel of its own position and example.

    The number of spatial axes is `kernel.ndim - x.ndim`. Channel c of C is weighted by group `c * groups // C`. No
    patches are held: the sum runs tap by tap. How `kernel` comes from `x` is the network's affair (the paper: two
    pointwise convolutions).

    Args:
      x: input `(*batch, *space, C)`.
      kernel: `(*batch, *out, *k, groups)`, where `out` is the spatial shape of the output.
      stride, padding, dilation: as `convjax.conv`.
      padding_mode: see the head of `convjax.functional`.

    Returns:
      `(*batch, *out, C)` in the dtype of `x`; 16-bit floats are summed in float32, integers narrower than 32 bits are
      summed exactly and returned as int32.

    Raises:
      ValueError: `kernel` is not of the shape above; `groups` does not divide the channels; a window is larger than
        the padded input.
      TypeError: `x` and `kernel` differ in dtype or are not numeric.

    Example:
      >>> import jax.numpy as jnp
      >>> from convjax.per_position import involution
      >>> involution(jnp.arange(3.0)[:, None], jnp.arange(9.0).reshape(3, 3, 1))[:, 0]
      Array([ 2., 14., 20.], dtype=float32)

    Source: Li et al., Involution: inverting the inherence of convolution for visual recognition, arXiv:2103.06255,
    section 3.
    """
    where = "involution"
    x, kernel = arguments.operands(where, x=x, kernel=kernel)
    n = kernel.ndim - x.ndim
    split = x.ndim - n - 1
    if n < 0 or split < 0 or 0 in kernel.shape[kernel.ndim - n - 1 :]:
        raise ValueError(
            f"{where}: x of shape {x.shape} and kernel of shape {kernel.shape} do not fit: kernel must be (*batch, "
            "*out, *k, groups), one axis more for each spatial axis of x (*batch, *space, C), with a tap and a group "
            "at least. Type kernel so."
        )
    batch, space, taps, groups = x.shape[:split], x.shape[split:-1], kernel.shape[-n - 1 : -1], kernel.shape[-1]
    spec = window_spec(where, space, taps, stride, padding, dilation, x.dtype)
    out = spec.out_space((1, *space, 1), (*taps, 1, 1))
    if kernel.shape != (*batch, *out, *taps, groups):
        raise ValueError(
            f"{where}: kernel has shape {kernel.shape}, but x of shape {x.shape} gives {out} outputs. Type a kernel of "
            f"shape {(*batch, *out, *taps, groups)}, or another padding or stride."
        )
    check_divides(where, f"the {x.shape[-1]} channels of x", x.shape[-1], groups)
    examples = math.prod(batch)
    x = pad.pad_by_mode(
        where, x.reshape(examples, *space, x.shape[-1]), spec.padding, pad.modes(where, padding_mode, n)
    )
    y = _sum(x, kernel.reshape(examples, *out, math.prod(taps), groups), taps, spec)
    return y.reshape(*batch, *out, y.shape[-1])


@functools.partial(jax.jit, static_argnums=(2, 3))
def _sum(padded: Array, kernel: Array, taps: Shape, spec: ConvSpec) -> Array:
    """Tap by tap, in the accumulation dtype, which the gradient in the input is then summed in as well."""
    out, groups, channels = kernel.shape[1:-2], kernel.shape[-1], padded.shape[-1]
    dtype = accumulator(spec, padded.dtype)
    x, kernel = padded.astype(dtype), kernel.astype(dtype)
    y = jnp.zeros((x.shape[0], *out, groups, channels // groups), dtype)
    if 0 not in y.shape:  # else a tap may lie outside
        for i, tap in enumerate(np.ndindex(*taps)):
            starts = [t * d for t, d in zip(tap, spec.rhs_dilation, strict=True)]
            met = met_by(x, starts, out, spec.strides).reshape(y.shape)
            y += met * lax.index_in_dim(kernel, i, axis=-2, keepdims=False)[..., None]
    return y.reshape(x.shape[0], *out, channels).astype(output_dtype(spec, padded.dtype))
