"""Weights from elsewhere: torch's layers, names of one's own, files, and what is refused."""

from __future__ import annotations

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import convjax.nnx
from convjax.interop import load_safetensors, load_tensors, load_torch, save_safetensors, to_tensors, to_torch
from convjax.models import ResNet

RNGS = nnx.Rngs(0)


def conv(*args, **options):
    return lambda: convjax.nnx.Conv(*args, **options, rngs=RNGS)


def transposed(*args, **options):
    return lambda: convjax.nnx.ConvTranspose(*args, **options, rngs=RNGS)


# Name: torch's class, its arguments, an input of ours, our layer.
LAYERS = {
    "Conv1d, groups": ("Conv1d", (4, 6, 3), dict(groups=2), (9, 4), conv(4, 6, (3,), padding=0, feature_group_count=2)),
    "Conv2d": ("Conv2d", (3, 8, (3, 5)), dict(bias=False), (7, 8, 3), conv(3, 8, (3, 5), padding=0, use_bias=False)),
    "Conv2d, depthwise": (
        "Conv2d",
        (4, 8, 3),
        dict(groups=4, padding=1),
        (7, 6, 4),
        lambda: convjax.nnx.DepthwiseConv(4, (3, 3), channel_multiplier=2, padding=1, rngs=RNGS),
    ),
    "Conv3d": ("Conv3d", (3, 5, 2), {}, (4, 5, 6, 3), conv(3, 5, (2, 2, 2), padding=0)),
    "ConvTranspose1d, groups": (
        "ConvTranspose1d",
        (4, 6, 5),
        dict(stride=2, padding=1, groups=2),
        (7, 4),
        transposed(4, 6, (5,), strides=2, padding=[(3, 3)], feature_group_count=2),
    ),
    "ConvTranspose2d": (
        "ConvTranspose2d",
        (4, 6, (4, 3)),
        dict(stride=2, padding=1),
        (5, 6, 4),
        transposed(4, 6, (4, 3), strides=2, padding=[(2, 2), (1, 1)]),
    ),
    "ConvTranspose2d, groups, transposed kernel": (
        "ConvTranspose2d",
        (4, 6, (4, 3)),
        dict(stride=2, padding=1, groups=2),
        (5, 6, 4),
        transposed(4, 6, (4, 3), strides=2, padding=[(2, 2), (1, 1)], feature_group_count=2, transpose_kernel=True),
    ),
    "Linear": ("Linear", (4, 5), {}, (4,), lambda: nnx.Linear(4, 5, rngs=RNGS)),
    "BatchNorm1d": ("BatchNorm1d", (4,), {}, (6, 4), lambda: nnx.BatchNorm(4, rngs=RNGS)),
    "GroupNorm": ("GroupNorm", (2, 4), {}, (6, 4), lambda: nnx.GroupNorm(4, 2, epsilon=1e-5, rngs=RNGS)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_torch_layers_both_ways(name):
    torch = pytest.importorskip("torch", reason="compares with torch's layers")
    kind, arguments, options, shape, ours = LAYERS[name]
    theirs, layer = getattr(torch.nn, kind)(*arguments, **options).eval(), ours()
    x = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    channels_first = torch.from_numpy(x).movedim(-1, 1)
    run = lambda: theirs(channels_first).movedim(1, -1).detach().numpy()
    random = torch.Generator().manual_seed(0)

    def randomise():
        with torch.no_grad():
            for tensor in theirs.state_dict().values():
                if tensor.is_floating_point():
                    tensor.copy_(torch.rand(tensor.shape, generator=random) + 0.5)

    randomise()
    load_torch(layer, theirs)
    layer.eval()
    expected = run()
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected, rtol=1e-5, atol=1e-4)
    randomise()
    assert np.abs(run() - expected).max() > 1e-2
    theirs.load_state_dict({key: torch.tensor(tensor) for key, tensor in to_torch(layer).items()})
    np.testing.assert_allclose(run(), expected, rtol=1e-5, atol=1e-4)


class Small(nnx.Module):
    """A layer that the table knows, and a parameter that it does not."""

    def __init__(self, rngs):
        self.conv = convjax.nnx.Conv(2, 4, (3, 3), rngs=rngs)
        self.gain = nnx.Param(jnp.ones((4,)))
        self.dropout = nnx.Dropout(0.5, rngs=rngs)


NAMES = {"conv": "features.0", "gain": "gamma"}


def state() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    shapes = {"features.0.weight": (4, 2, 3, 3), "features.0.bias": (4,), "gamma": (4,)}
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def test_names_of_ones_own():
    model, tensors = Small(nnx.Rngs(0)), state()
    load_torch(model, tensors, names=NAMES)
    np.testing.assert_array_equal(model.conv.kernel[0, 2, 1, 3], tensors["features.0.weight"][3, 1, 0, 2])
    np.testing.assert_array_equal(model.gain[...], tensors["gamma"])
    back = to_torch(model, names=NAMES)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor)


def missing(tensors):
    del tensors["features.0.weight"]


def misspelt(tensors):
    tensors["gama"] = tensors.pop("gamma")


def superfluous(tensors):
    tensors["features.1.weight"] = np.ones((7, 4))


