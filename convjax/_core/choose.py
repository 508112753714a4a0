"""Which algorithm serves a problem: a documented decision list, read from the top, that can be asked for its reasons.

Order of authority: the caller's `algorithm=`, then the first rule of the list that applies and whose algorithm can
serve, then `xla`. Rules hold for one platform each; what no measurement backs on a platform stays with `xla` there.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax

from convjax._core.algorithms import ALGORITHMS
from convjax._core.spec import ConvSpec


@dataclasses.dataclass(frozen=True)
class Rule:
    """If `when(problem)` on `platforms`, take `algorithm`, because of `why`."""

    algorithm: str
    platforms: tuple[str, ...]
    when: Callable[[ConvSpec, Any, Any], bool]
    why: str


RULES: tuple[Rule, ...] = ()


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One candidate: `refusal` is why it cannot serve (None where it can), `chosen_because` why it was taken."""

    algorithm: str
    refusal: str | None
    chosen_because: str | None = None


def choose(spec: ConvSpec, lhs: Any, rhs: Any, platform: str, *, partitioned: bool = False) -> str:
    """Name of the algorithm for this problem.

    Raises:
      ValueError: the caller named an algorithm that cannot serve; the message gives the reason.
    """
    return decide(spec, lhs, rhs, platform, partitioned=partitioned)[0]


def decide(spec: ConvSpec, lhs: Any, rhs: Any, platform: str, *, partitioned: bool = False) -> tuple[str, str]:
    """Name of the algorithm and the reason for it."""
    wanted = spec.algorithms[0]
    if wanted != "auto":
        name = wanted.rstrip("?")
        reason = why_not(name, spec, lhs, rhs, platform)
        if reason is None:
            return name, "the caller's algorithm="
        if not wanted.endswith("?"):
            raise ValueError(
                f"algorithm={name!r} cannot serve this convolution (input {tuple(lhs.shape)}, kernel "
                f"{tuple(rhs.shape)}, {lhs.dtype}): {reason}. Pass algorithm='auto', or another; "
                "convjax.explain(...) lists what serves."
            )
    if partitioned:
        return "xla", "the compiler partitions this program over devices, and knows how to partition its own convolution"
    if not _static(lhs.shape, rhs.shape, spec):
        return "xla", "sizes are symbolic"
    if not math.prod(spec.out_shape(lhs.shape, rhs.shape)) or not math.prod(lhs.shape) or not math.prod(rhs.shape):
        return "xla", "empty operands"
    for rule in RULES:
        if platform in rule.platforms and rule.when(spec, lhs, rhs):
            if ALGORITHMS[rule.algorithm].supports(spec, lhs, rhs, platform) is None:
                return rule.algorithm, rule.why
    return "xla", "no rule of the decision list applies"


def why_not(name: str, spec: ConvSpec, lhs: Any, rhs: Any, platform: str) -> str | None:
    """None where the algorithm can serve, else the reason."""
    if name == "xla":
        return None
    if not _static(lhs.shape, rhs.shape, spec):
        return "a size is symbolic, and only xla serves those"
    if not math.prod(lhs.shape) or not math.prod(rhs.shape) or not math.prod(spec.out_shape(lhs.shape, rhs.shape)):
        return "an operand or the output is empty"
    return ALGORITHMS[name].supports(spec, lhs, rhs, platform)


def _static(lhs_shape: Any, rhs_shape: Any, spec: ConvSpec) -> bool:
    sizes = (*lhs_shape, *rhs_shape, *(p for pair in spec.padding for p in pair))
    return not any(jax.export.is_symbolic_dim(size) for size in sizes)
