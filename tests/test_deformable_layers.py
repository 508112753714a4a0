"""`DeformConv`: a convolution at first, then moved by what it predicts; nnx and linen agree."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import convjax.linen
import convjax.nnx
from convjax.deformable import deform_conv

X = np.random.default_rng(0).standard_normal((2, 7, 6, 4)).astype(np.float32)
OPTIONS = dict(strides=(2, 1), kernel_dilation=2, padding="SAME_LOWER", feature_group_count=2, offset_groups=4)


@pytest.mark.parametrize("modulated", [False, True])
def test_it_begins_as_a_convolution_and_version_2_as_half_of_one(modulated):
    layer = convjax.nnx.DeformConv(4, 6, (3, 2), modulated=modulated, rngs=nnx.Rngs(0), **OPTIONS)
    plain = {name: value for name, value in OPTIONS.items() if name != "offset_groups"}
    reference = convjax.nnx.Conv(4, 6, (3, 2), rngs=nnx.Rngs(1), **plain)
    reference.kernel[...] = layer.kernel[...]
    layer.bias[...] = reference.bias[...] = jnp.arange(6.0)
    factor = 0.5 if modulated else 1
    np.testing.assert_allclose(layer(X) - layer.bias[...], factor * (reference(X) - layer.bias[...]), atol=1e-5)


@pytest.mark.parametrize("modulated", [False, True])
def test_offsets_and_masks_are_what_the_submodule_predicts(modulated):
    layer = convjax.nnx.DeformConv(4, 6, (3, 2), modulated=modulated, rngs=nnx.Rngs(0), **OPTIONS)
    count = 4 * 6
    assert layer.offset.kernel.shape == (3, 2, 4, count * (2 + modulated))
    rng = np.random.default_rng(1)
    layer.offset.kernel[...] = rng.standard_normal(layer.offset.kernel.shape).astype(np.float32)
    predicted = layer.offset(X)
    expected = deform_conv(
        X,
        predicted[..., : 2 * count],
        layer.kernel[...],
        mask=1 / (1 + jnp.exp(-predicted[..., 2 * count :])) if modulated else None,
        stride=(2, 1),
        dilation=2,
        padding="SAME_LOWER",
        groups=2,
        offset_groups=4,
    )
    np.testing.assert_allclose(layer(X), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(layer(X[0]), expected[0], rtol=1e-4, atol=1e-4)


def test_what_predicts_is_trained_from_the_start():
    layer = convjax.nnx.DeformConv(4, 6, (3, 3), offset_groups=2, rngs=nnx.Rngs(0))
    gradients = nnx.grad(lambda layer: (layer(X) ** 2).sum())(layer)
    each = np.abs(gradients["offset"]["kernel"][...]).max((0, 1, 2))
    assert each.shape == (54,)
    assert (each > 0).all()


@pytest.mark.parametrize(
    "options", [OPTIONS, dict(modulated=False, use_bias=False, dtype=jnp.bfloat16)], ids=["2", "1"]
)
def test_nnx_and_linen_agree(options):
    ours = convjax.nnx.DeformConv(4, 6, (3, 2), rngs=nnx.Rngs(0), **options)
    rng = np.random.default_rng(2)
    ours.offset.kernel[...] = 0.3 * rng.standard_normal(ours.offset.kernel.shape).astype(np.float32)
    theirs = convjax.linen.DeformConv(6, (3, 2), **options)
    shapes = jax.eval_shape(theirs.init, jax.random.key(0), X)["params"]
    parameters = nnx.to_pure_dict(nnx.state(ours, nnx.Param))
    assert jax.tree.map(jnp.shape, parameters) == jax.tree.map(jnp.shape, shapes)
    y = theirs.apply({"params": parameters}, X)
    assert y.dtype == options.get("dtype", jnp.float32)
    np.testing.assert_array_equal(np.asarray(y, np.float32), np.asarray(ours(X), np.float32))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (dict(offset_groups=3), "DeformConv: offset_groups=3 does not divide the 4 channels"),
        (dict(feature_group_count=3), "feature_group_count=3 must divide"),
        (dict(padding="CIRCULAR"), "padding='CIRCULAR' is not known"),
    ],
    ids=["offset groups", "groups", "padding"],
)
def test_errors_say_what_to_type(options, match):
    with pytest.raises(ValueError, match=match):
        convjax.nnx.DeformConv(4, 6, 3, rngs=nnx.Rngs(0), **options)(jnp.ones((1, 5, 4)))
    with pytest.raises(ValueError, match=match):
        convjax.linen.DeformConv(6, 3, **options).init(jax.random.key(0), jnp.ones((1, 5, 4)))
    with pytest.raises(ValueError, match="the layer takes"):
        convjax.nnx.DeformConv(4, 6, 3, rngs=nnx.Rngs(0))(jnp.ones((1, 5, 3)))
