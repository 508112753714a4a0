"""Receptive fields of chains, traced functions and Flax models: as gradients say, and as published."""

from __future__ import annotations

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax import lax

import convjax
import convjax.linen
import convjax.nnx
from convjax.analysis import Layer, effective_receptive_field, receptive_field, receptive_field_of_layers
from convjax.analysis.receptive import trace
from convjax.models import create

IMAGE = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
LENGTH = 121
LINE = jax.ShapeDtypeStruct((1, LENGTH, 1), jnp.float32)


# --- published -------------------------------------------------------------------------------------------------------


def slim_resnet50():
    """resnet_v1_50 of TF-slim: the last unit of each block strides, the first pooling pads behind only."""
    for i, (units, last) in enumerate(((3, 2), (4, 2), (6, 2), (3, 1))):
        if i == 0:
            yield from (Layer(7, 2, 3), Layer(3, 2, ((0, 1),)))
        for unit in range(units):
            yield from (Layer(1), Layer(3, last if unit == units - 1 else 1, 1), Layer(1))


# AlexNet v2 of TF-slim: everything that strides pads nothing.
ALEXNET = [Layer(11, 4, "VALID"), Layer(3, 2, 0), Layer(5), Layer(3, 2, 0), *[Layer(3)] * 3, Layer(3, 2, 0)]


@pytest.mark.parametrize(
    ("layers", "size", "stride", "padding"),
    [(list(slim_resnet50()), 483, 32, 239), (ALEXNET, 195, 32, 64)],
    ids=["resnet_v1_50", "alexnet_v2"],
)
def test_published_chains(layers, size, stride, padding):
    """Araujo, Norris and Sim, Computing receptive fields of convolutional neural networks, Distill 2019, table 1."""
    field = receptive_field_of_layers(layers)
    assert (field.size, field.stride, field.padding) == ((size,), (stride,), (padding,))


def test_published_network():
    """VGG-16, in the same table."""
    field = receptive_field(nnx.eval_shape(lambda: create("vgg16")), IMAGE).layers[-1]
    assert (field.size, field.stride, field.padding) == ((212, 212), (32, 32), (90, 90))


def test_dilation_widens_and_small_kernels_replace_large_ones():
    assert receptive_field_of_layers([Layer(3, dilation=2)]).size == (5,)
    assert receptive_field_of_layers([Layer(3, dilation=3)]).size == (7,)
    assert receptive_field_of_layers([Layer(3), Layer(3)]).size == receptive_field_of_layers([Layer(5)]).size == (5,)


# --- against gradients -----------------------------------------------------------------------------------------------
# Positive kernels and inputs, so that nothing cancels: what a position sees is where its row of the Jacobian is not 0.


def kernel(k):
    return jnp.ones((k, 1, 1))


def conv(rng, x):
    k = int(rng.integers(1, 5))
    padding = [
        int(rng.integers(0, 4)),
        ((int(rng.integers(-1, 4)), int(rng.integers(0, 4))),),
        "SAME",
        "CAUSAL",
        "FULL",
    ]
    options = dict(stride=int(rng.integers(1, 4)), padding=padding[rng.integers(5)], dilation=int(rng.integers(1, 4)))
    return convjax.conv(x, kernel(k), **options, algorithm="xla")


def lax_conv(rng, x):
    numbers = ("NCH", "OIH", "HNC")
    pads, stride = [tuple(rng.integers(0, 4, 2).tolist())], (int(rng.integers(1, 3)),)
    x, spread = jnp.transpose(x, (0, 2, 1)), (int(rng.integers(1, 4)),)
    y = lax.conv_general_dilated(x, jnp.ones((1, 1, 3)), stride, pads, lhs_dilation=spread, dimension_numbers=numbers)
    return jnp.transpose(y, (1, 0, 2))


def transposed(rng, x):
    k, stride, padding = int(rng.integers(3, 6)), int(rng.integers(1, 4)), ["SAME", "VALID", "CAUSAL"][rng.integers(3)]
    return convjax.conv_transpose(x, kernel(k), stride=stride, padding=padding, algorithm="xla")


def pool(rng, x):
    stride, padding = int(rng.integers(1, 3)), ["SAME", "VALID"][rng.integers(2)]
    return (
        nnx.max_pool(x, (3,), (stride,), padding) if rng.random() < 0.5 else nnx.avg_pool(x, (2,), (stride,), padding)
    )


