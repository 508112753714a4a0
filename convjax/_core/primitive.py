"""conv_p: the primitive that every convolution becomes, with its transformations, written once by spec algebra.

A primitive rather than `custom_vjp`: forward mode, Hessians, `vmap`, `remat`, export and `shard_map` work for every
algorithm, opaque kernels included, and the algorithm is chosen at lowering (`convjax._core.lowering`), where platform
and real batch are known.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching

from convjax._core import compat
from convjax._core.arrange import merge_axes, split_axis
from convjax._core.bridge import inverse, is_channels_first, lax_params, orders, transpose
from convjax._core.spec import ConvSpec

conv_p = Primitive("convjax_conv")


def convolve(lhs: Array, rhs: Array, spec: ConvSpec) -> Array:
    """Convolve `lhs (N, *space, C)` with `rhs (*k, C / feature_groups, O)`; shapes and dtypes are trusted."""
    lhs, rhs = compat.same_varying(lhs, rhs)
    return conv_p.bind(lhs, rhs, spec=spec)


def convolve_ordered(lhs: Array, rhs: Array, numbers: lax.ConvDimensionNumbers, spec: ConvSpec) -> Array:
    """`convolve` operands whose axes are in the order that lax's `numbers` say."""
    to_lhs, to_rhs, to_out = orders(numbers)
    spec = spec.replace(channels_first=is_channels_first(to_lhs, to_out))
    return transpose(convolve(transpose(lhs, to_lhs), transpose(rhs, to_rhs), spec), inverse(to_out))


conv_p.def_abstract_eval(lambda lhs, rhs, *, spec: compat.lax_conv_abstract_eval(lhs, rhs, **lax_params(spec)))


@partial(jax.jit, static_argnames="spec")
def _eager(lhs: Array, rhs: Array, spec: ConvSpec) -> Array:
    return conv_p.bind(lhs, rhs, spec=spec)


conv_p.def_impl(lambda lhs, rhs, *, spec: _eager(lhs, rhs, spec))


# --- differentiation --------------------------------------------------------------------------------------------------


def move_into(a: Array, source: int, axis: int, groups: int = 1) -> Array:
    """Merge axis `source` into `axis` (numbered without `source`), inside each of the `groups` that `axis` holds."""
    a = jnp.moveaxis(a, source, 0)
    a = split_axis(a, axis + 1, groups)
    return merge_axes(merge_axes(jnp.moveaxis(a, 0, axis + 1), axis + 1), axis)


def move_out(a: Array, axis: int, size: int, groups: int = 1) -> Array:
    """The inverse of `move_into`: the axis that was merged comes first."""
    a = split_axis(split_axis(a, axis, groups), axis + 1, size)
    return merge_axes(jnp.moveaxis(a, axis + 1, 0), axis + 1)


def _common_dtype(a: Array, b: Array) -> tuple[Array, Array]:
    dtype = jnp.promote_types(a.dtype, b.dtype)
    return a.astype(dtype), b.astype(dtype)


def _lhs_grad(ct: Array, lhs: Any, rhs: Array, *, spec: ConvSpec) -> Array:
    shape, dtype = lhs.aval.shape, lhs.aval.dtype
    grad = spec.lhs_grad(shape, rhs.shape).replace(preferred_element_type=None)
    rhs = jnp.flip(rhs, tuple(range(spec.ndim)))
    rhs = jnp.moveaxis(split_axis(rhs, spec.ndim + 1, spec.groups), spec.ndim, -1)  # (*k, groups, O / groups, C)
    ct, rhs = _common_dtype(ct, merge_axes(jnp.moveaxis(rhs, -2, spec.ndim), spec.ndim + 1))
    out = convolve(ct, rhs, grad).astype(dtype)
    if spec.batch_groups > 1:  # (N / groups, *space, groups * C) to (N, *space, C)
        out = merge_axes(jnp.moveaxis(split_axis(out, spec.ndim + 1, spec.batch_groups), -2, 0), 0)
    return out


def _rhs_grad(ct: Array, lhs: Array, rhs: Any, *, spec: ConvSpec) -> Array:
    grad = spec.rhs_grad(lhs.shape, rhs.aval.shape).replace(preferred_element_type=None)
    lhs, ct = _common_dtype(jnp.swapaxes(lhs, 0, -1), jnp.moveaxis(ct, 0, -2))
    return jnp.moveaxis(convolve(lhs, ct, grad), 0, -2).astype(rhs.aval.dtype)


ad.defbilinear(conv_p, _lhs_grad, _rhs_grad)


# --- batching ---------------------------------------------------------------------------------------------------------


def _batch(args: tuple[Array, Array], axes: tuple[int | None, int | None], *, spec: ConvSpec) -> tuple[Array, int]:
    """Lhs only: into the batch. rhs only: into the output features. Both: one more factor of groups."""
    lhs, rhs = args
    lhs_axis, rhs_axis = axes
    features = spec.ndim + 1
    if any(a.shape[axis] == 0 for a, axis in zip(args, axes, strict=True) if axis is not None):
        return _no_examples(args, axes, spec), 0
    if rhs_axis is None:
        assert lhs_axis is not None  # JAX asks only where something is batched
        size = lhs.shape[lhs_axis]
        lhs = move_into(lhs, lhs_axis, 0, spec.batch_groups)
        return move_out(convolve(lhs, rhs, spec), 0, size), 0
    size = rhs.shape[rhs_axis]
    spec = spec.replace(channels_first=False)  # examples come among the features
    if lhs_axis is None:
        rhs = move_into(rhs, rhs_axis, features, spec.groups)
        return move_out(convolve(lhs, rhs, spec), features, size, spec.groups), 0
    rhs = move_into(rhs, rhs_axis, features)
    if spec.batch_groups > 1:
        lhs, spec = move_into(lhs, lhs_axis, 0), spec.replace(batch_groups=size * spec.batch_groups)
    else:
        lhs, spec = move_into(lhs, lhs_axis, features), spec.replace(feature_groups=size * spec.feature_groups)
    return move_out(convolve(lhs, rhs, spec), features, size), 0


def _no_examples(args: tuple[Array, Array], axes: tuple[int | None, int | None], spec: ConvSpec) -> Array:
    """An empty stack of outputs: zero groups are none that a spec could have."""
    one = [
        jax.ShapeDtypeStruct([n for i, n in enumerate(a.shape) if i != axis], a.dtype)
        for a, axis in zip(args, axes, strict=True)
    ]
    out = jax.eval_shape(partial(convolve, spec=spec), *one)
    return jnp.zeros((0, *out.shape), out.dtype)


batching.primitive_batchers[conv_p] = _batch


def save_convolutions(primitive: Any, *_: Any, **__: Any) -> bool:
    """A policy for `jax.checkpoint`: keep the outputs of convolutions, recompute the rest.

    Example:
      >>> import jax, jax.numpy as jnp, convjax
      >>> def loss(w):
      ...     return jnp.sum(jax.nn.relu(convjax.conv(jnp.ones((1, 5, 3)), w)))
      >>> remat = jax.checkpoint(loss, policy=convjax.save_convolutions)
      >>> jax.grad(remat)(jnp.ones((3, 3, 2))).shape
      (3, 3, 2)
    """
    return primitive in (conv_p, compat.LAX_CONV)
