"""accelerate(): code that never heard of convjax gives the same values and gradients, and gets lax back afterwards."""

from __future__ import annotations

import functools
from functools import partial

import flax.linen as nn
import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import convjax
from convjax._core import compat


def normal(*shape):
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


# --- code as others write it: (function of all that is differentiated, its arguments) ---------------------------------


def nnx_layer(channels, *args, batch=(2, 9, 8), **options):
    layer = nnx.Conv(channels, *args, rngs=nnx.Rngs(0), **options)
    graph, state = nnx.split(layer)
    return lambda x, state: nnx.merge(graph, state)(x), (normal(*batch, channels), state)


def linen_layer(channels, *args, batch=(2, 9, 8), **options):
    layer, x = nn.Conv(*args, **options), normal(*batch, channels)
    return lambda x, params: layer.apply(params, x), (x, layer.init(jax.random.key(0), x))


def called(function, *shapes):
    return function, tuple(normal(*shape) for shape in shapes)


def raw(x_shape, w_shape, strides, padding, **options):
    return called(lambda x, w: lax.conv_general_dilated(x, w, strides, padding, **options), x_shape, w_shape)


def conv1d(x, w):
    return lax.conv_general_dilated(x, w, (1,), "SAME")


NHWC, NCHW = ("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")

CODE = {
    "nnx dense": partial(nnx_layer, 3, 5, (3, 3)),
    "nnx depthwise": partial(nnx_layer, 6, 6, (3, 3), feature_group_count=6),
    "nnx strided, grouped, dilated": partial(
        nnx_layer, 4, 8, (3, 2), strides=2, feature_group_count=2, kernel_dilation=(1, 2)
    ),
    "nnx circular": partial(nnx_layer, 3, 4, (4, 3), padding="CIRCULAR"),
    "nnx causal": partial(nnx_layer, 4, 4, (3,), padding="CAUSAL", feature_group_count=4, batch=(2, 13)),
    "nnx 1x1": partial(nnx_layer, 6, 8, (1, 1)),
    "linen dense": partial(linen_layer, 3, 5, (3, 3)),
    "linen depthwise x2": partial(linen_layer, 4, 8, (5, 5), feature_group_count=4, padding="VALID"),
    "linen input dilation": partial(linen_layer, 3, 4, (4, 4), input_dilation=2, padding=2, batch=(2, 5, 4)),
    "lax NHWC": partial(raw, (2, 9, 8, 3), (3, 3, 3, 4), (1, 1), "SAME", dimension_numbers=NHWC),
    "lax NCHW": partial(raw, (2, 3, 9, 8), (4, 3, 3, 3), (2, 1), "VALID", dimension_numbers=NCHW),
    "lax default order": partial(raw, (2, 3, 9, 8), (4, 3, 3, 3), (1, 1), ((1, 0), (-1, 2))),
    "lax mixed orders": partial(
        raw, (8, 9, 2, 3), (4, 3, 3, 2), (1, 2), "SAME", dimension_numbers=("WHNC", "OIHW", "CNHW")
    ),
    "lax grouped": partial(raw, (2, 6, 9, 8), (8, 3, 3, 3), (1, 1), "SAME", feature_group_count=2),
    "lax depthwise": partial(raw, (2, 6, 9, 8), (6, 1, 3, 3), (1, 1), "SAME", feature_group_count=6),
    "lax depthwise 7x7": partial(
        raw, (1, 12, 11, 8), (7, 7, 1, 8), (1, 1), "SAME", dimension_numbers=NHWC, feature_group_count=8
    ),
    "lax depthwise strided": partial(raw, (2, 6, 9, 8), (12, 1, 3, 3), (2, 2), "SAME", feature_group_count=6),
    "lax batch groups": partial(raw, (4, 3, 9, 8), (6, 3, 3, 3), (1, 1), "SAME", batch_group_count=2),
    "lax dilated": partial(raw, (2, 3, 9, 8), (4, 3, 3, 3), (1, 1), "SAME", rhs_dilation=(2, 3)),
    "lax transposed": partial(
        raw, (2, 4, 5, 4), (4, 4, 4, 3), (1, 1), ((2, 2),) * 2, lhs_dilation=(2, 2), dimension_numbers=NHWC
    ),
    "lax causal depthwise": partial(
        raw, (2, 19, 6), (4, 1, 6), (1,), ((3, 0),), dimension_numbers=("NHC", "HIO", "NHC"), feature_group_count=6
    ),
    "lax 1x1": partial(raw, (2, 7, 6, 8), (1, 1, 8, 4), (1, 1), "VALID", dimension_numbers=NHWC),
    "lax 3-D": partial(raw, (1, 2, 5, 4, 3), (3, 2, 3, 2, 2), (1, 1, 1), "SAME"),
    "lax.conv_transpose": partial(
        called, lambda x, w: lax.conv_transpose(x, w, (2, 2), "SAME"), (2, 4, 5, 3), (3, 3, 3, 4)
    ),
    "vmap of inputs": partial(called, jax.vmap(conv1d, (0, None)), (3, 2, 3, 7), (4, 3, 3)),
    "vmap of both": partial(called, jax.vmap(conv1d), (5, 2, 3, 7), (5, 4, 3, 3)),
    "empty output": partial(raw, (2, 3, 2, 2), (4, 3, 3, 3), (1, 1), "VALID"),
}


