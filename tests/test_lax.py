"""convjax.lax: lax's signatures, values, gradients and errors, plus `algorithm=`."""

from __future__ import annotations

import inspect
from functools import partial

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import convjax


def normal(*shape):
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("name", convjax.lax.__all__)
def test_signatures_are_those_of_lax_plus_algorithm(name):
    strip = lambda f: [(p.name, p.kind, p.default) for p in inspect.signature(f).parameters.values()]
    *ours, algorithm = strip(getattr(convjax.lax, name))
    assert ours == strip(getattr(lax, name))
    assert algorithm == ("algorithm", inspect.Parameter.KEYWORD_ONLY, "auto")


NHWC = ("NHWC", "HWIO", "NHWC")
CALLS = (
    # function, input, kernel, further arguments
    ("conv", (2, 3, 8, 7), (4, 3, 3, 3), ((1, 1), "SAME"), {}),
    ("conv", (2, 3, 9), (4, 3, 4), ((2,), "VALID"), {}),
    ("conv_with_general_padding", (2, 3, 8, 7), (4, 3, 3, 2), ((2, 1), ((1, 0), (2, -1)), (1, 2), (2, 1)), {}),
    ("conv_with_general_padding", (2, 3, 9), (4, 3, 3), ((1,), "SAME", None, None), {}),
    ("conv_transpose", (2, 4, 5, 3), (3, 3, 3, 4), ((2, 2), "SAME"), {}),
    ("conv_transpose", (2, 4, 5, 3), (4, 3, 3, 4), ((2, 3), "VALID"), {}),
    ("conv_transpose", (2, 4, 5, 3), (3, 3, 3, 4), ((2, 2), ((1, 2), (0, 3))), dict(rhs_dilation=(1, 2))),
    ("conv_transpose", (2, 4, 5, 3), (3, 3, 4, 3), ((2, 2), "SAME"), dict(transpose_kernel=True)),
    ("conv_transpose", (2, 4, 5, 3), (3, 3, 3, 4), ((2, 1), "SAME"), dict(use_consistent_padding=True)),
    ("conv_transpose", (2, 3, 4, 5), (3, 4, 3, 3), ((2, 2), "SAME"), dict(dimension_numbers=("NCHW", "IOHW", "NCHW"))),
    ("conv_general_dilated", (2, 3, 8, 7), (4, 3, 3, 3), ((1, 1), "SAME"), {}),
    ("conv_general_dilated", (2, 3, 8, 7), (4, 3, 3, 3), ((2, 3), "SAME_LOWER"), {}),
    ("conv_general_dilated", (2, 8, 7, 3), (3, 3, 3, 4), ((1, 1), ((1, 2), (0, -1))), dict(dimension_numbers=NHWC)),
    (
        "conv_general_dilated",
        (2, 8, 7, 6),
        (3, 3, 2, 3),
        ((1, 2), "VALID"),
        dict(dimension_numbers=NHWC, feature_group_count=3),
    ),
    ("conv_general_dilated", (4, 3, 8, 7), (6, 3, 3, 3), ((1, 1), "SAME"), dict(batch_group_count=2)),
    (
        "conv_general_dilated",
        (2, 3, 8, 7),
        (4, 3, 3, 3),
        ((1, 1), ((0, 0), (0, 0))),
        dict(lhs_dilation=(2, 1), rhs_dilation=(1, 2)),
    ),
    ("conv_general_dilated", (2, 3, 2, 2), (4, 3, 3, 3), ((1, 1), "VALID"), {}),  # an empty output is lax's business
    ("conv_general_dilated", (3, 4), (5, 4), ((), ()), {}),
)
IDS = [f"{i} {name}" for i, (name, *_) in enumerate(CALLS)]


@pytest.mark.parametrize(("name", "x_shape", "w_shape", "args", "options"), CALLS, ids=IDS)
def test_values_and_gradients(name, x_shape, w_shape, args, options):
    x, w = normal(*x_shape), normal(*w_shape)
    results = []
    for module in (lax, convjax.lax):

        @jax.jit
        def run(x, w, module=module):
            y, pullback = jax.vjp(lambda x, w: getattr(module, name)(x, w, *args, **options), x, w)
            return y, pullback(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

        results.append(run(x, w))
    for expected, actual in zip(*map(jax.tree.leaves, results), strict=True):
        assert actual.dtype == expected.dtype
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["int8", "int32", "float16", "bfloat16", "complex64"])
@pytest.mark.parametrize("preferred", [None, "wider"])
def test_dtypes(dtype, preferred):
    wider = {"int8": "int32", "float16": "float32", "bfloat16": "float32"}.get(dtype, dtype)
    preferred = wider if preferred else None
    x, w = (np.asarray(8 * normal(*shape)).astype(jnp.dtype(dtype)) for shape in ((1, 2, 9), (3, 2, 3)))
    expected, actual = (
        f(x, w, (1,), "SAME", preferred_element_type=preferred)
        for f in (lax.conv_general_dilated, convjax.lax.conv_general_dilated)
    )
    assert actual.dtype == expected.dtype
    kind = complex if dtype == "complex64" else float
    np.testing.assert_allclose(*(np.asarray(y).astype(kind) for y in (actual, expected)), rtol=1e-2, atol=1e-2)


