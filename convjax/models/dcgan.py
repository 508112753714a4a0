"""DCGAN: a generator of transposed convolutions and a discriminator of strided ones."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Num

from convjax._core import arguments
from convjax.models.blocks import LAYERS, Layers, Network


def halvings(where: str, image_size: Any) -> int:
    """How often an image is halved down to 4 pixels."""
    number = arguments.integer(where, "image_size", image_size, 8)
    if number & (number - 1):
        raise ValueError(
            f"{where}: image_size={number} must be a power of two: it is halved down to 4. "
            f"Type image_size={1 << number.bit_length()}."
        )
    return number.bit_length() - 3


def make_layers(rngs: nnx.Rngs, dtype: Any, param_dtype: Any, layers: Any, momentum: float) -> Layers:
    """Weights of a deviation of 0.02 (section 3 of the paper)."""
    init = nnx.initializers.normal(0.02)
    return Layers(rngs=rngs, dtype=dtype, param_dtype=param_dtype, source=layers, kernel_init=init, momentum=momentum)


class DCGANGenerator(Network):
    """Noise to images in [-1, 1]: 4x4 pixels, then twice as many with every transposed convolution.

    Args:
      latent: length of the noise vector.
      width: channels before the last layer; twice as many a layer earlier, and so on.
      image_size: height and width of the images, a power of two from 8.
      out_channels: channels of the images.
      momentum: of batch norm, as in Flax (0.9 is torch's 0.1).
      dtype, param_dtype, layers, rngs: see `convjax.models`.

    Stages: stage1 (4x4 pixels), stage2, ..., image.

    Raises:
      ValueError: an image size that is not a power of two from 8; when called, noise of another length.

    Example:
      >>> import jax
      >>> from flax import nnx
      >>> from convjax.models import DCGANGenerator
      >>> generator = DCGANGenerator(latent=16, width=4, image_size=8, rngs=nnx.Rngs(0))
      >>> generator(jax.random.normal(jax.random.key(0), (2, 16))).shape
      (2, 8, 8, 3)

    Source: Radford, Metz and Chintala, Unsupervised representation learning with deep convolutional generative
    adversarial networks, arXiv:1511.06434, section 3 and figure 1; kernels of 4x4 as in PyTorch's DCGAN tutorial.
    """

    def __init__(
        self,
        *,
        latent: int = 100,
        width: int = 64,
        image_size: int = 64,
        out_channels: int = 3,
        momentum: float = 0.9,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        layers: ModuleType = LAYERS,
        rngs: nnx.Rngs,
    ):
        make = make_layers(rngs, dtype, param_dtype, layers, momentum)
        self.latent = latent
        doublings = halvings("DCGANGenerator", image_size)
        widths = [width * 2**i for i in reversed(range(doublings))]
        ups = [make.conv_transpose(latent, widths[0], (4, 4), 1, padding="VALID", use_bias=False)]
        for inputs, outputs in zip(widths, [*widths[1:], out_channels], strict=True):
            ups.append(make.conv_transpose(inputs, outputs, (4, 4), 2, padding="SAME", use_bias=False))
        self.ups = nnx.List(ups)
        self.norms = nnx.List([make.batch_norm(w, scale_init=scale_init) for w in widths])

    def check(self, x: Any) -> Array:
        """Vectors of noise."""
        if jnp.ndim(x) < 1 or jnp.shape(x)[-1] != self.latent:
            raise ValueError(
                f"DCGANGenerator: noise of shape {jnp.shape(x)} must have latent={self.latent} entries along its last "
                f"axis. Type jax.random.normal(key, (batch, {self.latent}))."
            )
        return jnp.asarray(x)

    def walk(self, x: Num[Array, "*batch latent"]) -> Iterator[tuple[str, Array]]:
        """Stages of the network."""
        x = x[..., None, None, :]
        for number, (up, norm) in enumerate(zip(self.ups, self.norms, strict=False), 1):
            x = nnx.relu(norm(up(x)))
            yield f"stage{number}", x
        yield "image", jnp.tanh(self.ups[-1](x))


class DCGANDiscriminator(Network):
    """Images to one logit, positive for real ones: 4x4 convolutions with stride 2 down to 4x4 pixels.

    Args:
      width: channels after the first layer, doubled with every further one.
      image_size: height and width of the images, a power of two from 8.
      slope: of the leaky ReLU below zero.
      num_classes: outputs.
      in_channels: channels of the images.
      momentum, dtype, param_dtype, layers, rngs: as `DCGANGenerator`.

    Stages: stage1, stage2, ..., logits.

    Raises:
      ValueError: an image size that is not a power of two from 8; when called, x of another size or number of channels.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from convjax.models import DCGANDiscriminator
      >>> DCGANDiscriminator(width=4, image_size=8, rngs=nnx.Rngs(0))(jnp.ones((2, 8, 8, 3))).shape
      (2, 1)

    Source: as `DCGANGenerator`.
    """

    def __init__(
        self,
        *,
        width: int = 64,
        image_size: int = 64,
        slope: float = 0.2,
        num_classes: int = 1,
        in_channels: int = 3,
        momentum: float = 0.9,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        layers: ModuleType = LAYERS,
        rngs: nnx.Rngs,
    ):
        make = make_layers(rngs, dtype, param_dtype, layers, momentum)
        self.in_channels = in_channels
        widths = [width * 2**i for i in range(halvings("DCGANDiscriminator", image_size))]
        self.image_size = image_size
        activation = lambda x: nnx.leaky_relu(x, slope)
        downs = []
        for i, (inputs, outputs) in enumerate(zip([in_channels, *widths], widths, strict=False)):
            downs.append(
                make.conv_norm(
                    inputs,
                    outputs,
                    4,
                    2,
                    norm=i > 0,  # none at the input: section 3
                    use_bias=False,
                    padding=1,
                    scale_init=scale_init,
                    activation=activation,
                )
            )
        self.downs = nnx.List(downs)
        self.head = make.conv(widths[-1], num_classes, 4, padding="VALID", use_bias=False)

    def walk(self, x: Array) -> Iterator[tuple[str, Array]]:
        """Stages of the network."""
        for number, down in enumerate(self.downs, 1):
            x = down(x)
            yield f"stage{number}", x
        yield "logits", self.head(x)[..., 0, 0, :]


def scale_init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Scales of batch norm around 1, as PyTorch's DCGAN tutorial starts them."""
    return 1 + 0.02 * jax.random.normal(key, shape, dtype)


VARIANTS: dict[str, type[Network]] = {"dcgan_generator": DCGANGenerator, "dcgan_discriminator": DCGANDiscriminator}
