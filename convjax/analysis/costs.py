"""What a function or a network costs: parameters, multiply-adds, bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from convjax.analysis.modules import network
from convjax.analysis.operations import Operation
from convjax.analysis.walk import Step, Walk


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one run.

    Attributes:
      parameters: trained numbers of a Flax module; of a plain function, elements of its kernels and matrices.
      macs: multiply-adds of convolutions and matrix products, those with padding too, but in transposed convolutions,
        where the products with inputs alone are counted. What torchvision and many papers call FLOPs is this.
      bytes: operands and outputs of convolutions, matrix products and poolings, each moved once.
      operations: these, each with how often it runs.
    """

    parameters: int
    macs: int
    bytes: int
    operations: tuple[tuple[Operation, int], ...] = dataclasses.field(default=(), repr=False)

    @property
    def flops(self) -> int:
        """Floating-point operations: 2 for a multiply-add."""
        return 2 * self.macs

    @property
    def arithmetic_intensity(self) -> float:
        """FLOPs for each byte."""
        return self.flops / self.bytes if self.bytes else 0.0

    def __str__(self) -> str:
        return (
            f"{self.parameters:,} parameters, {self.macs / 1e9:.4g} GMAC, {self.bytes / 1e6:.4g} MB, "
            f"{self.arithmetic_intensity:.3g} FLOP/byte"
        )


def cost(fn: Callable, *args: Any, **kwargs: Any) -> Cost:
    """Parameters, multiply-adds and bytes of a function or a network. Nothing is computed.

    Convolutions and matrix products are counted as direct sums, whatever algorithm serves; both branches of a `cond`,
    one round of a `while`.

    Args:
      fn: any function that JAX can trace, or a Flax module: nnx (in inference mode, abstract ones too) or linen.
      args, kwargs: its arguments: arrays, or `jax.ShapeDtypeStruct`s in their place.

    Returns:
      a `Cost`.

    Raises:
      TypeError: `fn` is not callable. What it raises when traced.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from convjax.analysis import cost
      >>> from convjax.models import create
      >>> model = nnx.eval_shape(lambda: create("lenet5"))
      >>> found = cost(model, jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32))
      >>> found.parameters, found.macs
      (61706, 416520)
    """
    subject = network("cost", fn, args, kwargs)
    jaxpr, walk = subject.jaxpr().jaxpr, Walk()
    walk.through(jaxpr, [None] * len(jaxpr.invars))
    steps = [event for event in walk.events if isinstance(event, Step)]
    return Cost(
        sum(subject.parameters.values()) if subject.state is not None else sum(s.operation.weights for s in steps),
        sum(step.times * step.operation.macs for step in steps),
        sum(step.times * step.operation.bytes for step in steps),
        tuple((step.operation, step.times) for step in steps),
    )
