"""WaveNet: dilated causal convolutions over samples, and generation that computes each sample once.

A full pass over T samples costs T outputs a layer. To generate with it anew for every sample would cost T times that;
here each layer keeps the inputs that its next output needs in a queue, so that a sample costs one output a layer (Paine
et al., Fast Wavenet generation algorithm, arXiv:1611.09482, section 2).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from convjax._core import arguments
from convjax.models.blocks import LAYERS, Layers, Network

DILATIONS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)  # section 2.1


@partial(jax.tree_util.register_dataclass, data_fields=["time", "queues"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class WaveNetCache:
    """What generation remembers: how many samples came, and for each convolution its latest inputs, as a ring."""

    time: Array
    queues: tuple[Array, ...]


class GatedBlock(nnx.Module):
    """tanh(filter) * sigmoid(gate) of a dilated causal convolution (equation 2), then 1x1 to the residual and the skip.

    The last block of a network has no residual output, as nothing reads it.
    """

    def __init__(self, make: Layers, residual: int, dilated: int, skip: int, *, kernel: int, dilation: int, last: bool):
        self.conv = make.conv(residual, 2 * dilated, (kernel,), padding="CAUSAL", kernel_dilation=dilation)
        self.residual = nnx.data(None if last else make.linear(dilated, residual))
        self.skip = make.linear(dilated, skip)

    def finish(self, x: Array, filter_and_gate: Array) -> tuple[Array, Array]:
        """Residual and skip output from the block's input and that of its convolution."""
        filtered, gate = jnp.split(filter_and_gate, 2, axis=-1)
        z = jnp.tanh(filtered) * nnx.sigmoid(gate)
        return x if self.residual is None else x + self.residual(z), self.skip(z)


