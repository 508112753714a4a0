"""Each layer of `convjax.nnx` does what its source says; `convjax.linen` shares the code (test_linen_nnx_agree)."""

from __future__ import annotations

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from flax import nnx

import convjax
import convjax.linen
import convjax.nnx as cx

RNGS = nnx.Rngs(0)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def close(actual, expected, tolerance=1e-5):
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


run = nnx.jit(lambda layer, x: layer(x))  # one program compiles faster than many operations


def test_flax_is_imported_with_the_layers_only():
    """`import convjax` stays quick."""
    code = "import sys, convjax; assert 'flax' not in sys.modules; import convjax.nnx; assert 'flax' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- beyond Flax's own ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["reflect", "symmetric", "replicate", "circular", 2.5, ("zeros", "circular")])
def test_conv_takes_every_padding_mode(mode):
    layer = cx.Conv(3, 4, (3, 4), strides=(1, 2), padding_mode=mode, rngs=RNGS)
    x = draw(2, 6, 7, 3)
    expected = convjax.conv(x, layer.kernel[...], stride=(1, 2), padding_mode=mode)
    close(layer(x), expected)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("transpose_kernel", [False, True])
def test_conv_transpose_takes_padding_modes(mode, transpose_kernel):
    layer = cx.ConvTranspose(
        3, 4, (4, 3), (2, 1), padding_mode=mode, transpose_kernel=transpose_kernel, use_bias=False, rngs=RNGS
    )
    x = draw(1, 5, 6, 3)
    extended = np.pad(
        x, [(0, 0), (2, 2), (2, 2), (0, 0)], mode={"replicate": "edge", "circular": "wrap"}.get(mode, mode)
    )
    plain = nnx.clone(layer)
    plain.padding_mode = "zeros"
    close(layer(x), plain(extended)[:, 4:-4, 2:-2])


@pytest.mark.parametrize(
    ("padding", "transpose_kernel"),
    [("SAME", True), ("VALID", False), ("CIRCULAR", True), ("CAUSAL", False), (2, False)],
)
def test_grouped_transposed_convolution_is_one_for_each_group(padding, transpose_kernel):
    options = dict(padding=padding, transpose_kernel=transpose_kernel, rngs=RNGS)
    layer = cx.ConvTranspose(6, 4, (3,), (2,), feature_group_count=2, **options)
    layer.bias[...] = draw(4)
    assert layer.kernel.shape == ((3, 2, 6) if transpose_kernel else (3, 3, 4))
    x, parts = draw(2, 5, 6), []
    for g in range(2):
        part = cx.ConvTranspose(3, 2, (3,), (2,), **options)
        inputs = slice(3 * g, 3 * g + 3)
        part.kernel[...] = layer.kernel[..., inputs] if transpose_kernel else layer.kernel[..., 2 * g : 2 * g + 2]
        part.bias[...] = layer.bias[2 * g : 2 * g + 2]
        parts.append(part(x[..., inputs]))
    close(layer(x), np.concatenate(parts, -1))


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_kernel_is_the_gradient_of_a_convolution_with_it(groups):
    conv = cx.Conv(4, 6, (3, 2), strides=2, padding=((1, 1), (0, 1)), feature_group_count=groups, rngs=RNGS)
    x = draw(1, 7, 6, 4)
    y, pullback = jax.vjp(conv, x)
    back = cx.ConvTranspose(
        6, 4, (3, 2), 2, padding=((1, 1), (1, 0)), feature_group_count=groups, transpose_kernel=True, use_bias=False,
        rngs=RNGS,
    )  # fmt: skip
    back.kernel[...] = conv.kernel[...]
    close(back(y), pullback(y)[0][:, : back(y).shape[1], : back(y).shape[2]])


def test_causal_padding_of_a_transposed_convolution_sees_no_future():
    layer = cx.ConvTranspose(2, 3, 5, 3, padding="CAUSAL", rngs=RNGS)
    x = draw(1, 6, 2)
    y = layer(x)
    assert y.shape == (1, 18, 3)
    x[:, 4] += 1
    changed = np.abs(layer(x) - y).max((0, 2)) > 0
    assert not changed[:12].any()
    assert changed[12:17].all()


