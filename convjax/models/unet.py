"""U-Net: an encoder, a decoder, and a skip connection at each resolution; an output for every input pixel."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from convjax._core import arguments
from convjax.models.blocks import LAYERS, Layers, Network, max_pool


class DoubleConv(nnx.Module):
    """Two convolutions of 3 taps an axis, each with ReLU."""

    def __init__(self, make: Layers, inputs: int, outputs: int, *, ndim: int, batch_norm: bool):
        self.conv1 = make.conv_norm(inputs, outputs, (3,) * ndim, norm=batch_norm)
        self.conv2 = make.conv_norm(outputs, outputs, (3,) * ndim, norm=batch_norm)

    def __call__(self, x: Array) -> Array:
        return self.conv2(self.conv1(x))


class Up(nnx.Module):
    """Twice the resolution by a transposed convolution, cropped to the skip connection and joined to it."""

    def __init__(self, make: Layers, inputs: int, outputs: int, *, ndim: int, batch_norm: bool):
        self.up = make.conv_transpose(inputs, outputs, (2,) * ndim, 2, padding="VALID")
        self.conv = DoubleConv(make, 2 * outputs, outputs, ndim=ndim, batch_norm=batch_norm)
        self.ndim = ndim

    def __call__(self, x: Array, skip: Array) -> Array:
        x = self.up(x)
        space = skip.shape[-self.ndim - 1 : -1]
        x = x[(..., *(slice(size) for size in space), slice(None))]
        return self.conv(jnp.concatenate([skip, x], axis=-1))


class UNet(Network):
    """U-Net with the size kept: zeros around every convolution, as most later work has it; the paper pads nothing.

    Sizes need not be multiples of `2**depth`: an odd one is halved upwards and its last row dropped on the way up, so
    that every pixel is seen and the output always has the size of the input.

    Args:
      depth: how often the resolution is halved, at least 0.
      width: channels at full resolution, doubled with every halving.
      batch_norm: normalise after each 3x3 convolution, instead of its bias.
      ndim: spatial axes.
      epsilon, momentum: of batch norm, the momentum as in Flax (0.9 is torch's 0.1).
      num_classes: output channels.
      in_channels, dtype, param_dtype, layers, rngs: see `convjax.models`.

    Stages: down1 to down`depth`, bottom, up`depth` to up1, logits.

    Raises:
      ValueError: a depth below 0, or `ndim` below 1; when called, x has another rank or other channels.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from convjax.models import UNet
      >>> UNet(depth=1, width=4, num_classes=5, in_channels=3, rngs=nnx.Rngs(0))(jnp.ones((1, 13, 10, 3))).shape
      (1, 13, 10, 5)

    Source: Ronneberger, Fischer and Brox, U-Net: convolutional networks for biomedical image segmentation,
    arXiv:1505.04597, figure 1.
    """

    def __init__(
        self,
        *,
        depth: int = 4,
        width: int = 64,
        batch_norm: bool = False,
        ndim: int = 2,
        epsilon: float = 1e-5,
        momentum: float = 0.9,
        num_classes: int = 2,
        in_channels: int = 1,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        layers: ModuleType = LAYERS,
        rngs: nnx.Rngs,
    ):
        make = Layers(
            rngs=rngs,
            dtype=dtype,
            param_dtype=param_dtype,
            source=layers,
            epsilon=epsilon,
            momentum=momentum,
            kernel_init=nnx.initializers.he_normal(),  # section 3: a deviation of sqrt(2 / inputs of a unit)
        )
        self.in_channels = in_channels
        self.ndim = arguments.integer("UNet", "ndim", ndim, 1)
        widths = [width * 2**i for i in range(arguments.integer("UNet", "depth", depth, 0) + 1)]
        inputs = [in_channels, *widths]
        options: dict[str, Any] = dict(ndim=ndim, batch_norm=batch_norm)
        self.down = nnx.List([DoubleConv(make, i, o, **options) for i, o in zip(inputs, widths[:-1], strict=False)])
        self.bottom = DoubleConv(make, inputs[depth], widths[depth], **options)
        self.up = nnx.List([Up(make, 2 * w, w, **options) for w in reversed(widths[:-1])])
        self.head = make.conv(width, num_classes, (1,) * ndim)

    def walk(self, x: Array) -> Iterator[tuple[str, Array]]:
        """Stages of the network."""
        skips = []
        for number, down in enumerate(self.down, 1):
            x = down(x)
            yield f"down{number}", x
            skips.append(x)
            x = max_pool(x, 2, 2, padding="SAME", ndim=self.ndim)
        x = self.bottom(x)
        yield "bottom", x
        for up in self.up:
            number = len(skips)
            x = up(x, skips.pop())
            yield f"up{number}", x
        yield "logits", self.head(x)


VARIANTS = {"unet": UNet}
