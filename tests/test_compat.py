"""Each undocumented part of JAX that `convjax/_core/compat.py` leans on, pinned: a failure names what JAX changed."""

from __future__ import annotations

import ast
import inspect
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.interpreters import mlir
from jax.sharding import PartitionSpec as P

from convjax._core import bridge, compat
from convjax._core.spec import ConvSpec

SPEC = ConvSpec(strides=(2,), padding=((1, 1),), lhs_dilation=(1,), rhs_dilation=(1,))
SHAPES = jax.ShapeDtypeStruct((2, 9, 3), np.float32), jax.ShapeDtypeStruct((3, 3, 4), np.float32)


def mesh_of(**axes):
    size = math.prod(axes.values())
    kinds = (jax.sharding.AxisType.Auto,) * len(axes)
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=kinds, devices=jax.devices()[:size])


def traced():
    """A jaxpr with one lax convolution."""
    return jax.make_jaxpr(lambda x, w: lax.conv_general_dilated(x, w, **bridge.lax_params(SPEC)))(*SHAPES)


def seen_while_lowering(function, *args):
    """What lowering contexts of lax's convolution look like while `function` is lowered."""
    seen = []

    def rule(ctx, *operands, **params):
        seen.append((ctx, params))
        return original(ctx, *operands, **params)

    original = compat.lowering_rule(compat.LAX_CONV, "cpu")
    with compat.lax_lowering({"cpu": rule}):
        function.lower(*args)
    return seen


def test_the_convolution_primitive_of_lax():
    (equation,) = traced().jaxpr.eqns
    assert equation.primitive is compat.LAX_CONV, "jax: lax.conv_general_dilated no longer binds this primitive"
    ours = set(bridge.lax_params(SPEC))
    assert set(equation.params) == ours | {"out_sharding"}, "jax: parameters of lax's convolution changed"
    numbers = equation.params["dimension_numbers"]
    assert isinstance(numbers, lax.ConvDimensionNumbers)


def test_what_jax_export_lowers_is_told_from_the_rest():
    run = jax.jit(lambda x, w: lax.conv_general_dilated(x, w, **bridge.lax_params(SPEC)))
    ((plain, _),) = seen_while_lowering(run, *SHAPES)
    assert not compat.exported(plain)
    seen, original = [], compat.lowering_rule(compat.LAX_CONV, "cpu")
    with compat.lax_lowering({"cpu": lambda ctx, *a, **k: (seen.append(ctx), original(ctx, *a, **k))[1]}):
        jax.export.export(run, platforms=["cpu"])(*SHAPES)
    assert [compat.exported(ctx) for ctx in seen] == [True]


def test_its_abstract_eval_gives_the_output_first():
    avals = [v.aval for v in traced().jaxpr.invars]
    out = compat.lax_conv_abstract_eval(*avals, **bridge.lax_params(SPEC))
    assert (out.shape, out.dtype) == ((2, 5, 4), np.float32), "jax: primitive.abstract_eval changed"


def test_an_equation_can_be_evaluated_on_other_inputs():
    x, w = np.ones((2, 9, 3), np.float32), np.ones((3, 3, 4), np.float32)
    (equation,) = traced().jaxpr.eqns
    (y,) = compat.evaluate(equation, [x, w])
    np.testing.assert_array_equal(y, lax.conv_general_dilated(x, w, **bridge.lax_params(SPEC)))
    jitted = jax.make_jaxpr(jax.jit(lambda x: (x + 1, x * 2)))(1.0).jaxpr.eqns[0]
    assert compat.evaluate(jitted, [jnp.float32(3)]) == [4, 6], "jax: get_bind_params or multiple_results changed"


def test_types_tell_the_axes_they_vary_over():
    assert jax.typeof(jnp.ones(3)).mat.varying == frozenset(), "jax: typeof(x).mat.varying changed"
    mesh = mesh_of(i=2)
    seen = []

    def body(x):
        fixed = jnp.ones(3)
        a, b = compat.same_varying(x, fixed)
        seen.extend(jax.typeof(v).mat.varying for v in (x, fixed, a, b))
        return a + b

    jax.jit(jax.shard_map(body, mesh=mesh, in_specs=P("i"), out_specs=P("i")))(jnp.ones(6))
    assert seen == [{"i"}, frozenset(), {"i"}, {"i"}], "jax: lax.pcast, or how types say what they vary over, changed"