def residual(rng, x):
    return jax.nn.relu(x + convjax.conv(x, kernel(3), dilation=2, algorithm="xla"))


def inception(rng, x):
    branches = [convjax.conv(x, kernel(k), padding="SAME_LOWER", algorithm="xla") for k in (1, 2, 4)]
    return jnp.concatenate([*branches, x], -1).sum(-1, keepdims=True)


def cut(rng, x):
    return x[:, int(rng.integers(0, 3)) :: int(rng.integers(1, 3))]


def padded(rng, x):
    return lax.pad(x, 0.0, ((0, 0, 0), (int(rng.integers(-1, 3)), 2, 0), (0, 0, 0)))


def spread(x):
    return lax.pad(x, 0.0, ((0, 0, 0), (1, 1, 2), (0, 0, 0)))


def flipped(rng, x):
    return x[:, ::-1]


def halves(rng, x):
    first, second = jnp.split(x[:, : x.shape[1] // 2 * 2], 2, 1)
    return (first if rng.random() < 0.5 else second)[:, 1:]


def repeated(rng, x):
    return jnp.repeat(x, int(rng.integers(2, 4)), axis=1)


def subpixel(rng, x):
    return convjax.conv(x, jnp.ones((3, 1, 2)), algorithm="xla").reshape(1, -1, 1)


def space_to_depth(rng, x):
    return x[:, : x.shape[1] // 2 * 2].reshape(1, -1, 2).sum(-1, keepdims=True)


def scanned(rng, x):
    return lax.scan(lambda c, _: (convjax.conv(c, kernel(2), algorithm="xla"), None), x, None, length=3)[0]


def branched(rng, x):
    wide, narrow = (lambda x, k=k: convjax.conv(x, kernel(k), algorithm="xla") for k in (5, 3))
    return lax.cond(jnp.ones(()) > 0, jax.jit(wide), jax.checkpoint(narrow), x)


STEPS = (conv, lax_conv, transposed, pool, residual, inception, cut, padded, flipped, halves, repeated, subpixel)
STEPS += (space_to_depth, scanned, branched)
# Not drawn: the first leaves places which see nothing, and bounds are exact only until a dilated kernel meets them.
OTHERS = (
    spread,
    lambda x: jnp.einsum("ntc,cd->ntd", x, jnp.ones((1, 2))),
    lambda x: jnp.einsum("dc,ntc->dnt", jnp.ones((1, 1)), x).swapaxes(0, 1).reshape(1, -1, 1),
    lambda x: x[..., jnp.zeros(2, int)],
    lambda x: lax.dynamic_slice_in_dim(x, 3, 50, 1),
    lambda x: lax.dynamic_update_slice(jnp.zeros((1, LENGTH, 2)), x, (0, 0, 1)).sum(-1, keepdims=True),
    lambda x: x[0, :, 0][None, :, None],
    lambda x: lax.optimization_barrier((x[:, 5:], x))[0],
    lambda x: lax.scan(lambda c, _: (lax.pad(c, 0.0, ((0, 0, 0), (1, -1, 0), (0, 0, 0))), c), x, None, length=3)[1].sum(
        0
    ),
    lambda x: lax.cummax(x, 2),
)


def random_network(seed):
    def network(x):
        rng = np.random.default_rng(seed)
        for _ in range(int(rng.integers(2, 5))):
            y = STEPS[rng.integers(len(STEPS))](rng, x)
            x = y if 20 <= y.shape[1] <= 300 else x
        return x

    return network


def seen(network):
    """Inputs that each output depends on, as rows of bools: of a network of positive kernels, by one batched call."""
    response = jax.vmap(network)(jnp.eye(LENGTH)[:, None, :, None])
    return np.asarray(response)[:, 0, :, 0].T > 0


def interval(row):
    (places,) = np.nonzero(row)
    return (int(places[0]), int(places[-1])) if len(places) else None


def agree(network):
    """Every row lies within what was derived; those in the middle, far from any padding, have exactly these bounds."""
    rows, state = seen(network), trace("test", network, (LINE,), {}, axes=(1,)).outputs[0]
    field, middle = receptive_field(network, LINE, axes=(1,)), range(2 * len(rows) // 5, 3 * len(rows) // 5)
    for i, row in enumerate(rows):
        found, bounds = interval(row), state[1].reach.at(i)
        ((first, last),) = field.window((i,))
        assert found is None or (bounds[0] <= found[0] and found[1] <= bounds[1])
        assert bounds is None or (first <= bounds[0] and bounds[1] <= last)
        assert found == bounds or i not in middle
    return len(middle)


@pytest.mark.parametrize("seed", range(12))
def test_random_networks_see_what_gradients_say(seed):
    assert agree(random_network(seed)) >= 4


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_each_operation_sees_what_gradients_say(step):
    assert agree(lambda x: step(np.random.default_rng(3), convjax.conv(x, kernel(3), algorithm="xla"))) > 5


@pytest.mark.parametrize("number", range(len(OTHERS)))
def test_other_operations_see_what_gradients_say(number):
    assert agree(lambda x: OTHERS[number](convjax.conv(x, kernel(3), algorithm="xla"))) > 5


def test_chains_and_traces_agree():
    layers = [Layer(7, 2, 3), Layer(4, 2, 1, transposed=True), Layer(3, 2, "SAME"), Layer(3, 1, "CAUSAL", 2)]

    def network(x):
        for la in layers:
            run = convjax.conv_transpose if la.transposed else convjax.conv
            x = run(x, kernel(la.kernel), stride=la.stride, padding=la.padding, dilation=la.dilation)
        return x

    chain, traced = receptive_field_of_layers(layers, LENGTH), receptive_field(network, LINE)
    assert (chain.size, chain.stride, chain.start) == (traced.size, traced.stride, traced.start)
    assert [la.size for la in chain.layers] == [la.size for la in traced.layers]


@pytest.mark.parametrize("mode", ["reflect", "symmetric", "replicate", "circular", 2.0], ids=str)
def test_any_padding_is_the_input_going_on(mode):
    run = lambda x, **kw: convjax.conv(convjax.conv(x, kernel(5), **kw), kernel(3), stride=2, **kw)
    zeros, other = receptive_field(run, LINE), receptive_field(lambda x: run(x, padding_mode=mode), LINE)
    assert (zeros.size, zeros.start) == (other.size, other.start) == ((7,), (-3,))


@pytest.mark.parametrize("shift", [2, -3])
def test_a_roll_moves(shift):
    field = receptive_field(lambda x: jnp.roll(convjax.conv(x, kernel(3)), shift, 1), LINE)
    assert (field.size, field.start) == ((3,), (-1 - shift,))


# --- axes, phases, what is global ------------------------------------------------------------------------------------


def test_axes_are_those_that_the_first_window_slides_along():
    w = jnp.ones((3, 5, 2, 2))
    last = receptive_field(lambda x: convjax.conv(x, w), jnp.ones((9, 9, 2)))
    first = receptive_field(lambda x: convjax.conv(x, w, layout="channels_first"), jnp.ones((4, 2, 9, 9)))
    mapped = receptive_field(jax.vmap(lambda x: convjax.conv(x, w)), jnp.ones((4, 9, 9, 2)))
    assert last.size == first.size == mapped.size == (3, 5)
    assert receptive_field(lambda x: convjax.conv(x, w), jnp.ones((9, 9, 2)), axes=(1,)).size == (5,)
    assert receptive_field(lambda x, w: convjax.conv(x, w), jnp.ones((9, 9, 2)), w, argnum=0).size == (3, 5)


def test_finer_outputs_have_fractional_strides():
    field = receptive_field(lambda x: jnp.repeat(x, 2, 1), LINE, axes=(1,))
    assert (field.size, field.stride, field.start) == ((1,), (Fraction(1, 2),), (0,))
    assert [field.window((i,)) for i in range(3)] == [((0, 0),), ((0, 0),), ((1, 1),)]


def test_down_and_up_again_has_one_window_for_all_phases():
    """Outputs 0 and 1 both see inputs -1 to 1; relative to themselves, -1 to 1 and -2 to 0."""
    run = lambda x: jnp.repeat(convjax.conv(x, kernel(3), stride=2, padding=1), 2, 1)
    field = receptive_field(run, LINE)
    assert (field.size, field.stride, field.start) == ((4,), (1,), (-2,))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x: x * x.mean(1, keepdims=True), "reduce_sum"),
        (lambda x: (x - x.mean((0, 1))) / x.std((0, 1)), "batch norm"),
        (lambda x: jnp.einsum("ntc,ts->nsc", x, jnp.ones((LENGTH, 5))), "dot_general"),
        (lambda x: jax.image.resize(x, (1, 30, 1), "linear"), "dot_general"),
        (lambda x: jax.nn.softmax(x, 1), "reduce_max"),
        (lambda x: jnp.cumsum(x, 1), "cumsum"),
        (lambda x: jnp.fft.fft(x, axis=1).real, "fft"),
        (lambda x: jnp.concatenate([x, x], 1), "concatenate"),
        (lambda x: jnp.concatenate([x[:, :9], convjax.conv(x, kernel(7))[:, :5]], 1), "concatenate"),
        (lambda x: x - x[:, :1], "fixed places"),
        (lambda x: x[:, ::2] + x[:, :61], "strides"),
        (lambda x: lax.sort(x, dimension=1), "sort"),
        (lambda x: lax.scan(lambda c, row: (c + row, c), 0 * x[0], x.swapaxes(0, 1))[1][:, 0, None], "scan"),
        (lambda x: lax.while_loop(lambda c: c.sum() < 1, lambda c: c + x, x), "while"),
        (lambda x: convjax.conv(x, x[0, :3, :, None]), "kernel"),
        (lambda x: lax.dynamic_slice_in_dim(x, jnp.argmax(x), 5, 1), "dynamic_slice"),
        (lambda x: x[:, jnp.argsort(jnp.arange(LENGTH))], "gather"),
    ],
)  # fmt: skip
def test_what_mixes_an_axis_is_global_and_says_so(change, reason):
    field = receptive_field(lambda x: convjax.conv(change(x), kernel(3)), LINE, axes=(1,))
    assert field.is_global
    assert (field.size, field.stride, field.start) == ((math.inf,), (0,), (-math.inf,))
    assert reason in field.reasons[0]
    assert reason in str(field)


def test_squeeze_and_excitation_is_global_along_space_only():
    layer = nnx.eval_shape(lambda: convjax.nnx.SqueezeExcite(4, rngs=nnx.Rngs(0)))
    field = receptive_field(layer, jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.float32), axes=(0, 1))
    assert field.size == (1, math.inf)