def test_strings_with_input_dilation_and_causal_in_two_dimensions():
    """Flax refuses both."""
    close(cx.Conv(2, 3, (3,), padding="VALID", input_dilation=2, rngs=nnx.Rngs(0))(draw(1, 5, 2)),
          nnx.Conv(2, 3, (3,), padding=0, input_dilation=2, rngs=nnx.Rngs(0))(draw(1, 5, 2)))  # fmt: skip
    layer = cx.Conv(2, 3, (3, 2), padding="CAUSAL", rngs=RNGS)
    close(layer(draw(1, 5, 4, 2)), convjax.conv(draw(1, 5, 4, 2), layer.kernel[...], padding=((2, 0), (1, 0))))


# --- depthwise and its like -------------------------------------------------------------------------------------------


def test_depthwise_and_pointwise_have_the_parameters_of_flax():
    theirs = nnx.Conv(4, 8, (3, 3), feature_group_count=4, rngs=nnx.Rngs(3))
    ours = cx.DepthwiseConv(4, (3, 3), channel_multiplier=2, rngs=nnx.Rngs(4))
    nnx.update(ours, nnx.state(theirs))
    close(ours(draw(2, 6, 5, 4)), theirs(draw(2, 6, 5, 4)))
    theirs, ours = nnx.Conv(4, 6, (1,), strides=2, rngs=RNGS), cx.PointwiseConv(4, 6, 2, ndim=1, rngs=RNGS)
    nnx.update(ours, nnx.state(theirs))
    close(ours(draw(2, 7, 4)), theirs(draw(2, 7, 4)))


def test_separable_is_depthwise_then_pointwise():
    layer = cx.SeparableConv(
        4, 5, (3, 3), 2, channel_multiplier=2, kernel_dilation=2, padding_mode="reflect", rngs=RNGS
    )
    layer.pointwise.bias[...] = draw(5)
    assert layer.depthwise.bias is None
    expected = convjax.separable_conv(
        draw(1, 9, 8, 4), layer.depthwise.kernel[...].reshape(3, 3, 4, 2), layer.pointwise.kernel[...][0, 0], stride=2,
        dilation=2, padding_mode="reflect", bias=layer.pointwise.bias[...],
    )  # fmt: skip
    close(layer(draw(1, 9, 8, 4)), expected)


# --- causal -----------------------------------------------------------------------------------------------------------

PIECES = [(1,) * 9, (9,), (4, 5), (1, 3, 1, 4)]


@pytest.mark.parametrize("pieces", PIECES, ids=str)
@pytest.mark.parametrize("options", [{}, dict(kernel_dilation=3), dict(feature_group_count=4)], ids=str)
def test_decoding_in_pieces_equals_the_full_pass(pieces, options):
    layer, x = cx.CausalConv(4, 4, 3, rngs=RNGS, **options), draw(2, 9, 4)
    full = layer(x)
    layer.init_cache(x.shape)
    step = nnx.jit(lambda layer, x: layer(x, decode=True))
    parts = np.split(x, np.cumsum(pieces)[:-1], axis=1)
    close(np.concatenate([step(layer, part) for part in parts], 1), full)
    assert layer.cached_inputs.shape == (2, 2 * options.get("kernel_dilation", 1), 4)


@pytest.mark.parametrize("pieces", PIECES[:1] + PIECES[3:], ids=str)
def test_linen_decoding_in_pieces_equals_the_full_pass(pieces):
    layer, x = convjax.linen.CausalConv(4, 3, kernel_dilation=2), draw(2, 9, 4)
    full, variables = layer.init_with_output(jax.random.key(0), x)
    decoding = layer.clone(decode=True)
    made = decoding.init(jax.random.key(0), x[:, :1])
    assert made["cache"]["cached_inputs"].shape == (2, 4, 4)
    np.testing.assert_array_equal(made["cache"]["cached_inputs"], 0)
    state, outputs = {"cache": made["cache"]}, []
    for part in np.split(x, np.cumsum(pieces)[:-1], axis=1):
        y, state = jax.jit(lambda v, x: decoding.apply(v, x, mutable=["cache"]))(variables | state, part)
        outputs.append(y)
    close(np.concatenate(outputs, 1), full)