def misshapen(tensors):
    tensors["features.0.weight"] = np.ones((4, 2, 5, 5))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (missing, r"no tensor features\.0\.weight, of shape \(4, 2, 3, 3\), for our conv\.kernel \(3, 3, 2, 4\)"),
        (misspelt, r"no tensor gamma, of shape \(4,\), for our gain \(4,\)\. The most similar is gama \(4,\)"),
        (superfluous, r"nothing of ours takes features\.1\.weight \(7, 4\); expected were only the 3 tensors"),
        (misshapen, r"features\.0\.weight has shape \(4, 2, 5, 5\), but our conv\.kernel .* needs \(4, 2, 3, 3\)"),
    ],
)
def test_what_does_not_fit_is_named_and_changes_nothing(spoil, message):
    model, tensors = Small(nnx.Rngs(0)), state()
    before = to_tensors(model)
    spoil(tensors)
    with pytest.raises(ValueError, match=message):
        load_torch(model, tensors, names=NAMES)
    for name, tensor in to_tensors(model).items():
        np.testing.assert_array_equal(tensor, before[name])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"conv": "features.0"}, r"names leaves out gain"),
        ({**NAMES, "covn": "features.1"}, r"names has covn, which the model does not have"),
        ("transformer", r"names='transformer' is not known.*Did you mean 'transformers'"),
        ("torchvision", r"torchvision has no Small .*only ResNet"),
    ],
)
def test_wrong_names(names, message):
    with pytest.raises(ValueError, match=message):
        load_torch(Small(nnx.Rngs(0)), state(), names=names)


@pytest.mark.parametrize(
    ("model", "weights", "message"),
    [
        ({}, {}, "model must be a flax.nnx module, got dict"),
        (nnx.Linear(2, 3, rngs=RNGS), [1], "weights must be a torch module, .* got list"),
        (nnx.Linear(2, 3, rngs=RNGS), {"weight": "x"}, r"weights\['weight'\] must be a tensor or an array, got str"),
    ],
)
def test_wrong_types(model, weights, message):
    with pytest.raises(TypeError, match=message):
        load_torch(model, weights, names={})


def test_torchvision_names_of_a_resnet():
    model = ResNet(depths=(1, 2), widths=(2, 4), strides=(1, 2), stem_width=4, num_classes=3, rngs=nnx.Rngs(0))
    names = to_torch(model, names="torchvision").keys()
    assert {"conv1.weight", "bn1.running_var", "layer1.0.conv3.weight", "layer1.0.downsample.1.bias"} <= names
    assert {"layer2.0.downsample.0.weight", "layer2.1.bn2.running_mean", "fc.weight", "fc.bias"} <= names
    assert "layer2.1.downsample.0.weight" not in names


def test_dtype_and_device_stay():
    device = jax.devices()[1]
    model = jax.device_put(nnx.Linear(2, 3, param_dtype=jnp.bfloat16, rngs=RNGS), device)
    load_torch(model, {"weight": np.full((3, 2), 1.5), "bias": np.zeros(3)})
    assert model.kernel.dtype == jnp.bfloat16
    assert model.kernel[...].devices() == {device}
    assert float(model.kernel[0, 0]) == 1.5


def test_safetensors_round_trip(tmp_path):
    pytest.importorskip("safetensors", reason="files of weights need pip install safetensors")
    model, path = Small(nnx.Rngs(0)), tmp_path / "small.safetensors"
    model.gain = nnx.Param(jnp.full((4,), 1.5, jnp.bfloat16))
    save_safetensors(model, path)
    other = nnx.eval_shape(lambda: Small(nnx.Rngs(1)))
    load_tensors(other, load_safetensors(path))
    for name, tensor in to_tensors(model).items():
        np.testing.assert_array_equal(to_tensors(other)[name], tensor)
    assert load_safetensors(path)["gain"].dtype == jnp.bfloat16
    assert [file.name for file in tmp_path.iterdir()] == ["small.safetensors"]


@pytest.mark.parametrize("ending", ["bin", "pt", "pth", "PT"])
def test_pickles_are_refused(tmp_path, ending):
    pytest.importorskip("safetensors", reason="files of weights need pip install safetensors")
    path = tmp_path / f"model.{ending}"
    path.write_bytes(b"\x80\x04.")
    for call in (lambda: load_safetensors(path), lambda: load_torch(Small(nnx.Rngs(0)), path, names=NAMES)):
        with pytest.raises(ValueError, match=r"pickle(?s:.*)safetensors\.torch\.save_file\(torch\.load"):
            call()


def test_a_broken_file_is_named_and_a_failed_write_keeps_the_old_one(tmp_path, monkeypatch):
    pytest.importorskip("safetensors", reason="files of weights need pip install safetensors")
    path = tmp_path / "x.safetensors"
    save_safetensors({"x": np.arange(3.0)}, path)
    whole = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.replace", lambda self, target: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            save_safetensors({"x": np.arange(4.0)}, path)
    assert path.read_bytes() == whole
    assert len(list(tmp_path.iterdir())) == 1
    path.write_bytes(whole[:-5])
    with pytest.raises(ValueError, match=r"x\.safetensors is not a whole safetensors file"):
        load_safetensors(path)


def test_foreign_packages_are_imported_when_needed_only():
    packages = {"torch", "keras", "transformers", "safetensors"}
    code = f"import sys, convjax.interop; print(sorted({packages} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
