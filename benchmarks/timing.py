"""Clocks: interleaved rounds, and the ceilings of the machine that they run on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from convjax._core import processor

Run = Callable[[], Any]  # computes, and returns when it is done


def timed(run: Run) -> tuple[Any, float]:
    """What `run` returns, and the seconds that it took."""
    start = time.perf_counter()
    result = run()
    return result, time.perf_counter() - start


def interleaved(
    runs: Mapping[str, Run], first_s: Mapping[str, float], rounds: int, patience_s: float
) -> dict[str, list[float]]:
    """Seconds of each run, in rounds, so that a machine that slows down slows every one of them down.

    Args:
      runs: by name, each warmed up.
      first_s: seconds of each one's warm-up. Beyond `patience_s` that is its only measurement.
      rounds: measurements of each at most.
      patience_s: seconds for all measurements of one.
    """
    times = {name: [first_s[name]] if first_s[name] > patience_s else [] for name in runs}
    order = list(runs.items())
    for _ in range(rounds):
        order.append(order.pop(0))  # whoever comes after whom changes, as caches and idle threads are inherited
        for name, run in order:
            if sum(times[name]) < patience_s:
                times[name].append(timed(run)[1])
    return times


def ceilings(dtypes: Iterable[str], *, side: int = 2048, copied_bytes: int = 2**28, calls: int = 7) -> dict[str, Any]:
    """The machine's rates, medians over `calls`: GFLOP/s of a large dot in each dtype, GB/s read plus written.

    The copy adds 1 in place (the buffer is donated), so that no page is faulted in.
    """
    dots = {}
    for dtype in sorted(set(dtypes)):
        a = jnp.ones((side, side), dtype)
        dot = jax.jit(lambda a: a @ a).lower(a).compile()
        dots[dtype] = 2 * side**3 / _median_s(partial(_wait_for, dot, a), calls) / 1e9
    add = jax.jit(lambda a: a + 1, donate_argnums=0)
    held = [jnp.zeros(copied_bytes // 4, jnp.float32)]

    def copy() -> None:
        held[0] = jax.block_until_ready(add(held[0]))

    return {"dot_gflops": dots, "copy_gbs": 2 * copied_bytes / _median_s(copy, calls) / 1e9}


def _wait_for(run: Callable[..., Any], *operands: jax.Array) -> Any:
    return jax.block_until_ready(run(*operands))


def _median_s(run: Run, calls: int) -> float:
    run()
    return float(np.median([timed(run)[1] for _ in range(calls)]))


def fraction_of_ceiling(seconds: float, flops: int, moved: int, dtype: str, ceiling: Mapping[str, Any]) -> float:
    """How much of the roofline a time reaches: more than 1 where an algorithm needs fewer products than direct sums."""
    compute = flops / (ceiling["dot_gflops"][dtype] * 1e9)
    memory = moved / (ceiling["copy_gbs"] * 1e9)
    return max(compute, memory) / seconds


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "device": device.device_kind,
        "processor": ", ".join(filter(None, (processor.model(), processor.vectors()))),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }
