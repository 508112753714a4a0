"""What is measured, and when: the modes of `CONVJAX_TUNE`, and the measurements that the chooser asks for.

off        measurements are neither made nor read
cached     those in the tables are read (the default)
measure    a problem that no table knows is measured when it is first compiled, and remembered
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import jax.extend

from convjax._core import cache, cost, measure
from convjax._core.geometry import Geometry

MODES = ("off", "cached", "measure")

# Candidates that the cost model puts further behind its best than this are not measured: its accuracy
# (docs/algorithms.md) makes them unlikely to win, though it is not sure.
PROMISING = 5.0

_asked: list[str] = []  # modes asked for by `using`, the last in force


def mode() -> str:
    """The mode in force: the innermost `with using(...)`, else `CONVJAX_TUNE`."""
    if _asked:
        return _asked[-1]
    named = os.environ.get("CONVJAX_TUNE") or "cached"
    if named not in MODES:
        raise ValueError(f"CONVJAX_TUNE={named!r} is none of {', '.join(MODES)}; set one of these, or unset it.")
    return named


@contextmanager
def using(mode: str) -> Iterator[None]:
    _asked.append(mode)
    try:
        yield
    finally:
        _asked.remove(mode)


@contextmanager
def reading() -> Iterator[None]:
    """Measure nothing meanwhile; what is known is read, unless it is off."""
    with using("off" if mode() == "off" else "cached"):
        yield


def lowering_platform() -> str:
    """What JAX calls the platform of its default device when it lowers a program for it."""
    backend = jax.extend.backend.get_backend()
    if backend.platform != "gpu":
        return backend.platform
    return "rocm" if "rocm" in backend.platform_version.lower() else "cuda"


def device_for(platform: str) -> jax.Device | None:
    """The device that a program for `platform` will most likely run on; None where this process has none such."""
    return jax.local_devices()[0] if platform == lowering_platform() else None


def measurement(geometry: Geometry, platform: str) -> tuple[dict[str, float], str]:
    """Milliseconds by algorithm and whose they are; empty where nothing was measured."""
    now = mode()
    device = None if now == "off" else device_for(platform)
    if device is None:
        return {}, ""
    kind, key = cache.device_kind(device), cache.problem_key(geometry)
    times, whose = cache.lookup(kind, key)
    if times or now != "measure":
        return times, whose
    times = timed(geometry, platform, device)
    if times:
        cache.remember(kind, {key: times})
    return times, "yours"


def timed(geometry: Geometry, platform: str, device: jax.Device) -> dict[str, float]:
    """Measure the promising candidates; parts of a rewrite are chosen from what is known already."""
    with reading():
        timings = measure.measure(geometry, candidates(geometry, platform), device)
    times = {name: timing.in_a_program_ms(platform) for name, timing in timings.items()}
    return {name: round(ms, 4) for name, ms in times.items() if ms > 0}


def candidates(geometry: Geometry, platform: str) -> list[str]:
    """What may be taken unasked, the most promising first, `xla` always among them."""
    admissible = cost.admissible(geometry, platform)
    times = cost.model(platform).estimates(geometry)
    if not times:
        return admissible
    best = min(times.values())
    promising = [name for name in admissible if times.get(name, best) <= PROMISING * best or name == "xla"]
    return sorted(promising, key=lambda name: times.get(name, best))