@pytest.mark.parametrize("platform", compat.PLATFORMS)
def test_lowering_tables(platform):
    before = compat.lowering_rule(compat.LAX_CONV, platform)
    assert callable(before), "jax: mlir._platform_specific_lowerings or mlir._lowerings changed"
    entry = mlir._platform_specific_lowerings[platform].get(compat.LAX_CONV)
    mine = lambda *_, **__: None
    with compat.lax_lowering({platform: mine}):
        assert compat.lowering_rule(compat.LAX_CONV, platform) is mine, "jax: register_lowering(platform=) changed"
    assert compat.lowering_rule(compat.LAX_CONV, platform) is before
    assert mlir._platform_specific_lowerings[platform].get(compat.LAX_CONV) is entry


def test_a_replaced_rule_is_the_one_that_runs_on_the_cpu():
    """lax's own registration for a platform wins over the common one, so ours must be by platform, and must win."""
    call = jax.jit(lambda x, w: lax.conv_general_dilated(x, w, **bridge.lax_params(SPEC)))
    ((ctx, params),) = seen_while_lowering(call, *SHAPES)
    assert [aval.shape for aval in ctx.avals_in] == [(2, 9, 3), (3, 3, 4)], "jax: LoweringRuleContext.avals_in changed"
    assert bridge.spec_from_lax(params) == SPEC
    assert params["out_sharding"] is None
    assert not compat.partitioned(ctx)


def test_lower_fun_takes_a_rule_for_a_python_function():
    def rule(ctx, *operands, **params):
        return mlir.lower_fun(lambda x, w: jnp.zeros((2, 5, 4)) + 7, multiple_results=False)(ctx, *operands)

    with compat.lax_lowering({"cpu": rule}):
        y = jax.jit(lambda x, w: lax.conv_general_dilated(x, w, **bridge.lax_params(SPEC)))(
            *(jnp.ones(s.shape) for s in SHAPES)
        )
    np.testing.assert_array_equal(y, np.full((2, 5, 4), 7))


def test_a_program_that_the_compiler_partitions_is_told_apart():
    mesh = mesh_of(i=4)
    call = jax.jit(
        lambda x, w: lax.conv_general_dilated(x, w, **bridge.lax_params(SPEC)),
        in_shardings=(jax.NamedSharding(mesh, P("i")), jax.NamedSharding(mesh, P())),
    )
    x = jax.ShapeDtypeStruct((4, 9, 3), np.float32)
    ((ctx, _),) = seen_while_lowering(call, x, SHAPES[1])
    assert compat.partitioned(ctx), "jax: module_context.axis_context, or ShardingContext.num_devices, changed"


@pytest.mark.parametrize("manual", ["all", "some"])
def test_under_shard_map_only_axes_left_to_the_compiler_count(manual):
    mesh = mesh_of(i=2, j=2)
    body = lambda x, w: lax.conv_general_dilated(x, w, **bridge.lax_params(SPEC))
    call = jax.jit(
        jax.shard_map(
            body,
            mesh=mesh,
            in_specs=(P("i"), P()),
            out_specs=P("i"),
            axis_names={"i", "j"} if manual == "all" else {"i"},
        )
    )
    x = jax.ShapeDtypeStruct((4, 9, 3), np.float32)
    ((ctx, _),) = seen_while_lowering(call, x, SHAPES[1])
    assert isinstance(ctx.module_context.axis_context, mlir.SPMDAxisContext), "jax: SPMDAxisContext changed"
    assert compat.partitioned(ctx) == (manual == "some"), "jax: SPMDAxisContext.mesh or manual_axes changed"


def test_caches_can_be_cleared():
    traces = []
    f = jax.jit(lambda x: traces.append(1) or x)
    f(1.0), f(1.0)
    jax.clear_caches()
    f(1.0)
    assert len(traces) == 2, "jax: clear_caches no longer makes functions be traced again"


def test_nothing_else_in_the_package_uses_private_parts():
    """`jax._src`, and underscored attributes of jax's modules, appear in compat.py alone."""
    for path in Path(inspect.getfile(compat)).parent.parent.rglob("*.py"):
        if path.name == "compat.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
                assert not any(name.startswith("jax._") for name in names), f"{path.name}:{node.lineno}"
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                base = ast.unparse(node.value).partition(".")[0]
                assert base not in ("jax", "jnp", "lax", "mlir", "ad", "batching"), f"{path.name}:{node.lineno}"
