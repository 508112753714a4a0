"""Checkpoints of Flax's layers load into ours and back; annotations for sharding are kept."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import linen, nnx

import convjax.linen
import convjax.nnx

MESH = jax.make_mesh((2,), ("model",), devices=jax.devices()[:2], axis_types=(jax.sharding.AxisType.Auto,))
LAYERS = {
    "Conv": dict(kernel_size=(3, 2), feature_group_count=2),
    "Conv without bias": dict(kernel_size=3, use_bias=False),
    "ConvTranspose": dict(kernel_size=(3, 2), strides=2, transpose_kernel=True),
}


def make(api, name, options, seed):
    return getattr(api, name.split()[0])(4, 6, rngs=nnx.Rngs(seed), param_dtype=jnp.float16, **options)


def x_for(options):
    ndim = len(np.atleast_1d(options["kernel_size"]))
    return np.random.default_rng(0).standard_normal((1, *(5,) * ndim, 4)).astype(np.float32)


@pytest.mark.parametrize("direction", ["flax to convjax", "convjax to flax"])
@pytest.mark.parametrize(("name", "options"), LAYERS.items(), ids=LAYERS)
def test_a_checkpoint_of_one_loads_into_the_other(tmp_path, name, options, direction):
    source, target = (nnx, convjax.nnx) if direction.startswith("flax") else (convjax.nnx, nnx)
    saved, fresh = make(source, name, options, seed=1), make(target, name, options, seed=2)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "layer", nnx.state(saved))
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(tmp_path / "layer", nnx.state(fresh))
    assert jax.tree.structure(restored) == jax.tree.structure(nnx.state(saved))
    nnx.update(fresh, restored)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(fresh), nnx.state(saved))
    np.testing.assert_allclose(fresh(x_for(options)), saved(x_for(options)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "options"), LAYERS.items(), ids=LAYERS)
def test_state_has_the_tree_shapes_and_dtypes_of_flax(name, options):
    ours, theirs = (nnx.state(make(api, name, options, seed=0)) for api in (convjax.nnx, nnx))
    describe = lambda state: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), nnx.to_pure_dict(state))
    assert describe(ours) == describe(theirs)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)


@pytest.mark.parametrize("name", ["Conv", "ConvTranspose", "DepthwiseConv"])
def test_metadata_of_parameters_is_kept(name):
    features = () if name == "DepthwiseConv" else (6,)
    with jax.set_mesh(MESH):
        layer = getattr(convjax.nnx, name)(
            4,
            *features,
            kernel_size=(3, 3),
            kernel_metadata={"out_sharding": (None, None, None, "model")},
            bias_metadata={"out_sharding": ("model",), "note": "here"},
            rngs=nnx.Rngs(0),
        )
    assert layer.kernel.get_metadata()["out_sharding"] == (None, None, None, "model")
    assert layer.bias.get_metadata()["note"] == "here"
    specs = nnx.get_partition_spec(nnx.state(layer))
    assert jax.tree.leaves(specs["kernel"], is_leaf=lambda v: isinstance(v, jax.sharding.PartitionSpec))[0] == (
        jax.sharding.PartitionSpec(None, None, None, "model")
    )


def test_with_partitioning_shards_the_parameters():
    init = nnx.with_partitioning(nnx.initializers.lecun_normal(), (None, None, "model"))

    @nnx.jit
    def make_sharded():
        layer = convjax.nnx.Conv(4, 6, 3, kernel_init=init, rngs=nnx.Rngs(0))
        state = nnx.state(layer)
        nnx.update(layer, jax.lax.with_sharding_constraint(state, nnx.get_partition_spec(state)))
        return layer

    with jax.set_mesh(MESH):
        layer = make_sharded()
        assert layer.kernel[...].sharding.spec[2] == "model"
        y = nnx.jit(lambda layer, x: layer(x))(layer, jnp.ones((1, 8, 4)))
    plain = convjax.nnx.Conv(4, 6, 3, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(y, plain(jnp.ones((1, 8, 4))), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["Conv", "ConvTranspose", "DepthwiseConv", "WSConv", "LocalConv"])
def test_linen_annotations_are_those_of_flax(name):
    """A boxed parameter carries its axes' names through init, and is unboxed where it is used."""
    features = {} if name == "DepthwiseConv" else dict(features=6)
    axes = (None, None, "model")
    init = linen.with_partitioning(linen.initializers.lecun_normal(), axes)
    layer = getattr(convjax.linen, name)(kernel_size=3, kernel_init=init, **features)
    y, variables = layer.init_with_output(jax.random.key(0), jnp.ones((1, 8, 4)))
    assert linen.get_partition_spec(variables)["params"]["kernel"] == jax.sharding.PartitionSpec(*axes)
    np.testing.assert_allclose(layer.apply(linen.unbox(variables), jnp.ones((1, 8, 4))), y, rtol=1e-6)
