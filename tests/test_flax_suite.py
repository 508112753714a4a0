"""Our Conv, ConvTranspose and LocalConv are Flax's: the same parameters from the same seed, the same results.

The cases cover the arguments that Flax's own tests of these layers do (tests/nnx/nn/conv_test.py and
tests/linen/linen_linear_test.py), and their combinations.
"""

from __future__ import annotations

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import convjax.linen
import convjax.nnx

MASK = np.tril(np.ones((3, 2, 4, 6), np.float32))
IMAGE, LINE = (2, 7, 6, 4), (2, 9, 4)

# (kernel size, input shape, options) of 4 input and 6 output features
CONV = {
    "plain": ((3, 2), IMAGE, {}),
    "no bias": ((3, 2), IMAGE, dict(use_bias=False)),
    "int kernel": (3, LINE, dict(padding="VALID")),
    "no batch": ((3, 2), IMAGE[1:], dict(strides=2)),
    "three batch axes": ((3,), (2, 1, 2, 9, 4), dict(strides=(2,))),
    "strides None": ((3, 2), IMAGE, dict(strides=None, kernel_dilation=None, input_dilation=None)),
    "strided, dilated": ((3, 2), IMAGE, dict(strides=(2, 3), kernel_dilation=(2, 1))),
    "circular": ((4, 3), IMAGE, dict(padding="CIRCULAR")),
    "circular, strided, dilated": ((4, 3), IMAGE, dict(padding="CIRCULAR", strides=(2, 3), kernel_dilation=(1, 2))),
    "reflect": ((4, 3), IMAGE, dict(padding="REFLECT", strides=2)),
    "causal": ((3,), LINE, dict(padding="CAUSAL", kernel_dilation=2, strides=2)),
    "pad int": ((3, 2), IMAGE, dict(padding=1)),
    "pad ints": ((3, 2), IMAGE, dict(padding=(2, 1))),
    "pad pairs": ((3, 2), IMAGE, dict(padding=[(2, 0), (0, 1)])),
    "input dilated": ((3, 2), IMAGE, dict(padding=(4, 2), input_dilation=(2, 3), strides=(1, 2))),
    "groups": ((3, 2), IMAGE, dict(feature_group_count=2)),
    "mask": ((3, 2), IMAGE, dict(mask=MASK)),
    "16 bits": ((3, 2), IMAGE, dict(dtype=jnp.bfloat16)),
    "float16 parameters": ((3, 2), IMAGE, dict(param_dtype=jnp.float16, precision="highest")),
    "kernel init": ((3, 2), IMAGE, dict(kernel_init=jax.nn.initializers.ones, bias_init=jax.nn.initializers.ones)),
}
TRANSPOSED = {
    "plain": ((3, 2), IMAGE, {}),
    "no bias": ((3, 2), IMAGE[1:], dict(use_bias=False, strides=(2, 3))),
    "same, wide": ((5, 4), IMAGE, dict(strides=(2, 3))),
    "same, narrow": ((2, 2), IMAGE, dict(strides=(3, 4))),
    "valid": ((3, 2), IMAGE, dict(padding="VALID", strides=(2, 3), kernel_dilation=(2, 1))),
    "pads": ((3, 2), IMAGE, dict(padding=(4, 2), strides=(2, 3))),
    "pairs": ((3,), LINE, dict(padding=[(2, 0)], kernel_dilation=(2,))),
    "circular": ((4, 3), IMAGE, dict(padding="CIRCULAR")),
    "circular, strided": ((5, 4), IMAGE, dict(padding="CIRCULAR", strides=(2, 3), kernel_dilation=(2, 1))),
    "circular, wider than a period": ((9,), (1, 3, 4), dict(padding="CIRCULAR", strides=(2,))),
    "transposed kernel": ((4, 3), IMAGE, dict(strides=(2, 3), transpose_kernel=True)),
    "transposed circular": ((5, 4), IMAGE, dict(padding="CIRCULAR", strides=(2, 1), transpose_kernel=True)),
    "mask": ((3, 2), IMAGE, dict(mask=MASK)),
    "16 bits": ((3, 2), IMAGE, dict(dtype=jnp.bfloat16, preferred_element_type=jnp.float32)),
}
LOCAL = {
    "plain": ((3, 2), IMAGE, {}),
    "no batch": ((3,), LINE[1:], dict(padding="VALID", strides=2)),
    "circular": ((3, 2), IMAGE, dict(padding="CIRCULAR", kernel_dilation=(2, 1))),
    "reflect": ((3, 2), IMAGE, dict(padding="REFLECT", strides=(2, 1))),
    "causal": ((3,), LINE, dict(padding="CAUSAL")),
    "input dilated": ((3,), LINE, dict(padding=(2,), input_dilation=2, use_bias=False)),
}


def draw(shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def cases(table):
    return pytest.mark.parametrize(("kernel_size", "shape", "options"), table.values(), ids=table)


def assert_same(ours, theirs):
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    tolerance = 0.04 if ours.dtype == jnp.bfloat16 else 1e-5
    np.testing.assert_allclose(ours.astype(np.float32), theirs.astype(np.float32), rtol=tolerance, atol=tolerance)


def compare_nnx(name, kernel_size, shape, options):
    ours, theirs = (getattr(api, name)(4, 6, kernel_size, rngs=nnx.Rngs(0), **options) for api in (convjax.nnx, nnx))
    states = [jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(layer))) for layer in (ours, theirs)]
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert_same(ours(draw(shape)), theirs(draw(shape)))


