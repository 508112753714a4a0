"""Hugging Face's networks with random weights: the same outputs from ours, and from theirs with ours."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx

from convjax.interop import load_safetensors, load_torch, save_safetensors, to_torch
from convjax.models import VGG, ConvNeXt, MobileNetV2, ResNet

torch = pytest.importorskip("torch", reason="transformers' networks are torch's")
transformers = pytest.importorskip("transformers", reason="compares with the networks of Hugging Face")

IMAGES = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)

NETWORKS = {
    "resnet bottleneck": (
        "ResNet",
        dict(embedding_size=8, hidden_sizes=[16, 32, 48, 64], depths=[1, 2, 1, 1]),
        ResNet,
        dict(depths=(1, 2, 1, 1), widths=(4, 8, 12, 16), stem_width=8),
    ),
    "resnet basic": (
        "ResNet",
        dict(embedding_size=8, hidden_sizes=[8, 16, 16, 24], depths=[1, 1, 2, 1], layer_type="basic"),
        ResNet,
        dict(block="basic", depths=(1, 1, 2, 1), widths=(8, 16, 16, 24), stem_width=8),
    ),
    "resnet strided in 1x1": (
        "ResNet",
        dict(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1], downsample_in_bottleneck=True),
        ResNet,
        dict(depths=(1, 1), widths=(4, 8), strides=(1, 2), stem_width=8, stride_in_1x1=True),
    ),
    "convnext": (
        "ConvNext",
        dict(hidden_sizes=[8, 12, 16, 24], depths=[1, 2, 1, 1]),
        ConvNeXt,
        dict(depths=(1, 2, 1, 1), widths=(8, 12, 16, 24), head_epsilon=1e-12),
    ),
    "mobilenet": (
        "MobileNetV2",
        dict(depth_multiplier=0.35),
        MobileNetV2,
        dict(width=0.35, padding="SAME", epsilon=1e-3),
    ),
}


def theirs(name: str, seed: int, kind: str = "ForImageClassification"):
    """Their network in evaluation mode, all weights and statistics random, scaled so that no layer blows up."""
    family, config, _, _ = NETWORKS[name]
    config = getattr(transformers, f"{family}Config")(**config, num_labels=5)
    network = getattr(transformers, family + kind)(config).eval()
    random = torch.Generator().manual_seed(seed)
    for key, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            value = torch.randn(tensor.shape, generator=random)
            if tensor.ndim > 1:
                value *= (2 / tensor[0].numel()) ** 0.5
            elif key.endswith(("running_var", "norm.weight", "normalization.weight", "layer_scale_parameter")):
                value = 0.8 + 0.1 * value.abs()
            else:
                value *= 0.1
            tensor.copy_(value)
    return network


def ours(name: str):
    _, _, network, options = NETWORKS[name]
    return nnx.eval_shape(lambda: network(num_classes=5, rngs=nnx.Rngs(0), **options))


def output(model, stage="logits") -> np.ndarray:
    model.eval()
    graph, weights, rest = nnx.split(model, (nnx.Param, nnx.BatchStat), ...)
    return np.asarray(jax.jit(lambda weights, x: nnx.merge(graph, weights, rest).features(x)[stage])(weights, IMAGES))


def their_output(network):
    with torch.no_grad():
        return network(torch.from_numpy(IMAGES).movedim(-1, 1))


def close(actual, expected):
    scale = np.abs(expected).max()
    assert np.abs(expected[0] - expected[1]).max() > 1e-3 * scale, "the output does not depend on the image"
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5 * scale)


@pytest.mark.parametrize("name", NETWORKS)
def test_same_outputs_both_ways(name):
    network, model = theirs(name, seed=0), ours(name)
    load_torch(model, network)
    result = output(model)
    close(result, their_output(network).logits.numpy())

    other = theirs(name, seed=1)
    other.load_state_dict({key: torch.tensor(tensor) for key, tensor in to_torch(model).items()})
    close(their_output(other).logits.numpy(), result)


def test_a_network_without_classifier():
    network, model = theirs("resnet basic", seed=0, kind="Model"), ours("resnet basic")
    with pytest.raises(ValueError, match=r"classifier\.1\.(weight|bias).*head=False"):
        load_torch(model, network)
    load_torch(model, network, head=False)
    close(output(model, "pooled"), their_output(network).pooler_output.flatten(1).numpy())
    assert to_torch(model, head=False).keys() == {key for key in network.state_dict() if "num_batches" not in key}


def test_their_classifier_may_have_other_classes():
    network = theirs("resnet basic", seed=0)
    _, _, _, options = NETWORKS["resnet basic"]
    model = nnx.eval_shape(lambda: ResNet(num_classes=7, rngs=nnx.Rngs(0), **options))
    with pytest.raises(ValueError, match=r"classifier\.1\.\w+ has shape \(5"):
        load_torch(model, network)
    load_torch(model, network, head=False)
    statistics = network.resnet.embedder.embedder.normalization
    np.testing.assert_array_equal(model.stem.norm.mean[...], statistics.running_mean)


def test_a_file_of_theirs(tmp_path):
    network, model, again = theirs("resnet basic", seed=0), ours("resnet basic"), ours("resnet basic")
    network.save_pretrained(tmp_path)
    load_torch(model, tmp_path / "model.safetensors")
    save_safetensors(to_torch(model), tmp_path / "ours.safetensors")
    load_torch(again, load_safetensors(tmp_path / "ours.safetensors"))
    close(output(again), their_output(network).logits.numpy())


def test_bfloat16_is_read_exactly():
    network, model = theirs("resnet basic", seed=0).bfloat16(), ours("resnet basic")
    load_torch(model, network)
    statistics = network.resnet.embedder.embedder.normalization
    np.testing.assert_array_equal(model.stem.norm.mean[...], statistics.running_mean.float())


def test_a_network_that_they_lack():
    model = nnx.eval_shape(lambda: VGG(rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"transformers has no VGG.*ResNet, ConvNeXt, MobileNetV2.*names="):
        load_torch(model, {})
