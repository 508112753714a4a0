"""Time algorithms on one problem, on the device: what `tune`, the fit of the cost model and the benchmarks rest on."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from convjax._core.algorithms import ALGORITHMS
from convjax._core.geometry import Geometry
from convjax._core.spec import Shape


@dataclasses.dataclass(frozen=True)
class Timing:
    """Of one algorithm on one problem."""

    ms: float  # median of the calls
    compile_s: float
    temporary_bytes: int  # beyond operands and output

    def in_a_program_ms(self, platform: str) -> float:
        """What it costs among others: fresh pages for its temporaries, once a program holds more than malloc keeps.

        Called alone over and over, it finds them still in memory.
        """
        return self.ms + (FRESH_PAGES_NS * 1e-6 * self.temporary_bytes if platform == "cpu" else 0.0)


# A byte of fresh pages, on 2 cores with glibc: 15 ms for the 65 MiB of a training step of depthwise 3x3 128 @56, 12 ms
# for the 38 MiB of one of 3x3 256->256 @14.
FRESH_PAGES_NS = 0.25

ROUNDS = 7  # timed calls of each candidate, interleaved; the median counts
PATIENCE_S = 1.0  # for one candidate, beyond its first two calls
HOPELESS = 8.0  # a first call so many times longer than the best is not repeated


def measure(g: Geometry, candidates: Iterable[str], device: jax.Device | None = None) -> dict[str, Timing]:
    """Time each candidate on one problem; one that fails is left out.

    The operands are random numbers: what they are does not matter to any algorithm, as long as they are normal.
    """
    operands = [jax.device_put(_draw(i, shape, g.dtype), device) for i, shape in enumerate(natural(g))]
    times: dict[str, list[float]] = {}
    running: dict[str, Any] = {}
    compile_s: dict[str, float] = {}
    temporary: dict[str, int] = {}
    for name in candidates:
        start = time.perf_counter()
        try:
            compiled = jax.jit(in_place(name, g)).lower(*operands).compile()
            compile_s[name] = time.perf_counter() - start
            first = _timed(compiled, operands)
            if first < PATIENCE_S:  # else it is slow enough for what is done once not to matter
                first = _timed(compiled, operands)
        except Exception:  # too large for this device, or beyond its compiler: no candidate here
            continue
        times[name] = [first]
        running[name] = compiled
        memory = compiled.memory_analysis()  # None where a backend does not tell
        temporary[name] = memory.temp_size_in_bytes if memory else 0
    best = min((t[0] for t in times.values()), default=0.0)
    running = {name: run for name, run in running.items() if times[name][0] <= HOPELESS * best}
    for _ in range(ROUNDS - 1):
        for name, run in running.items():
            if sum(times[name]) < PATIENCE_S:
                times[name].append(_timed(run, operands))
    return {name: Timing(float(np.median(t)) * 1e3, compile_s[name], temporary[name]) for name, t in times.items()}


def _timed(run: Callable, operands: list[Array]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run(*operands))
    return time.perf_counter() - start


def natural(g: Geometry) -> tuple[Shape, Shape]:
    """The operands as the caller of the original convolution has them."""
    if not g.is_kernel_gradient:
        return g.lhs, g.rhs
    return (g.lhs[-1], *g.lhs[1:-1], g.lhs[0]), (g.rhs[-2], *g.rhs[:-2], g.rhs[-1])


def in_place(name: str, g: Geometry) -> Callable[[Array, Array], Array]:
    """One algorithm with what surrounds it in a program: the transpositions of a kernel gradient, which XLA cancels."""
    run = partial(ALGORITHMS[name].run, g.spec)
    if not g.is_kernel_gradient:
        return run
    return lambda x, ct: jnp.moveaxis(run(jnp.swapaxes(x, 0, -1), jnp.moveaxis(ct, 0, -2)), 0, -2)


def _draw(seed: int, shape: Shape, dtype: np.dtype) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(shape, np.float32)
    return (np.round(values * 3) if jnp.issubdtype(dtype, jnp.integer) else values).astype(dtype)