class WaveNet(Network):
    """The distribution of each sample given all before it.

    Takes quantised samples (`mu_law_encode`) and gives logits: those at time t are of sample t + 1. So the loss of a
    batch is the cross entropy of `model(x[:, :-1])` and `x[:, 1:]`.

    Args:
      num_classes: quantisation levels.
      dilations: one for each block of a stack.
      stacks: how often they are repeated.
      residual, dilated, skip: channels of the residual path, of filter and gate, and of the skip path.
      kernel_size: taps of the causal convolutions, at least 2.
      dtype, param_dtype, layers, rngs: see `convjax.models`.

    Stages: stem, stack1, stack2, ... (the skip path so far), logits.

    Raises:
      TypeError: when called, x does not hold integers.
      ValueError: a kernel size below 2; when called, x has no time axis, or no samples.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from convjax.models import WaveNet
      >>> model = WaveNet(num_classes=16, dilations=(1, 2), stacks=1, residual=4, dilated=4, skip=8, rngs=nnx.Rngs(0))
      >>> model(jnp.ones((2, 30), jnp.int32)).shape, model.receptive_field
      ((2, 30, 16), 5)
      >>> model.generate(jnp.ones((2, 1), jnp.int32), 20, key=jax.random.key(1)).shape
      (2, 20)

    Source: van den Oord et al., WaveNet: a generative model for raw audio, arXiv:1609.03499, section 2 and figure 4.
    """

    def __init__(
        self,
        *,
        num_classes: int = 256,
        dilations: Sequence[int] = DILATIONS,
        stacks: int = 3,
        residual: int = 64,
        dilated: int = 64,
        skip: int = 256,
        kernel_size: int = 2,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        layers: ModuleType = LAYERS,
        rngs: nnx.Rngs,
    ):
        init = nnx.initializers.lecun_normal()
        make = Layers(
            rngs=rngs, dtype=dtype, param_dtype=param_dtype, source=layers, kernel_init=init, linear_init=init
        )
        kernel = arguments.integer("WaveNet", "kernel_size", kernel_size, 2)
        self.num_classes = num_classes
        self.dtype = jnp.dtype(param_dtype if dtype is None else dtype)
        self.blocks_per_stack = len(dilations)
        steps = [*dilations] * arguments.integer("WaveNet", "stacks", stacks, 1)
        self.receptive_field = 1 + (kernel - 1) * (1 + sum(steps))
        self.stem = make.conv(num_classes, residual, (kernel,), padding="CAUSAL")
        self.blocks: nnx.List[GatedBlock] = nnx.List([])
        for left, step in zip(reversed(range(len(steps))), steps, strict=True):
            self.blocks.append(GatedBlock(make, residual, dilated, skip, kernel=kernel, dilation=step, last=left == 0))
        self.hidden = make.linear(skip, skip)
        self.head = make.linear(skip, num_classes)

    def check(self, x: Any) -> Array:
        """Quantised samples."""
        x = arguments.array("WaveNet", "x", x)
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise TypeError(f"WaveNet: x must hold integers, quantised samples, got {x.dtype}. Type mu_law_encode(x).")
        if x.ndim < 1 or x.shape[-1] < 1:
            raise ValueError(f"WaveNet: x of shape {x.shape} must have time as its last axis, with a sample or more.")
        return x

    def walk(self, x: Int[Array, "*batch time"]) -> Iterator[tuple[str, Array]]:
        """Stages of the network."""
        x = self.stem(self._one_hot(x))
        yield "stem", x
        skips: Any = 0
        for number, block in enumerate(self.blocks, 1):
            x, skip = block.finish(x, block.conv(x))
            skips = skips + skip
            if number % self.blocks_per_stack == 0:
                yield f"stack{number // self.blocks_per_stack}", skips
        yield "logits", self._logits(skips)

    def init_cache(self, batch: Sequence[int] = ()) -> WaveNetCache:
        """Of samples of shape `batch`, before the first one."""
        convs = [self.stem, *(block.conv for block in self.blocks)]
        lengths = [(conv.kernel_size[0] - 1) * conv.kernel_dilation for conv in convs]
        queues = [jnp.zeros((*batch, n, c.in_features), self.dtype) for c, n in zip(convs, lengths, strict=True)]
        return WaveNetCache(jnp.zeros((), jnp.int32), tuple(queues))

    def step(self, x: Int[Array, "*batch"], cache: WaveNetCache) -> tuple[Float[Array, "*batch classes"], WaveNetCache]:
        """Logits of the next sample after one more, `x`: those that a full pass over all so far has at its end."""
        queues = iter(cache.queues)
        y, queue = advance(self.stem, self._one_hot(x), next(queues), cache.time)
        skips: Any = 0
        filled = [queue]
        for block in self.blocks:
            filter_and_gate, queue = advance(block.conv, y, next(queues), cache.time)
            y, skip = block.finish(y, filter_and_gate)
            skips = skips + skip
            filled.append(queue)
        return self._logits(skips), WaveNetCache(cache.time + 1, tuple(filled))

    def generate(
        self, prompt: Int[Array, "*batch given"], length: int, *, key: Array, temperature: float = 1.0
    ) -> Int[Array, "*batch length"]:
        """Samples that continue `prompt`, one compiled loop.

        Args:
          prompt: the samples before, at least one.
          length: how many to generate.
          key: of the random choice.
          temperature: divides the logits; 0 takes the likeliest sample.

        Returns:
          the new samples, without the prompt, in the dtype of `prompt`.

        Raises:
          TypeError, ValueError: as the network itself; a length below 1; a temperature below 0.
        """
        length = arguments.integer("WaveNet.generate", "length", length, 1)
        if not temperature >= 0:
            raise ValueError(f"WaveNet.generate: temperature={temperature} must be at least 0. Type temperature=1.0.")
        return _jitted(self, self.check(prompt), key, length, float(temperature))

    def _one_hot(self, x: Array) -> Array:
        return jax.nn.one_hot(x, self.num_classes, dtype=self.dtype)

    def _logits(self, skips: Array) -> Array:
        return self.head(nnx.relu(self.hidden(nnx.relu(skips))))


