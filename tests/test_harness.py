"""jax's own convolution cases, which ship in its wheel, run under accelerate(): all of them as the chooser likes, and a
sample of those that each algorithm serves with that algorithm."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import convjax
from convjax._core import choose, compat
from convjax._core.algorithms import PORTABLE
from convjax._core.bridge import orders, spec_from_lax
from convjax.testing import NORM_FACTOR

test_harnesses = pytest.importorskip(
    "jax._src.internal_test_util.test_harnesses", reason="this jax wheel ships without its test harnesses"
)

GROUP = "conv_general_dilated"
# Without those that differ only in `enable_xla`, which speaks to a converter: the same call twice.
HARNESSES = {
    h.fullname.removeprefix(f"{GROUP}_").partition("_enablexla")[0]: h
    for h in test_harnesses.all_harnesses
    if h.group_name == GROUP
}
KINDS = (
    "conv1d",
    "conv_tranpose1d_same_padding",
    "conv_tranpose1d_valid_padding",
    "conv_tranpose2d_same_padding",
    "conv_tranpose2d_valid_padding",
    "depthwise1d",
    "depthwise1d_dilated",
    "depthwise2d",
    "depthwise2d_dilated",
    "dilations",
    "dimension_numbers",
    "dtype_precision",
    "group_counts",
    "padding",
    "preferred",
    "rhs_oob",
    "rhs_oob_after_dilation",
    "rhs_oob_after_pading",
    "rhs_oob_same_padding",
    "tf_conversion_path_1d",
    "tf_conversion_path_2d",
    "tf_conversion_path_3d",
    "window_strides",
)


def operands(harness):
    return harness.dyn_args_maker(np.random.RandomState(0))


def run(harness):
    return jax.jit(harness.dyn_fun)(*operands(harness))


@functools.cache
def problem(name):
    """Spec and channels-last shapes of a harness."""
    harness = HARNESSES[name]
    (equation,) = (
        e for e in jax.make_jaxpr(harness.dyn_fun)(*operands(harness)).eqns if e.primitive is compat.LAX_CONV
    )
    shapes = [
        jax.ShapeDtypeStruct(tuple(v.aval.shape[i] for i in order), v.aval.dtype)
        for v, order in zip(equation.invars, orders(equation.params["dimension_numbers"]), strict=False)
    ]
    return spec_from_lax(equation.params), *shapes


def assert_equal(name, actual, expected, algorithm=None):
    assert actual.dtype == expected.dtype, name
    assert actual.shape == expected.shape, name
    if jnp.issubdtype(expected.dtype, jnp.integer):
        np.testing.assert_array_equal(actual, expected, name)
        return
    floats = [d for d in (HARNESSES[name].dtype, expected.dtype) if jnp.issubdtype(d, jnp.inexact)]
    rounding = max(float(jnp.finfo(d).eps) for d in floats)
    actual, expected = (np.asarray(a).astype(np.complex128) for a in (actual, expected))
    factor = 16 + NORM_FACTOR.get(algorithm, 0)
    allowed = factor * rounding * np.abs(expected).max(initial=1)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=allowed, err_msg=name)


def test_jax_ships_cases_of_all_kinds():
    print(f"{len(HARNESSES)} harnesses of jax {jax.__version__}")
    assert len(HARNESSES) >= 76
    for kind in KINDS:
        assert any(name.startswith(f"{kind}_lhs") for name in HARNESSES), f"jax has no more harness of the kind {kind}"


@pytest.mark.parametrize("name", HARNESSES, ids=[f"{i} {n.partition('_lhs')[0]}" for i, n in enumerate(HARNESSES)])
def test_accelerated_results_are_those_of_lax(name):
    stock = run(HARNESSES[name])
    with convjax.accelerate():
        accelerated = run(HARNESSES[name])
    assert_equal(name, accelerated, stock)


@pytest.mark.parametrize("algorithm", [name for name in PORTABLE if name != "xla"])
def test_every_algorithm_under_accelerate(algorithm, monkeypatch):
    """As if it had been measured to be the fastest wherever it serves."""

    def fastest(g, platform):
        served = choose.why_not(algorithm, g.spec, *g.operands, platform) is None
        return (algorithm, "it is tested") if served else None

    monkeypatch.setattr(choose, "by_measurement", fastest)
    served = [name for name in HARNESSES if choose.why_not(algorithm, *problem(name), "cpu") is None]
    sample = served[:: max(1, len(served) // 3)]
    stock = {name: run(HARNESSES[name]) for name in sample}
    with convjax.accelerate():
        for name in sample:
            assert_equal(name, run(HARNESSES[name]), stock[name], algorithm)
    if not sample:
        pytest.skip(f"none of jax's {len(HARNESSES)} cases is one that {algorithm} serves")