@functools.cache
def code(name):
    return CODE[name]()


def value_and_gradients(function, arguments):
    """Under jit, for a cotangent that tells every output apart."""

    @jax.jit
    def run(*arguments):
        y, pullback = jax.vjp(function, *arguments)
        return y, pullback(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

    return jax.tree.map(np.asarray, run(*arguments))


@pytest.mark.parametrize("name", CODE)
def test_same_values_and_gradients(name):
    stock = value_and_gradients(*code(name))
    with convjax.accelerate():
        accelerated = value_and_gradients(*code(name))
    for expected, actual in zip(*map(jax.tree.leaves, (stock, accelerated)), strict=True):
        assert actual.dtype == expected.dtype
        scale = np.abs(expected).max(initial=1)
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5 * scale)


def test_without_jit_as_well():
    function, arguments = code("lax depthwise")
    expected = function(*arguments)
    with convjax.accelerate():
        np.testing.assert_allclose(function(*arguments), expected, rtol=1e-5, atol=1e-5)


# --- which algorithm ran ----------------------------------------------------------------------------------------------


WIDE = {
    "nnx": partial(nnx_layer, 64, 64, (3, 3), feature_group_count=64, batch=(4, 28, 28)),
    "linen": partial(linen_layer, 64, 64, (3, 3), feature_group_count=64, batch=(4, 28, 28)),
    "lax": partial(raw, (4, 64, 28, 28), (64, 1, 3, 3), (1, 1), "SAME", feature_group_count=64),
    "lax 7x7": partial(
        raw, (4, 28, 28, 64), (7, 7, 1, 64), (1, 1), "SAME", dimension_numbers=NHWC, feature_group_count=64
    ),
    "lax causal": partial(
        raw, (4, 256, 64), (4, 1, 64), (1,), ((3, 0),), dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=64
    ),
}


@pytest.mark.parametrize("name", WIDE)
def test_a_depthwise_program_holds_no_convolution_any_more(name):
    function, arguments = WIDE[name]()
    operations = lambda: jax.jit(function).lower(*arguments).as_text()
    assert "stablehlo.convolution" in operations()
    with convjax.accelerate():
        assert "stablehlo.convolution" not in operations()
        compiled = jax.jit(function).lower(*arguments).compile().as_text()
    assert " convolution(" not in compiled
    assert "taps" in compiled  # the name of the scope that the algorithm ran in