# --- Flax ------------------------------------------------------------------------------------------------------------


class Small(linen.Module):
    """A block of each kind."""

    @linen.compact
    def __call__(self, x, training=False):
        x = convjax.linen.Conv(4, (5, 3), strides=2)(x)
        x = linen.BatchNorm(use_running_average=not training)(x)
        x = linen.Dropout(0.5, deterministic=not training)(x)
        return linen.Conv(2, (3, 3))(linen.max_pool(x, (2, 2), (2, 2)))


def test_linen_modules_bound_and_unbound():
    x = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    field = receptive_field(Small(), x)
    assert (field.size, field.stride, field.start) == ((15, 13), (4, 4), (-5, -4))
    assert [la.name for la in field.layers] == ["Conv_0", "max pool 2", "Conv_1"]
    assert receptive_field(Small(), x, training=True).is_global
    variables = jax.eval_shape(Small().init, jax.random.key(0), x)
    bound = Small().bind(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variables))
    assert receptive_field(bound, x) == field


def test_marks_compile():
    """Where a module jits one of its layers, its calls are in the compiled program."""

    class Jitted(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.jit(convjax.linen.Conv)(2, (3,), name="inner")(x)

    bound = Jitted().bind(
        {"params": {"inner": {"kernel": np.ones((3, 1, 2), np.float32), "bias": np.zeros(2, np.float32)}}}
    )
    assert [la.name for la in receptive_field(bound, LINE).layers] == ["inner"]
    assert effective_receptive_field(bound, jnp.ones((1, 9, 1))).heat.tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0]


