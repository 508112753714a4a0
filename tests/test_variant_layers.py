"""`MaskedConv`, `PartialConv`, `Involution`, `DeformConvV3` and `DeformConvV4`: what their parameters mean.

That nnx and linen agree, with their gradients, is in `test_linen_nnx_agree`.
"""

from __future__ import annotations

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import convjax
import convjax.linen
import convjax.nnx
from convjax.deformable import deform_conv_v3, deform_conv_v4
from convjax.masked import masked_conv
from convjax.partial import partial_conv

RNG = np.random.default_rng(0)
draw = lambda *shape: RNG.standard_normal(shape).astype(np.float32)
X = draw(2, 7, 6, 4)
close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def rngs():
    return nnx.Rngs(0)


# --- masked and partial -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", ["A", "array"])
def test_masked_conv_is_the_function_and_the_convolution_of_its_effective_kernel(mask):
    mask = RNG.integers(0, 2, (3, 3, 1, 1)) if mask == "array" else mask
    options = dict(strides=(2, 1), padding="SAME_LOWER", kernel_dilation=2, feature_group_count=2)
    groups = 1 if isinstance(mask, np.ndarray) else 2
    layer = convjax.nnx.MaskedConv(4, 6, (3, 3), mask=mask, channel_groups=groups, rngs=rngs(), **options)
    layer.bias[...] = jnp.arange(6.0)
    same = dict(stride=(2, 1), padding="SAME_LOWER", dilation=2, groups=2, bias=layer.bias[...])

    @jax.jit
    def compute(x):
        effective = layer.effective_kernel()
        function = lambda kernel: masked_conv(x, kernel, mask=mask, channel_groups=groups, **same)
        gradient = jax.grad(lambda kernel: function(kernel).sum())(layer.kernel[...])
        return layer(x), function(layer.kernel[...]), convjax.conv(x, effective, **same), effective, gradient

    y, function, convolution, effective, gradient = compute(X)
    close(y, function)
    close(y, convolution)
    assert np.count_nonzero(effective) < effective.size
    np.testing.assert_array_equal(gradient == 0, effective == 0)


def test_partial_conv_is_the_function_layer_after_layer():
    known = RNG.integers(0, 2, (2, 7, 6, 1)).astype(bool)
    x = np.where(known, X, np.nan)
    first = convjax.nnx.PartialConv(4, 5, (3, 2), strides=2, kernel_dilation=(1, 2), rngs=rngs())
    second = convjax.nnx.PartialConv(5, 3, (3, 3), use_bias=False, padding="VALID", rngs=rngs())

    @jax.jit
    def compute(x, known):
        y, mask = partial_conv(x, first.kernel[...], mask=known, bias=first.bias[...], stride=2, dilation=(1, 2))
        return second(*first(x, known)), partial_conv(y, second.kernel[...], mask=mask, padding="VALID")

    (y, mask), expected = compute(x, known)
    jax.tree.map(close, (y, mask), expected)
    assert (y.shape, mask.shape, mask.dtype) == ((2, 2, 1, 3), (2, 2, 1, 1), bool)
    assert np.isfinite(y).all()


def test_a_partial_conv_without_a_mask_scales_the_border_alone():
    layer = convjax.nnx.PartialConv(4, 5, (3, 3), use_bias=False, rngs=rngs())
    (y, known), plain = jax.jit(lambda x: (layer(x), convjax.conv(x, layer.kernel[...])))(X)
    assert known.all()
    assert known.shape == (2, 7, 6, 1)
    close(y[:, 1:-1, 1:-1], plain[:, 1:-1, 1:-1])
    close(y[:, 0, 0], plain[:, 0, 0] * 9 / 4)
    close(y[:, 0, 1], plain[:, 0, 1] * 9 / 6)


