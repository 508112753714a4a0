"""ResNet, and its grouped (ResNeXt) and wide variants, which differ in the width of a block's 3x3 convolution only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from types import ModuleType
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from convjax._core import arguments
from convjax.models.blocks import LAYERS, Layers, Network, global_average, max_pool, run_stages, stack


class Residual(nnx.Module):
    """relu(branch(x) + shortcut(x)): the branch two 3x3 convolutions, or 1x1, 3x3 and 1x1 around a bottleneck.

    The shortcut is a strided 1x1 convolution where shapes change, else the identity (He et al., section 3.3, option B).
    """

    def __init__(
        self,
        make: Layers,
        inputs: int,
        outputs: int,
        *,
        width: int,
        stride: int,
        groups: int,
        bottleneck: bool,
        stride_in_1x1: bool,
        use_bias: bool,
        zero_init: bool,
    ):
        kernels = (1, 3, 1) if bottleneck else (3, 3)
        strided = 1 if bottleneck and not stride_in_1x1 else 0
        widths = [inputs, *[width] * (len(kernels) - 1), outputs]
        convs = []
        for i, kernel in enumerate(kernels):
            last = i == len(kernels) - 1
            options: dict[str, Any] = dict(feature_group_count=groups if bottleneck and kernel == 3 else 1)
            if last:
                options |= dict(activation=None)
                options |= dict(scale_init=nnx.initializers.zeros_init()) if zero_init else {}
            step = stride if i == strided else 1
            convs.append(make.conv_norm(widths[i], widths[i + 1], kernel, step, use_bias=use_bias, **options))
        self.convs = nnx.List(convs)
        changes = stride != 1 or inputs != outputs
        self.shortcut = nnx.data(
            make.conv_norm(inputs, outputs, 1, stride, use_bias=use_bias, activation=None) if changes else None
        )

    def __call__(self, x: Array) -> Array:
        branch = x
        for conv in self.convs:
            branch = conv(branch)
        return nnx.relu(branch + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(Network):
    """A stem, four stages of residual blocks, an average, one linear layer.

    Args:
      block: "basic" (two 3x3 convolutions) or "bottleneck" (1x1, 3x3, 1x1 with four times as many outputs).
      depths: blocks in each stage.
      widths: channels of each stage, before a bottleneck's factor of four.
      strides: of the first block in each stage.
      groups: of a bottleneck's 3x3 convolution (ResNeXt's cardinality).
      width_per_group: channels of a group in the first stage; `groups * width_per_group / 64` widens a bottleneck.
      stem: "imagenet" (7x7 with stride 2, then a maximum over 3x3 with stride 2) or "cifar" (3x3, for small images).
      stem_width: channels of the stem.
      stride_in_1x1: True strides in the first 1x1 convolution of a bottleneck, as the paper and Keras do; False in the
        3x3 one, as torchvision does ("v1.5").
      use_bias: biases in the convolutions, as in Keras.
      zero_init_residual: start each block as its shortcut (Goyal et al., arXiv:1706.02677, section 5.1).
      epsilon, momentum: of batch norm, the momentum as in Flax (0.9 is torch's 0.1). Keras' epsilon is 1.001e-5.
      num_classes, in_channels, dtype, param_dtype, layers, rngs: see `convjax.models`.

    Stages: stem, stage1 to stage4, pooled, logits.

    Raises:
      ValueError: an unknown `block` or `stem`, groups in a basic block; when called, x has other channels.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from convjax.models import ResNet
      >>> model = ResNet(block="basic", depths=(1, 1), widths=(8, 16), strides=(1, 2), stem="cifar", rngs=nnx.Rngs(0))
      >>> {name: y.shape for name, y in model.features(jnp.ones((2, 8, 8, 3))).items()}
      {'stem': (2, 8, 8, 64), 'stage1': (2, 8, 8, 8), 'stage2': (2, 4, 4, 16), 'pooled': (2, 16), 'logits': (2, 1000)}

    Source: He, Zhang, Ren and Sun, Deep residual learning for image recognition, arXiv:1512.03385, table 1; Xie et al.,
    ResNeXt, arXiv:1611.05431, table 1; Zagoruyko and Komodakis, Wide residual networks, arXiv:1605.07146, table 8.
    """

    def __init__(
        self,
        *,
        block: str = "bottleneck",
        depths: Sequence[int] = (3, 4, 6, 3),
        widths: Sequence[int] = (64, 128, 256, 512),
        strides: Sequence[int] = (1, 2, 2, 2),
        groups: int = 1,
        width_per_group: int = 64,
        stem: str = "imagenet",
        stem_width: int = 64,
        stride_in_1x1: bool = False,
        use_bias: bool = False,
        zero_init_residual: bool = False,
        epsilon: float = 1e-5,
        momentum: float = 0.9,
        num_classes: int = 1000,
        in_channels: int = 3,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        layers: ModuleType = LAYERS,
        rngs: nnx.Rngs,
    ):
        bottleneck = arguments.choice("ResNet", "block", block, ("basic", "bottleneck")) == "bottleneck"
        if not bottleneck and (groups, width_per_group) != (1, 64):
            raise ValueError(
                f"ResNet: groups={groups}, width_per_group={width_per_group} are for bottlenecks, but block='basic'. "
                "Type block='bottleneck', or leave both out."
            )
        make = Layers(
            rngs=rngs, dtype=dtype, param_dtype=param_dtype, source=layers, epsilon=epsilon, momentum=momentum
        )
        self.in_channels = in_channels
        self.stem_pool = arguments.choice("ResNet", "stem", stem, ("imagenet", "cifar")) == "imagenet"
        kernel, stride = (7, 2) if self.stem_pool else (3, 1)
        self.stem = make.conv_norm(in_channels, stem_width, kernel, stride, use_bias=use_bias)
        channels, stages = stem_width, []
        for depth, base, first_stride in zip(depths, widths, strides, strict=True):
            outputs = 4 * base if bottleneck else base
            blocks = []
            for i in range(depth):
                blocks.append(
                    Residual(
                        make,
                        channels,
                        outputs,
                        width=base * width_per_group // 64 * groups,
                        stride=first_stride if i == 0 else 1,
                        groups=groups,
                        bottleneck=bottleneck,
                        stride_in_1x1=stride_in_1x1,
                        use_bias=use_bias,
                        zero_init=zero_init_residual,
                    )
                )
                channels = outputs
            stages.append(blocks)
        self.stages = stack(stages)
        self.head = make.linear(channels, num_classes)

    def walk(self, x: Array) -> Iterator[tuple[str, Array]]:
        """Stages of the network."""
        x = self.stem(x)
        x = max_pool(x, 3, 2, padding=1) if self.stem_pool else x
        yield "stem", x
        x = yield from run_stages(self.stages, x)
        x = global_average(x)
        yield "pooled", x
        yield "logits", self.head(x)


SHALLOW, MIDDLE, DEEP = (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3)

VARIANTS = {
    "resnet18": partial(ResNet, block="basic", depths=(2, 2, 2, 2)),
    "resnet34": partial(ResNet, block="basic", depths=SHALLOW),
    "resnet50": partial(ResNet, depths=SHALLOW),
    "resnet101": partial(ResNet, depths=MIDDLE),
    "resnet152": partial(ResNet, depths=DEEP),
    "resnext50_32x4d": partial(ResNet, depths=SHALLOW, groups=32, width_per_group=4),
    "resnext101_32x8d": partial(ResNet, depths=MIDDLE, groups=32, width_per_group=8),
    "resnext101_64x4d": partial(ResNet, depths=MIDDLE, groups=64, width_per_group=4),
    "wide_resnet50_2": partial(ResNet, depths=SHALLOW, width_per_group=128),
    "wide_resnet101_2": partial(ResNet, depths=MIDDLE, width_per_group=128),
}
