"""The one file that leans on JAX's undocumented parts; `tests/test_compat.py` pins each.

Everything else in the package uses documented modules of JAX (`jax.interpreters` and `jax.extend` included).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
from jax import Array, lax
from jax.interpreters import mlir

LAX_CONV = lax.conv_general_dilated_p

# Platforms whose name a lowering rule can be told. lax registers its convolution for each of these by itself, and
# those rules win over the common one, so ours must name them too.
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def lax_conv_abstract_eval(lhs: Any, rhs: Any, **params: Any) -> Any:
    """Shape, dtype, sharding and varying axes of the output, by lax's own rule."""
    return LAX_CONV.abstract_eval(lhs, rhs, out_sharding=None, **params)[0]


def evaluate(equation: Any, inputs: list[Any]) -> list[Any]:
    """Run one equation of a jaxpr on other inputs."""
    params = equation.primitive.get_bind_params(equation.params)
    outputs = equation.primitive.bind(*inputs, **params)
    return list(outputs) if equation.primitive.multiple_results else [outputs]


def same_varying(*operands: Array) -> tuple[Array, ...]:
    """Under `shard_map` all operands must vary over the same mesh axes: cast those that do not."""
    over = [jax.typeof(a).mat.varying for a in operands]
    every: frozenset = frozenset().union(*over)
    return tuple(_varying(a, every - axes) for a, axes in zip(operands, over, strict=True))


def _varying(a: Array, axes: frozenset) -> Array:
    return lax.pcast(a, tuple(axes), to="varying") if axes else a


def partitioned(ctx: Any) -> bool:
    """Whether the compiler will split this program over devices, so that only ops it can partition well may appear."""
    axes = ctx.module_context.axis_context
    if isinstance(axes, mlir.ShardingContext):
        return axes.num_devices > 1
    if isinstance(axes, mlir.SPMDAxisContext):  # shard_map: manual axes are already split by hand
        return any(size > 1 for name, size in axes.mesh.shape.items() if name not in axes.manual_axes)
    return False


def exported(ctx: Any) -> bool:
    """Whether `jax.export` lowers this program, which must then hold nothing that a later XLA might not know."""
    return ctx.module_context.lowering_parameters.for_export


def without_axes(ctx: Any) -> Any:
    """The same lowering context for operands that are plain arrays of one device.

    Under `shard_map` operands carry the mesh axes they vary over, which a loop's initial zeros would have to as well.
    At lowering this is settled, and an algorithm need not know.
    """
    return ctx.replace(avals_in=[jax.core.ShapedArray(aval.shape, aval.dtype) for aval in ctx.avals_in])


def lowering_rule(primitive: Any, platform: str) -> Callable:
    """The rule in force for `primitive` on `platform`."""
    entry = mlir._platform_specific_lowerings[platform].get(primitive) or mlir._lowerings[primitive]
    return entry.rule


_OWN_LOWERING: ContextVar[bool] = ContextVar("convjax_own_lowering", default=False)


@contextmanager
def own_lowering() -> Iterator[None]:
    """A lax convolution in one of our algorithms is meant as such: `accelerate` leaves it alone meanwhile."""
    token = _OWN_LOWERING.set(True)
    try:
        yield
    finally:
        _OWN_LOWERING.reset(token)


def in_own_lowering() -> bool:
    return _OWN_LOWERING.get()


@contextmanager
def lax_lowering(rules: Mapping[str, Callable]) -> Iterator[None]:
    """Replace lax's convolution lowering on each platform named, restoring what was there."""
    tables = {platform: mlir._platform_specific_lowerings[platform] for platform in rules}
    before = {platform: table.get(LAX_CONV) for platform, table in tables.items()}
    try:
        for platform, rule in rules.items():
            mlir.register_lowering(LAX_CONV, rule, platform=platform)
        jax.clear_caches()
        yield
    finally:
        for platform, entry in before.items():
            if entry is None:
                tables[platform].pop(LAX_CONV, None)
            else:
                tables[platform][LAX_CONV] = entry
        jax.clear_caches()
