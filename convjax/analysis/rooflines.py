"""The roofline: how fast a network can run at best on a device of known rates."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from convjax._core import arguments
from convjax.analysis.costs import Cost, cost


@dataclasses.dataclass(frozen=True)
class Ceilings:
    """Rates of a device.

    Attributes:
      gflops: of a large matrix product, GFLOP/s.
      gbs: of a large copy, GB/s read plus written.
      dtype: of the product.
      device: its kind.
    """

    gflops: float
    gbs: float
    dtype: str = "float32"
    device: str = ""

    @property
    def ridge(self) -> float:
        """FLOPs for each byte from which on a device is bound by arithmetic."""
        return self.gflops / self.gbs


def measure_ceilings(
    dtype: DTypeLike = jnp.float32, *, side: int = 2048, copied_bytes: int = 2**28, calls: int = 7
) -> Ceilings:
    """Measure the rates of JAX's default device: medians, a second or two on a CPU.

    Args:
      dtype: of the matrix product.
      side: of its square matrices.
      copied_bytes: size of the buffer that is read and written, in place, so that no page is new.
      calls: of each, after one that is not counted.

    Returns:
      `Ceilings`.

    Raises:
      TypeError, ValueError: a number is no integer, or below 1.

    Example:
      >>> from convjax.analysis import measure_ceilings
      >>> measure_ceilings(side=64, copied_bytes=2**16, calls=2).gflops > 0
      True
    """
    where = "measure_ceilings"
    side = arguments.integer(where, "side", side, 1)
    count = max(1, arguments.integer(where, "copied_bytes", copied_bytes, 1) // 4)
    calls = arguments.integer(where, "calls", calls, 1)
    a = jnp.ones((side, side), dtype)
    dot = jax.jit(jnp.matmul).lower(a, a).compile()
    add = jax.jit(lambda a: a + 1, donate_argnums=0)
    held = [jnp.zeros(count, jnp.float32)]

    def copy() -> None:
        held[0] = jax.block_until_ready(add(held[0]))

    return Ceilings(
        2 * side**3 / _median_s(lambda: jax.block_until_ready(dot(a, a)), calls) / 1e9,
        8 * count / _median_s(copy, calls) / 1e9,
        jnp.dtype(dtype).name,
        jax.devices()[0].device_kind,
    )


def _median_s(run: Callable[[], Any], calls: int) -> float:
    run()
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


@dataclasses.dataclass(frozen=True)
class Roofline:
    """What a device's rates allow.

    Attributes:
      name: kind of the operation; empty for the whole.
      flops, bytes: floating-point operations, and bytes moved at least.
      compute_ms, memory_ms: what each takes at the device's rates.
      ceilings: these rates.
      layers: one for each operation, in order; empty for one of them.
    """

    name: str
    flops: int
    bytes: int
    compute_ms: float
    memory_ms: float
    ceilings: Ceilings
    layers: tuple[Roofline, ...] = dataclasses.field(default=(), repr=False)

    @property
    def arithmetic_intensity(self) -> float:
        """FLOPs for each byte."""
        return self.flops / self.bytes if self.bytes else 0.0

    @property
    def compute_bound(self) -> bool:
        """Whether arithmetic takes at least as long as memory."""
        return self.compute_ms >= self.memory_ms

    @property
    def memory_bound(self) -> bool:
        """Whether memory takes longer than arithmetic."""
        return not self.compute_bound

    @property
    def least_ms(self) -> float:
        """The longer of both; of the whole, the sum over its operations, which run one after the other."""
        return sum(la.least_ms for la in self.layers) if self.layers else max(self.compute_ms, self.memory_ms)

    @property
    def attainable_gflops(self) -> float:
        """FLOPs in the least time, GFLOP/s."""
        return self.flops / self.least_ms / 1e6 if self.least_ms else 0.0

    def __str__(self) -> str:
        bound = "compute" if self.compute_bound else "memory"
        return (
            f"{self.name or 'all'}: {self.arithmetic_intensity:.3g} FLOP/byte, {bound}-bound, "
            f"{self.attainable_gflops:.3g} of {self.ceilings.gflops:.3g} GFLOP/s, at least {self.least_ms:.3g} ms"
        )


def roofline(fn: Callable, *args: Any, ceilings: Ceilings | None = None, **kwargs: Any) -> Roofline:
    """How fast a function or a network can run at best, and what bounds it. `fn` itself is not run.

    Operations are counted as `cost` does. An algorithm that needs fewer products than direct summation (Winograd, FFT)
    may be faster than this; values that stay in a cache from one layer to the next too.

    Args:
      fn, args, kwargs: as `cost`.
      ceilings: rates of the device; measured, in the dtype that has most of the work, if None.

    Returns:
      a `Roofline`, with one for each operation in `layers`.

    Raises:
      TypeError: `fn` is not callable. What it raises when traced.

    Example:
      >>> import jax.numpy as jnp, convjax
      >>> from convjax.analysis import Ceilings, roofline
      >>> x, w = jnp.ones((8, 56, 56, 64)), jnp.ones((3, 3, 64, 64))
      >>> print(roofline(convjax.conv, x, w, ceilings=Ceilings(gflops=185, gbs=49.7)))
      all: 142 FLOP/byte, compute-bound, 185 of 185 GFLOP/s, at least 10 ms

    Source: Williams, Waterman and Patterson, Roofline: an insightful visual performance model for multicore
      architectures, Communications of the ACM 52, 2009.
    """
    found = cost(fn, *args, **kwargs)
    rates = measure_ceilings(_dtype(found)) if ceilings is None else ceilings
    each = [(o.kind, times * 2 * o.macs, times * o.bytes) for o, times in found.operations]
    layers = tuple(_of(name, flops, moved, rates) for name, flops, moved in each)
    return dataclasses.replace(_of("", found.flops, found.bytes, rates), layers=layers)


def _of(name: str, flops: int, moved: int, rates: Ceilings) -> Roofline:
    return Roofline(name, flops, moved, flops / rates.gflops / 1e6, moved / rates.gbs / 1e6, rates)


def _dtype(found: Cost) -> str:
    work: Counter[str] = Counter({"float32": 0})
    for operation, times in found.operations:
        work[operation.dtype] += times * operation.macs
    return work.most_common(1)[0][0]
