"""Patches of an array side by side (im2col), and their sum back into an array (col2im).

Both only move values, or add them: nothing is multiplied, so that integers and every bit of a float come through, and
NaN stays in the patches that hold it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Num

from convjax._core import arguments, canonical
from convjax._core import padding as pad
from convjax._core.dtypes import accumulator, default_integer_output, output_dtype
from convjax._core.spec import ConvSpec, Shape, dilate
from convjax.functional import Ints, Padding, PaddingMode


def unfold(
    x: Num[Array, "*batch_space_c"],
    kernel_size: Sequence[int],
    *,
    stride: Ints = 1,
    padding: Padding = "VALID",
    dilation: Ints = 1,
    padding_mode: PaddingMode = "zeros",
) -> Num[Array, "*batch_out_k_c"]:
    """What each output of a convolution sees: the patches of `x`, in as many spatial axes as `kernel_size` has entries.

    `jnp.tensordot(unfold(x, k, ...), w, w.ndim - 1)` is `convjax.conv(x, w, ...)`. In 2-D,
    `torch.nn.functional.unfold` holds the same numbers, ordered `(N, C * K, L)` with `K = prod(k)`, `L = prod(out)`.

    Args:
      x: input `(*batch, *space, C)`; any number of batch axes, none included.
      kernel_size: taps along each spatial axis, at least 1; a sequence, as its length says which axes are spatial.
      stride, padding, dilation: as `convjax.conv`, but unpadded unless told.
      padding_mode: see the head of `convjax.functional`.

    Returns:
      `(*batch, *out, *k, C)` in the dtype of `x`, `prod(k)` times its size where the stride is 1.

    Raises:
      ValueError: a patch is larger than the padded input; too few axes; a name that is not known.
      TypeError: `kernel_size` is not a sequence of static integers; `x` is not numeric.

    Example:
      >>> import jax.numpy as jnp
      >>> from convjax.patches import unfold
      >>> unfold(jnp.arange(4)[:, None], (2,))[..., 0]
      Array([[0, 1],
             [1, 2],
             [2, 3]], dtype=int32)

    Source: Chellapilla, Puri and Simard, High performance convolutional neural networks for document processing, 2006.
    """
    where = "unfold"
    x, kernel = arguments.array(where, "x", x), _sizes(where, "kernel_size", kernel_size, minimum=1)
    n = len(kernel)
    if x.ndim < n + 1:
        raise ValueError(
            f"{where}: x of shape {x.shape} has {x.ndim} axes, but (*batch, *space, C) with kernel_size={kernel} has "
            f"at least {n + 1}. Type x[..., None] if x lacks its channels, or a kernel_size of fewer entries."
        )
    batch, space = x.shape[: x.ndim - n - 1], x.shape[x.ndim - n - 1 : -1]
    spec = window_spec(where, space, kernel, stride, padding, dilation, x.dtype)
    x = x.reshape(math.prod(batch), *space, x.shape[-1])
    x = pad.pad_by_mode(where, x, spec.padding, pad.modes(where, padding_mode, n))
    patches = _gather(x, kernel, spec.replace(padding=((0, 0),) * n))
    return patches.reshape(*batch, *patches.shape[1:])


def fold(
    patches: Num[Array, "*batch_out_k_c"],
    output_size: Sequence[int],
    *,
    stride: Ints = 1,
    padding: Padding = "VALID",
    dilation: Ints = 1,
) -> Num[Array, "*batch_space_c"]:
    """The adjoint of `unfold`: each value of a patch is added to the place that it was taken from.

    Where patches overlap they are summed, so `fold(unfold(x))` is `x` times the number of patches that hold each place,
    which `fold(unfold(jnp.ones_like(x)))` tells. Equals `torch.nn.functional.fold` and ONNX's Col2Im, in another order.

    Args:
      patches: `(*batch, *out, *k, C)`.
      output_size: the spatial shape of the result; a sequence, as its length says which axes are spatial.
      stride, padding, dilation: those of the `unfold`. What falls on the padding is lost.

    Returns:
      `(*batch, *output_size, C)` in the dtype of `patches`; 16-bit floats are summed in float32, integers narrower than
      32 bits are summed exactly and returned as int32.

    Raises:
      ValueError: an input of `output_size` has not so many patches of this size.
      TypeError: `output_size` is not a sequence of static integers; `patches` is not numeric.

    Example:
      >>> import jax.numpy as jnp
      >>> from convjax.patches import fold
      >>> fold(jnp.array([[0, 1], [1, 2], [2, 3]])[..., None], (4,))[:, 0]
      Array([0, 2, 4, 3], dtype=int32)

    Source: Dumoulin and Visin, A guide to convolution arithmetic for deep learning, arXiv:1603.07285, chapter 4.
    """
    where = "fold"
    patches, space = arguments.array(where, "patches", patches), _sizes(where, "output_size", output_size, minimum=0)
    n = len(space)
    if patches.ndim < 2 * n + 1:
        raise ValueError(
            f"{where}: patches of shape {patches.shape} has {patches.ndim} axes, but (*batch, *out, *k, C) with "
            f"output_size={space} has at least {2 * n + 1}. Type patches as `unfold` returns them."
        )
    split = patches.ndim - 2 * n - 1
    batch, given, kernel = patches.shape[:split], patches.shape[split : split + n], patches.shape[split + n : -1]
    if 0 in kernel:
        raise ValueError(f"{where}: patches of shape {patches.shape} are of {kernel} taps. Type at least one an axis.")
    spec = window_spec(where, space, kernel, stride, padding, dilation, patches.dtype)
    out = spec.out_space((1, *space, 1), (*kernel, 1, 1))
    if given != out:
        raise ValueError(
            f"{where}: patches of shape {patches.shape} are {given} of {kernel} taps, but output_size={space} with "
            f"strides {spec.strides}, padding {spec.padding} and dilation {spec.rhs_dilation} has {out}. Type the "
            "output_size and the options that `unfold` had."
        )
    y = _scatter(patches.reshape(math.prod(batch), *out, *kernel, patches.shape[-1]), space, spec)
    return y.reshape(*batch, *y.shape[1:])


def _sizes(where: str, name: str, value: Any, minimum: int) -> tuple[int, ...]:
    """One integer for each spatial axis; a single one would not say how many axes are spatial."""
    arguments.static(where, name, value)
    if isinstance(value, str) or not hasattr(value, "__len__"):
        raise TypeError(
            f"{where}: {name}={value!r} must be a sequence, as its length says how many axes are spatial. "
            f"Type {name}=({value!r}, {value!r}) for an image."
        )
    return tuple(arguments.integer(where, f"{name}[{i}]", v, minimum) for i, v in enumerate(value))


def window_spec(
    where: str, space: Shape, kernel: Shape, stride: Any, padding: Any, dilation: Any, dtype: Any
) -> ConvSpec:
    """The convolution of these sizes, whatever its channels."""
    n, taps = len(kernel), (*kernel, 1, 1)
    spec = ConvSpec(
        arguments.per_axis(where, "stride", stride, n, minimum=1),
        ((0, 0),) * n,
        (1,) * n,
        arguments.per_axis(where, "dilation", dilation, n, minimum=1),
        preferred_element_type=default_integer_output(dtype),
    )
    spec = spec.replace(padding=pad.pads(where, padding, space, spec.window(taps), spec.strides))
    lhs, rhs = (jax.ShapeDtypeStruct(shape, dtype) for shape in ((1, *space, 1), taps))
    canonical.check_output(where, lhs, rhs, spec)  # type: ignore[arg-type]
    return spec


@functools.partial(jax.jit, static_argnums=(1, 2))
def _gather(padded: Array, kernel: Shape, spec: ConvSpec) -> Array:
    """Axis by axis: `sum(k)` slices instead of `prod(k)`. The detour by a wide dtype is for the gradient's sums."""
    out = spec.out_space(padded.shape, (*kernel, 1, 1))
    x = padded.astype(accumulator(spec, padded.dtype))
    for i, (taps, step) in enumerate(zip(kernel, spec.rhs_dilation, strict=True)):
        starts = [t * step if out[i] else 0 for t in range(taps)]
        length, stride = dilate(out[i], spec.strides[i]), spec.strides[i]
        x = jnp.stack([lax.slice_in_dim(x, a, a + length, stride, axis=1 + i) for a in starts], axis=-2)
    return x.astype(padded.dtype)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _scatter(patches: Array, space: Shape, spec: ConvSpec) -> Array:
    """`_gather` backwards, from the last axis to the first; then what was padded goes."""
    n = len(space)
    padded = spec.padded_space((1, *space, 1))
    y = patches.astype(accumulator(spec, patches.dtype))
    zero = jnp.zeros((), y.dtype)
    for i in reversed(range(n)):
        length, stride, step = dilate(y.shape[1 + i], spec.strides[i]), spec.strides[i], spec.rhs_dilation[i]
        total: Any = 0
        for t in range(y.shape[-2]):
            widths = [(0, 0, 0)] * (y.ndim - 1)
            widths[1 + i] = (t * step, padded[i] - t * step - length, stride - 1)
            total += lax.pad(lax.index_in_dim(y, t, axis=-2, keepdims=False), zero, widths)
        y = total
    y = lax.pad(y, zero, [(0, 0, 0), *((-lo, -hi, 0) for lo, hi in spec.padding), (0, 0, 0)])
    return y.astype(output_dtype(spec, patches.dtype))
