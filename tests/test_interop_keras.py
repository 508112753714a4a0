"""Keras' networks and layers with random weights: the same outputs from ours, and from theirs with ours."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import convjax.nnx
from convjax.interop import load_keras, to_keras
from convjax.models import VGG, MobileNetV2, ResNet

SIZE = 32
IMAGES = np.random.default_rng(0).normal(size=(2, SIZE, SIZE, 3)).astype(np.float32)

NETWORKS = {
    "VGG16": ({}, VGG, dict(pooled_size=1)),
    "ResNet50": ({}, ResNet, dict(stride_in_1x1=True, use_bias=True, epsilon=1.001e-5)),
    "MobileNetV2": (dict(alpha=0.35), MobileNetV2, dict(width=0.35, padding="SAME", epsilon=1e-3)),
}


@pytest.fixture(scope="module")
def keras(tmp_path_factory):
    """Keras on jax; the choice is read when it is first imported, and leaks no further."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_BACKEND", "jax")
        patch.setenv("KERAS_HOME", str(tmp_path_factory.mktemp("keras")))
        keras = pytest.importorskip("keras", reason="compares with the networks of Keras")
    if keras.backend.backend() != "jax":
        pytest.skip(f"Keras runs on {keras.backend.backend()} here")
    return keras


def randomise(model, seed: int) -> None:
    random = np.random.default_rng(seed)
    for variable in model.weights:
        value = random.standard_normal(variable.shape, np.float32)
        if len(variable.shape) > 1:
            depthwise = variable.shape[-1] == 1  # (*k, C, M): one channel goes into each output
            value *= np.sqrt(2 / np.prod(variable.shape[: -2 if depthwise else -1]))
        elif variable.name in ("gamma", "moving_variance"):
            value = np.abs(value) * 0.1 + 0.8
        else:
            value *= 0.1
        variable.assign(value)


def output(model, x) -> np.ndarray:
    model.eval()
    graph, weights, rest = nnx.split(model, (nnx.Param, nnx.BatchStat), ...)
    return np.asarray(jax.jit(lambda weights, x: nnx.merge(graph, weights, rest)(x))(weights, x))


def their_function(model):
    """Outputs for new images, compiled once whatever the weights."""
    call = jax.jit(lambda trained, fixed, x: model.stateless_call(trained, fixed, x, training=False)[0])

    def run(x):
        values = (
            [v.value for v in variables] for variables in (model.trainable_variables, model.non_trainable_variables)
        )
        return np.asarray(call(*values, x))

    return run


def close(actual, expected):
    scale = np.abs(expected).max()
    assert np.abs(expected[0] - expected[1]).max() > 1e-3 * scale, "the output does not depend on the image"
    np.testing.assert_allclose(actual, expected, rtol=0, atol=5e-5 * scale)


@pytest.mark.parametrize("name", NETWORKS)
def test_same_outputs_both_ways(keras, name):
    options, network, ours = NETWORKS[name]
    theirs = getattr(keras.applications, name)(
        weights=None, input_shape=(SIZE, SIZE, 3), classes=5, classifier_activation=None, **options
    )
    randomise(theirs, seed=0)
    model = nnx.eval_shape(lambda: network(num_classes=5, rngs=nnx.Rngs(0), **ours))
    load_keras(model, theirs)
    run = their_function(theirs)
    expected = run(IMAGES)
    close(output(model, IMAGES), expected)

    randomise(theirs, seed=1)
    assert np.abs(run(IMAGES) - expected).max() > 1e-2 * np.abs(expected).max()
    to_keras(model, theirs)
    close(run(IMAGES), expected)