def advance(conv: Any, x: Array, queue: Array, time: Array) -> tuple[Array, Array]:
    """One output of a causal convolution: its last tap sees `x`, the others the queue: input t is at t mod length.

    The queue starts as zeros, which are the zeros that the full pass pads.
    """
    kernel_size, dilation, length = conv.kernel_size[0], conv.kernel_dilation, queue.shape[-2]
    past = queue[..., (time - dilation * jnp.arange(kernel_size - 1, 0, -1)) % length, :]
    taps = jnp.concatenate([past, x[..., None, :]], axis=-2)
    taps, kernel, bias = conv.promote_dtype((taps, conv.kernel[...], conv.bias[...]), dtype=conv.dtype)
    out = jnp.einsum("...kc,kco->...o", taps, kernel, precision=conv.precision) + bias
    return out, queue.at[..., time % length, :].set(x.astype(queue.dtype))


def _generate(model: WaveNet, prompt: Array, key: Array, length: int, temperature: float) -> Array:
    batch, given = prompt.shape[:-1], prompt.shape[-1]

    def body(carry: tuple[Array, WaveNetCache], step: tuple[Array, Array]) -> tuple[tuple[Array, WaveNetCache], Array]:
        last, cache = carry
        time, key = step
        logits, cache = model.step(last, cache)
        if temperature == 0:
            chosen = logits.argmax(-1)
        else:
            chosen = jax.random.categorical(key, logits.astype(jnp.float32) / temperature)
        prompted = prompt[..., jnp.minimum(time + 1, given - 1)]  # while the prompt lasts, it is what comes next
        sample = jnp.where(time + 1 < given, prompted, chosen.astype(prompt.dtype))
        return (sample, cache), sample

    steps = given - 1 + length
    times, keys = jnp.arange(steps), jax.random.split(key, steps)
    _, samples = lax.scan(body, (prompt[..., 0], model.init_cache(batch)), (times, keys))
    return jnp.moveaxis(samples[given - 1 :], 0, -1)


_jitted: Any = nnx.jit(_generate, static_argnums=(3, 4))


def mu_law_encode(x: Float[Array, "*shape"], levels: int = 256) -> Int[Array, "*shape"]:
    """Quantise samples in [-1, 1] to `levels` numbers from 0, finer around silence; what is louder is clipped.

    Example:
      >>> import jax.numpy as jnp
      >>> from convjax.models import mu_law_encode
      >>> mu_law_encode(jnp.array([-1.0, 0.0, 0.01, 1.0])).tolist()
      [0, 128, 157, 255]

    Source: van den Oord et al., arXiv:1609.03499, section 2.2; ITU-T G.711.
    """
    mu = levels - 1
    x = jnp.clip(jnp.asarray(x), -1, 1)
    compressed = jnp.sign(x) * jnp.log1p(mu * jnp.abs(x)) / jnp.log1p(mu)
    return jnp.floor((compressed + 1) / 2 * mu + 0.5).astype(jnp.int32)


def mu_law_decode(y: Int[Array, "*shape"], levels: int = 256) -> Float[Array, "*shape"]:
    """Samples in [-1, 1] from the numbers of `mu_law_encode`.

    Example:
      >>> import jax.numpy as jnp
      >>> from convjax.models import mu_law_decode, mu_law_encode
      >>> x = jnp.linspace(-1, 1, 1001)
      >>> bool(jnp.abs(mu_law_decode(mu_law_encode(x)) - x).max() < 0.022)
      True

    Source: as `mu_law_encode`.
    """
    mu = levels - 1
    compressed = 2 * jnp.asarray(y, jnp.float32) / mu - 1
    return jnp.sign(compressed) * jnp.expm1(jnp.abs(compressed) * jnp.log1p(mu)) / mu


VARIANTS = {"wavenet": WaveNet}
