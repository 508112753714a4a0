"""A deformable convolution as one primitive, so that on CPUs its gradients are one pass over the samples.

The derivative is a linear primitive, and that one's transpose is `gradient_p`. Everywhere but on CPUs, in forward mode
and in second derivatives all three are the `definition`, in blocks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from convjax._core import compat
from convjax._core.dtypes import accumulator, output_dtype
from convjax._core.forward_mode import along, jvp_of
from convjax._core.spec import ConvSpec
from convjax._deformable import taps
from convjax._deformable.blocks import Sampling, in_blocks

deform_p = Primitive("convjax_deform_conv")
tangent_p = Primitive("convjax_deform_conv_tangent")
gradient_p = Primitive("convjax_deform_conv_gradient")
gradient_p.multiple_results = True


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is not data.

    Attributes:
      sampling: where to sample.
      spec: of the product with the kernel; None sums the samples of each channel.
      masked: whether there is a mask.
    """

    sampling: Sampling
    spec: ConvSpec | None
    masked: bool

    def split(self, others: Sequence[Any]) -> tuple[Any, Any]:
        """The mask and the kernels among the operands that follow `x` and `offset`."""
        return others[0] if self.masked else None, None if self.spec is None else others[int(self.masked)]

    def join(self, x: Any, offset: Any, mask: Any, w: Any) -> list[Any]:
        """All operands that there are, in order."""
        return [x, offset, *[mask] * self.masked, *([] if self.spec is None else [w])]

    def dtypes(self, x: Any) -> tuple[Any, Any]:
        """That of the samples, and that of the result."""
        if self.spec is None:
            return jnp.promote_types(x.dtype, jnp.float32), x.dtype
        return accumulator(self.spec, x.dtype), output_dtype(self.spec, x.dtype)

    def contract(self, dtype: Any) -> Callable[..., Array]:
        """From samples `(P, K, C)`, and a kernel `(K, C // groups, O)`, to `(P, O)` of the samples' dtype."""
        if self.spec is None:
            return lambda samples: samples.sum(1)
        return partial(_product, spec=self.spec, dtype=dtype)