def test_a_network_without_classifier(keras):
    theirs = keras.applications.MobileNetV2(weights=None, input_shape=(SIZE, SIZE, 3), include_top=False, alpha=0.35)
    model = nnx.eval_shape(lambda: MobileNetV2(width=0.35, padding="SAME", epsilon=1e-3, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"no tensor predictions/\w+.*head=False"):
        load_keras(model, theirs)
    load_keras(model, theirs, head=False)
    np.testing.assert_array_equal(model.last.conv.kernel[...], theirs.get_layer("Conv_1").kernel.value)
    to_keras(model, theirs, head=False)


RNGS = nnx.Rngs(0)
LAYERS = {
    "Conv1D, groups": (
        "Conv1D",
        (6, 3),
        dict(groups=2),
        (9, 4),
        lambda: convjax.nnx.Conv(4, 6, (3,), padding="VALID", feature_group_count=2, rngs=RNGS),
    ),
    "Conv3D": (
        "Conv3D",
        (5, 2),
        {},
        (4, 5, 6, 3),
        lambda: convjax.nnx.Conv(3, 5, (2, 2, 2), padding="VALID", rngs=RNGS),
    ),
    "Conv2D as depthwise": (
        "Conv2D",
        (8, 3),
        dict(groups=4, padding="same"),
        (7, 6, 4),
        lambda: convjax.nnx.DepthwiseConv(4, (3, 3), channel_multiplier=2, rngs=RNGS),
    ),
    "DepthwiseConv2D": (
        "DepthwiseConv2D",
        (3,),
        dict(depth_multiplier=2, padding="same"),
        (7, 6, 4),
        lambda: convjax.nnx.DepthwiseConv(4, (3, 3), channel_multiplier=2, rngs=RNGS),
    ),
    "Conv2DTranspose": (
        "Conv2DTranspose",
        (5, (3, 4)),
        dict(strides=2, padding="same"),
        (5, 6, 4),
        lambda: convjax.nnx.ConvTranspose(4, 5, (3, 4), strides=2, transpose_kernel=True, rngs=RNGS),
    ),
    "Conv2DTranspose, flipped": (
        "Conv2DTranspose",
        (5, (3, 4)),
        dict(strides=2, padding="valid"),
        (5, 6, 4),
        lambda: convjax.nnx.ConvTranspose(4, 5, (3, 4), strides=2, padding="VALID", rngs=RNGS),
    ),
    "Dense": ("Dense", (5,), {}, (4,), lambda: nnx.Linear(4, 5, rngs=RNGS)),
    "BatchNormalization": ("BatchNormalization", (), {}, (6, 4), lambda: nnx.BatchNorm(4, epsilon=1e-3, rngs=RNGS)),
    "LayerNormalization": ("LayerNormalization", (), {}, (6, 4), lambda: nnx.LayerNorm(4, epsilon=1e-3, rngs=RNGS)),
    "GroupNormalization": (
        "GroupNormalization",
        (2,),
        {},
        (6, 4),
        lambda: nnx.GroupNorm(4, 2, epsilon=1e-3, rngs=RNGS),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_both_ways(keras, name):
    kind, arguments, options, shape, ours = LAYERS[name]
    theirs, layer = getattr(keras.layers, kind)(*arguments, **options), ours()
    with pytest.raises(ValueError, match=r"keras_model\.build\(shape\)"):
        load_keras(layer, theirs)
    theirs.build((None, *shape))
    randomise(theirs, seed=0)
    x = np.random.default_rng(1).normal(size=(2, *shape)).astype(np.float32)
    load_keras(layer, theirs)
    layer.eval()
    expected = np.asarray(theirs(x, training=False) if "Batch" in kind else theirs(x))
    close(np.asarray(layer(jnp.asarray(x))), expected)
    randomise(theirs, seed=1)
    to_keras(layer, theirs)
    close(np.asarray(theirs(x, training=False) if "Batch" in kind else theirs(x)), expected)


def test_nested_models_and_separable_layers_by_names(keras):
    class Ours(nnx.Module):
        def __init__(self, rngs):
            self.mix = convjax.nnx.SeparableConv(3, 6, (3, 3), channel_multiplier=2, rngs=rngs)
            self.out = nnx.Linear(6, 4, rngs=rngs)

        def __call__(self, x):
            return self.out(self.mix(x))

    inner = keras.Sequential(
        [keras.layers.SeparableConv2D(6, 3, depth_multiplier=2, padding="same", name="separable")], name="inner"
    )
    theirs = keras.Sequential([keras.Input((8, 8, 3)), inner, keras.layers.Dense(4, name="dense")])
    randomise(theirs, seed=0)
    x = IMAGES[:, :8, :8]
    names = {"mix.depthwise": "inner/separable", "mix.pointwise": "inner/separable", "out": "dense"}
    model = Ours(nnx.Rngs(0))
    load_keras(model, theirs, names=names)
    expected = np.asarray(theirs(x))
    close(np.asarray(model(x)), expected)
    randomise(theirs, seed=1)
    to_keras(model, theirs, names=names)
    close(np.asarray(theirs(x)), expected)


def test_a_wrong_shape_changes_nothing(keras):
    theirs, layer = keras.layers.Dense(6), nnx.Linear(4, 5, rngs=nnx.Rngs(0))
    theirs.build((None, 4))
    before = [np.asarray(v) for v in theirs.weights]
    with pytest.raises(ValueError, match=r"bias has shape \(6,\), but our bias \(5,\) needs \(5,\)"):
        to_keras(layer, theirs)
    for variable, value in zip(theirs.weights, before, strict=True):
        np.testing.assert_array_equal(variable, value)
