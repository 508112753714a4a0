"""One table of all layers: `convjax.linen` has the names, parameters, results and gradients of `convjax.nnx`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import convjax.linen
import convjax.nnx

IMAGE, LINE = (2, 6, 5, 4), (2, 7, 4)
NORMAL = nnx.initializers.normal(0.3)  # what predicts offsets begins at zero, and nothing before it has gradients then


@dataclasses.dataclass(frozen=True)
class Layer:
    """How to make a layer: nnx says input features, linen infers them."""

    name: str
    shape: tuple[int, ...]
    out: tuple[int, ...]
    inputs: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of nnx alone
    both: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    features: int | None = None

    def __str__(self):
        return self.name

    def nnx(self, seed=0, **options):
        cls = getattr(convjax.nnx, self.name)
        outputs = {} if self.features is None else dict(out_features=self.features)
        rngs = {} if self.name in ("BlurPool", "ChannelShuffle") else dict(rngs=nnx.Rngs(seed))
        return cls(**self.inputs, **outputs, **self.both, **rngs, **options)

    def linen(self, **options):
        outputs = {} if self.features is None else dict(features=self.features)
        return getattr(convjax.linen, self.name)(**outputs, **self.both, **options)

    def x(self):
        return np.random.default_rng(1).standard_normal(self.shape).astype(np.float32)


def layer(name, shape, out, *, features=None, inputs=None, **both):
    return Layer(name, shape, out, dict(in_features=4) if inputs is None else inputs, both, features)


LAYERS = (
    layer("Conv", IMAGE, (2, 3, 3, 6), features=6, kernel_size=(3, 2), strides=2, padding_mode="reflect"),
    layer("ConvTranspose", IMAGE, (2, 12, 10, 6), features=6, kernel_size=(3, 4), strides=2, feature_group_count=2),
    layer("DepthwiseConv", IMAGE, (2, 6, 5, 8), kernel_size=(3, 3), channel_multiplier=2),
    layer("PointwiseConv", IMAGE, (2, 3, 3, 6), features=6, strides=2, feature_group_count=2),
    layer("SeparableConv", IMAGE, (2, 6, 5, 6), features=6, kernel_size=(3, 3), padding_mode="circular"),
    layer("CausalConv", LINE, (2, 7, 6), features=6, kernel_size=3, kernel_dilation=2),
    layer("LocalConv", LINE, (2, 4, 6), features=6, kernel_size=(3,), strides=2, feature_group_count=2,
          inputs=dict(in_features=4, input_size=7)),
    layer("DeformConv", IMAGE, (2, 3, 3, 6), features=6, kernel_size=(3, 2), strides=2, offset_groups=2),
    layer("DeformConvV3", IMAGE, (2, 3, 3, 4), kernel_size=(3, 2), strides=2, groups=2, predictor_init=NORMAL),
    layer("DeformConvV4", IMAGE, (2, 6, 5, 4), groups=2, remove_center=True, predictor_init=NORMAL),
    layer("MaskedConv", IMAGE, (2, 3, 5, 6), features=6, kernel_size=(3, 3), strides=(2, 1), channel_groups=2,
          mask="B"),
    layer("PartialConv", IMAGE, (2, 3, 3, 6), features=6, kernel_size=(3, 2), strides=2),
    layer("Involution", IMAGE, (2, 3, 3, 4), kernel_size=(3, 3), strides=2, group_features=2, reduction=2),
    layer("WSConv", IMAGE, (2, 6, 5, 6), features=6, kernel_size=(3, 2)),
    layer("BlurPool", IMAGE, (2, 3, 3, 4), inputs={}, kernel_size=(3, 4)),
    layer("ResizeConv", IMAGE, (2, 12, 10, 6), features=6, kernel_size=(3, 3), method="linear"),
    layer("ConvNormAct", IMAGE, (2, 6, 5, 6), features=6, kernel_size=(3, 3), activation="gelu"),
    layer("SqueezeExcite", IMAGE, IMAGE, inputs=dict(features=4), reduced_features=3),
    layer("ChannelShuffle", IMAGE, IMAGE, inputs={}, groups=2),
    layer("MixConv", IMAGE, (2, 3, 3, 4), kernel_sizes=((3, 3), (1, 5), (5, 5)), strides=2),
    layer("DynamicConv", IMAGE, (2, 6, 5, 6), features=6, kernel_size=(3, 2), num_experts=3),
    layer("LongConv", LINE, LINE, inputs=dict(features=4), max_length=9, hidden_features=8),
)  # fmt: skip
LAYER = pytest.mark.parametrize("layer", LAYERS, ids=str)
CONVOLVE = [la for la in LAYERS if la.name not in ("BlurPool", "ChannelShuffle", "SqueezeExcite", "LongConv")]
CONVOLVES = pytest.mark.parametrize("layer", CONVOLVE, ids=str)


def parameters(layer):
    return nnx.to_pure_dict(nnx.state(layer, nnx.Param))


def variables_of(layer):
    """The state of an nnx layer as linen variables."""
    statistics = nnx.to_pure_dict(nnx.state(layer, nnx.BatchStat))
    collections = {"params": parameters(layer), "batch_stats": statistics}
    return {name: tree for name, tree in collections.items() if tree}


def value(out):
    """The outputs of a layer; `PartialConv` returns a mask as well."""
    return out[0] if isinstance(out, tuple) else out


def test_every_layer_is_in_the_table_and_in_both_apis():
    names = sorted(layer.name for layer in LAYERS)
    assert names == sorted(convjax.nnx.__all__) == sorted(convjax.linen.__all__)


@LAYER
def test_values_and_gradients_agree_under_jit(layer):
    """The same parameter tree, the same output shape, the same value and gradients, none of which is idle."""
    model, twin, x = layer.nnx(), layer.linen(), layer.x()
    variables = variables_of(model)
    made = jax.eval_shape(twin.init, jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, dict(made)) == jax.tree.map(jnp.shape, variables)
    weights = np.random.default_rng(2).standard_normal(layer.out).astype(np.float32)
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def loss(params, x, rest):
        y = value(nnx.merge(graph, params, rest)(x))
        assert y.shape == layer.out
        return jnp.vdot(y, weights)

    @jax.jit
    def twin_loss(params, x):
        y, _ = twin.apply(variables | {"params": params}, x, mutable=["batch_stats"])
        return jnp.vdot(value(y), weights)

    loss_value, (grads, x_grad) = jax.value_and_grad(loss, (0, 1))(params, x, rest)
    expected, (twin_grads, twin_x_grad) = jax.value_and_grad(twin_loss, (0, 1))(variables.get("params", {}), x)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    close(loss_value, expected)
    close(x_grad, twin_x_grad)
    jax.tree.map(close, nnx.to_pure_dict(grads), dict(twin_grads))
    for leaf in jax.tree.leaves((grads, x_grad)):
        assert np.isfinite(leaf).all()
        assert np.abs(leaf).max() > 0


@CONVOLVES
@pytest.mark.parametrize("api", ["nnx", "linen"])
def test_dtype_is_that_of_the_computation_and_param_dtype_that_of_the_parameters(layer, api):
    options = dict(dtype=jnp.bfloat16, param_dtype=jnp.float16)
    x = jax.ShapeDtypeStruct(layer.shape, jnp.float32)
    if api == "nnx":
        model = nnx.eval_shape(lambda: layer.nnx(**options))
        out = nnx.eval_shape(lambda model, x: model(x), model, x)
        params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    else:
        out, variables = jax.eval_shape(lambda x: layer.linen(**options).init_with_output(jax.random.key(0), x), x)
        params = variables["params"]
    assert value(out).dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(jnp.float16)}


OWN = ("LocalConv", "DeformConv", "DeformConvV3", "DeformConvV4", "Involution", "PartialConv")


@pytest.mark.parametrize("layer", [la for la in CONVOLVE if la.name not in OWN], ids=str)
def test_precision_and_algorithm_reach_the_convolution(layer):
    """Every convolution of the layer that the caller's algorithm is for; pointwise steps of 1x1 have their own.

    Unshared kernels, kernels for each position and samples between pixels are no convolutions of the core, and
    `PartialConv` counts in integers besides.
    """
    model = layer.nnx(precision="highest", algorithm="xla")
    model.eval()
    specs = [eqn.params["spec"] for eqn in convolutions(jax.make_jaxpr(model)(layer.x()).jaxpr)]
    assert specs
    assert {spec.precision for spec in specs} == {(jax.lax.Precision.HIGHEST,) * 2}
    assert "xla" in {spec.algorithms[0] for spec in specs}


def convolutions(jaxpr):
    for eqn in jaxpr.eqns:
        if "spec" in eqn.params:
            yield eqn
        for inner in jax.extend.core.jaxprs_in_params(eqn.params):
            yield from convolutions(inner)


@pytest.mark.parametrize("layer", [la for la in LAYERS if la.name not in ("BlurPool", "ChannelShuffle")], ids=str)
def test_nnx_layers_with_parameters_survive_split_merge_and_vmap_over_models(layer):
    """An ensemble: parameters stacked, one call."""
    assert parameters(layer.nnx())
    models = [layer.nnx(seed) for seed in range(2)]
    graph, *_ = nnx.split(models[0])
    states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(nnx.state(m) for m in models))
    out = jax.eval_shape(jax.vmap(lambda state, x: nnx.merge(graph, state)(x), (0, None)), states, layer.x())
    assert value(out).shape == (2, *layer.out)