def test_a_kernel_of_one_tap_has_an_empty_state():
    layer = cx.CausalConv(2, 3, 1, rngs=RNGS)
    layer.init_cache((5, 1, 2))
    assert layer.cached_inputs.shape == (5, 0, 2)
    close(layer(draw(5, 1, 2), decode=True), layer(draw(5, 1, 2)))


def test_the_cache_can_be_of_another_dtype():
    layer = cx.CausalConv(2, 3, 3, dtype=jnp.bfloat16, rngs=RNGS)
    layer.init_cache((1, 1, 2), jnp.bfloat16)
    assert layer(draw(1, 2, 2), decode=True).dtype == jnp.bfloat16
    assert layer.cached_inputs[...].dtype == jnp.bfloat16


# --- kernels from kernels ---------------------------------------------------------------------------------------------


def test_ws_conv_standardises_each_output_channel():
    layer = cx.WSConv(4, 6, (3, 2), epsilon=1e-5, feature_group_count=2, rngs=RNGS)
    layer.kernel[...] = 5 + 3 * draw(3, 2, 2, 6)
    w = np.asarray(layer.kernel[...], np.float64)
    w = (w - w.mean((0, 1, 2))) / np.sqrt(w.var((0, 1, 2)) + 1e-5)
    close(layer(draw(1, 6, 5, 4)), convjax.conv(draw(1, 6, 5, 4), w.astype(np.float32), groups=2), 1e-4)


def test_dynamic_conv_convolves_each_example_with_its_own_mixture():
    layer = cx.DynamicConv(4, 6, (3, 2), strides=2, num_experts=3, feature_group_count=2, rngs=RNGS)
    layer.bias[...] = draw(3, 6)
    assert layer.kernel.shape == (3, 3, 2, 2, 6)
    x = draw(2, 1, 6, 5, 4)
    y = layer(x)
    for at in np.ndindex(2, 1):
        route = jax.nn.sigmoid(x[at].mean((0, 1)) @ layer.router.kernel[...] + layer.router.bias[...])
        kernel = sum(r * k for r, k in zip(route, layer.kernel[...], strict=True))
        expected = convjax.conv(x[at], kernel, stride=2, groups=2) + route @ layer.bias[...]
        close(y[at], expected, 1e-4)


def test_each_expert_is_drawn_with_its_own_fan_in():
    layer = cx.DynamicConv(16, 32, (3, 3), num_experts=5, rngs=RNGS)
    spread = layer.kernel[...].std((1, 2, 3, 4))
    np.testing.assert_allclose(spread, 1 / 12, rtol=0.1)
    assert np.abs(np.diff(layer.kernel[...], axis=0)).max() > 0.01


# --- sampling ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "row"), [(2, [1, 1]), (3, [1, 2, 1]), (4, [1, 3, 3, 1]), (5, [1, 4, 6, 4, 1])])
def test_blur_pool_is_a_binomial_filter_then_a_stride(size, row):
    x = draw(9, 8, 2)
    expected = x
    for axis in (0, 1):
        expected = scipy.ndimage.correlate1d(
            expected, np.array(row) / sum(row), axis, mode="mirror", origin=-(1 - size % 2)
        )
    close(cx.BlurPool((size, size), strides=(2, 3))(x), expected[::2, ::3].astype(np.float32))


def test_blur_pool_lets_a_shift_through_where_a_stride_does_not():
    """At the highest frequency a stride gives all or nothing, by the phase; (1, 2, 1) gives the mean for both."""
    x = np.tile(np.array([0.0, 1.0], np.float32), 6)[:, None]
    for phase in (x, np.roll(x, 1, 0)):
        np.testing.assert_allclose(cx.BlurPool(3)(phase), 0.5, atol=1e-6)


