"""What the layers of our networks are called elsewhere, a function a network: our path to their name.

A path to a layer stands for all its tensors, one to a parameter (ConvNeXt's layer scale) for itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from convjax._core import arguments
from convjax.models import VGG, ConvNeXt, MobileNetV2, ResNet
from convjax.models.convnext import Downsample

Layers = dict[str, str]


@dataclasses.dataclass(frozen=True)
class Names:
    """Names of a network's layers.

    `prefix` stands before those that are no part of `head`, in implementations where the network with its classifier
    wraps the one without.
    """

    layers: Layers
    prefix: str = ""
    head: tuple[str, ...] = ("head",)


def conv_norm(ours: str, conv: str, norm: str) -> Layers:
    return {f"{ours}.conv": conv, f"{ours}.norm": norm}


def blocks(model: Any) -> Iterator[tuple[int, int, str, Any]]:
    """Stage, number in it, path and module of each block."""
    for i, stage in enumerate(model.stages):
        for j, block in enumerate(stage):
            yield i, j, f"stages.{i}.{j}", block


def transformers_resnet(model: ResNet) -> Names:
    pair = lambda ours, theirs: conv_norm(ours, f"{theirs}.convolution", f"{theirs}.normalization")
    layers = pair("stem", "embedder.embedder")
    for i, j, ours, block in blocks(model):
        theirs = f"encoder.stages.{i}.layers.{j}"
        for k in range(len(block.convs)):
            layers |= pair(f"{ours}.convs.{k}", f"{theirs}.layer.{k}")
        if block.shortcut is not None:
            layers |= pair(f"{ours}.shortcut", f"{theirs}.shortcut")
    return Names(layers | {"head": "classifier.1"}, "resnet.")


def transformers_convnext(model: ConvNeXt) -> Names:
    layers = {"stem": "embeddings.patch_embeddings", "stem_norm": "embeddings.layernorm", "norm": "layernorm"}
    for i, j, ours, block in blocks(model):
        stage = f"encoder.stages.{i}"
        if isinstance(block, Downsample):
            layers |= {f"{ours}.norm": f"{stage}.downsampling_layer.0", f"{ours}.conv": f"{stage}.downsampling_layer.1"}
            continue
        theirs = f"{stage}.layers.{j - 1 if isinstance(model.stages[i][0], Downsample) else j}"
        layers |= {
            f"{ours}.depthwise": f"{theirs}.dwconv",
            f"{ours}.norm": f"{theirs}.layernorm",
            f"{ours}.expand": f"{theirs}.pwconv1",
            f"{ours}.project": f"{theirs}.pwconv2",
            f"{ours}.scale": f"{theirs}.layer_scale_parameter",
        }
    return Names(layers | {"head": "classifier"}, "convnext.")


def transformers_mobilenet(model: MobileNetV2) -> Names:
    pair = lambda ours, theirs: conv_norm(ours, f"{theirs}.convolution", f"{theirs}.normalization")
    layers = pair("stem", "conv_stem.first_conv") | pair("last", "conv_1x1")
    for n, (_, _, ours, block) in enumerate(blocks(model)):
        theirs = f"layer.{n - 1}" if n else "conv_stem"  # the first block belongs to their stem
        for step, name in (("expand", "expand_1x1"), ("depthwise", "conv_3x3"), ("project", "reduce_1x1")):
            if getattr(block, step) is not None:
                layers |= pair(f"{ours}.{step}", f"{theirs}.{name}")
    return Names(layers | {"head": "classifier"}, "mobilenet_v2.")


def torchvision_resnet(model: ResNet) -> Names:
    layers = conv_norm("stem", "conv1", "bn1")
    for i, j, ours, block in blocks(model):
        theirs = f"layer{i + 1}.{j}"
        for k in range(len(block.convs)):
            layers |= conv_norm(f"{ours}.convs.{k}", f"{theirs}.conv{k + 1}", f"{theirs}.bn{k + 1}")
        if block.shortcut is not None:
            layers |= conv_norm(f"{ours}.shortcut", f"{theirs}.downsample.0", f"{theirs}.downsample.1")
    return Names(layers | {"head": "fc"})


def keras_vgg(model: VGG) -> Names:
    layers = {f"{ours}.conv": f"block{i + 1}_conv{j + 1}" for i, j, ours, _ in blocks(model)}
    layers |= {"linear1": "fc1", "linear2": "fc2", "head": "predictions"}
    return Names(layers, head=("linear1", "linear2", "head"))


def keras_resnet(model: ResNet) -> Names:
    layers = conv_norm("stem", "conv1_conv", "conv1_bn")
    for i, j, ours, block in blocks(model):
        theirs = f"conv{i + 2}_block{j + 1}"
        for k in range(len(block.convs)):
            layers |= conv_norm(f"{ours}.convs.{k}", f"{theirs}_{k + 1}_conv", f"{theirs}_{k + 1}_bn")
        if block.shortcut is not None:
            layers |= conv_norm(f"{ours}.shortcut", f"{theirs}_0_conv", f"{theirs}_0_bn")
    return Names(layers | {"head": "predictions"})


def keras_mobilenet(model: MobileNetV2) -> Names:
    layers = conv_norm("stem", "Conv1", "bn_Conv1") | conv_norm("last", "Conv_1", "Conv_1_bn")
    for n, (_, _, ours, block) in enumerate(blocks(model)):
        theirs = f"block_{n}" if n else "expanded_conv"
        for step in ("expand", "depthwise", "project"):
            if getattr(block, step) is not None:
                layers |= conv_norm(f"{ours}.{step}", f"{theirs}_{step}", f"{theirs}_{step}_BN")
    return Names(layers | {"head": "predictions"})


IMPLEMENTATIONS: Mapping[str, Mapping[type, Callable[[Any], Names]]] = {
    "transformers": {
        ResNet: transformers_resnet,
        ConvNeXt: transformers_convnext,
        MobileNetV2: transformers_mobilenet,
    },
    "torchvision": {ResNet: torchvision_resnet},
    "keras": {VGG: keras_vgg, ResNet: keras_resnet, MobileNetV2: keras_mobilenet},
}


def names_of(where: str, model: Any, names: str | Mapping[str, str], implementations: tuple[str, ...]) -> Names:
    """Names for `model`: those of an implementation, or what the caller wrote down."""
    if not isinstance(names, str):
        return Names(dict(names), head=())
    known = IMPLEMENTATIONS[arguments.choice(where, "names", names, implementations)]
    for network, rule in known.items():
        if isinstance(model, network):
            return rule(model)
    raise ValueError(
        f"{where}: {names} has no {type(model).__name__} whose names are known here, only "
        f"{', '.join(network.__name__ for network in known)}. Type names={{our path: their name, ...}}, a path such as "
        "'stages.0.1.conv'; convjax.interop.to_tensors(model) lists them, with the parameter's name at the end."
    )
