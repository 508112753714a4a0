"""Find convolutions in a traced function: ours, and lax's own, which `accelerate()` would take."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
from jax.extend.core import jaxprs_in_params

from convjax._core import compat
from convjax._core.bridge import orders, spec_from_lax
from convjax._core.causal import causal_p, gradient_p
from convjax._core.fused import fused_p
from convjax._core.geometry import Geometry
from convjax._core.primitive import conv_p


def convolutions(jaxpr: Any, *, of_lax: bool = False, times: int = 1) -> Iterator[tuple[Geometry, int]]:
    """Every convolution of a jaxpr, and how often it runs: the length of the scans around it."""
    for equation in jaxpr.eqns:
        if equation.primitive in (conv_p, fused_p, causal_p):
            yield _of_ours(equation), times
        elif equation.primitive is gradient_p:
            yield from ((problem, times) for problem in gradients(_of_ours(equation)))
        elif of_lax and equation.primitive is compat.LAX_CONV:
            yield _of_lax(equation), times
        inner_times = times * equation.params.get("length", 1) if equation.primitive.name == "scan" else times
        for inner in jaxprs_in_params(equation.params):
            yield from convolutions(inner, of_lax=of_lax, times=inner_times)


def _of_ours(equation: Any) -> Geometry:
    return Geometry.of(equation.params["spec"], *(v.aval for v in equation.invars[:2]))


def _of_lax(equation: Any) -> Geometry:
    ordered = [
        jax.ShapeDtypeStruct([v.aval.shape[i] for i in order], v.aval.dtype)
        for v, order in zip(equation.invars, orders(equation.params["dimension_numbers"]), strict=False)
    ]
    return Geometry.of(spec_from_lax(equation.params), *ordered)


def gradients(g: Geometry) -> tuple[Geometry, Geometry]:
    """The problems that the gradients in the input and in the kernel are."""
    *k, channels, features = g.rhs
    groups = g.spec.groups
    batch, *space, lhs_channels = g.lhs
    out_batch, *out, _ = g.out_shape
    plain = dict(preferred_element_type=None)
    in_lhs = g.spec.lhs_grad(g.lhs, g.rhs).replace(**plain)
    in_rhs = g.spec.rhs_grad(g.lhs, g.rhs).replace(**plain)
    return (
        Geometry(in_lhs, g.out_shape, (*k, features // groups, channels * groups), g.dtype),
        Geometry(in_rhs, (lhs_channels, *space, batch), (*out, out_batch, features), g.dtype),
    )
