"""Convolution with a kernel for each example, at the speed of one: the batch becomes groups of channels."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Num

from convjax._core import arguments, canonical, epilogue
from convjax.functional import Activation, Algorithm, Ints, Padding, PaddingMode, Precision


def dynamic_conv(
    x: Num[Array, n * batch_space_c],
    w: Num[Array, n * k_i_o],
    *,
    bias: Num[Array, " o"] | Num[Array, "n o"] | None = None,
    stride: Ints = 1,
    padding: Padding = "SAME",
    dilation: Ints = 1,
    input_dilation: Ints = 1,
    groups: int = 1,
    padding_mode: PaddingMode = "zeros",
    flip_kernel: bool = False,
    activation: Activation = None,
    residual: Num[Array, n * batch_out_o] | None = None,
    algorithm: Algorithm = "auto",
    precision: Precision = None,
    preferred_element_type: DTypeLike | None = None,
) -> Num[Array, n * batch_out_o]:
    """Convolve each example with its own kernel, such as another network predicts (a dynamic filter).

    The same as `jax.vmap(convjax.conv)`: one grouped convolution, not one for each example.

    Args:
      x: input `(N, *batch, *space, C_in)`; further batch axes share the kernel of their example.
      w: kernels `(N, *k, C_in // groups, C_out)`.
      bias: `(C_out,)`, or `(N, C_out)` for one of each example.
      residual: `(N, *batch, *out, C_out)`.
      others: as `convjax.conv`.

    Returns:
      `(N, *batch, *out, C_out)` in the dtype of `x`.

    Raises:
      ValueError: the operands differ in N; else as `convjax.conv`, in the shapes of a single example.
      TypeError: as `convjax.conv`.

    Example:
      >>> import jax.numpy as jnp
      >>> from convjax.per_example import dynamic_conv
      >>> dynamic_conv(jnp.ones((2, 3, 1)), jnp.array([1.0, 10.0]).reshape(2, 1, 1, 1))[..., 0]
      Array([[ 1.,  1.,  1.],
             [10., 10., 10.]], dtype=float32)

    Source: De Brabandere et al., Dynamic filter networks, arXiv:1605.09673, section 3.
    """
    where = "dynamic_conv"
    x, w = arguments.operands(where, x=x, w=w)
    if w.ndim < 3 or x.ndim < 2:
        raise ValueError(
            f"{where}: x of shape {x.shape} and w of shape {w.shape} must be (N, *space, C_in) and (N, *k, C_in // "
            "groups, C_out). Call conv for one kernel shared by all examples."
        )
    bias = None if bias is None else arguments.array(where, "bias", bias)
    residual = None if residual is None else arguments.array(where, "residual", residual)
    bias_axis = 0 if bias is not None and bias.ndim == 2 else None
    _check_examples(where, x, w=w, bias=bias if bias_axis == 0 else None, residual=residual)
    apply = epilogue.read_activation(where, activation)

    def one(x: Array, w: Array, bias: Array | None, residual: Array | None) -> Array:
        problem = canonical.conv(
            where,
            x,
            w,
            stride=stride,
            padding=padding,
            dilation=dilation,
            input_dilation=input_dilation,
            groups=groups,
            padding_mode=padding_mode,
            flip_kernel=flip_kernel,
            layout="channels_last",
            algorithm=algorithm,
            precision=precision,
            preferred_element_type=preferred_element_type,
        )
        shape, dtype = problem.out_shape, problem.out_dtype
        bias, residual = epilogue.read_addends(where, bias, residual, shape, dtype, len(shape) - 1)
        return epilogue.apply(problem.run(), bias, residual, apply)

    operands, axes = (x, w, bias, residual), (0, 0, bias_axis, None if residual is None else 0)
    if x.shape[0] == 0:  # there are no zero groups
        y = jax.eval_shape(one, *(_first(a, axis) for a, axis in zip(operands, axes, strict=True)))
        return jnp.zeros((0, *y.shape), y.dtype)
    return jax.vmap(one, axes)(*operands)


def _check_examples(where: str, x: Array, **others: Array | None) -> None:
    for name, value in others.items():
        if value is not None and (value.ndim == 0 or value.shape[0] != x.shape[0]):
            raise ValueError(
                f"{where}: x of shape {x.shape} has {x.shape[0]} examples, but {name} has shape {value.shape}. Type "
                f"{name} with a leading axis of {x.shape[0]}."
            )


def _first(a: Array | None, axis: int | None) -> Any:
    """Shape and dtype of one example's part."""
    return a if a is None or axis is None else jax.ShapeDtypeStruct(a.shape[1:], a.dtype)
