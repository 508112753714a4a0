"""Convolution with unshared weights: another kernel at each output position, as in a locally connected layer."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Num

from convjax._core import arguments, canonical
from convjax._core import padding as pad
from convjax._core.dtypes import accumulator, output_dtype
from convjax._core.spec import ConvSpec, dilate
from convjax.functional import Ints, Padding, PaddingMode, Precision

# Fewer than this at a time would leave a matrix product with next to nothing to multiply.
MIN_EXAMPLES = 8


def local_conv(
    x: Num[Array, "*batch_space_c"],
    w: Num[Array, "*out_k_i_o"],
    *,
    bias: Num[Array, "*out_o"] | None = None,
    stride: Ints = 1,
    padding: Padding = "SAME",
    dilation: Ints = 1,
    input_dilation: Ints = 1,
    groups: int = 1,
    padding_mode: PaddingMode = "zeros",
    precision: Precision = None,
    preferred_element_type: DTypeLike | None = None,
) -> Num[Array, "*batch_out_o"]:
    """Convolve with a kernel of its own for each output position.

    Beside input, kernel and output it needs memory for patches: as much as the kernel takes, or those of 8 examples.

    Args:
      x: input `(*batch, *space, C_in)`.
      w: kernels `(*out, *k, C_in // groups, C_out)`, where `out` is the spatial shape of the output.
      bias: `(C_out,)`, or `(*out, C_out)` for one at each position.
      others: as `convjax.conv`.

    Returns:
      `(*batch, *out, C_out)` in the dtype of `x`; 16-bit floats are summed in float32, narrow integers return int32.

    Raises:
      ValueError: `w` is not of the output's shape; channels, groups or sizes do not fit.
      TypeError: as `convjax.conv`.

    Example:
      >>> import jax.numpy as jnp
      >>> from convjax.unshared import local_conv
      >>> local_conv(jnp.ones((2, 8, 3)), jnp.ones((6, 3, 3, 4)), padding="VALID").shape
      (2, 6, 4)

    Source: LeCun, Generalization and network design strategies, 1989; Taigman et al., DeepFace, 2014.
    """
    where = "local_conv"
    x, w = arguments.operands(where, x=x, w=w)
    ndim, odd = divmod(w.ndim - 2, 2)
    if odd or ndim < 0 or x.ndim < ndim + 1:
        raise ValueError(
            f"{where}: x of shape {x.shape} and w of shape {w.shape} do not fit: w must be (*out, *k, C_in // groups, "
            "C_out), two axes for each spatial axis of x (*batch, *space, C_in), and two more. Type w so."
        )
    batch = x.shape[: x.ndim - ndim - 1]
    x = x.reshape(math.prod(batch), *x.shape[len(batch) :])
    kernel_shape = w.shape[ndim:]
    spec = _spec(where, x, kernel_shape, stride, dilation, input_dilation, groups, precision, preferred_element_type)
    padded, spec = _pad(where, x, kernel_shape, spec, padding, padding_mode)
    _check_kernel(where, x, w, spec)
    y = _sum(padded, w, spec)
    if bias is not None:
        bias = arguments.array(where, "bias", bias)
        if bias.shape not in (y.shape[-1:], y.shape[1:]):
            raise ValueError(
                f"{where}: bias has shape {bias.shape}. Type one of shape {y.shape[-1:]}, or of {y.shape[1:]} for one "
                "at each position."
            )
        y = y + bias.astype(y.dtype)
    return y.reshape(*batch, *y.shape[1:])


def _spec(
    where: str,
    x: Array,
    kernel_shape: Sequence[int],
    stride: Any,
    dilation: Any,
    input_dilation: Any,
    groups: Any,
    precision: Any,
    preferred_element_type: Any,
) -> ConvSpec:
    """The shared convolution with the same sizes, as yet unpadded."""
    ndim = len(kernel_shape) - 2
    groups = arguments.integer(where, "groups", groups, minimum=1)
    if x.shape[-1] != kernel_shape[-2] * groups or kernel_shape[-1] % groups:
        raise ValueError(
            f"{where}: x has {x.shape[-1]} channels, w has {kernel_shape[-2]} for each of {groups} groups and "
            f"{kernel_shape[-1]} output channels. Type w of shape (*out, *k, C_in // groups, C_out), groups dividing "
            "both."
        )
    return ConvSpec(
        arguments.per_axis(where, "stride", stride, ndim, minimum=1),
        ((0, 0),) * ndim,
        arguments.per_axis(where, "input_dilation", input_dilation, ndim, minimum=1),
        arguments.per_axis(where, "dilation", dilation, ndim, minimum=1),
        groups,
        **canonical.options(where, precision, preferred_element_type, "auto", x.dtype),
    )


def _pad(
    where: str, x: Array, kernel_shape: Sequence[int], spec: ConvSpec, padding: Any, padding_mode: Any
) -> tuple[Array, ConvSpec]:
    """The input dilated and padded, and the spec that says by how much."""
    dilated = [dilate(size, d) for size, d in zip(x.shape[1:-1], spec.lhs_dilation, strict=True)]
    pairs = pad.pads(where, padding, dilated, spec.window(kernel_shape), spec.strides)
    modes = pad.modes(where, padding_mode, spec.ndim)
    if any(d > 1 for d in spec.lhs_dilation):
        if any(mode != "zeros" for mode in modes):
            raise ValueError(
                f"{where}: padding_mode={padding_mode!r} is not defined together with "
                f"input_dilation={spec.lhs_dilation}. Type padding_mode='zeros'."
            )
        x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((0, 0, d - 1) for d in spec.lhs_dilation), (0, 0, 0)])
    return pad.pad_by_mode(where, x, pairs, modes), spec.replace(padding=pairs)


def _check_kernel(where: str, x: Array, w: Array, spec: ConvSpec) -> None:
    kernel = jax.ShapeDtypeStruct(w.shape[spec.ndim :], w.dtype)
    canonical.check_output(where, x, kernel, spec)  # type: ignore[arg-type]
    out = spec.out_space(x.shape, kernel.shape)
    if w.shape[: spec.ndim] != out:
        raise ValueError(
            f"{where}: w of shape {w.shape} has kernels for {w.shape[: spec.ndim]} outputs, but an input of "
            f"{x.shape[1:-1]} gives {out}. Type w of shape {(*out, *kernel.shape)}, or another padding or stride."
        )


@functools.partial(jax.jit, static_argnums=2)
def _sum(padded: Array, w: Array, spec: ConvSpec) -> Array:
    """Each example's patches times the kernels of all positions; few examples at a time where patches outgrow kernels.

    The gradients take the patches anew (`jax.checkpoint`), else all would be kept.
    """
    ndim, groups = spec.ndim, spec.groups
    out, (*k, channels, features) = w.shape[:ndim], w.shape[ndim:]
    taps = list(np.ndindex(*k))
    kernels = w.reshape(math.prod(out), len(taps), channels, groups, features // groups)
    dtype = accumulator(spec, padded.dtype)

    def example(x: Array) -> Array:
        patches = jnp.stack([_window(x, tap, out, spec) for tap in taps], axis=-2)
        patches = patches.reshape(math.prod(out), len(taps), groups, channels)
        y = jnp.einsum("pkgc,pkcgo->pgo", patches, kernels, precision=spec.precision, preferred_element_type=dtype)
        return y.astype(output_dtype(spec, x.dtype)).reshape(*out, features)

    batch, at_once = padded.shape[0], max(MIN_EXAMPLES, features // groups)
    if jax.export.is_symbolic_dim(batch) or batch <= at_once:
        return jax.vmap(example)(padded)
    return lax.map(jax.checkpoint(example), padded, batch_size=at_once)


def _window(padded: Array, tap: Sequence[int], out: Sequence[int], spec: ConvSpec) -> Array:
    """What each output of one example sees at `tap`."""
    starts = [t * d for t, d in zip(tap, spec.rhs_dilation, strict=True)]
    stops = [a + (n - 1) * s + 1 if n else a for a, n, s in zip(starts, out, spec.strides, strict=True)]
    return lax.slice(padded, (*starts, 0), (*stops, padded.shape[-1]), (*spec.strides, 1))
