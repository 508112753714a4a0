"""MobileNet V2: inverted residuals, a narrow shortcut around a wide depthwise convolution."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from convjax._core import arguments
from convjax.models.blocks import LAYERS, Layers, Network, global_average, round_channels, run_stages, stack

SETTINGS = (  # table 2: expansion, channels, blocks, stride
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nnx.Module):
    """1x1 to `expansion` times the channels, depthwise 3x3, 1x1 back without activation; a shortcut where shapes allow.

    An expansion of 1 has no first convolution (Sandler et al., section 3.3 and figure 4).
    """

    def __init__(self, make: Layers, inputs: int, outputs: int, *, stride: int, expansion: int, padding: object):
        width = inputs * expansion
        self.expand = nnx.data(make.conv_norm(inputs, width, 1, activation=nnx.relu6) if expansion != 1 else None)
        self.depthwise = make.conv_norm(
            width, width, 3, stride, feature_group_count=width, padding=padding, activation=nnx.relu6
        )
        self.project = make.conv_norm(width, outputs, 1, activation=None)
        self.shortcut = stride == 1 and inputs == outputs

    def __call__(self, x: Array) -> Array:
        branch = x if self.expand is None else self.expand(x)
        branch = self.project(self.depthwise(branch))
        return x + branch if self.shortcut else branch


class MobileNetV2(Network):
    """A stem, seven stages of inverted residuals, a 1x1 convolution, an average, one linear layer.

    Args:
      width: multiplies the channels of every layer; those of the last convolution only above 1.
      settings: for each stage expansion, channels, blocks and stride of the first.
      head_channels: of the last convolution.
      divisor: channels are rounded to its multiples.
      padding: "symmetric" (one at both ends, as in torchvision) or "SAME" (as in TensorFlow, Keras and transformers: a
        stride of 2 pads an even size at its end only).
      dropout: rate before the linear layer.
      epsilon, momentum: of batch norm, the momentum as in Flax (0.9 is torch's 0.1). TensorFlow's epsilon is 1e-3.
      num_classes, in_channels, dtype, param_dtype, layers, rngs: see `convjax.models`.

    Stages: stem, stage1 to stage7, head, pooled, logits.

    Raises:
      ValueError: an unknown `padding`; when called, x has other channels.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from convjax.models import MobileNetV2
      >>> model = MobileNetV2(settings=((6, 24, 1, 2),), num_classes=10, rngs=nnx.Rngs(0))
      >>> model(jnp.ones((2, 32, 32, 3))).shape
      (2, 10)

    Source: Sandler et al., MobileNetV2: inverted residuals and linear bottlenecks, arXiv:1801.04381, table 2.
    """

    def __init__(
        self,
        *,
        width: float = 1.0,
        settings: Sequence[Sequence[int]] = SETTINGS,
        head_channels: int = 1280,
        divisor: int = 8,
        padding: str = "symmetric",
        dropout: float = 0.2,
        epsilon: float = 1e-5,
        momentum: float = 0.9,
        num_classes: int = 1000,
        in_channels: int = 3,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        layers: ModuleType = LAYERS,
        rngs: nnx.Rngs,
    ):
        make = Layers(
            rngs=rngs, dtype=dtype, param_dtype=param_dtype, source=layers, epsilon=epsilon, momentum=momentum
        )
        same = arguments.choice("MobileNetV2", "padding", padding, ("symmetric", "SAME")) == "SAME"
        pads: object = "SAME" if same else 1
        self.in_channels = in_channels
        channels = round_channels(32 * width, divisor)
        self.stem = make.conv_norm(in_channels, channels, 3, 2, padding=pads, activation=nnx.relu6)
        stages = []
        for expansion, outputs, depth, first_stride in settings:
            outputs = round_channels(outputs * width, divisor)
            blocks = []
            for i in range(depth):
                stride = first_stride if i == 0 else 1
                blocks.append(
                    InvertedResidual(make, channels, outputs, stride=stride, expansion=expansion, padding=pads)
                )
                channels = outputs
            stages.append(blocks)
        self.stages = stack(stages)
        last = round_channels(head_channels * max(1.0, width), divisor)
        self.last = make.conv_norm(channels, last, 1, activation=nnx.relu6)
        self.dropout = make.dropout(dropout)
        self.head = make.linear(last, num_classes)

    def walk(self, x: Array) -> Iterator[tuple[str, Array]]:
        """Stages of the network."""
        x = self.stem(x)
        yield "stem", x
        x = yield from run_stages(self.stages, x)
        x = self.last(x)
        yield "head", x
        x = global_average(x)
        yield "pooled", x
        yield "logits", self.head(self.dropout(x))


VARIANTS = {"mobilenet_v2": MobileNetV2}