# --- errors are lax's own ---------------------------------------------------------------------------------------------

X, W = jnp.ones((2, 3, 8, 7)), jnp.ones((4, 3, 3, 3))
BAD = (
    ("conv_general_dilated", (X, W, (1,), "SAME"), {}),
    ("conv_general_dilated", (X, W, (1, 1), "SMAE"), {}),
    ("conv_general_dilated", (X, W, (1, 1), ((1, 1),)), {}),
    ("conv_general_dilated", (X, W[:, :2], (1, 1), "SAME"), {}),
    ("conv_general_dilated", (X, W, (1, 1), "SAME"), dict(feature_group_count=2)),
    ("conv_general_dilated", (X, W, (1, 1), "SAME"), dict(batch_group_count=3)),
    ("conv_general_dilated", (X, W, (1, 1), "SAME"), dict(dimension_numbers=("NCHW", "OIHW"))),
    ("conv_general_dilated", (X, W, (1, 1), "SAME"), dict(precision="hihgest")),
    ("conv_general_dilated", (X, W[0], (1, 1), "SAME"), {}),
    ("conv_general_dilated", (X, W.astype(jnp.bfloat16), (1, 1), "SAME"), {}),
    ("conv_transpose", (X, W, (2, 2), "CAUSAL"), {}),
    ("conv_transpose", (X, W, (2,), "SAME"), {}),
    ("conv", (X, W, (1,), "SAME"), {}),
)


@pytest.mark.parametrize(("name", "args", "options"), BAD)
def test_errors_are_those_of_lax(name, args, options):
    caught = []
    for module in (lax, convjax.lax):
        with pytest.raises(Exception) as info:  # noqa: PT011 - whatever lax raises
            getattr(module, name)(*args, **options)
        caught.append(info.value)
    theirs, ours = caught
    assert type(ours) is type(theirs)
    assert str(ours) == str(theirs)


@pytest.mark.parametrize("name", convjax.lax.__all__)
def test_unknown_algorithms_are_refused(name):
    args = (X, W, (1, 1), "SAME", None, None) if name == "conv_with_general_padding" else (X, W, (1, 1), "SAME")
    with pytest.raises(ValueError, match=f"{name}: algorithm='wingrad' is not known.*Did you mean 'winograd'"):
        getattr(convjax.lax, name)(*args, algorithm="wingrad")


@pytest.mark.filterwarnings("ignore:divide by zero")  # lax's own, on its way to a shape
def test_stride_zero_is_refused_before_it_divides():
    with pytest.raises(ValueError, match=r"window_strides=\(0, 1\) must be at least 1"):
        convjax.lax.conv(X, W, (0, 1), ((1, 1), (1, 1)))


def test_an_algorithm_that_cannot_serve_is_refused():
    with pytest.raises(ValueError, match="algorithm='winograd' cannot serve"):
        convjax.lax.conv(X, W, (2, 2), "SAME", algorithm="winograd")


# --- transformations and hooks ----------------------------------------------------------------------------------------


def test_transformations():
    x, w = normal(2, 3, 9), normal(4, 3, 3)
    theirs, ours = (partial(m.conv_general_dilated, window_strides=(1,), padding="SAME") for m in (lax, convjax.lax))
    xs, ws = normal(5, 2, 3, 9), normal(5, 4, 3, 3)
    for transform, args in (
        (jax.jit, (x, w)),
        (jax.vmap, (xs, ws)),
        (lambda f: jax.vmap(f, (0, None)), (xs, w)),
        (lambda f: jax.vmap(f, (None, 0)), (x, ws)),
        (lambda f: lambda x, w: jax.jvp(f, (x, w), (2 * x, w)), (x, w)),
        (lambda f: jax.grad(jax.checkpoint(lambda x, w: (f(x, w) ** 2).sum())), (x, w)),
        (lambda f: lambda x, w: jax.linear_transpose(lambda x: f(x, w), x)(f(x, w)), (x, w)),
    ):
        for expected, actual in zip(*(jax.tree.leaves(transform(f)(*args)) for f in (theirs, ours)), strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("algorithm", convjax.algorithms())
def test_algorithm_is_handed_on(algorithm):
    x, w = normal(1, 2, 9), normal(2, 2, 3)
    run = partial(convjax.lax.conv_general_dilated, window_strides=(1,), padding="SAME", algorithm=algorithm)
    (spec,) = (e.params["spec"] for e in jax.make_jaxpr(run)(x, w).eqns if "spec" in e.params)
    assert spec.algorithms[0] == algorithm


@pytest.mark.parametrize("groups", [1, 4])
def test_the_hook_of_flax(groups):
    x = normal(2, 9, 8, 4)
    build = partial(nnx.Conv, 4, 8, (3, 3), strides=2, feature_group_count=groups)
    stock = build(rngs=nnx.Rngs(0))
    hooked = build(rngs=nnx.Rngs(0), conv_general_dilated=convjax.lax.conv_general_dilated)
    np.testing.assert_allclose(hooked(x), stock(x), rtol=1e-4, atol=1e-4)
    assert "convjax_conv" in str(jax.make_jaxpr(hooked)(x))