def test_nnx_modules_are_left_as_they_are():
    """Traced in inference mode, though this one is in training mode, and stays so."""
    model = convjax.nnx.ConvNormAct(3, 4, (3, 3), rngs=nnx.Rngs(0))
    kinds = [type(module) for _, module in nnx.iter_modules(model)]
    field = receptive_field(model, jnp.ones((2, 8, 8, 3)))
    assert [(la.name, la.size) for la in field.layers] == [("conv", (3, 3))]
    assert [type(module) for _, module in nnx.iter_modules(model)] == kinds
    assert not model.norm.use_running_average
    assert not model.norm.mean[...].any()


# --- effective -------------------------------------------------------------------------------------------------------


def test_effective_field_of_equal_weights_is_a_bell():
    """n convolutions of k equal weights: variance n (k^2 - 1) / 12, a Gaussian as n grows (Luo et al., section 2.2)."""

    def network(x):
        for _ in range(8):
            x = convjax.conv(x, kernel(3) / 3)
        return x

    field = effective_receptive_field(network, jnp.ones((1, 41, 1)))
    assert field.position == (20,)
    np.testing.assert_allclose(field.radius, math.sqrt(8 * (9 - 1) / 12), rtol=1e-4)
    np.testing.assert_allclose(field.centre, 20, rtol=1e-5)
    assert field.size == 11.0 < receptive_field(network, LINE).size[0] == 17
    assert field.heat.max() == 1