def test_blur_pool_refuses_integers_which_would_become_zeros():
    with pytest.raises(TypeError, match=r"the input is uint8.*astype"):
        cx.BlurPool()(np.ones((4, 4, 1), np.uint8))


def test_resize_conv_repeats_pixels_then_convolves():
    layer, x = cx.ResizeConv(3, 4, (3, 3), scale=(2, 3), rngs=RNGS), draw(1, 4, 5, 3)
    larger = x.repeat(2, 1).repeat(3, 2)
    close(layer(x), convjax.conv(larger, layer.kernel[...]))
    layer.method = "linear"
    close(layer(x), convjax.conv(jax.image.resize(x, larger.shape, "linear"), layer.kernel[...]))


# --- blocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("activation", ["relu", None, jnp.tanh], ids=["relu", "none", "tanh"])
def test_folding_keeps_the_outputs(use_bias, activation):
    block = cx.ConvNormAct(
        4, 6, (3, 2), 2, activation=activation, use_bias=use_bias, feature_group_count=2, epsilon=0.1, rngs=RNGS
    )
    for i, variable in enumerate((block.norm.scale, block.norm.bias, block.norm.mean)):
        variable[...] = draw(6, seed=i)
    block.norm.var[...] = np.abs(draw(6, seed=9))
    block.eval()
    folded, x = block.fold(), draw(3, 6, 5, 4)
    assert folded.norm is None
    assert block.norm is not None
    assert set(nnx.to_pure_dict(nnx.state(folded))) == {"conv"}
    close(nnx.jit(lambda m, x: m(x))(folded, x), block(x))
    close(folded.fold()(x), folded(x))


def test_linen_folding_keeps_the_outputs():
    block, x = convjax.linen.ConvNormAct(6, (3, 2), use_bias=True, activation="silu"), draw(3, 6, 5, 4)
    variables = block.init(jax.random.key(0), x)
    leaves, tree = jax.tree.flatten(variables)
    variables = jax.tree.unflatten(tree, [np.abs(draw(*leaf.shape, seed=i)) for i, leaf in enumerate(leaves)])
    folded, fewer = block.fold(variables)
    assert set(fewer["params"]) == {"conv"}
    close(folded.apply(fewer, x), block.apply(variables, x, use_running_average=True), 1e-4)
    assert folded.fold(fewer)[0] is folded


def test_training_moves_the_running_averages():
    block, x = cx.ConvNormAct(4, 6, (3, 3), momentum=0.5, activation=None, rngs=RNGS), 3 + draw(4, 6, 5, 4)
    y = block(x)
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-5)
    close(block.norm.mean[...], block.conv(x).mean((0, 1, 2)) / 2, 1e-4)


def test_squeeze_excite_by_its_formula():
    layer, x = cx.SqueezeExcite(8, 3, rngs=RNGS), draw(2, 5, 4, 8)
    hidden = np.maximum(x.mean((1, 2)) @ layer.reduce.kernel[...] + layer.reduce.bias[...], 0)
    gate = jax.nn.sigmoid(hidden @ layer.expand.kernel[...] + layer.expand.bias[...])
    close(layer(x), x * gate[:, None, None])
    assert cx.SqueezeExcite(64, rngs=RNGS).reduce.kernel.shape == (64, 4)


def test_channel_shuffle_is_undone_by_the_other_number_of_groups():
    x = draw(2, 3, 12)
    np.testing.assert_array_equal(cx.ChannelShuffle(4)(cx.ChannelShuffle(3)(x)), x)
    assert np.abs(cx.ChannelShuffle(3)(x) - x).max() > 0


def test_mix_conv_has_a_kernel_size_for_each_part():
    layer, x = cx.MixConv(7, [(3, 3), (5, 1), (1, 7)], strides=2, rngs=RNGS), draw(2, 9, 8, 7)
    assert layer.parts == (3, 2, 2)
    y, first = layer(x), 0
    for i, part in enumerate(layer.parts):
        branch = getattr(layer, f"conv_{i}")
        close(y[..., first : first + part], branch(x[..., first : first + part]))
        first += part


