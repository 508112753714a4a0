"""Drop-in signatures of `jax.lax`, with `algorithm=`: for hooks such as Flax's `conv_general_dilated=` argument.

Semantics are lax's own, because lax itself reads the arguments: shapes are checked by its rules, an output may be
empty, a sum of narrow integers may wrap around. `algorithm` is that of `convjax.conv`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import Array, lax
from jax.extend.core import Literal

from convjax._core import arguments, compat
from convjax._core.algorithms import ALGORITHMS
from convjax._core.bridge import spec_from_lax
from convjax._core.primitive import convolve_ordered

__all__ = ["conv", "conv_general_dilated", "conv_transpose", "conv_with_general_padding"]


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    out_sharding: Any = None,
    *,
    algorithm: Any = "auto",
) -> Array:
    """`jax.lax.conv_general_dilated`, served by our algorithms.

    Args:
      lhs, rhs and the rest: as `jax.lax.conv_general_dilated`, in its default layouts (NCHW, OIHW) and all others.
      algorithm: as in `convjax.conv`.

    Returns:
      what lax returns.

    Raises:
      what lax raises; ValueError for an algorithm that is unknown or cannot serve.

    Example:
      >>> import jax.numpy as jnp, convjax
      >>> convjax.lax.conv_general_dilated(jnp.ones((1, 3, 8, 8)), jnp.ones((4, 3, 3, 3)), (1, 1), "SAME").shape
      (1, 4, 8, 8)
    """

    def call(lhs: Array, rhs: Array) -> Array:
        return lax.conv_general_dilated(
            lhs,
            rhs,
            window_strides,
            padding,
            lhs_dilation,
            rhs_dilation,
            dimension_numbers,
            feature_group_count,
            batch_group_count,
            precision,
            preferred_element_type,
            out_sharding,
        )

    return _serve("conv_general_dilated", call, lhs, rhs, algorithm)


def conv(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str,
    precision: Any = None,
    preferred_element_type: Any = None,
    *,
    algorithm: Any = "auto",
) -> Array:
    """`jax.lax.conv`, served by our algorithms; see `convjax.lax.conv_general_dilated`.

    Example:
      >>> import jax.numpy as jnp, convjax
      >>> convjax.lax.conv(jnp.ones((1, 3, 8, 8)), jnp.ones((4, 3, 3, 3)), (1, 1), "VALID").shape
      (1, 4, 6, 6)
    """

    def call(lhs: Array, rhs: Array) -> Array:
        return lax.conv(lhs, rhs, window_strides, padding, precision, preferred_element_type)

    return _serve("conv", call, lhs, rhs, algorithm)


def conv_with_general_padding(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None,
    rhs_dilation: Sequence[int] | None,
    precision: Any = None,
    preferred_element_type: Any = None,
    *,
    algorithm: Any = "auto",
) -> Array:
    """`jax.lax.conv_with_general_padding`, served by our algorithms; see `convjax.lax.conv_general_dilated`.

    Example:
      >>> import jax.numpy as jnp, convjax
      >>> x, w = jnp.ones((1, 3, 8)), jnp.ones((4, 3, 3))
      >>> convjax.lax.conv_with_general_padding(x, w, (1,), [(2, 0)], None, None).shape
      (1, 4, 8)
    """

    def call(lhs: Array, rhs: Array) -> Array:
        return lax.conv_with_general_padding(
            lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, precision, preferred_element_type
        )

    return _serve("conv_with_general_padding", call, lhs, rhs, algorithm)


def conv_transpose(
    lhs: Array,
    rhs: Array,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    transpose_kernel: bool = False,
    precision: Any = None,
    preferred_element_type: Any = None,
    use_consistent_padding: bool = False,
    *,
    algorithm: Any = "auto",
) -> Array:
    """`jax.lax.conv_transpose`, served by our algorithms; see `convjax.lax.conv_general_dilated`.

    Its conventions differ from `convjax.conv_transpose`: the kernel is not flipped, integers pad the dilated input.

    Example:
      >>> import jax.numpy as jnp, convjax
      >>> convjax.lax.conv_transpose(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 5)), (2, 2), "SAME").shape
      (1, 8, 8, 5)
    """

    def call(lhs: Array, rhs: Array) -> Array:
        return lax.conv_transpose(
            lhs,
            rhs,
            strides,
            padding,
            rhs_dilation,
            dimension_numbers,
            transpose_kernel,
            precision,
            preferred_element_type,
            use_consistent_padding,
        )

    return _serve("conv_transpose", call, lhs, rhs, algorithm)


def _serve(where: str, call: Callable[[Array, Array], Array], lhs: Array, rhs: Array, algorithm: Any) -> Array:
    """Let lax trace `call`, then evaluate what it traced with our convolution in place of its own."""
    algorithms = arguments.algorithms(where, algorithm, tuple(ALGORITHMS))
    traced = jax.make_jaxpr(call)(lhs, rhs)
    values: dict[Any, Any] = dict(zip(traced.jaxpr.invars, (lhs, rhs), strict=True))
    values.update(zip(traced.jaxpr.constvars, traced.consts, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation in traced.jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        params = equation.params
        if equation.primitive is compat.LAX_CONV and params["out_sharding"] is None:
            spec = spec_from_lax(params, algorithms)
            if any(stride < 1 for stride in spec.strides):
                raise ValueError(
                    f"{where}: window_strides={spec.strides} must be at least 1. Type 1 or more for each axis."
                )
            outputs = [convolve_ordered(inputs[0], inputs[1], params["dimension_numbers"], spec)]
        else:
            outputs = compat.evaluate(equation, inputs)
        values.update(zip(equation.outvars, outputs, strict=True))
    (result,) = (read(atom) for atom in traced.jaxpr.outvars)
    return result
