"""VGG: 3x3 convolutions only, eleven to nineteen layers, with and without batch norm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from types import ModuleType

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from convjax.models.blocks import LAYERS, Layers, Network, adaptive_average, max_pool, stack

DEPTHS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}  # table 1


class VGG(Network):
    """Stages of 3x3 convolutions, each halved by a maximum, then three fully connected layers.

    Args:
      depths: convolutions in each stage.
      widths: channels of each stage.
      batch_norm: normalise after each convolution (which keeps its bias, as in torchvision).
      hidden: width of the two hidden fully connected layers.
      pooled_size: images of any size are averaged to this many cells along each axis before the fully connected layers;
        224 pixels need no averaging.
      dropout: rate after each hidden layer.
      epsilon, momentum: of batch norm, the momentum as in Flax (0.9 is torch's 0.1).
      num_classes, in_channels, dtype, param_dtype, layers, rngs: see `convjax.models`.

    Stages: stage1 to stage5, pooled, hidden1, hidden2, logits.

    Raises:
      ValueError: when called, x has other channels, or fewer pixels along an axis than 2 to the number of stages.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from convjax.models import VGG
      >>> model = nnx.eval_shape(lambda: VGG(depths=(1, 1, 2, 2, 2), rngs=nnx.Rngs(0)))
      >>> nnx.eval_shape(lambda model, x: model(x), model, jnp.ones((2, 224, 224, 3))).shape
      (2, 1000)

    Source: Simonyan and Zisserman, Very deep convolutional networks for large-scale image recognition,
    arXiv:1409.1556, table 1.
    """

    def __init__(
        self,
        *,
        depths: Sequence[int] = DEPTHS[16],
        widths: Sequence[int] = (64, 128, 256, 512, 512),
        batch_norm: bool = False,
        hidden: int = 4096,
        pooled_size: int = 7,
        dropout: float = 0.5,
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
        self.in_channels = in_channels
        self.smallest = 2 ** len(depths)
        self.pooled_size = pooled_size
        channels, stages = in_channels, []
        for depth, width in zip(depths, widths, strict=True):
            inputs = [channels] + [width] * (depth - 1)
            stages.append([make.conv_norm(c, width, norm=batch_norm, use_bias=True) for c in inputs])
            channels = width
        self.stages = stack(stages)
        self.linear1 = make.linear(channels * pooled_size**2, hidden)
        self.linear2 = make.linear(hidden, hidden)
        self.dropout = make.dropout(dropout)
        self.head = make.linear(hidden, num_classes)

    def walk(self, x: Array) -> Iterator[tuple[str, Array]]:
        """Stages of the network."""
        for number, blocks in enumerate(self.stages, 1):
            for block in blocks:
                x = block(x)
            x = max_pool(x, 2, 2)
            yield f"stage{number}", x
        x = adaptive_average(x, self.pooled_size)
        yield "pooled", x
        x = x.reshape(*x.shape[:-3], -1)
        for name, linear in (("hidden1", self.linear1), ("hidden2", self.linear2)):
            x = self.dropout(nnx.relu(linear(x)))
            yield name, x
        yield "logits", self.head(x)


VARIANTS = {
    f"vgg{number}{suffix}": partial(VGG, depths=depths, batch_norm=bool(suffix))
    for number, depths in DEPTHS.items()
    for suffix in ("", "_bn")
}