def _product(samples: Array, w: Array, *, spec: ConvSpec, dtype: Any) -> Array:
    total = samples.dtype
    positions, taps, _ = samples.shape
    _, channels, features = w.shape
    if channels == 1 < spec.groups:  # a matrix product would sum over the taps alone
        y = (samples[..., None] * w.reshape(taps, spec.groups, -1).astype(total)).sum(1)
    elif spec.groups == 1:  # an einsum over the axis of 1 would transpose the samples
        y = jnp.dot(
            samples.reshape(positions, taps * channels).astype(dtype),
            w.reshape(taps * channels, features),
            precision=spec.precision,
            preferred_element_type=total,
        )
    else:
        y = jnp.einsum(
            "pkgc,kcgo->pgo",
            samples.reshape(positions, taps, spec.groups, channels).astype(dtype),
            w.reshape(taps, channels, spec.groups, features // spec.groups),
            precision=spec.precision,
            preferred_element_type=total,
        )
    return y.reshape(positions, features)


def deform(x: Array, offset: Array, mask: Array | None, w: Array | None, sampling: Sampling, spec: Any) -> Array:
    """Samples of `x (N, *space, C)`, times `w (kernels, K, C // groups, O)` or summed.

    Args:
      x: input.
      offset: `(N, *out, groups * K * ndim)`, in the order of the spatial axes.
      mask: `(N, *out, groups * K)`, or None.
      w: one kernel, or as many as there are equal parts of the batch; None sums the samples.
      sampling: where to sample.
      spec: of the product; None without `w`.

    Returns:
      `(N, *out, O)`.
    """
    plan = Plan(sampling, spec, mask is not None)
    return deform_p.bind(*compat.same_varying(*plan.join(x, offset, mask, w)), plan=plan)


# --- the definition ---------------------------------------------------------------------------------------------------


def definition(*operands: Array, plan: Plan) -> Array:
    """In blocks of the samples of all taps; parts of the batch with kernels of their own side by side."""
    dtype, result = plan.dtypes(operands[0])

    def one(x: Array, offset: Array, *others: Array) -> Array:
        mask, w = plan.split(others)
        kernels = () if w is None else (w,)
        return in_blocks(x, offset, mask, plan.sampling, dtype, result, plan.contract(x.dtype), *kernels)

    x, offset, *others = operands
    mask, w = plan.split(others)
    if w is None or len(w) == 1:
        return one(*plan.join(x, offset, mask, None if w is None else w[0]))
    parts = [a if a is w else a.reshape(len(w), -1, *a.shape[1:]) for a in operands]
    y = jax.vmap(one)(*parts)
    return y.reshape(-1, *y.shape[2:])


def tangent(*operands: Array, moving: tuple[int, ...], plan: Plan) -> Array:
    """The derivative along the operands that come last, tangents of those that `moving` numbers."""
    count = len(operands) - len(moving)
    tangents = dict(zip(moving, operands[count:], strict=True))
    return along(partial(definition, plan=plan), operands[:count], tangents)[1]


def gradient(*operands: Array, kernels: int, plan: Plan) -> list[Array]:
    """Gradients in all operands, from the cotangent, which is the last; in as many kernels as there are parts."""
    x, offset, *others, ct = operands
    mask, w = plan.split(others)
    primals = plan.join(x, offset, mask, _each(w, kernels))
    return list(jax.vjp(partial(definition, plan=plan), *primals)[1](ct))


def _each(w: Array | None, kernels: int) -> Array | None:
    return w if w is None or len(w) == kernels else jnp.broadcast_to(w, (kernels, *w.shape[1:]))


# --- tap by tap -------------------------------------------------------------------------------------------------------


def by_taps(*operands: Array, plan: Plan) -> Array:
    """What `definition` computes."""
    x, offset, *others = operands
    dtype, result = plan.dtypes(x)
    y = taps.value(x, offset, *plan.split(others), plan.sampling, dtype, plan.contract(x.dtype))
    return y.astype(result)


def gradient_by_taps(*operands: Array, kernels: int, plan: Plan) -> list[Array]:
    """What `gradient` computes."""
    x, offset, *others, ct = operands
    mask, w = plan.split(others)
    dtype, _ = plan.dtypes(x)
    w = _each(w, kernels)
    return plan.join(*taps.gradients(x, offset, mask, w, ct, plan.sampling, dtype, plan.contract(x.dtype)))


# --- shapes, derivatives, batches -------------------------------------------------------------------------------------


@deform_p.def_abstract_eval
def _shape(x: Any, offset: Any, *others: Any, plan: Plan, **_: Any) -> Any:
    _, w = plan.split(others)
    _, result = plan.dtypes(x)
    features = x.shape[-1] if w is None else w.shape[-1]
    return x.update(shape=(x.shape[0], *plan.sampling.out, features), dtype=result, weak_type=False)


tangent_p.def_abstract_eval(_shape)


@gradient_p.def_abstract_eval
def _shapes(x: Any, offset: Any, *others: Any, kernels: int, plan: Plan) -> list[Any]:
    mask, w = plan.split(others)
    return plan.join(x, offset, mask, w if w is None else w.update(shape=(kernels, *w.shape[1:])))


@partial(jax.jit, static_argnames=("primitive", "plan", "moving", "kernels"))
def _eager(*operands: Array, primitive: Primitive, **params: Any) -> Any:
    return primitive.bind(*operands, **params)


def _jvp(primals: tuple[Array, ...], tangents: tuple[Any, ...], *, plan: Plan) -> tuple[Array, Any]:
    moving = tuple(i for i, tangent in enumerate(tangents) if type(tangent) is not ad.Zero)
    y = deform_p.bind(*primals, plan=plan)
    return y, tangent_p.bind(*primals, *(tangents[i] for i in moving), moving=moving, plan=plan)


def _transpose(ct: Any, *operands: Any, moving: tuple[int, ...], plan: Plan) -> list[Any]:
    primals = operands[: len(operands) - len(moving)]
    if type(ct) is ad.Zero:
        return [None] * len(operands)
    _, w = plan.split(primals[2:])
    grads = gradient_p.bind(*primals, ct, kernels=1 if w is None else len(w), plan=plan)
    return [None] * len(primals) + [grads[i] for i in moving]


def _batch(args: tuple[Array, ...], axes: tuple[Any, ...], *, plan: Plan) -> tuple[Array, int]:
    """Examples become more of the batch, kernels more kernels."""
    size = next(a.shape[axis] for a, axis in zip(args, axes, strict=True) if axis is not None)
    if size == 0:
        return jax.vmap(partial(definition, plan=plan), in_axes=axes)(*args), 0
    y = deform_p.bind(*_merged(args, axes, size, plan, 1)[0], plan=plan)
    return y.reshape(size, -1, *y.shape[1:]), 0


def _batch_of_gradient(args: Any, axes: Any, *, kernels: int, plan: Plan) -> tuple[list[Array], list[int]]:
    size = next(a.shape[axis] for a, axis in zip(args, axes, strict=True) if axis is not None)
    if size == 0:
        grads = jax.vmap(partial(gradient, kernels=kernels, plan=plan), in_axes=axes)(*args)
    else:
        merged, kernels = _merged(args, axes, size, plan, kernels)
        grads = gradient_p.bind(*merged, kernels=kernels, plan=plan)
        grads = [a.reshape(size, -1, *a.shape[1:]) for a in grads]
    return grads, [0] * len(grads)


def _merged(args: Any, axes: Any, size: int, plan: Plan, kernels: int) -> tuple[list[Array], int]:
    """Operands with the new axis merged into their first, and how many kernels that makes."""
    which = 2 + plan.masked if plan.spec is not None else -1
    merged = []
    for i, (a, axis) in enumerate(zip(args, axes, strict=True)):
        if i == which and axis is None and len(a) == 1:  # shared by all
            merged.append(a)
            continue
        a = jnp.broadcast_to(a, (size, *a.shape)) if axis is None else jnp.moveaxis(a, axis, 0)
        if i == which and a.shape[1] < kernels:
            a = jnp.broadcast_to(a, (size, kernels, *a.shape[2:]))
        merged.append(a.reshape(-1, *a.shape[2:]))
    return merged, kernels * size


def _batch_of_tangent(args: Any, axes: Any, **params: Any) -> tuple[Array, int]:
    return jax.vmap(partial(tangent, **params), in_axes=axes)(*args), 0


# --- lowering ---------------------------------------------------------------------------------------------------------


def _lower(
    ctx: Any, *operands: Any, function: Callable, here: Callable | None, multiple_results: bool, **params: Any
) -> Any:
    partitioned = compat.partitioned(ctx)
    known = not any(jax.export.is_symbolic_dim(size) for aval in ctx.avals_in for size in aval.shape)
    if here is not None and known and not partitioned:
        function = here
    ctx = ctx if partitioned else compat.without_axes(ctx)
    return mlir.lower_fun(partial(function, **params), multiple_results=multiple_results)(ctx, *operands)


for _primitive, _function, _on_cpu, _rule in (
    (deform_p, definition, by_taps, _jvp),
    (tangent_p, tangent, None, partial(jvp_of, tangent)),
    (gradient_p, gradient, gradient_by_taps, partial(jvp_of, gradient)),
):
    _common = partial(_lower, function=_function, multiple_results=_primitive.multiple_results)
    mlir.register_lowering(_primitive, partial(_common, here=None))
    mlir.register_lowering(_primitive, partial(_common, here=_on_cpu), platform="cpu")
    _primitive.def_impl(partial(_eager, primitive=_primitive))
    ad.primitive_jvps[_primitive] = _rule
ad.primitive_transposes[tangent_p] = _transpose
batching.primitive_batchers[deform_p] = _batch
batching.primitive_batchers[tangent_p] = _batch_of_tangent
batching.primitive_batchers[gradient_p] = _batch_of_gradient
