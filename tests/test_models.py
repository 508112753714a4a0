"""The networks: sizes as published, outputs as with Flax's layers, training, evaluation, features, generation."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from convjax import models
from convjax.models import blocks, convnext, create, list_models, parameter_count
from convjax.models.registry import FAMILIES

DOCS = Path(__file__).parent.parent / "docs" / "models.md"

# torchvision 0.29's `num_params`; PyTorch's DCGAN tutorial; the others summed by hand over their papers' layers.
PARAMETERS = {
    "convnext_base": 88_591_464,
    "convnext_large": 197_767_336,
    "convnext_small": 50_223_688,
    "convnext_tiny": 28_589_128,
    "dcgan_discriminator": 2_765_568,
    "dcgan_generator": 3_576_704,
    "lenet5": 61_706,
    "mobilenet_v2": 3_504_872,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnext101_32x8d": 88_791_336,
    "resnext101_64x4d": 83_455_272,
    "resnext50_32x4d": 25_028_904,
    "textcnn": 6_360_902,
    "unet": 31_030_658,
    "vgg11": 132_863_336,
    "vgg11_bn": 132_868_840,
    "vgg13": 133_047_848,
    "vgg13_bn": 133_053_736,
    "vgg16": 138_357_544,
    "vgg16_bn": 138_365_992,
    "vgg19": 143_667_240,
    "vgg19_bn": 143_678_248,
    "wavenet": 1_279_616,
    "wide_resnet101_2": 126_886_696,
    "wide_resnet50_2": 68_883_240,
}

IMAGES = {"lenet5": (28, 28, 1), "unet": (61, 50, 1), "dcgan_discriminator": (64, 64, 3)}
OUTPUTS = {
    "dcgan_discriminator": (2, 1),
    "dcgan_generator": (2, 64, 64, 3),
    "lenet5": (2, 10),
    "textcnn": (2, 2),
    "unet": (2, 61, 50, 2),
    "wavenet": (2, 40, 256),
}

# One member of each kind of block, narrow and shallow: name, options, what comes in, names of the stages.
SMALL = {
    "lenet5": (dict(image_size=16), (16, 16, 1), "stage1 stage2 hidden1 hidden2 logits"),
    "vgg11_bn": (
        dict(depths=(1, 2), widths=(4, 8), hidden=8, pooled_size=2, num_classes=5, dropout=0.0),
        (10, 13, 3),
        "stage1 stage2 pooled hidden1 hidden2 logits",
    ),
    "resnet18": (
        dict(depths=(1, 1), widths=(4, 8), strides=(1, 2), stem_width=4, num_classes=5),
        (17, 16, 3),
        "stem stage1 stage2 pooled logits",
    ),
    "resnext50_32x4d": (
        dict(depths=(2,), widths=(8,), strides=(2,), groups=4, width_per_group=16, stem="cifar", stem_width=4)
        | dict(num_classes=5),
        (9, 8, 3),
        "stem stage1 pooled logits",
    ),
    "mobilenet_v2": (
        dict(settings=((1, 8, 1, 1), (2, 8, 2, 2)), head_channels=16, num_classes=5, dropout=0.0),
        (17, 16, 3),
        "stem stage1 stage2 head pooled logits",
    ),
    "convnext_tiny": (
        dict(depths=(1, 1), widths=(4, 8), drop_rate=0.0, layer_scale=0.1, num_classes=5),
        (16, 17, 3),
        "stem stage1 stage2 pooled logits",
    ),
    "unet": (dict(depth=1, width=4, in_channels=3), (9, 7, 3), "down1 bottom up1 logits"),
    "textcnn": (dict(vocabulary=11, embedding=4, maps=3, dropout=0.0), (9,), "embedding pooled logits"),
    "dcgan_generator": (dict(latent=8, width=4, image_size=8), (8,), "stage1 image"),
    "dcgan_discriminator": (dict(width=4, image_size=8), (8, 8, 3), "stage1 logits"),
    "wavenet": (
        dict(num_classes=11, dilations=(1, 2), stacks=2, residual=4, dilated=4, skip=8),
        (12,),
        "stem stack1 stack2 logits",
    ),
}


def small(name, seed=0, **options):
    return create(name, rngs=nnx.Rngs(seed), **SMALL[name][0] | options)


def inputs(name, shape=None, batch=4):
    rng = np.random.default_rng(0)
    shape = (batch, *(SMALL[name][1] if shape is None else shape))
    if name in ("textcnn", "wavenet"):
        return jnp.asarray(rng.integers(0, 11, shape))
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)


apply = nnx.jit(lambda model, x: model(x))


def test_every_family_and_name_is_covered():
    assert list_models() == sorted(PARAMETERS)
    assert list_models() == sorted(name for family in FAMILIES for name in list_models(family))
    assert set(SMALL) <= set(list_models())
    assert all(set(variants) & set(SMALL) for variants in FAMILIES.values())


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_and_output_shape(name, monkeypatch):
    monkeypatch.setattr(nnx.RngStream, "__call__", lambda stream: stream.key[...])  # a counter is slow to trace
    model = nnx.eval_shape(lambda: create(name))
    assert parameter_count(model) == PARAMETERS[name]
    model.eval()  # quicker to trace: nothing is written
    if name in ("textcnn", "wavenet"):
        x = jax.ShapeDtypeStruct((2, 40), jnp.int32)
    else:
        shape = (100,) if name == "dcgan_generator" else IMAGES.get(name, (64, 65, 3))
        x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    out = nnx.eval_shape(lambda model, x: model(x), model, x)
    assert (out.shape, out.dtype) == (OUTPUTS.get(name, (2, 1000)), jnp.float32)


def test_keras_variants_have_keras_counts():
    """keras.applications counts batch statistics too: 25,636,712 for ResNet50 less 53,120."""
    model = nnx.eval_shape(lambda: create("resnet50", use_bias=True, stride_in_1x1=True, epsilon=1.001e-5))
    assert parameter_count(model) == 25_636_712 - 53_120


def test_docs_table():
    if not DOCS.exists():
        pytest.skip("tests run without the checkout: there are no docs beside them")
    rows = dict(re.findall(r"^\| `(\w+)` \| ([\d,]+) \|", DOCS.read_text(), re.MULTILINE))
    assert {name: int(count.replace(",", "")) for name, count in rows.items()} == PARAMETERS


@functools.cache
def evaluated(name):
    """Outputs of all stages in evaluation, by name in order."""
    model, order = small(name), []
    model.eval()

    @nnx.jit
    def features(model, x):
        stages = model.features(x)
        order[:] = stages
        return stages

    stages = features(model, inputs(name))
    return {stage: stages[stage] for stage in order}


def output(name):
    return list(evaluated(name).values())[-1]


@pytest.mark.parametrize("name", SMALL)
def test_same_as_with_layers_of_flax(name):
    stock = small(name, layers=nnx)
    stock.eval()
    np.testing.assert_allclose(apply(stock, inputs(name)), output(name), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_bfloat16(name):
    half, expected = small(name, dtype=jnp.bfloat16), output(name)
    half.eval()
    y = apply(half, inputs(name))
    assert y.dtype == jnp.bfloat16
    assert {p.dtype for p in jax.tree.leaves(nnx.state(half, nnx.Param))} == {jnp.dtype(jnp.float32)}
    error = jnp.abs(y.astype(jnp.float32) - expected).max()
    assert error < 0.05 * jnp.abs(expected).max()  # not so for NaN either


def test_param_dtype():
    model = nnx.eval_shape(lambda: small("resnet18", param_dtype=jnp.bfloat16))
    assert {p.dtype for p in jax.tree.leaves(nnx.state(model, nnx.Param))} == {jnp.dtype(jnp.bfloat16)}
    assert {p.dtype for p in jax.tree.leaves(nnx.state(model, nnx.BatchStat))} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("name", SMALL)
def test_names_of_features(name):
    assert list(evaluated(name)) == SMALL[name][2].split()


def test_features_end_in_the_output():
    model = small("lenet5")
    np.testing.assert_allclose(apply(model, inputs("lenet5")), output("lenet5"), rtol=1e-6, atol=1e-6)


def test_features_halve_where_they_should():
    model = nnx.eval_shape(lambda: create("resnet50"))
    model.eval()
    shapes = nnx.eval_shape(lambda model: model.features(jnp.ones((1, 224, 224, 3))), model)
    sizes = {"stem": 56, "stage1": 56, "stage2": 28, "stage3": 14, "stage4": 7}
    assert {name: shapes[name].shape[1] for name in sizes} == sizes
    assert shapes["pooled"].shape == (1, 2048)


@pytest.mark.parametrize("name", SMALL)
def test_any_number_of_batch_axes(name):
    one, shape = SMALL[name][1], output(name).shape[1:]
    dtype = inputs(name).dtype
    for batch in ((), (2, 3)):
        x = jax.ShapeDtypeStruct((*batch, *one), dtype)
        assert nnx.eval_shape(lambda x: small(name)(x), x).shape == (*batch, *shape)


def test_examples_do_not_depend_on_each_other_in_evaluation():
    """Nor on how they are batched."""
    model, x = small("resnet18"), inputs("resnet18")
    model.eval()
    got = apply(model, x[::-1].reshape(2, 2, *x.shape[1:]))
    np.testing.assert_allclose(got.reshape(4, -1)[::-1], output("resnet18"), rtol=1e-4, atol=1e-5)


def loss_of(name, model, x):
    out = model(x).astype(jnp.float32)
    if name == "dcgan_generator":
        return jnp.mean((out - 0.5) ** 2)
    if name == "dcgan_discriminator":
        return optax.sigmoid_binary_cross_entropy(out[:, 0], jnp.arange(len(x)) % 2).mean()
    if name == "wavenet":
        return optax.softmax_cross_entropy_with_integer_labels(out[:, :-1], x[:, 1:]).mean()
    labels = jnp.arange(out[..., 0].size).reshape(out.shape[:-1]) % out.shape[-1]
    return optax.softmax_cross_entropy_with_integer_labels(out, labels).mean()


@pytest.mark.parametrize("name", SMALL)
def test_a_step_of_training_lowers_the_loss(name):
    model, x = small(name), inputs(name)
    optimizer = nnx.Optimizer(model, optax.sgd(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x):
        loss, grads = nnx.value_and_grad(lambda model: loss_of(name, model, x))(model)
        optimizer.update(model, grads)
        return loss, grads

    statistics = jax.tree.map(np.asarray, nnx.state(model, nnx.BatchStat))
    before, grads = step(model, optimizer, x)
    after, _ = step(model, optimizer, x)
    assert after < before
    paths = jax.tree_util.tree_leaves_with_path(grads)
    assert [path for path, g in paths if not np.any(g) or not np.all(np.isfinite(g))] == []
    changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), statistics, nnx.state(model, nnx.BatchStat))
    assert all(jax.tree.leaves(changed))


def test_batch_statistics_are_learnt_in_training_and_used_in_evaluation():
    make = blocks.Layers(rngs=nnx.Rngs(0), dtype=None, param_dtype=jnp.float32, source=nnx, momentum=0.75)
    block = make.conv_norm(3, 4)
    x = inputs("", (5, 6, 3)) + 1
    convolved = np.asarray(block.conv(x), np.float64)
    relu_of = lambda mean, var: np.maximum((convolved - mean) / np.sqrt(var + 1e-5), 0)
    mean, var = convolved.mean((0, 1, 2)), convolved.var((0, 1, 2))
    np.testing.assert_allclose(apply(block, x), relu_of(mean, var), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(block.norm.mean[...], 0.25 * mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(block.norm.var[...], 0.75 + 0.25 * var, rtol=1e-4)
    block.eval()
    np.testing.assert_allclose(apply(block, x), relu_of(0.25 * mean, 0.75 + 0.25 * var), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(block.norm.mean[...], 0.25 * mean, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["vgg11_bn", "mobilenet_v2", "textcnn"])
def test_dropout_is_random_in_training_only(name):
    model, x = small(name, dropout=0.5), inputs(name)
    model.eval()
    np.testing.assert_allclose(apply(model, x), output(name), rtol=1e-4, atol=1e-5)
    model.train()
    first, second = nnx.jit(lambda model, x: (model(x), model(x)))(model, x)
    assert jnp.any(first != second)


def test_stochastic_depth_drops_whole_examples():
    make = blocks.Layers(rngs=nnx.Rngs(0), dtype=None, param_dtype=jnp.float32, source=nnx)
    block = convnext.ConvNeXtBlock(make, 4, drop_rate=0.5, scale=1.0)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((32, 3, 3, 4)), jnp.float32)
    trained = np.asarray(block(x) - x)
    block.eval()
    branch = np.asarray(block(x) - x)
    kept = np.any(trained != 0, axis=(1, 2, 3))
    assert 4 < kept.sum() < 28
    np.testing.assert_allclose(trained[kept], 2 * branch[kept], rtol=1e-3, atol=1e-4)


def test_stochastic_depth_grows_with_depth():
    model = nnx.eval_shape(lambda: create("convnext_tiny"))
    rates = [block.drop.rate for stage in model.stages for block in stage if hasattr(block, "drop")]
    np.testing.assert_allclose(rates, np.linspace(0, 0.1, 18))


def test_zero_init_makes_every_block_its_shortcut():
    model = small("resnext50_32x4d", zero_init_residual=True)
    x = nnx.relu(inputs("", (5, 5, 32)))
    np.testing.assert_array_equal(model.stages[0][1](x), x)


def test_stride_of_a_bottleneck():
    strides = lambda **options: [c.conv.strides for c in small("resnext50_32x4d", **options).stages[0][0].convs]
    assert strides() == [1, 2, 1]
    assert strides(stride_in_1x1=True) == [2, 1, 1]


def test_mobilenet_padding_of_tensorflow():
    """On an even size a stride of 2 then pads at the end only: the first output sees no padding, so not its value."""
    x = jnp.ones((1, 16, 16, 3))
    for padding, corner_equals_middle in (("SAME", True), ("symmetric", False)):
        model = small("mobilenet_v2", padding=padding)
        y = model.stem.conv(x)
        assert bool(jnp.allclose(y[0, 0, 0], y[0, 4, 4], atol=1e-6)) == corner_equals_middle


@pytest.mark.parametrize(("n", "size"), [(7, 7), (14, 7), (10, 4), (3, 7), (1, 2)])
def test_adaptive_average(n, size):
    x = np.random.default_rng(0).standard_normal((2, n, n + 2, 3)).astype(np.float32)
    windows = lambda n: [slice(int(np.floor(i * n / size)), int(np.ceil((i + 1) * n / size))) for i in range(size)]
    expected = [[x[:, rows, columns].mean((1, 2)) for columns in windows(n + 2)] for rows in windows(n)]
    got = blocks.adaptive_average(jnp.asarray(x), size)
    np.testing.assert_allclose(got, np.moveaxis(expected, 2, 0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("channels", "rounded"), [(32 * 0.35, 16), (16 * 0.35, 8), (24 * 1.4, 32), (12, 16), (20, 24), (1, 8)]
)
def test_round_channels(channels, rounded):
    assert blocks.round_channels(channels) == rounded


@pytest.mark.parametrize(("depth", "space"), [(0, (3, 4)), (3, (13, 5)), (2, (7,)), (1, (3, 4, 5)), (1, (2, 3, 2, 3))])
def test_unet_keeps_any_size(depth, space):
    x = jax.ShapeDtypeStruct((1, *space, 2), jnp.float32)
    build = lambda: small("unet", depth=depth, ndim=len(space), in_channels=2, batch_norm=True)
    assert nnx.eval_shape(lambda x: build()(x), x).shape == (1, *space, 2)


def test_unet_sees_every_pixel():
    model, x = small("unet", depth=2, width=2, ndim=1, in_channels=2), inputs("", (7, 2), batch=1)
    grad = nnx.jit(jax.grad(lambda x: (model(x) ** 2).sum()))(x)
    assert np.all(np.any(np.asarray(grad) != 0, axis=-1))


def wavenet(**options):
    return small("wavenet", **options)


@pytest.mark.parametrize("kernel_size", [2, 3])
def test_wavenet_sees_its_receptive_field_and_no_future(kernel_size):
    model = wavenet(kernel_size=kernel_size, stacks=1)
    field, time = model.receptive_field, 20
    assert field == 1 + (kernel_size - 1) * 4
    x = inputs("wavenet", (30,), batch=1)
    base = np.asarray(apply(model, x))
    changed = np.asarray(apply(model, x.at[0, time].set((x[0, time] + 1) % 11)))
    differs = np.any(np.abs(changed - base) > 1e-6, axis=-1)[0]
    assert np.flatnonzero(differs).tolist() == list(range(time, time + field))


@pytest.mark.parametrize("options", [{}, dict(kernel_size=3), dict(dtype=jnp.bfloat16)], ids=str)
def test_wavenet_steps_equal_the_full_pass(options):
    model, x = wavenet(**options), inputs("wavenet", (25,), batch=2)
    step = nnx.jit(lambda model, x, cache: model.step(x, cache))
    cache, logits = model.init_cache((2,)), []
    for t in range(x.shape[1]):
        y, cache = step(model, x[:, t], cache)
        logits.append(y)
    tolerance = 0.05 if options.get("dtype") else 1e-5
    full = apply(model, x).astype(jnp.float32)
    np.testing.assert_allclose(jnp.stack(logits, 1).astype(jnp.float32), full, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("given", [1, 9])
def test_wavenet_generation_equals_the_full_pass(given):
    """The likeliest samples, and random ones: each is drawn from the full pass's logits with the key of its step."""
    model, prompt, length = wavenet(), inputs("wavenet", (given,), batch=2), 8
    padded = lambda x: jnp.pad(x, ((0, 0), (0, given + length - x.shape[1])))  # one shape, one compilation
    key = jax.random.key(3)
    keys = jax.random.split(key, given - 1 + length)
    for temperature in (0.0, 0.7):
        x = prompt
        for _ in range(length):
            logits = apply(model, padded(x))[:, x.shape[1] - 1]
            if temperature:
                chosen = jax.random.categorical(keys[x.shape[1] - 1], logits / temperature)
            else:
                chosen = logits.argmax(-1)
            x = jnp.concatenate([x, chosen[:, None].astype(x.dtype)], axis=1)
        generated = model.generate(prompt, length, key=key, temperature=temperature)
        assert generated.dtype == prompt.dtype
        np.testing.assert_array_equal(generated, x[:, given:])


