"""Measure the algorithms on this device, and remember which is best."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax

from convjax._core import cache, tuning
from convjax._core.choose import decide
from convjax._core.collect import convolutions
from convjax._core.collect import gradients as gradients_of
from convjax._core.geometry import Geometry


@dataclasses.dataclass(frozen=True)
class Tuned:
    """One problem: what was chosen before, and the milliseconds of every candidate, the fastest first."""

    problem: str
    before: str
    ms: dict[str, float]

    @property
    def best(self) -> str:
        return next(iter(self.ms))

    @property
    def gain(self) -> float:
        """Time of what was chosen before over the time of the best; 1 where they are the same, or it was not timed."""
        return self.ms.get(self.before, self.ms[self.best]) / self.ms[self.best]

    def __str__(self) -> str:
        times = ", ".join(f"{name} {ms:.3g} ms" for name, ms in self.ms.items())
        return f"{self.problem}\n    {self.before} -> {self.best}, {self.gain:.2f} times as fast: {times}"


@dataclasses.dataclass(frozen=True)
class Report:
    """What `tune` measured; `print` it, or read `problems`."""

    device: str
    saved_to: str
    problems: tuple[Tuned, ...]

    def __str__(self) -> str:
        head = f"{len(self.problems)} convolutions measured on {self.device}, remembered in {self.saved_to}"
        return "\n".join([head, *map(str, self.problems)])


def tune(
    fn: Callable, *args: Any, gradients: bool = True, again: bool = False, progress: bool = False, **kwargs: Any
) -> Report:
    """Measure every convolution of a function on this device, and remember the fastest algorithm for each.

    From then on `auto` takes what was measured, in this process and in later ones (`CONVJAX_TUNE=off` ignores it).
    JAX's caches are cleared, so that functions compiled before are compiled again at their next call. Candidates are
    the algorithms of the accuracy that `auto` promises whose estimate is not far behind; each runs alone, on random
    operands of the shapes and dtypes that `fn` gives it, in interleaved rounds. On CPUs 0.25 ns are added for each byte
    of temporary memory: among others in a program it is fresh memory, which costs that. Convolutions of `jax.lax` are
    measured too, for `accelerate()`. Times are kept as JSON for each kind of device in `CONVJAX_CACHE_DIR`, or the
    platform's folder for caches.

    Args:
      fn: any function that JAX can trace; a forward pass, a loss, or a whole training step.
      args, kwargs: its arguments: arrays, or `jax.ShapeDtypeStruct`s in their place.
      gradients: also measure the gradients in input and kernel of each convolution found. Pass False where `fn`
        computes gradients itself: its own are found as they are.
      again: measure also what a table already knows for this version of jaxlib.
      progress: show a bar.

    Returns:
      a `Report`, one `Tuned` for each distinct problem that was measured now.

    Raises:
      TypeError: `fn` is not callable.
      what `fn` raises when traced. A cache folder that cannot be written is a warning.

    Example:
      >>> import jax.numpy as jnp, convjax
      >>> x, w = jnp.ones((1, 64, 8)), jnp.ones((3, 8, 8))
      >>> report = convjax.tune(convjax.conv, x, w, gradients=False, again=True)
      >>> report.problems[0].best in convjax.algorithms()
      True
    """
    if not callable(fn):
        raise TypeError(f"tune: fn is {fn!r}, which is not callable; pass the function, and its arguments after it.")
    device = jax.local_devices()[0]
    platform = tuning.lowering_platform()
    kind = cache.device_kind(device)
    found = distinct(jax.make_jaxpr(fn)(*args, **kwargs).jaxpr, gradients)
    if not again:
        found = [g for g in found if not cache.lookup(kind, cache.problem_key(g))[0]]
    tuned = []
    for geometry in _shown(found, progress):
        with tuning.reading():
            before, _ = decide(geometry.spec.auto(), *geometry.operands, platform)
        times = tuning.timed(geometry, platform, device)
        if times:
            key = cache.problem_key(geometry)
            cache.remember(kind, {key: times})
            tuned.append(Tuned(key, before, dict(sorted(times.items(), key=lambda pair: pair[1]))))
    jax.clear_caches()
    return Report(kind, str(cache.folder() / cache.file_name(kind)), tuple(tuned))


def distinct(jaxpr: Any, with_gradients: bool) -> list[Geometry]:
    """Distinct problems, without those that the chooser does not decide: symbolic or empty."""
    found: dict[str, Geometry] = {}
    for geometry, _ in convolutions(jaxpr, of_lax=True):
        if not geometry.is_static or geometry.is_empty:
            continue
        wanted = with_gradients and geometry.is_differentiable
        for problem in (geometry, *(gradients_of(geometry) if wanted else ())):
            found.setdefault(cache.problem_key(problem), problem)
    return list(found.values())


def _shown(problems: list[Geometry], progress: bool) -> Iterable[Geometry]:
    if not progress:
        return problems
    from rich.progress import track

    return track(problems, description="measuring")
