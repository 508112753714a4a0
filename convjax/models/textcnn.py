"""TextCNN: convolutions of several widths over word vectors, the maximum over time, one linear layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Int

from convjax._core import arguments
from convjax.models.blocks import LAYERS, Layers, Network


class TextCNN(Network):
    """Classifies a sequence of word numbers.

    The paper's CNN-rand. Its CNN-non-static starts from given vectors (`model.embed.embedding[...] = vectors`); its
    CNN-static does not train them, which in Flax is a filter:
    `nnx.Optimizer(model, tx, wrt=nnx.All(nnx.Param, nnx.Not(nnx.PathContains("embed"))))`.

    Args:
      vocabulary: number of words.
      embedding: length of a word's vector.
      kernel_sizes: widths of the convolutions, in words.
      maps: outputs of each convolution.
      dropout: rate before the linear layer.
      num_classes, dtype, param_dtype, layers, rngs: see `convjax.models`.

    Stages: embedding, pooled (the maxima over time of all convolutions, narrowest first), logits.

    Raises:
      TypeError: when called, x does not hold integers.
      ValueError: when called, x is shorter than the widest kernel.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from convjax.models import TextCNN
      >>> TextCNN(vocabulary=50, embedding=8, maps=4, rngs=nnx.Rngs(0))(jnp.ones((2, 7), jnp.int32)).shape
      (2, 2)

    Source: Kim, Convolutional neural networks for sentence classification, arXiv:1408.5882, section 2 and 3.1.
    """

    def __init__(
        self,
        *,
        vocabulary: int = 20_000,
        embedding: int = 300,
        kernel_sizes: Sequence[int] = (3, 4, 5),
        maps: int = 100,
        dropout: float = 0.5,
        num_classes: int = 2,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        layers: ModuleType = LAYERS,
        rngs: nnx.Rngs,
    ):
        make = Layers(rngs=rngs, dtype=dtype, param_dtype=param_dtype, source=layers)
        uniform = nnx.initializers.uniform(0.5)  # section 3.2: U[-a, a], here with a = 0.25
        self.smallest = max(kernel_sizes)
        self.embed = nnx.Embed(
            arguments.integer("TextCNN", "vocabulary", vocabulary, 1),
            embedding,
            embedding_init=lambda *args, **kwargs: uniform(*args, **kwargs) - 0.25,
            **make.common,
        )
        self.convs = nnx.List([make.conv(embedding, maps, (size,), padding="VALID") for size in kernel_sizes])
        self.dropout = make.dropout(dropout)
        self.head = make.linear(maps * len(kernel_sizes), num_classes)

    def check(self, x: Any) -> Array:
        """Word numbers, at least as many as the widest kernel spans."""
        x = arguments.array("TextCNN", "x", x)
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise TypeError(f"TextCNN: x must hold integers, the numbers of words, got {x.dtype}. Type x.astype(int).")
        if x.ndim < 1 or x.shape[-1] < self.smallest:
            raise ValueError(
                f"TextCNN: x of shape {x.shape} must hold at least {self.smallest} words along its last axis, the "
                "widest of kernel_sizes. Pad x, or build the network with narrower kernels."
            )
        return x

    def walk(self, x: Int[Array, "*batch words"]) -> Iterator[tuple[str, Array]]:
        """Stages of the network."""
        x = self.embed(x)
        yield "embedding", x
        x = jnp.concatenate([nnx.relu(conv(x)).max(-2) for conv in self.convs], axis=-1)
        yield "pooled", x
        yield "logits", self.head(self.dropout(x))


VARIANTS = {"textcnn": TextCNN}
