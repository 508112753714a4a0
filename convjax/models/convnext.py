"""ConvNeXt: a residual network with the choices of vision transformers; its spatial mixing is a depthwise 7x7."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from types import ModuleType

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from convjax.models.blocks import LAYERS, Layers, Network, global_average, run_stages, stack


class ConvNeXtBlock(nnx.Module):
    """x + drop(scale * linear(gelu(linear(norm(depthwise 7x7(x)))))), four times as wide between the linear layers."""

    def __init__(self, make: Layers, channels: int, *, drop_rate: float, scale: float):
        self.depthwise = make.conv(channels, channels, 7, feature_group_count=channels)
        self.norm = make.layer_norm(channels)
        self.expand = make.linear(channels, 4 * channels)
        self.project = make.linear(4 * channels, channels)
        self.scale = nnx.Param(jnp.full((channels,), scale, make.param_dtype))
        self.drop = make.stochastic_depth(drop_rate)

    def __call__(self, x: Array) -> Array:
        branch = self.norm(self.depthwise(x))
        branch = self.project(nnx.gelu(self.expand(branch), approximate=False))
        return x + self.drop(self.scale[...].astype(branch.dtype) * branch)


class Downsample(nnx.Module):
    """Layer norm, then a 2x2 convolution with stride 2."""

    def __init__(self, make: Layers, inputs: int, outputs: int):
        self.norm = make.layer_norm(inputs)
        self.conv = make.conv(inputs, outputs, 2, 2, padding=0)

    def __call__(self, x: Array) -> Array:
        return self.conv(self.norm(x))


class ConvNeXt(Network):
    """A 4x4 patch stem, four stages, an average, layer norm, one linear layer.

    Args:
      depths: blocks in each stage.
      widths: channels of each stage.
      drop_rate: stochastic depth of the last block; that of the others falls linearly to 0 at the first.
      layer_scale: initial factor of every branch.
      epsilon: of the layer norms.
      head_epsilon: of the one before the linear layer; transformers' is 1e-12.
      num_classes, in_channels, dtype, param_dtype, layers, rngs: see `convjax.models`.

    Stages: stem, stage1 to stage4, pooled, logits.

    Raises:
      ValueError: when called, x has other channels, or fewer than 32 pixels along an axis (for four stages).

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from convjax.models import ConvNeXt
      >>> model = ConvNeXt(depths=(1,), widths=(8,), num_classes=10, rngs=nnx.Rngs(0))
      >>> model(jnp.ones((2, 32, 32, 3))).shape
      (2, 10)

    Source: Liu et al., A ConvNet for the 2020s, arXiv:2201.03545, section 3 and figure 4.
    """

    def __init__(
        self,
        *,
        depths: Sequence[int] = (3, 3, 9, 3),
        widths: Sequence[int] = (96, 192, 384, 768),
        drop_rate: float = 0.0,
        layer_scale: float = 1e-6,
        epsilon: float = 1e-6,
        head_epsilon: float = 1e-6,
        num_classes: int = 1000,
        in_channels: int = 3,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        layers: ModuleType = LAYERS,
        rngs: nnx.Rngs,
    ):
        init = nnx.initializers.normal(0.02)  # the paper truncates it at 100 deviations
        make = Layers(
            rngs=rngs,
            dtype=dtype,
            param_dtype=param_dtype,
            source=layers,
            epsilon=epsilon,
            kernel_init=init,
            linear_init=init,
        )
        self.in_channels = in_channels
        self.smallest = 4 * 2 ** (len(depths) - 1)
        self.stem = make.conv(in_channels, widths[0], 4, 4, padding=0)
        self.stem_norm = make.layer_norm(widths[0])
        rates = iter(np.linspace(0.0, drop_rate, sum(depths)).tolist())
        stages: list[list[nnx.Module]] = []
        for i, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            blocks: list[nnx.Module] = [Downsample(make, widths[i - 1], width)] if i else []
            blocks += [ConvNeXtBlock(make, width, drop_rate=next(rates), scale=layer_scale) for _ in range(depth)]
            stages.append(blocks)
        self.stages = stack(stages)
        self.norm = make.layer_norm(widths[-1], head_epsilon)
        self.head = make.linear(widths[-1], num_classes)

    def walk(self, x: Array) -> Iterator[tuple[str, Array]]:
        """Stages of the network."""
        x = self.stem_norm(self.stem(x))
        yield "stem", x
        x = yield from run_stages(self.stages, x)
        x = self.norm(global_average(x))
        yield "pooled", x
        yield "logits", self.head(x)


VARIANTS = {
    "convnext_tiny": partial(ConvNeXt, depths=(3, 3, 9, 3), widths=(96, 192, 384, 768), drop_rate=0.1),
    "convnext_small": partial(ConvNeXt, depths=(3, 3, 27, 3), widths=(96, 192, 384, 768), drop_rate=0.4),
    "convnext_base": partial(ConvNeXt, depths=(3, 3, 27, 3), widths=(128, 256, 512, 1024), drop_rate=0.5),
    "convnext_large": partial(ConvNeXt, depths=(3, 3, 27, 3), widths=(192, 384, 768, 1536), drop_rate=0.5),
}