# --- long convolutions ------------------------------------------------------------------------------------------------


def test_long_conv_by_its_definition():
    """Sums over the past in float64, filter by filter."""
    layer, x = cx.LongConv(3, 20, order=2, hidden_features=8, rngs=RNGS), draw(2, 11, 3)
    layer.skip[...] = draw(2, 3)
    mixed = np.asarray(layer.short(layer.project_in(x)), np.float64)
    value, *gates = np.split(mixed, 3, axis=-1)
    h = np.asarray(layer.filter(11), np.float64)
    for i, gate in enumerate(gates):
        filtered = np.stack([sum(h[s, i] * value[:, t - s] for s in range(t + 1)) for t in range(11)], 1)
        value = gate * (filtered + layer.skip[i] * value)
    close(run(layer, x), layer.project_out(value.astype(np.float32)), 1e-4)


def test_long_conv_gives_the_same_start_whatever_follows():
    layer, x = cx.LongConv(4, 64, rngs=RNGS), draw(1, 40, 4)
    full = run(layer, x)
    close(full[:, :25], run(layer, x[:, :25]), 1e-4)
    x[:, 0] += 1
    assert np.abs(run(layer, x) - full).max(-1).min() > 0


def test_filters_fade_and_start_from_any_seed():
    filters = nnx.jit(lambda f: f(1000))(cx.LongConv(16, 1000, rngs=RNGS).filter)
    early, late = (np.abs(filters[part]).mean() for part in (slice(0, 100), slice(900, 1000)))
    assert late < 0.2 * early
    assert early > 1e-3


# --- errors -----------------------------------------------------------------------------------------------------------