def compare_linen(ours, theirs, shape):
    variables = theirs.init(jax.random.key(0), draw(shape))
    jax.tree.map(np.testing.assert_array_equal, ours.init(jax.random.key(0), draw(shape)), variables)
    assert_same(ours.apply(variables, draw(shape)), theirs.apply(variables, draw(shape)))


@cases(CONV)
def test_nnx_conv(kernel_size, shape, options):
    compare_nnx("Conv", kernel_size, shape, options)


@cases(TRANSPOSED)
def test_nnx_conv_transpose(kernel_size, shape, options):
    compare_nnx("ConvTranspose", kernel_size, shape, options)


@cases(CONV)
def test_linen_conv(kernel_size, shape, options):
    compare_linen(*(api.Conv(6, kernel_size, **options) for api in (convjax.linen, linen)), shape)


@cases(TRANSPOSED)
def test_linen_conv_transpose(kernel_size, shape, options):
    compare_linen(*(api.ConvTranspose(6, kernel_size, **options) for api in (convjax.linen, linen)), shape)


@cases(LOCAL)
def test_linen_conv_local(kernel_size, shape, options):
    options = options | dict(kernel_init=jax.nn.initializers.lecun_normal())
    compare_linen(convjax.linen.LocalConv(6, kernel_size, **options), linen.ConvLocal(6, kernel_size, **options), shape)


@pytest.mark.parametrize("name", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("apis", [(convjax.nnx, nnx), (convjax.linen, linen)], ids=["nnx", "linen"])
def test_signatures_hold_those_of_flax(apis, name):
    """Every argument of Flax's, of the same kind and default, the positional ones in their order."""
    ours, theirs = (inspect.signature(getattr(api, name)).parameters for api in apis)
    positional = [p for p in theirs if theirs[p].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert [p for p in ours if p in positional] == positional
    for parameter, what in theirs.items():
        assert ours[parameter].kind is what.kind, parameter
        if not callable(what.default):  # initialisers are other objects of the same kind; compare_* compares values
            assert ours[parameter].default == what.default, parameter


def test_ours_are_found_where_those_of_flax_are_looked_for():
    assert isinstance(convjax.nnx.Conv(1, 1, 3, rngs=nnx.Rngs(0)), nnx.Conv)
    assert isinstance(convjax.nnx.ConvTranspose(1, 1, 3, rngs=nnx.Rngs(0)), nnx.ConvTranspose)
    assert isinstance(convjax.linen.Conv(1, 3), linen.Conv)
    assert isinstance(convjax.linen.ConvTranspose(1, 3), linen.ConvTranspose)


@pytest.mark.parametrize("batch", [(), (2, 3)], ids=["no batch", "two batch axes"])
def test_a_function_of_ones_own_is_called_as_flax_calls_it(batch):
    calls = []

    def recording(*args, **kwargs):
        calls.append(jax.tree.map(lambda leaf: getattr(leaf, "shape", leaf), (args, kwargs)))
        return jax.lax.conv_general_dilated(*args, **kwargs)

    options = dict(padding="CIRCULAR", strides=(2, 1), feature_group_count=2)
    x, results = draw((*batch, 6, 5, 4)), []
    for api in (convjax.nnx, nnx):
        layer = api.Conv(4, 6, (3, 2), conv_general_dilated=recording, rngs=nnx.Rngs(0), **options)
        results.append(layer(x))
    assert_same(*results)
    for api in (convjax.linen, linen):
        layer = api.Conv(6, (3, 2), conv_general_dilated_cls=lambda: recording, **options)
        layer.init(jax.random.key(0), x)
    ours, theirs, ours_linen, theirs_linen = calls
    assert ours == theirs
    assert ours_linen[0] == theirs_linen[0]


def test_out_sharding_is_handed_to_lax():
    devices = jax.sharding.Mesh(jax.devices()[:2], ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    layer = convjax.nnx.Conv(4, 6, (3,), rngs=nnx.Rngs(0))
    expected = layer(draw(LINE))
    with jax.set_mesh(devices):
        spec = jax.sharding.PartitionSpec("data")
        x = jax.device_put(draw(LINE), jax.sharding.NamedSharding(devices, spec))
        y = layer(x, out_sharding=spec)
        assert jax.typeof(y).sharding.spec[0] == "data"
    assert_same(jnp.asarray(np.asarray(y)), expected)


@pytest.mark.parametrize("api", ["nnx", "linen"])
def test_promote_dtype_is_called(api):
    """Flax calls it with a tuple in nnx, with separate arrays in linen."""
    seen = []

    def promote(*args, dtype):
        arrays = args[0] if api == "nnx" else args
        seen.append((len(arrays), dtype))
        return tuple(a.astype(jnp.float16) for a in arrays)

    options = dict(promote_dtype=promote, dtype=jnp.float32)
    if api == "nnx":
        layers = [
            convjax.nnx.Conv(4, 6, 3, rngs=nnx.Rngs(0), **options),
            convjax.nnx.ConvTranspose(4, 6, 3, rngs=nnx.Rngs(0), **options),
        ]
    else:
        layers = [
            functools.partial(layer.apply, layer.init(jax.random.key(0), draw(LINE)))
            for layer in (convjax.linen.Conv(6, 3, **options), convjax.linen.ConvTranspose(6, 3, **options))
        ]
    for layer in layers:
        assert layer(draw(LINE)).dtype == jnp.float16
    assert set(seen) == {(3, jnp.float32)}
