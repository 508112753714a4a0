"""A causal convolution, what it goes on from and what follows it as one primitive, for kernels that do it all at once.

The kernels in `CAUSAL` take a state, segments, a bias and SiLU in one pass over the signal, and have all gradients, the
state's too, in a second. That is no convolution of the canonical family, so it has a primitive as well: the derivative
of `causal_p` is a linear one, `tangent_p`, whose transpose is `gradient_p`. Where a kernel does not serve, in forward
mode and in second derivatives, all of them are what the `definition` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from convjax._core import bridge, compat, fused
from convjax._core.canonical import Problem
from convjax._core.choose import choose
from convjax._core.epilogue import ACTIVATIONS
from convjax._core.forward_mode import along, jvp_of
from convjax._core.kernels import CAUSAL
from convjax._core.layout import Layout
from convjax._core.primitive import convolve, move_into, move_out
from convjax._core.spec import ConvSpec

causal_p = Primitive("convjax_causal_conv")
tangent_p = Primitive("convjax_causal_conv_tangent")
gradient_p = Primitive("convjax_causal_conv_gradient")
gradient_p.multiple_results = True

IN_ORDER = Layout((0, 1, 2), (0, 1, 2), (0, 1, 2), 1)


def causal(
    x: Array,
    w: Array,
    spec: ConvSpec,
    *,
    bias: Array | None = None,
    state: Array | None = None,
    segment_ids: Array | None = None,
    silu: bool = False,
) -> Array:
    """Convolve `x (N, T, C)` with `w (k, C / groups, O)`.

    A `state (N, reach, C)` replaces the zeros that `spec` pads with; there is none together with `segment_ids (N, T)`.
    """
    optional = dict(bias=bias, state=state, segment_ids=segment_ids)
    given = tuple(name for name, value in optional.items() if value is not None)
    operands = compat.same_varying(x, w, *(value for value in optional.values() if value is not None))
    return causal_p.bind(*operands, spec=spec, given=given, silu=silu)


# --- the definition ---------------------------------------------------------------------------------------------------


def definition(x: Array, w: Array, *others: Array, spec: ConvSpec, given: tuple[str, ...], silu: bool) -> Array:
    """By a convolution of the canonical family; a kernel of `CAUSAL`, which serves no other, is then no must."""
    named = dict(zip(given, others, strict=True))
    spec = _optional(spec)
    activation = ACTIVATIONS["silu"] if silu else None
    if "segment_ids" in named:
        windows, once = of_segments(x, named["segment_ids"], w.shape[0], spec)
        count, length, *window = windows.shape
        y = convolve(windows.reshape(count * length, *window), w, once).reshape(count, length, w.shape[-1])
        y = y if "bias" not in named else y + named["bias"]
        return y if activation is None else activation(y)
    if "state" in named:
        x, spec = jnp.concatenate([named["state"], x], axis=1), spec.replace(padding=((0, 0),))
    return fused.run(Problem(x, w, spec, IN_ORDER, (x.shape[0],)), named.get("bias"), None, activation)


def _optional(spec: ConvSpec) -> ConvSpec:
    names = (f"{name}?" if name in CAUSAL else name for name in spec.algorithms)
    return spec.replace(algorithms=tuple(names))


def of_segments(x: Array, ids: Array, taps: int, spec: ConvSpec) -> tuple[Array, ConvSpec]:
    """A window for every output, `(N, T, k, C)`, and the convolution that makes one output of each.

    Inputs of other segments are replaced, not multiplied by zero, so that not even their NaN is seen.
    """
    (stride,), (dilation,), ((front, _),) = spec.strides, spec.rhs_dilation, spec.padding
    own = ids[:, ::stride]
    padded, padded_ids = jnp.pad(x, ((0, 0), (front, 0), (0, 0))), jnp.pad(ids, ((0, 0), (front, 0)))
    seen = []
    for first in range(0, taps * dilation, dilation):
        same = lax.slice_in_dim(padded_ids, first, first + x.shape[1], stride, axis=1) == own
        inputs = lax.slice_in_dim(padded, first, first + x.shape[1], stride, axis=1)
        seen.append(jnp.where(same[..., None], inputs, 0))
    return jnp.stack(seen, axis=2), spec.replace(strides=(1,), padding=((0, 0),), rhs_dilation=(1,))


def _split(operands: Sequence[Any], given: tuple[str, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """What has derivatives, and the ids, which come last."""
    end = 2 + len(given) - ("segment_ids" in given)
    return tuple(operands[:end]), tuple(operands[end : 2 + len(given)])


def tangent(*operands: Array, moving: tuple[int, ...], given: tuple[str, ...], **params: Any) -> Array:
    """The derivative along the operands that come last, tangents of those that `moving` numbers."""
    primals, tangents = operands[: 2 + len(given)], operands[2 + len(given) :]
    return along(partial(definition, given=given, **params), primals, dict(zip(moving, tangents, strict=True)))[1]


def gradient(*operands: Array, given: tuple[str, ...], **params: Any) -> tuple[Array, ...]:
    """Gradients in all but the ids, from the cotangent, which is the last operand."""
    smooth, ids = _split(operands, given)
    _, pull = jax.vjp(lambda *smooth: definition(*smooth, *ids, given=given, **params), *smooth)
    return pull(operands[-1])


# --- the kernels ------------------------------------------------------------------------------------------------------


def by_kernel(
    name: str, x: Array, w: Array, *others: Array, spec: ConvSpec, given: tuple[str, ...], silu: bool
) -> Array:
    """What `definition` computes."""
    named = dict(zip(given, others, strict=True))
    return CAUSAL[name][0].run(spec, x, w, activation="silu" if silu else None, **named)


def gradient_by_kernel(
    name: str, x: Array, w: Array, *others: Array, spec: ConvSpec, given: tuple[str, ...], silu: bool
) -> list[Array]:
    """What `gradient` computes."""
    named = dict(zip(given, others, strict=False))
    also, (dilation,) = [named.get(key) for key in ("bias", "state", "segment_ids")], spec.rhs_dilation
    dx, dw, *rest = CAUSAL[name][1].backward(x, w[:, 0], *also, silu, others[-1], dilation=dilation)
    return [dx, dw[:, None], *(grad for grad, value in zip(rest, also, strict=False) if value is not None)]


# --- shapes, derivatives, batches -------------------------------------------------------------------------------------


@causal_p.def_abstract_eval
def _shape(x: Any, w: Any, *_: Any, spec: ConvSpec, **__: Any) -> Any:
    return compat.lax_conv_abstract_eval(x, w, **bridge.lax_params(spec))


tangent_p.def_abstract_eval(_shape)
gradient_p.def_abstract_eval(lambda *avals, given, **_: list(_split(avals, given)[0]))


@partial(jax.jit, static_argnames=("primitive", "spec", "given", "silu", "moving"))
def _eager(*operands: Array, primitive: Primitive, **params: Any) -> Any:
    return primitive.bind(*operands, **params)


def _jvp(primals: tuple[Array, ...], tangents: tuple[Any, ...], **params: Any) -> tuple[Array, Any]:
    moving = tuple(i for i, tangent in enumerate(tangents) if type(tangent) is not ad.Zero)
    y = causal_p.bind(*primals, **params)
    return y, tangent_p.bind(*primals, *(tangents[i] for i in moving), moving=moving, **params)


def _transpose(ct: Any, *operands: Any, moving: tuple[int, ...], **params: Any) -> list[Any]:
    primals = operands[: len(operands) - len(moving)]
    if type(ct) is ad.Zero:
        return [None] * len(operands)
    grads = gradient_p.bind(*primals, ct, **params)
    return [None] * len(primals) + [grads[i] for i in moving]


ad.primitive_jvps[causal_p] = _jvp
ad.primitive_transposes[tangent_p] = _transpose


def _batch(args: tuple[Array, ...], axes: tuple[Any, ...], *, given: tuple[str, ...], **params: Any) -> tuple[Any, int]:
    """Signals become more of the batch; kernels or biases of their own are left to the definition."""
    shared = [i for i, name in enumerate(("x", "w", *given)) if name in ("w", "bias")]
    size = next(a.shape[axis] for a, axis in zip(args, axes, strict=True) if axis is not None)
    if size == 0 or any(axes[i] is not None for i in shared):
        return jax.vmap(partial(definition, given=given, **params), in_axes=axes)(*args), 0
    merged = [
        a if i in shared else move_into(jnp.broadcast_to(a, (size, *a.shape)) if axis is None else a, axis or 0, 0)
        for i, (a, axis) in enumerate(zip(args, axes, strict=True))
    ]
    return move_out(causal_p.bind(*merged, given=given, **params), 0, size), 0


def _batch_of_definition(function: Any, args: Any, axes: Any, **params: Any) -> tuple[Any, Any]:
    out = jax.vmap(partial(function, **params), in_axes=axes)(*args)
    return out, jax.tree.map(lambda _: 0, out)


batching.primitive_batchers[causal_p] = _batch


# --- lowering ---------------------------------------------------------------------------------------------------------


def _lower(ctx: Any, *operands: Any, platform: str, spec: ConvSpec, given: tuple[str, ...], silu: bool) -> Any:
    partitioned = compat.partitioned(ctx)
    x, w, *_ = ctx.avals_in
    chosen = choose(spec, x, w, platform, partitioned=partitioned)
    if chosen not in CAUSAL:
        plain = partial(definition, spec=spec, given=given, silu=silu)
        return mlir.lower_fun(plain, multiple_results=False)(ctx, *operands)
    kernel = partial(by_kernel, chosen, spec=spec, given=given, silu=silu)
    return _of_one_device(ctx, kernel, operands, partitioned, multiple_results=False)


def _lower_gradient(ctx: Any, *operands: Any, platform: str, spec: ConvSpec, given: tuple[str, ...], silu: bool) -> Any:
    """By the kernel that served the signal, unless the caller wants another for the gradients."""
    partitioned = compat.partitioned(ctx)
    x, w, *_ = ctx.avals_in
    chosen = choose(_optional(spec), x, w, platform, partitioned=partitioned)
    (dilation,), wanted = spec.rhs_dilation, {name.rstrip("?") for name in spec.algorithms[1:]}
    served = chosen in CAUSAL and CAUSAL[chosen][1].refusal(w.shape[0], dilation, x.dtype) is None
    if not (served and wanted <= {"auto", chosen}):
        plain = partial(gradient, spec=spec, given=given, silu=silu)
        return mlir.lower_fun(plain, multiple_results=True)(ctx, *operands)
    kernel = partial(gradient_by_kernel, chosen, spec=spec, given=given, silu=silu)
    return _of_one_device(ctx, kernel, operands, partitioned, multiple_results=True)


def _of_one_device(ctx: Any, kernel: Any, operands: Any, partitioned: bool, *, multiple_results: bool) -> Any:
    ctx = ctx if partitioned else compat.without_axes(ctx)
    with compat.own_lowering():
        return mlir.lower_fun(kernel, multiple_results=multiple_results)(ctx, *operands)


for _primitive, _rule in ((causal_p, _lower), (gradient_p, _lower_gradient)):
    mlir.register_lowering(_primitive, partial(_rule, platform="other"))
    for _platform in compat.PLATFORMS:
        mlir.register_lowering(_primitive, partial(_rule, platform=_platform), platform=_platform)
mlir.register_lowering(tangent_p, mlir.lower_fun(tangent, multiple_results=False))
for _primitive, _function in ((tangent_p, tangent), (gradient_p, gradient)):
    ad.primitive_jvps[_primitive] = partial(jvp_of, _function)
    batching.primitive_batchers[_primitive] = partial(_batch_of_definition, _function)
for _primitive in (causal_p, tangent_p, gradient_p):
    _primitive.def_impl(partial(_eager, primitive=_primitive))