@pytest.mark.parametrize("precision", ["highest", lax.Precision.HIGHEST])
def test_highest_precision_keeps_direct_summation(precision):
    large = partial(raw, (1, 64, 64, 4), (31, 31, 1, 4), (1, 1), "SAME", dimension_numbers=NHWC, feature_group_count=4)
    with convjax.accelerate():
        function, arguments = large(precision=precision)
        assert "stablehlo.fft" not in jax.jit(function).lower(*arguments).as_text()


# --- the way back -----------------------------------------------------------------------------------------------------


def rules():
    """Everything that says how lax's convolution is lowered."""
    return [compat.lowering_rule(compat.LAX_CONV, platform) for platform in compat.PLATFORMS]


def test_the_very_same_rules_are_back():
    before = rules()
    handle = convjax.accelerate()
    assert handle.in_force
    assert all(now is not then for now, then in zip(rules(), before, strict=True))
    handle.restore()
    assert not handle.in_force
    assert all(now is then for now, then in zip(rules(), before, strict=True))


def test_programs_are_identical_to_those_before():
    for name in ("nnx depthwise", "lax mixed orders", "lax transposed"):
        function, arguments = code(name)
        before = jax.jit(function).lower(*arguments).as_text()
        with convjax.accelerate():
            pass
        assert jax.jit(function).lower(*arguments).as_text() == before


def test_nested_handles_restore_with_the_last_in_any_order():
    before = rules()
    first, second = convjax.accelerate(), convjax.accelerate()
    installed = rules()
    first.restore()
    assert not first.in_force
    assert second.in_force
    assert rules() == installed
    second.restore()
    assert rules() == before
    with convjax.accelerate():
        with convjax.accelerate():
            pass
        assert rules() != before
    assert rules() == before


def test_a_second_restore_does_nothing():
    before = rules()
    with convjax.accelerate() as outer:
        inner = convjax.accelerate()
        inner.restore()
        inner.restore()  # must not undo the outer one
        assert outer.in_force
        assert rules() != before
    outer.restore()
    assert rules() == before


def test_an_exception_restores():
    before = rules()

    with pytest.raises(KeyError), convjax.accelerate():
        raise KeyError("inside")
    assert rules() == before


def test_the_handle_says_whether_it_is_in_force():
    with convjax.accelerate() as handle:
        assert repr(handle) == "<convjax.accelerate: in force>"
    assert repr(handle) == "<convjax.accelerate: restored>"


def test_compiled_functions_are_compiled_again_once_and_not_retraced_in_between():
    function, (x, w) = code("lax depthwise")
    traces = []

    @jax.jit
    def step(x, w):
        traces.append(x.shape)
        return function(x, w)

    run = partial(step, x, w)
    run(), run()
    assert len(traces) == 1
    with convjax.accelerate():
        run(), run()
        assert len(traces) == 2
        with convjax.accelerate():  # nothing changes, so nothing is cleared
            run(), run()
        run()
        assert len(traces) == 2
    run(), run()
    assert len(traces) == 3


def test_the_original_lowering_serves_what_is_left_to_xla(monkeypatch):
    """Where the chooser says xla, the program is the stock one to the letter."""
    monkeypatch.setattr("convjax._core.accelerate.choose", lambda *_, **__: "xla")
    for name in ("lax mixed orders", "lax batch groups", "nnx strided, grouped, dilated"):
        function, arguments = code(name)
        before = jax.jit(function).lower(*arguments).as_text()
        with convjax.accelerate():
            assert jax.jit(function).lower(*arguments).as_text() == before


def test_our_own_functions_are_left_alone():
    x, w = normal(2, 9, 8, 3), normal(3, 3, 3, 4)
    text = lambda: jax.jit(partial(convjax.conv, algorithm="xla")).lower(x, w).as_text()
    before = text()
    with convjax.accelerate():
        assert text() == before
