"""collect(): every convolution of a program, with its cost and its algorithm."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from convjax._core import tuning
from convjax._core.choose import decide
from convjax._core.collect import convolutions
from convjax._core.explain import platform_named
from convjax._core.spec import ConvSpec


@dataclasses.dataclass(frozen=True)
class Convolution:
    """One convolution of a program, as the chooser sees it: channels last.

    Attributes:
      lhs_shape, rhs_shape, out_shape: `(N, *space, C)`, `(*k, C / groups, O)`, `(N, *out, O)`.
      dtype: name of the operands' dtype.
      spec: strides, padding, dilations, groups, precision.
      times: how often it runs: the length of the scans around it, 1 outside.
      flops: floating-point operations of direct summation, once; 2 for a multiply-add.
      bytes: operands and output, each moved once.
      algorithm: what serves it.
      why: the reason for that.
    """

    lhs_shape: tuple[int, ...]
    rhs_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    dtype: str
    spec: ConvSpec
    times: int
    flops: int
    bytes: int
    algorithm: str
    why: str

    def __str__(self) -> str:
        often = f"{self.times} x " if self.times > 1 else ""
        cost = f"{self.flops / 1e6:.3g} MFLOP, {self.bytes / 1e6:.3g} MB"
        shapes = f"{self.lhs_shape} * {self.rhs_shape} -> {self.out_shape} {self.dtype}"
        return f"{often}{shapes}: {cost}, {self.algorithm} ({self.why})"


def collect(fn: Callable, *args: Any, platform: str | None = None, **kwargs: Any) -> list[Convolution]:
    """List every convolution of a function, in the order in which it is traced, with its cost and its algorithm.

    Nothing is computed. Convolutions of `jax.lax` are listed as well, with the algorithm that they get under
    `accelerate()`. To see the gradients, pass a function that computes them.

    Args:
      fn: any function that JAX can trace.
      args, kwargs: its arguments: arrays, or `jax.ShapeDtypeStruct`s in their place.
      platform: "cpu", "cuda" (or "gpu"), "rocm" or "tpu"; that of JAX's default device if None.

    Raises:
      TypeError: `fn` is not callable. ValueError: an unknown platform. What `fn` raises when traced.

    Example:
      >>> import jax, jax.numpy as jnp, convjax
      >>> x, w = jnp.ones((1, 8, 8, 3)), jnp.ones((3, 3, 3, 4))
      >>> step = jax.grad(lambda w: convjax.conv(x, w).sum())
      >>> [(c.rhs_shape, c.flops) for c in convjax.analysis.collect(step, w)]
      [((3, 3, 3, 4), 13824), ((8, 8, 1, 4), 13824)]
    """
    if not callable(fn):
        raise TypeError(f"collect: fn is {fn!r}, which is not callable; pass the function, and its arguments after it.")
    platform = platform_named("collect", platform)
    found = []
    for g, times in convolutions(jax.make_jaxpr(fn)(*args, **kwargs).jaxpr, of_lax=True):
        with tuning.reading():
            algorithm, why = decide(g.spec, *g.operands, platform)
        size = g.dtype.itemsize
        found.append(
            Convolution(
                *(g.lhs, g.rhs, g.out_shape, g.dtype.name, g.spec, times),
                *(g.spec.flops(g.lhs, g.rhs), g.spec.bytes(g.lhs, g.rhs, size), algorithm, why),
            )
        )
    return found
