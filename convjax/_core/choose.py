"""Which algorithm serves a problem, decided when it is lowered, and able to give its reasons.

Order of authority: the caller's `algorithm=`; a measurement on this kind of device, the user's before the shipped one
(`convjax._core.cache`); on a TPU the static figures of its compiler; the cost model (`convjax._core.cost`), where this
platform has its constants; `xla`.

What is taken unasked keeps the accuracy of direct summation, or that of a transform, relative to the largest output,
where that is no larger: `winograd_f2` anywhere, Fourier transforms from `LONG` taps on. Neither at
`precision="highest"`.
"""

from __future__ import annotations

import math
from typing import Any

from convjax._core import cost, tuning
from convjax._core.algorithms import ALGORITHMS
from convjax._core.geometry import Geometry
from convjax._core.spec import ConvSpec

# Another algorithm than XLA's must promise to take so much less of its time, as measurements of one problem differ by
# 12 % and estimates by more, and to save so many milliseconds where it is only estimated, as it takes longer to
# compile: half a second, five thousand calls. Held out, 0.85 and 0.95, and 0.3 ms, chose no better.
MARGIN = 0.9
WORTHWHILE_MS = 0.1
PACKABLE = range(4, 33)  # channels a group whose packs were compiled for TPUs


def choose(spec: ConvSpec, lhs: Any, rhs: Any, platform: str, *, partitioned: bool = False) -> str:
    """Name of the algorithm for this problem.

    Raises:
      ValueError: the caller named an algorithm that cannot serve; the message gives the reason.
    """
    return decide(spec, lhs, rhs, platform, partitioned=partitioned)[0]


def decide(spec: ConvSpec, lhs: Any, rhs: Any, platform: str, *, partitioned: bool = False) -> tuple[str, str]:
    """Name of the algorithm and the reason for it."""
    geometry, wanted = Geometry.of(spec, lhs, rhs), spec.algorithms[0]
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
        return (
            "xla",
            "the compiler partitions this program over devices, and knows how to partition its own convolution",
        )
    if not geometry.is_static:
        return "xla", "sizes are symbolic"
    if geometry.is_empty:
        return "xla", "empty operands"
    return by_measurement(geometry, platform) or by_compiler(geometry, platform) or by_estimate(geometry, platform)


def by_measurement(geometry: Geometry, platform: str) -> tuple[str, str] | None:
    times, whose = tuning.measurement(geometry, platform)
    if not times:
        return None
    times = {name: times[name] for name in cost.admissible(geometry, platform) if name in times}
    if not times:
        return None
    name = preferred(times)
    return name, f"measured on this kind of device, {whose}: {_told(times, name)}"


def by_compiler(geometry: Geometry, platform: str) -> tuple[str, str] | None:
    """On a TPU, narrow groups: XLA takes 3.6 to 16 times the cycles of their packs (docs/kernels.md).

    Kernels are left to who names them, or has measured them, as none has run on a TPU yet.
    """
    width = geometry.rhs[-1] // geometry.spec.groups
    if platform != "tpu" or not all(n in PACKABLE for n in (geometry.features, width)) or geometry.is_kernel_gradient:
        return None
    if ALGORITHMS["pack_groups_128"].supports(geometry.spec, *geometry.operands, platform) is not None:
        return None
    return "pack_groups_128", "static figures of the TPU's compiler, not measured"


def by_estimate(geometry: Geometry, platform: str) -> tuple[str, str]:
    times = cost.model(platform).estimates(geometry)
    if not times:
        return "xla", f"no measurement backs another algorithm on {platform}"
    name = preferred(times, WORTHWHILE_MS)
    return name, f"estimated: {_told(times, name)}"


def preferred(times: dict[str, float], worthwhile_ms: float = 0.0) -> str:
    """The fastest, or `xla` where that is not worth the while."""
    name = min(times, key=times.__getitem__)
    xla = times.get("xla", math.inf)
    return name if times[name] <= min(MARGIN * xla, xla - worthwhile_ms) else "xla"


def _told(times: dict[str, float], name: str) -> str:
    """The time of what is taken, and of the next best and of xla beside it."""
    others = sorted((ms, other) for other, ms in times.items() if other != name)
    beside = others[:1] + [(ms, other) for ms, other in others[1:] if other == "xla"]
    return ", ".join([f"{times[name]:.3g} ms", *(f"{other} {ms:.3g} ms" for ms, other in beside)])


def why_not(name: str, spec: ConvSpec, lhs: Any, rhs: Any, platform: str) -> str | None:
    """None where the algorithm can serve, else the reason."""
    if name == "xla":
        return None
    geometry = Geometry.of(spec, lhs, rhs)
    if not geometry.is_static:
        return "a size is symbolic, and only xla serves those"
    if geometry.is_empty:
        return "an operand or the output is empty"
    return ALGORITHMS[name].supports(spec, lhs, rhs, platform)