def test_precision_and_algorithm_reach_the_sum_of_a_partial_conv():
    layer = convjax.nnx.PartialConv(4, 5, (3, 3), precision="highest", algorithm="xla", rngs=rngs())
    specs = list(specs_of(jax.make_jaxpr(layer)(X).jaxpr))
    assert [spec.precision for spec in specs] == [None, (jax.lax.Precision.HIGHEST,) * 2]
    assert [spec.algorithms[0] for spec in specs] == ["auto", "xla"]


def specs_of(jaxpr):
    for equation in jaxpr.eqns:
        if "spec" in equation.params:
            yield equation.params["spec"]
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from specs_of(inner)


# --- involution -------------------------------------------------------------------------------------------------------


def test_involution_is_the_sum_of_its_definition():
    """Equation 6 of the paper, position by position: a kernel from the mean of the window that a stride skips."""
    layer = convjax.nnx.Involution(4, (3, 3), (2, 3), group_features=2, reduction=2, use_norm=False, rngs=rngs())
    layer.span.bias[...] = jnp.arange(18.0) / 9
    down, up = (
        (np.asarray(conv.kernel[...])[0, 0], np.asarray(conv.bias[...])) for conv in (layer.reduce.conv, layer.span)
    )
    padded = np.pad(X, [(0, 0), (1, 1), (0, 0), (0, 0)])  # SAME: 7 rows by 2 want one more on both sides, 6 by 3 none
    expected = np.zeros((2, 4, 2, 4))
    for n, i, j in np.ndindex(2, 4, 2):
        mean = X[n, 2 * i : 2 * i + 2, 3 * j : 3 * j + 3].mean((0, 1))  # the last row of windows has one row
        hidden = np.maximum(mean @ down[0] + down[1], 0)
        weights = (hidden @ up[0] + up[1]).reshape(2, 3, 3)
        seen = padded[n, 2 * i : 2 * i + 3, 3 * j : 3 * j + 3]
        for c in range(4):
            expected[n, i, j, c] = (weights[c // 2] * seen[..., c]).sum()
    close(jax.jit(lambda x: layer(x))(X), expected)


def test_involution_normalises_as_its_block_does():
    layer = convjax.nnx.Involution(4, (3,), group_features=4, reduction=1, kernel_dilation=2, rngs=rngs())
    run = nnx.jit(lambda layer, x: (layer(x), layer(x, use_running_average=True)))
    trained, running = run(layer, X[:, 0])
    assert trained.shape == X[:, 0].shape
    assert np.abs(layer.reduce.norm.mean[...]).max() > 0
    assert np.abs(running - trained).max() > 1e-3


# --- deformable -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [3, 4])
def test_a_deformable_window_is_at_first_a_fixed_one_then_as_predicted(version):
    name, function = f"DeformConvV{version}", {3: deform_conv_v3, 4: deform_conv_v4}[version]
    sizes = dict(groups=2, offset_scale=2.0, remove_center=True)
    layer = getattr(convjax.nnx, name)(
        4, 3, strides=(2, 1), kernel_dilation=(1, 2), depthwise_kernel_size=5, rngs=rngs(), **sizes
    )
    layer.mask.bias[...] = jnp.ones(16)  # equal for all taps: a softmax makes a mean of them, version 4 their sum
    ring = jnp.full((3, 3, 4, 1), 1 / 8 if version == 3 else 1.0).at[1, 1].set(0)

    @jax.jit
    def at_first(x):
        fixed = convjax.depthwise_conv(layer.input_proj(x), ring, stride=(2, 1), dilation=(2, 4), padding=(2, 4))
        return layer(x), layer.output_proj(fixed)

    first, fixed = at_first(X)
    close(first, fixed)
    layer.offset.kernel[...], layer.mask.kernel[...] = draw(4, 32), draw(4, 16)

    @jax.jit
    def then(x):
        seen = convjax.depthwise_conv(x, layer.depthwise.kernel[...].reshape(5, 5, 4, 1), stride=(2, 1))
        if version == 3:
            deviation = seen - seen.mean(-1, keepdims=True)
            normal = deviation / jnp.sqrt((deviation**2).mean(-1, keepdims=True) + 1e-6)
            seen = jax.nn.gelu(normal, approximate=False)
        offset, mask = layer.offset(seen), layer.mask(seen)
        y = function(layer.input_proj(x), offset, mask, stride=(2, 1), dilation=(1, 2), **sizes)
        return layer(x), layer.output_proj(y)

    y, expected = then(X)
    close(y, expected)
    assert np.abs(y - fixed).max() > 0.1


# --- all --------------------------------------------------------------------------------------------------------------


def test_metadata_and_batch_axes_are_as_for_other_layers():
    known = dict(kernel_metadata=dict(axis_of="model"), rngs=rngs())
    masked = convjax.nnx.MaskedConv(4, 4, (3, 3), mask="A", **known)
    involution = convjax.nnx.Involution(4, (3, 3), group_features=2, **known)
    deformable = convjax.nnx.DeformConvV4(4, groups=2, **known)
    for kernel in (masked.kernel, involution.reduce.conv.kernel, involution.span.kernel, deformable.input_proj.kernel):
        assert kernel.get_metadata("axis_of") == "model"
    for layer in (masked, involution, deformable):
        layer.eval()
        assert jax.eval_shape(layer, X[0]).shape == (7, 6, 4)
        assert jax.eval_shape(layer, X[None]).shape == (1, 2, 7, 6, 4)


ERRORS = {
    "even kernel": ("MaskedConv", dict(kernel_size=(2, 3), mask="A"), "even"),
    "colours": ("MaskedConv", dict(kernel_size=(3, 3), mask="A", channel_groups=3), "channel_groups=3 does not divide"),
    "kind": ("MaskedConv", dict(kernel_size=(3, 3), mask="C"), "mask='C' is not known"),
    "beyond": (
        "MaskedConv",
        dict(kernel_size=(3, 3), mask="A", padding_mode="reflect"),
        "padding_mode='reflect' has no",
    ),
    "dilated": (
        "PartialConv",
        dict(kernel_size=(3, 3), input_dilation=2),
        "PartialConv: input_dilation=2 has no meaning",
    ),
    "mask of weights": (
        "PartialConv",
        dict(kernel_size=(1, 1), mask=np.ones((1, 1, 4, 6))),
        "mask=ndarray has no meaning",
    ),
    "groups": (
        "Involution",
        dict(kernel_size=(3, 3), group_features=3),
        "Involution: group_features=3 does not divide",
    ),
    "reduction": ("Involution", dict(kernel_size=(3, 3), group_features=2, reduction=3), "reduction=3 does not divide"),
    "offset groups": ("DeformConvV3", dict(groups=3), "DeformConvV3: groups=3 does not divide the 4 channels"),
    "centre": ("DeformConvV4", dict(groups=1, kernel_size=2, remove_center=True), "no tap at its centre"),
}


@pytest.mark.parametrize(("name", "options", "match"), ERRORS.values(), ids=ERRORS)
def test_errors_say_what_to_type(name, options, match):
    has_features = name in ("MaskedConv", "PartialConv")
    inputs, outputs = (dict(out_features=6), dict(features=6)) if has_features else ({}, {})
    with pytest.raises(ValueError, match=match):
        nnx.eval_shape(lambda: getattr(convjax.nnx, name)(in_features=4, rngs=rngs(), **inputs, **options)(X))
    with pytest.raises(ValueError, match=match):
        jax.eval_shape(getattr(convjax.linen, name)(**outputs, **options).init, jax.random.key(0), X)


def test_partial_masks_and_inputs_of_other_shapes_are_refused():
    layer = convjax.nnx.PartialConv(4, 5, (3, 3), rngs=rngs())
    with pytest.raises(ValueError, match="mask has shape"):
        layer(X, np.ones((2, 7, 6, 3)))
    with pytest.raises(ValueError, match="the layer takes"):
        layer(X[..., :3])
    with pytest.raises(ValueError, match="out_sharding='model' has no meaning"):
        convjax.nnx.MaskedConv(4, 4, (3, 3), mask="B", rngs=rngs())(X, "model")
