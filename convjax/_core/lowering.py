"""Lowering of conv_p: the only place where an algorithm is chosen and run."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
from jax import Array
from jax.interpreters import mlir

from convjax._core import compat
from convjax._core.algorithms import ALGORITHMS
from convjax._core.choose import choose
from convjax._core.primitive import conv_p
from convjax._core.spec import ConvSpec


@partial(jax.jit, static_argnames=("algorithm", "spec"))
def convjax(lhs: Array, rhs: Array, algorithm: str, spec: ConvSpec) -> Array:
    """Run one algorithm. A function of its own, so that equal layers of a network are traced once."""
    with jax.named_scope(algorithm):
        return ALGORITHMS[algorithm].run(spec, lhs, rhs)


def lower(ctx: Any, lhs: Any, rhs: Any, *, spec: ConvSpec, platform: str) -> Any:
    partitioned = compat.partitioned(ctx)
    lhs_aval, rhs_aval = ctx.avals_in
    chosen = choose(spec, lhs_aval, rhs_aval, platform, partitioned=partitioned)
    run = partial(convjax, algorithm=chosen, spec=spec)
    ctx = ctx if partitioned else compat.without_axes(ctx)
    with compat.own_lowering():
        return mlir.lower_fun(run, multiple_results=False)(ctx, lhs, rhs)


mlir.register_lowering(conv_p, partial(lower, platform="other"))
for _platform in compat.PLATFORMS:
    mlir.register_lowering(conv_p, partial(lower, platform=_platform), platform=_platform)
