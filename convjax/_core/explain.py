"""explain(): what the chooser would do with a convolution and its gradients, and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from convjax._core import arguments, cost, tuning
from convjax._core.algorithms import ALGORITHMS, KERNELS
from convjax._core.choose import decide, why_not
from convjax._core.collect import convolutions, gradients
from convjax._core.compat import PLATFORMS
from convjax._core.geometry import Geometry
from convjax._core.spec import ConvSpec

KERNEL_PLATFORMS = {name: "tpu" if name.startswith("tpu_") else "cuda" for name in KERNELS}


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One algorithm.

    Attributes:
      algorithm: its name.
      refusal: why it cannot serve, None where it can.
      chosen: whether it is taken.
      estimate_ms: what the cost model expects, None where it has no constants for it.
      measured_ms: what `tune` measured on this kind of device, None where it did not.
      reserve: why it is not taken unasked, None where it may be.
      elsewhere: the `platform` that it is a kernel of, where that is another; it is then printed as a name alone.
    """

    algorithm: str
    refusal: str | None
    chosen: bool
    estimate_ms: float | None = None
    measured_ms: float | None = None
    reserve: str | None = None
    elsewhere: str | None = None

    def __str__(self) -> str:
        mark = "*" if self.chosen else " "
        times = "".join(f"{'' if ms is None else f'{ms:.3g} ms':>12}" for ms in (self.estimate_ms, self.measured_ms))
        return f"{mark} {self.algorithm:16}{times}  {self.refusal or self.reserve or ''}".rstrip()


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The choice for one problem; `parts` are the convolutions that a rewrite makes of it, chosen in their turn."""

    problem: str
    lhs_shape: tuple[int, ...]
    rhs_shape: tuple[int, ...]
    spec: ConvSpec
    chosen: str
    why: str
    candidates: tuple[Candidate, ...]
    parts: tuple[Verdict, ...]

    def lines(self, depth: int = 0) -> Iterator[str]:
        indent = "  " * depth
        flops = self.spec.flops(self.lhs_shape, self.rhs_shape)
        yield (
            f"{indent}{self.problem}: input {self.lhs_shape}, kernel {self.rhs_shape}, {flops / 1e6:.3g} MFLOP "
            f"-> {self.chosen} ({self.why})"
        )
        if depth == 0:
            yield f"    {'':16}{'estimated':>12}{'measured':>12}"
            yield from (f"  {candidate}" for candidate in self.candidates if candidate.elsewhere is None)
        for part in self.parts:
            yield from part.lines(depth + 1)


@dataclasses.dataclass(frozen=True)
class Explanation:
    """Verdicts on the forward problem and both gradients; `print` it for a table."""

    platform: str
    forward: Verdict
    input_grad: Verdict
    kernel_grad: Verdict

    def __str__(self) -> str:
        verdicts = (self.forward, self.input_grad, self.kernel_grad)
        lines = [f"on {self.platform}", *(line for v in verdicts for line in v.lines())]
        elsewhere: dict[str, list[str]] = {}
        for candidate in self.forward.candidates:
            if candidate.elsewhere:
                elsewhere.setdefault(candidate.elsewhere, []).append(candidate.algorithm)
        if elsewhere:
            told = "; ".join(f"platform={platform!r}: {', '.join(names)}" for platform, names in elsewhere.items())
            lines.append(f"kernels of other platforms, {told}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        names = (f"{p}={getattr(self, p).chosen}" for p in arguments.PROBLEMS)
        return f"<convjax.explain on {self.platform}: {', '.join(names)}>"


def explain(
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    *,
    function: Callable | None = None,
    dtype: DTypeLike = jnp.float32,
    platform: str | None = None,
    **options: Any,
) -> Explanation:
    """Print and return which algorithm serves a convolution and each of its gradients, and why the others do not.

    Nothing is computed: shapes are enough. Kernels of other platforms are named at the end; ask for such a platform to
    be told what they say.

    Args:
      x_shape: shape of `x`, as the function takes it.
      w_shape: shape of `w`.
      function: which convolution, `convjax.conv` by default; any function of `(x, w, **options)`.
      dtype: dtype of both operands.
      platform: "cpu", "cuda" (or "gpu"), "rocm" or "tpu"; that of JAX's default device if None.
      options: the other arguments of `function`: stride, padding, groups, algorithm, ...

    Returns:
      an `Explanation` with a `Verdict` for forward, input_grad and kernel_grad.

    Raises:
      what `function` raises for these shapes; ValueError if it holds no convolution, or several.

    Example:
      >>> import convjax
      >>> verdicts = convjax.explain((8, 56, 56, 64), (3, 3, 1, 64), groups=64, platform="cpu")  # doctest: +ELLIPSIS
      on cpu
      ...
      >>> verdicts.forward.chosen
      'taps'
    """
    from convjax.functional import conv

    function = function or conv
    platform = platform_named("explain", platform)
    x, w = (jax.ShapeDtypeStruct(tuple(shape), dtype) for shape in (x_shape, w_shape))

    def forward(x: Any, w: Any) -> Any:
        return function(x, w, **options)

    found = [g for g, _ in convolutions(jax.make_jaxpr(forward)(x, w).jaxpr)]
    if len(found) != 1:
        raise ValueError(
            f"explain: function holds {len(found)} convolutions for these arguments; explain one at a time, or list "
            "all of them with convjax.analysis.collect(fn, *args)."
        )
    problems = (found[0], *gradients(found[0]))
    result = Explanation(
        platform, *(_verdict(name, g, platform) for name, g in zip(arguments.PROBLEMS, problems, strict=True))
    )
    print(result)
    return result


def platform_named(caller: str, platform: str | None) -> str:
    """As a lowering rule is told it; that of the default device for None."""
    if platform is None:
        return tuning.lowering_platform()
    return "cuda" if platform == "gpu" else arguments.choice(caller, "platform", platform, (*PLATFORMS, "gpu"))


def _verdict(problem: str, g: Geometry, platform: str) -> Verdict:
    lhs, rhs = g.operands
    with tuning.reading():
        chosen, why = decide(g.spec, lhs, rhs, platform)
        measured, _ = tuning.measurement(g, platform)

    def candidate(name: str) -> Candidate:
        refusal = why_not(name, g.spec, lhs, rhs, platform)
        estimate = cost.model(platform).estimate(name, g) if refusal is None and not g.is_empty else None
        reserve, its = cost.reserve(name, g), KERNEL_PLATFORMS.get(name, platform)
        elsewhere = None if its == platform else its
        return Candidate(name, refusal, name == chosen, estimate, measured.get(name), reserve, elsewhere)

    inner = jax.make_jaxpr(partial(ALGORITHMS[chosen].run, g.spec))(lhs, rhs)
    parts = tuple(_verdict("part", part, platform) for part, _ in convolutions(inner.jaxpr))
    return Verdict(problem, g.lhs, g.rhs, g.spec, chosen, why, tuple(map(candidate, ALGORITHMS)), parts)