def test_mu_law():
    x = np.linspace(-1.5, 1.5, 301)
    for levels in (16, 256):
        code = models.mu_law_encode(x, levels)
        assert (int(code.min()), int(code.max())) == (0, levels - 1)
        np.testing.assert_array_equal(models.mu_law_encode(models.mu_law_decode(code, levels), levels), code)
    np.testing.assert_allclose(models.mu_law_decode(models.mu_law_encode(x)), np.clip(x, -1, 1), atol=0.022)


ERRORS = [
    (lambda: create("resnet5"), "'resnet5' is not known. Did you mean 'resnet5?\\d"),
    (lambda: create("xyzzy"), "list_models"),
    (lambda: list_models("resnets"), "Did you mean 'resnet'"),
    (lambda: small("resnet18")(jnp.ones((1, 16, 16, 4))), "ResNet: x of shape .* in_channels=3"),
    (lambda: small("resnet18")(jnp.ones((1, 3, 16, 16))), "for channels first type jnp.moveaxis"),
    (lambda: small("resnet18")(jnp.ones((16, 3))), "must have 2 spatial axes"),
    (lambda: small("vgg11_bn")(jnp.ones((1, 3, 9, 3))), "VGG: .* at least 4"),
    (lambda: small("convnext_tiny")(jnp.ones((1, 32, 7, 3))), "ConvNeXt: .* at least 8"),
    (lambda: small("lenet5")(jnp.ones((1, 28, 28, 1))), "built for image_size=16"),
    (lambda: create("lenet5", image_size=8), "image_size must be at least 12"),
    (lambda: create("lenet5", pool="mean"), "pool='mean' is not known"),
    (lambda: create("resnet18", groups=2), "block='bottleneck'"),
    (lambda: create("resnet50", stem="small"), "stem='small' is not known"),
    (lambda: create("mobilenet_v2", padding="VALID"), "padding='VALID' is not known"),
    (lambda: create("unet", depth=-1), "depth must be at least 0"),
    (lambda: create("unet", ndim=0), "ndim must be at least 1"),
    (lambda: small("textcnn")(jnp.ones((1, 4), jnp.int32)), "at least 5 words"),
    (lambda: small("dcgan_generator")(jnp.ones((1, 7))), "latent=8"),
    (lambda: create("dcgan_generator", image_size=48), "Type image_size=64"),
    (lambda: small("dcgan_discriminator")(jnp.ones((1, 16, 16, 3))), "built for image_size=8"),
    (lambda: create("wavenet", kernel_size=1), "kernel_size must be at least 2"),
    (lambda: wavenet()(jnp.ones((1, 0), jnp.int32)), "time as its last axis"),
    (lambda: wavenet().generate(jnp.ones((1, 1), int), 0, key=jax.random.key(0)), "length must be at least 1"),
    (
        lambda: wavenet().generate(jnp.ones((1, 1), int), 2, key=jax.random.key(0), temperature=-1.0),
        "temperature=-1.0 must be at least 0",
    ),
]


@pytest.mark.parametrize(("call", "message"), ERRORS, ids=[message for _, message in ERRORS])
def test_value_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", ["textcnn", "wavenet"])
def test_networks_of_numbers_refuse_floats(name):
    with pytest.raises(TypeError, match="must hold integers"):
        small(name)(jnp.ones((1, 9)))


def test_an_unknown_option_is_refused():
    with pytest.raises(TypeError, match="width_mult"):
        create("mobilenet_v2", width_mult=2)


def test_default_keys_are_the_same_every_time():
    first, second = create("lenet5"), create("lenet5", rngs=nnx.Rngs(0))
    jax.tree.map(np.testing.assert_array_equal, *(nnx.state(m, nnx.Param) for m in (first, second)))


def test_functools_partial_variants_are_overridden_by_options():
    assert create("resnet18", block="bottleneck", depths=(1,), widths=(4,), strides=(1,)).head.in_features == 16
    assert isinstance(FAMILIES["resnet"]["resnet18"], functools.partial)