X = jnp.ones((1, 6, 5, 4))
ERRORS = {
    "groups": (lambda: cx.Conv(4, 6, 3, feature_group_count=3, rngs=RNGS), r"Conv: feature_group_count=3.*1, 2"),
    "transposed groups": (
        lambda: cx.ConvTranspose(4, 6, 3, feature_group_count=4, rngs=RNGS),
        "ConvTranspose: feature_group_count=4",
    ),
    "kernel size": (lambda: cx.Conv(4, 6, (3, 0), rngs=RNGS), r"kernel_size\[1\] must be at least 1, got 0"),
    "channels": (lambda: cx.Conv(3, 6, (3, 3), rngs=RNGS)(X), r"Conv: the input has shape \(1, 6, 5, 4\).*3 channels"),
    "axes": (lambda: cx.Conv(4, 6, (3, 3), rngs=RNGS)(X[0, 0]), "2 spatial axes"),
    "strides": (lambda: cx.Conv(4, 6, (3, 3), (1, 2, 3), rngs=RNGS)(X), r"strides=\(1, 2, 3\) has 3 entries"),
    "mask": (
        lambda: cx.Conv(4, 6, (3, 3), mask=jnp.ones((3, 3, 4, 5)), rngs=RNGS)(X),
        r"mask has shape \(3, 3, 4, 5\)",
    ),
    "padding": (lambda: cx.Conv(4, 6, (3, 3), padding="SAM", rngs=RNGS)(X), "Did you mean 'SAME'"),
    "padding mode": (lambda: cx.Conv(4, 6, (3, 3), padding_mode="mirror", rngs=RNGS)(X), "padding_mode='mirror'"),
    "both modes": (
        lambda: cx.Conv(4, 6, (3, 3), padding="CIRCULAR", padding_mode="reflect", rngs=RNGS)(X),
        "both say what lies beyond the border",
    ),
    "both modes, transposed": (
        lambda: cx.ConvTranspose(4, 6, (3, 3), padding="CIRCULAR", padding_mode="reflect", rngs=RNGS)(X),
        "both say what lies beyond the border",
    ),
    "algorithm": (lambda: cx.Conv(4, 6, (3, 3), algorithm="fftt", rngs=RNGS)(X), "Did you mean 'fft'"),
    "mode and hook": (
        lambda: cx.Conv(4, 6, (3, 3), padding_mode="reflect", conv_general_dilated=lambda *a, **k: 0, rngs=RNGS)(X),
        "not known to lax",
    ),
    "kernel too large": (lambda: cx.Conv(4, 6, (9, 9), padding="VALID", rngs=RNGS)(X), "larger than the padded input"),
    "transposed padding": (lambda: cx.ConvTranspose(4, 6, (3, 3), padding="FULL", rngs=RNGS)(X), "padding='FULL'"),
    "multiplier": (lambda: cx.DepthwiseConv(4, 3, channel_multiplier=0, rngs=RNGS), "channel_multiplier must be"),
    "causal in 2-D": (lambda: cx.CausalConv(4, 6, (3, 3), rngs=RNGS), "must be of one axis"),
    "causal padding": (lambda: cx.CausalConv(4, 6, 3, padding="SAME", rngs=RNGS), "settled by causality"),
    "linen causal padding": (
        lambda: convjax.linen.CausalConv(6, 3, padding="VALID").init(jax.random.key(0), X[0]),
        "settled by causality",
    ),
    "no cache": (lambda: cx.CausalConv(4, 6, 3, decode=True, rngs=RNGS)(X[0]), r"Call init_cache\(inputs.shape\)"),
    "experts": (lambda: cx.DynamicConv(4, 6, 3, num_experts=0, rngs=RNGS), "num_experts must be at least 1"),
    "experts and hook": (
        lambda: cx.DynamicConv(4, 6, (3, 3), conv_general_dilated=lambda *a, **k: 0, rngs=RNGS)(X),
        "each example has its own",
    ),
    "resize": (lambda: cx.ResizeConv(4, 6, (3, 3), method="bicubic", rngs=RNGS)(X), "Type one of 'nearest'"),
    "activation": (lambda: cx.ConvNormAct(4, 6, 3, activation="rel", rngs=RNGS), "Did you mean 'relu'"),
    "no gate": (lambda: cx.SqueezeExcite(4, gate=None, rngs=RNGS)(X), "must both be given"),
    "shuffle": (lambda: cx.ChannelShuffle(3)(X), "groups=3 does not divide the 4 channels"),
    "mix": (lambda: cx.MixConv(2, [3, 5, 7], rngs=RNGS), "has 3 entries for 2 channels"),
    "mix channels": (lambda: cx.MixConv(3, [3, 5], rngs=RNGS)(X), "takes 3 channels"),
    "long": (lambda: cx.LongConv(4, 5, rngs=RNGS)(X[:, :, 0]), "has 6 steps, but the filters end at max_length=5"),
    "long channels": (lambda: cx.LongConv(3, 9, rngs=RNGS)(X[:, :, 0]), "3 channels last"),
}


@pytest.mark.parametrize(("call", "match"), ERRORS.values(), ids=ERRORS)
def test_errors_say_what_to_type(call, match):
    with pytest.raises(ValueError, match=match):
        call()


@pytest.mark.parametrize(
    ("options", "x", "match"),
    [
        (dict(), (2, 1, 4), "the cache was made for"),
        (dict(strides=2), (1, 1, 4), "continues step by step, but strides=2"),
    ],
    ids=["batch", "stride"],
)
def test_decoding_errors(options, x, match):
    layer = cx.CausalConv(4, 6, 3, rngs=RNGS, **options)
    layer.init_cache((1, 1, 4))
    with pytest.raises(ValueError, match=match):
        layer(jnp.ones(x), decode=True)


def test_a_causal_layer_in_linen_of_another_batch_is_refused():
    layer = convjax.linen.CausalConv(6, 3, decode=True)
    variables = layer.init(jax.random.key(0), X[0])
    with pytest.raises(ValueError, match="the cache was made for"):
        layer.apply(variables, X[0, :2], mutable=["cache"])