def test_effective_field_where_asked_for():
    network = lambda w, x: convjax.conv(x, w, stride=2, padding="VALID", layout="channels_first")
    w, x = jnp.ones((3, 5, 2, 2)), jnp.ones((3, 2, 16, 16))
    field = effective_receptive_field(network, w, x, position=(2, 1))
    expected = np.zeros((16, 16))
    expected[4:7, 2:7] = 1
    np.testing.assert_array_equal(field.heat, expected)
    assert field.size == math.sqrt(15)
    turned = effective_receptive_field(network, w, x, position=(1, 2), axes=(3, 2))
    np.testing.assert_array_equal(turned.heat, expected.T)


def test_effective_field_of_a_module_is_within_its_receptive_field():
    layer = convjax.nnx.Conv(1, 2, (3, 5), strides=2, rngs=nnx.Rngs(0))
    field = effective_receptive_field(layer, jnp.ones((1, 16, 16, 1)), position=(3, 4))
    (top, bottom), (left, right) = receptive_field(layer, jnp.ones((1, 16, 16, 1))).window((3, 4))
    inside = np.zeros((16, 16), bool)
    inside[top : bottom + 1, left : right + 1] = True
    np.testing.assert_array_equal(field.heat > 0, inside)


def test_an_output_that_nothing_moves_has_no_field():
    field = effective_receptive_field(lambda x: convjax.conv(x, kernel(3) * 0), jnp.ones((1, 9, 1)))
    assert (field.size, field.radius) == (0.0, (0.0,))


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: receptive_field(None, LINE), TypeError, "not callable"),
        (lambda: receptive_field(jnp.sin), ValueError, "argnum=-1, but 0 arguments"),
        (lambda: receptive_field(jnp.sin, LINE, argnum=1), ValueError, "argnum=1"),
        (lambda: receptive_field(jnp.sin, {"x": 1}), TypeError, "a dict"),
        (lambda: receptive_field(lambda x: (x, x), LINE), ValueError, "returns 2 arrays"),
        (lambda: receptive_field(lambda x: jnp.ones(3), LINE, axes=(1,)), ValueError, "does not depend"),
        (lambda: receptive_field(jnp.sin, jnp.ones((2, 3))), ValueError, "axes=(0,)"),
        (lambda: receptive_field(jnp.sin, LINE, axes=(3,)), ValueError, "axes=(3,)"),
        (lambda: receptive_field(jnp.sin, LINE, axes=(1.5,)), TypeError, "axes[0]"),
        (lambda: receptive_field_of_layers([]), ValueError, "layers is empty"),
        (lambda: receptive_field_of_layers([3]), TypeError, "layers[0] is 3"),
        (lambda: receptive_field_of_layers([Layer(3, 2)]), ValueError, "size=..."),
        (lambda: receptive_field_of_layers([Layer(3, 0)]), ValueError, "layers[0]: stride must be at least 1"),
        (lambda: receptive_field_of_layers([Layer(9, 1, 0)], size=5), ValueError, "kernel is larger"),
        (lambda: effective_receptive_field(Small(), jnp.ones((1, 16, 16, 3))), ValueError, "model.bind(variables)"),
        (lambda: effective_receptive_field(lambda x: x, jnp.ones((1, 3, 1), int)), TypeError, "x.astype(jnp.float32)"),
        (lambda: effective_receptive_field(jnp.sin, jnp.ones((1, 3, 1)), position=(3,)), ValueError, "position[0]=3"),
        (lambda: effective_receptive_field(lambda x: (x, x), jnp.ones((1, 3, 1))), ValueError, "one array"),
    ],
)
def test_errors_say_what_to_type(call, error, words):
    with pytest.raises(error) as caught:
        call()
    assert words in str(caught.value)
