"""The cost model: how long an algorithm takes on a problem, from its work and constants fitted to measurements.

    formula = fixed + macs * a + moved * b + steps * c + the estimates of the parts that a rewrite makes
    time = formula * what similar problems that were measured took over theirs (`convjax._core.neighbours`)

The work of an algorithm is in its own file; `a`, `b`, `c` and `fixed` of each kind of work, and the measured problems,
are in `constants/<platform>.json`, on CPUs `constants/cpu-<vector instructions>.json`. `python -m benchmarks.fit`
writes them from a sweep over the benchmarks, with how well they predict what was held out. A platform without constants
has no estimates.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from importlib import resources
from typing import Any

from convjax._core import processor
from convjax._core.algorithms import ALGORITHMS, REWRITES
from convjax._core.geometry import Geometry, Work
from convjax._core.neighbours import Neighbours, Row

# A rewrite of a rewrite of a rewrite is looked at no further, which keeps an estimate below a few milliseconds.
DEEPEST = 2
# Taps from which the rounding of direct summation is no smaller than that of a transform.
LONG = 128
# Whose constants serve CPUs that were not measured: eight lanes are nearer to NEON's four than sixteen.
NARROW = "AVX2"
# Channels from which a matrix product for each tap was ever the best; 3 took ten times as long as patches.
THIN = 8

Constants = dict[str, dict[str, float]]


class CostModel:
    """Estimates for one platform, each made once."""

    def __init__(self, nanoseconds: Constants, platform: str, neighbours: Sequence[Row] = ()) -> None:
        self.nanoseconds, self.platform, self.neighbours = nanoseconds, platform, neighbours
        self.estimate = functools.lru_cache(2**13)(self._estimate)
        self.estimates = functools.lru_cache(2**12)(self._estimates)
        self.corrections = functools.lru_cache(2**12)(Neighbours(neighbours).corrections)

    def _estimate(self, name: str, geometry: Geometry, depth: int = 0) -> float | None:
        """Milliseconds that an algorithm that can serve will take; None where its kind of work was not measured."""
        formula = self.formula(self.work(name, geometry), depth)
        return None if formula is None else formula * math.exp(self.corrections(geometry).get(name, 0.0))

    def formula(self, work: Work, depth: int = 0) -> float | None:
        """Milliseconds before what similar problems say of them; the parts of a rewrite have been corrected."""
        constants, parts = self.constants(work.kind), self.of_parts(work, depth)
        return None if constants is None or parts is None else parts + own_time(work, constants)

    def work(self, name: str, geometry: Geometry) -> Work:
        return ALGORITHMS[name].work(geometry)

    def admissible(self, geometry: Geometry) -> Sequence[str]:
        return admissible(geometry, self.platform)

    def constants(self, kind: str) -> dict[str, float] | None:
        """Of this kind of work, else of the one that it is a special case of: "xla" for "xla, 3-D"."""
        while kind and kind not in self.nanoseconds:
            kind = kind.rpartition(", ")[0]
        return self.nanoseconds.get(kind)

    def of_parts(self, work: Work, depth: int = 0) -> float | None:
        """Milliseconds of the parts that a rewrite makes, each served by what is best for it."""
        total = 0.0
        for count, part in work.parts:
            if part.is_empty:
                continue
            times = self.estimates(part, depth + 1)
            if not times:
                return None
            total += count * min(times.values())
        return total

    def _estimates(self, geometry: Geometry, depth: int = 0) -> dict[str, float]:
        """Of every algorithm that can serve, may be taken unasked, and has an estimate."""
        names = self.admissible(geometry) if self.nanoseconds else []
        made = {n: self.estimate(n, geometry, depth) for n in names if depth < DEEPEST or n not in REWRITES}
        return {name: ms for name, ms in made.items() if ms is not None}


@functools.cache
def model(platform: str) -> CostModel:
    """The model of a platform, by the constants in the package; without any it knows nothing."""
    found = (resources.files("convjax._core") / "constants" / name for name in file_names(platform))
    known: dict[str, Any] = next((json.loads(f.read_text()) for f in found if f.is_file()), {"nanoseconds": {}})
    return CostModel(known["nanoseconds"], platform, known.get("neighbours", ()))


def file_names(platform: str) -> list[str]:
    """Of the constants that may serve, the best first: on a CPU those of its own vector instructions."""
    if platform != "cpu":
        return [f"{platform}.json"]
    return [f"cpu-{vectors.lower()}.json" for vectors in (processor.vectors(), NARROW) if vectors]


def own_time(work: Work, nanoseconds: dict[str, float]) -> float:
    """Milliseconds of what an algorithm does itself, its parts left aside."""
    c = nanoseconds
    return 1e-6 * (c["fixed"] + c["macs"] * work.macs + c["moved"] * work.moved + c["steps"] * work.steps)


def admissible(geometry: Geometry, platform: str) -> list[str]:
    """Names of the algorithms that can serve and keep the accuracy that is promised unasked."""
    return [
        name
        for name, algorithm in ALGORITHMS.items()
        if reserve(name, geometry) is None and algorithm.supports(geometry.spec, *geometry.operands, platform) is None
    ]


def reserve(name: str, geometry: Geometry) -> str | None:
    """None where an algorithm may be taken unasked, else the reason why not: mostly its accuracy."""
    if name == "batch_to_feature":
        return "what serves feature groups serves batch groups as they are, without the transposition"
    if name == "slices" and geometry.spec.batch_groups > 1:
        return "its parts would have batch groups in their turn, which never paid"
    if name == "slices" and max(geometry.taps, geometry.positions) > 1 == min(geometry.taps, geometry.positions):
        return "one tap, or one output, is a matrix product as it is"
    if name in ("pack_groups", "by_feature") and any(dilation > 1 for dilation in geometry.spec.lhs_dilation):
        return "its parts would have a dilated input in their turn: phases of that come first"
    if name == "kn2row" and min(geometry.features, geometry.outputs) < THIN:
        return f"fewer than {THIN} channels on one side leave its products next to nothing to multiply"
    if name == "winograd":
        return "its error is 25 times that of direct summation"
    if name in ("winograd_f2", "fft", "dft", "overlap_add") and not geometry.may_mix:
        return "its error is relative to the largest output, and precision='highest' asks for more"
    short = geometry.positions if geometry.is_kernel_gradient else geometry.taps
    if name in ("fft", "dft", "overlap_add") and short < LONG:
        return f"its error is relative to the largest output: taken unasked from {LONG} taps on"
    return None
