"""What the networks share: how they are walked through, how their layers are made, and the pooling they need.

Every network is a `Network`: a walk through named stages. `model(x)` is the last of them, `model.features(x)` are all.
Every constructor takes, beside its own options:

- `num_classes`, `in_channels`: outputs and input channels.
- `dtype`: what is computed in and returned (None: the widest of input and parameters). Weights and statistics are kept
  in `param_dtype` and float32, and batch and layer norm sum in float32.
- `layers`: the module that `Conv` and `ConvTranspose` are taken from; `flax.nnx` gives Flax's own ones.
- `rngs`: keys for the initial weights and for dropout.

`model.train()` (the initial state) and `model.eval()` switch dropout, stochastic depth and batch statistics, as in
Flax.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Num

from convjax import nnx as convjax_layers

Activation = Callable[[Array], Array]

LAYERS: Any = convjax_layers
HE_NORMAL = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")  # He et al., arXiv:1502.01852, equation 14

SMALL_NORMAL = nnx.initializers.normal(0.01)  # as torchvision starts the linear layers of VGG and MobileNet V2
ONES = nnx.initializers.ones_init()


class Network(nnx.Module):
    """A network as a walk through named stages, channels last, any number of batch axes.

    A subclass sets `in_channels`, where it needs to `ndim`, `smallest` and `image_size`, and writes `walk`.
    """

    in_channels: int
    ndim: int = 2
    smallest: int = 1
    image_size: int | None = None

    @abc.abstractmethod
    def walk(self, x: Array) -> Iterator[tuple[str, Array]]:
        """Name and output of each stage, in order; the last is the output of the network."""

    def check(self, x: Any) -> Array:
        """Refuse an input that the network cannot take, in the words of its constructor."""
        where, shape = type(self).__name__, jnp.shape(x)
        if len(shape) < self.ndim + 1 or shape[-1] != self.in_channels:
            hint = f"type x of shape (*batch, {'size, ' * self.ndim}{self.in_channels})"
            if len(shape) > self.ndim and shape[-self.ndim - 1] == self.in_channels:
                hint = f"for channels first type jnp.moveaxis(x, {-self.ndim - 1}, -1)"
            raise ValueError(
                f"{where}: x of shape {shape} must have {self.ndim} spatial axes, then in_channels={self.in_channels} "
                f"channels: {hint}, or build the network with another in_channels."
            )
        space = shape[-self.ndim - 1 : -1]
        if self.image_size is not None and set(space) != {self.image_size}:
            raise ValueError(
                f"{where}: x has spatial shape {space}, but was built for image_size={self.image_size}. "
                "Resize x, or build the network with another image_size."
            )
        if min(space) < self.smallest:
            raise ValueError(
                f"{where}: x has spatial shape {space}, but every axis must be at least {self.smallest}, or nothing is "
                f"left of it after the last stride. Enlarge x, e.g. by jax.image.resize."
            )
        return jnp.asarray(x)

    def features(self, x: Num[Array, "*batch_space_c"]) -> dict[str, Array]:
        """Outputs of all stages by name, in order; the last is `model(x)`.

        Under `jit` those that are not returned cost nothing; a dict that is returned comes back sorted by name.
        """
        return dict(self.walk(self.check(x)))

    def __call__(self, x: Num[Array, "*batch_space_c"]) -> Array:
        """Output of the last stage."""
        for _, out in self.walk(self.check(x)):  # noqa: B007
            pass
        return out


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layers:
    """Makes the layers of one network, with what they have in common."""

    rngs: nnx.Rngs
    dtype: DTypeLike | None
    param_dtype: DTypeLike
    source: Any
    kernel_init: Any = HE_NORMAL
    linear_init: Any = SMALL_NORMAL
    epsilon: float = 1e-5
    momentum: float = 0.9

    @property
    def common(self) -> dict[str, Any]:
        return dict(dtype=self.dtype, param_dtype=self.param_dtype, rngs=self.rngs)

    def conv(self, inputs: int, outputs: int, kernel: int | Sequence[int] = 3, stride: int = 1, **options: Any) -> Any:
        """A 2-D convolution (or that of the axes of `kernel`), padded by half the kernel at both ends."""
        kernel = (kernel, kernel) if isinstance(kernel, int) else tuple(kernel)
        options = dict(padding=[(k // 2, k // 2) for k in kernel], kernel_init=self.kernel_init) | options
        return self.source.Conv(inputs, outputs, kernel, stride, **options, **self.common)

    def conv_transpose(self, inputs: int, outputs: int, kernel: Sequence[int], stride: int, **options: Any) -> Any:
        options = dict(kernel_init=self.kernel_init) | options
        strides = (stride,) * len(kernel)
        return self.source.ConvTranspose(inputs, outputs, tuple(kernel), strides, **options, **self.common)

    def batch_norm(self, channels: int, **options: Any) -> nnx.BatchNorm:
        return nnx.BatchNorm(channels, epsilon=self.epsilon, momentum=self.momentum, **options, **self.common)

    def layer_norm(self, channels: int, epsilon: float | None = None) -> nnx.LayerNorm:
        return nnx.LayerNorm(channels, epsilon=self.epsilon if epsilon is None else epsilon, **self.common)

    def linear(self, inputs: int, outputs: int, **options: Any) -> nnx.Linear:
        return nnx.Linear(inputs, outputs, **dict(kernel_init=self.linear_init) | options, **self.common)

    def dropout(self, rate: float) -> nnx.Dropout:
        return nnx.Dropout(rate, rngs=self.rngs)

    def stochastic_depth(self, rate: float) -> nnx.Dropout:
        """Drops a residual branch of an example as a whole (Huang et al., arXiv:1603.09382)."""
        return nnx.Dropout(rate, broadcast_dims=(-3, -2, -1), rngs=self.rngs)

    def conv_norm(self, *args: Any, activation: Activation | None = nnx.relu, **options: Any) -> ConvNorm:
        return ConvNorm(self, *args, activation=activation, **options)


class ConvNorm(nnx.Module):
    """Convolution, batch norm, activation.

    Args:
      make: the layers of the network.
      inputs, outputs, kernel, stride: as `Layers.conv`.
      activation: applied last; None for none.
      norm: False leaves batch norm out.
      use_bias: a bias in the convolution; unless given only where there is no norm, whose own bias makes it redundant.
      scale_init: initialiser of the scale of the norm.
      options: more of `Conv`'s.
    """

    def __init__(
        self,
        make: Layers,
        inputs: int,
        outputs: int,
        kernel: int | Sequence[int] = 3,
        stride: int = 1,
        *,
        activation: Activation | None = nnx.relu,
        norm: bool = True,
        use_bias: bool | None = None,
        scale_init: Any = ONES,
        **options: Any,
    ):
        self.conv = make.conv(
            inputs, outputs, kernel, stride, use_bias=not norm if use_bias is None else use_bias, **options
        )
        self.norm = nnx.data(make.batch_norm(outputs, scale_init=scale_init) if norm else None)
        self.activation = activation

    def __call__(self, x: Array) -> Array:
        x = self.conv(x)
        x = x if self.norm is None else self.norm(x)
        return x if self.activation is None else self.activation(x)


def max_pool(x: Array, window: int, stride: int, padding: int | str = 0, ndim: int = 2) -> Array:
    """Maximum over windows of the last `ndim` spatial axes, whatever the batch axes; padding never wins."""
    batch = x.ndim - ndim - 1
    each = lambda size: (1,) * batch + (size,) * ndim + (1,)
    pads = padding if isinstance(padding, str) else [(p - 1, p - 1) for p in each(padding + 1)]
    return lax.reduce_window(x, -jnp.inf, lax.max, each(window), each(stride), pads)


def global_average(x: Num[Array, "*batch h w c"]) -> Num[Array, "*batch c"]:
    """Mean over both spatial axes."""
    return x.mean((-3, -2))


def adaptive_average(x: Num[Array, "*batch h w c"], size: int) -> Num[Array, "*batch size size c"]:
    """Means over `size` x `size` windows that cover an image of any size, as torch's AdaptiveAvgPool2d.

    Window i of n pixels is [floor(i n / size), ceil((i + 1) n / size)); each axis is a product with a constant matrix.
    """
    if x.shape[-3:-1] == (size, size):
        return x
    rows, columns = (jnp.asarray(_window_means(n, size), x.dtype) for n in x.shape[-3:-1])
    return jnp.einsum("ih,jw,...hwc->...ijc", rows, columns, x)


def _window_means(n: int, size: int) -> np.ndarray:
    weights = np.zeros((size, n))
    for i in range(size):
        low, high = i * n // size, -(-(i + 1) * n // size)
        weights[i, low:high] = 1 / (high - low)
    return weights


def round_channels(channels: float, divisor: int = 8) -> int:
    """The multiple of `divisor` nearest to `channels`, at least `divisor` and never below 0.9 `channels`."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def stack(stages: Sequence[Sequence[nnx.Module]]) -> nnx.List:
    """Modules in a list of lists: `stages[i][j]` is block j of stage i."""
    return nnx.List([nnx.List(blocks) for blocks in stages])


def run_stages(stages: Any, x: Array) -> Generator[tuple[str, Array], None, Array]:
    """Yields `stage1`, `stage2`, ..., each the output of its last block, and returns the last."""
    for number, blocks in enumerate(stages, 1):
        for block in blocks:
            x = block(x)
        yield f"stage{number}", x
    return x
