"""LeNet-5, in the form that is common today: 61,706 parameters."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from convjax._core import arguments
from convjax.models.blocks import LAYERS, Activation, Layers, Network, max_pool


class LeNet5(Network):
    """Two 5x5 convolutions with pooling, then three fully connected layers.

    The modern form: every feature map is connected to all of the previous layer, pooling has no weights, the output is
    linear. The paper's own squashing is nearly `activation=jnp.tanh`, its subsampling nearly `pool="average"`.

    Args:
      num_classes: outputs.
      in_channels: channels of the images.
      image_size: height and width of the images. 28 is padded to the paper's 32, other sizes are taken as they are.
      activation: after each layer but the last.
      pool: "max" or "average", over 2x2 pixels.
      dtype, param_dtype, layers, rngs: see `convjax.models`.

    Stages: stage1, stage2, hidden1, hidden2, logits.

    Raises:
      ValueError: an image size below 12, or an unknown `pool`; when called, x of another size or number of channels.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from convjax.models import LeNet5
      >>> LeNet5(rngs=nnx.Rngs(0))(jnp.ones((2, 28, 28, 1))).shape
      (2, 10)

    Source: LeCun, Bottou, Bengio and Haffner, Gradient-based learning applied to document recognition, Proceedings of
    the IEEE 86(11), 1998, section II.B.
    """

    def __init__(
        self,
        *,
        num_classes: int = 10,
        in_channels: int = 1,
        image_size: int = 28,
        activation: Activation = nnx.relu,
        pool: str = "max",
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        layers: ModuleType = LAYERS,
        rngs: nnx.Rngs,
    ):
        make = Layers(
            rngs=rngs, dtype=dtype, param_dtype=param_dtype, source=layers, linear_init=nnx.initializers.he_normal()
        )
        self.in_channels = in_channels
        self.image_size = arguments.integer("LeNet5", "image_size", image_size, 12)
        self.activation = activation
        self.pool = arguments.choice("LeNet5", "pool", pool, ("max", "average"))
        padded = 32 if image_size == 28 else image_size
        size = ((padded - 4) // 2 - 4) // 2
        self.conv1 = make.conv(in_channels, 6, 5, padding=(padded - image_size) // 2)
        self.conv2 = make.conv(6, 16, 5, padding=0)
        self.linear1 = make.linear(size * size * 16, 120)
        self.linear2 = make.linear(120, 84)
        self.head = make.linear(84, num_classes)

    def walk(self, x: Array) -> Iterator[tuple[str, Array]]:
        """Stages of the network."""
        for name, conv in (("stage1", self.conv1), ("stage2", self.conv2)):
            x = self._subsample(self.activation(conv(x)))
            yield name, x
        x = x.reshape(*x.shape[:-3], -1)
        for name, linear in (("hidden1", self.linear1), ("hidden2", self.linear2)):
            x = self.activation(linear(x))
            yield name, x
        yield "logits", self.head(x)

    def _subsample(self, x: Array) -> Array:
        return max_pool(x, 2, 2) if self.pool == "max" else nnx.avg_pool(x, (2, 2), strides=(2, 2))


VARIANTS = {"lenet5": LeNet5}
