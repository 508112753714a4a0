"""A convolution and what follows it as one primitive, for kernels that do both at once.

XLA fuses a bias or an activation with code of its own, not with a Pallas kernel, whose output would be written and read
once more. A kernel that can add and activate before it writes says so by `FUSES`, the names of the activations that it
knows, and is handed all of it. Anything else about this primitive, derivatives included, is the convolution and its
epilogue one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from convjax._core import bridge, compat, epilogue
from convjax._core.algorithms import ALGORITHMS, KERNELS
from convjax._core.canonical import Problem
from convjax._core.choose import choose
from convjax._core.primitive import convolve, move_into, move_out
from convjax._core.spec import ConvSpec

fused_p = Primitive("convjax_fused_conv")

NAMES = {function: name for name, function in epilogue.ACTIVATIONS.items()}


def run(problem: Problem, bias: Array | None, residual: Array | None, activation: Callable | None) -> Array:
    """The convolution and its epilogue, together where a kernel might take both.

    No kernel runs on CPUs: a program that is traced where JAX has nothing else keeps the two apart, as it has less to
    compile then, unless a kernel is asked for by name.
    """
    known = activation is None or activation in NAMES
    anything = not (bias is None and residual is None and activation is None)
    floating = jnp.issubdtype(problem.out_dtype, jnp.floating)
    possible = problem.spec.algorithms[0].rstrip("?") in KERNELS or jax.default_backend() != "cpu"
    if not (possible and anything and known and floating and type(problem) is Problem):
        return epilogue.apply(problem.run(), bias, residual, activation)
    addends = [] if bias is None else [bias.reshape(-1)]
    if residual is not None:
        last = bridge.transpose(residual, problem.layout.out)
        addends.append(last.reshape(-1, *last.shape[len(problem.batch) :]))
    operands = compat.same_varying(problem.lhs, problem.rhs, *addends)
    name = None if activation is None else NAMES[activation]
    y = fused_p.bind(*operands, spec=problem.spec, has_bias=bias is not None, activation=name)
    return problem.layout.restore(y, problem.batch)


def apart(lhs: Array, rhs: Array, *addends: Array, spec: ConvSpec, has_bias: bool, activation: str | None) -> Array:
    """The definition: first the convolution, then the epilogue."""
    bias, residual = _named(addends, has_bias)
    return epilogue.apply(convolve(lhs, rhs, spec), bias, residual, epilogue.ACTIVATIONS.get(activation or ""))


def _named(addends: tuple[Any, ...], has_bias: bool) -> tuple[Any, Any]:
    bias, *residual = addends if has_bias else (None, *addends)
    return bias, residual[0] if residual else None


@fused_p.def_abstract_eval
def _shape(lhs: Any, rhs: Any, *_: Any, spec: ConvSpec, **__: Any) -> Any:
    return compat.lax_conv_abstract_eval(lhs, rhs, **bridge.lax_params(spec))


@partial(jax.jit, static_argnames=("spec", "has_bias", "activation"))
def _eager(*operands: Array, **params: Any) -> Array:
    return fused_p.bind(*operands, **params)


fused_p.def_impl(_eager)


def _jvp(primals: tuple[Array, ...], tangents: tuple[Any, ...], **params: Any) -> tuple[Array, Array]:
    """Of what does change: a zero tangent would become a convolution with zeros."""
    moving = [i for i, tangent in enumerate(tangents) if type(tangent) is not ad.Zero]

    def of_moving(*some: Array) -> Array:
        operands = list(primals)
        for i, operand in zip(moving, some, strict=True):
            operands[i] = operand
        return apart(*operands, **params)

    return jax.jvp(of_moving, [primals[i] for i in moving], [tangents[i] for i in moving])


ad.primitive_jvps[fused_p] = _jvp


def _batch(args: tuple[Array, ...], axes: tuple[Any, ...], *, spec: ConvSpec, **params: Any) -> tuple[Array, int]:
    """Examples become more of the batch; kernels or biases of their own go the way of the convolution alone."""
    bias, residual = _named(axes[2:], params["has_bias"])
    lhs, *others = args
    of_lhs, of_rhs = axes[:2]
    whole = of_lhs is not None and of_rhs is None and bias is None and lhs.shape[of_lhs] > 0 and spec.batch_groups == 1
    if not whole or (residual is None and len(args) > 2 + params["has_bias"]):
        return jax.vmap(partial(apart, spec=spec, **params), in_axes=axes)(*args), 0
    if residual is not None:
        others[-1] = move_into(others[-1], residual, 0)
    y = fused_p.bind(move_into(lhs, of_lhs, 0), *others, spec=spec, **params)
    return move_out(y, 0, lhs.shape[of_lhs]), 0


batching.primitive_batchers[fused_p] = _batch


def lower(ctx: Any, *operands: Any, platform: str, spec: ConvSpec, has_bias: bool, activation: str | None) -> Any:
    partitioned = compat.partitioned(ctx)
    lhs_aval, rhs_aval, *_ = ctx.avals_in
    chosen = ALGORITHMS[choose(spec, lhs_aval, rhs_aval, platform, partitioned=partitioned)]
    fuses = getattr(chosen, "FUSES", None)
    if fuses is None or not (activation is None or activation in fuses):
        together = partial(apart, spec=spec, has_bias=has_bias, activation=activation)
        return mlir.lower_fun(together, multiple_results=False)(ctx, *operands)

    def kernel(lhs: Array, rhs: Array, *addends: Array) -> Array:
        bias, residual = _named(addends, has_bias)
        return chosen.run(spec, lhs, rhs, bias=bias, residual=residual, activation=activation)  # type: ignore[call-arg]

    ctx = ctx if partitioned else compat.without_axes(ctx)
    with compat.own_lowering():
        return mlir.lower_fun(kernel, multiple_results=False)(ctx, *operands)


mlir.register_lowering(fused_p, partial(lower, platform="other"))
for _platform in compat.PLATFORMS:
    mlir.register_lowering(fused_p, partial(lower, platform=_platform), platform=_platform)
