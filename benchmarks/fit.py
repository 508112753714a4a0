"""Fit the constants of the cost model to a sweep, and say how well it chooses.

    python -m benchmarks.fit --sweep benchmarks/results/sweep-cpu.json --out convjax/_core/constants/cpu.json \\
        --tables convjax/_core/tables

For each kind of work, four non-negative constants that minimise the squared logarithm of estimate over measurement.
The small likenesses of layers are there for what a call costs, and not judged.
Every third layer is held out; what is reported of accuracy is of those, with constants that have not seen them. The
constants that are written are fitted to all.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

from benchmarks.sweep import problems
from convjax._core import cache
from convjax._core.algorithms import ALGORITHMS, PLAIN, REVISION, REWRITES
from convjax._core.choose import preferred
from convjax._core.cost import Constants, CostModel, admissible, own_time
from convjax._core.geometry import Geometry
from convjax._core.measure import Timing

TERMS = ("fixed", "macs", "moved", "steps")
# Where a fit starts and what it is drawn to where data are few: nanoseconds of an operation, a multiply-add, an
# element written and read, a round of a loop.
PRIOR = {"fixed": 2e4, "macs": 0.02, "moved": 0.5, "steps": 1e3}
PULL = 0.02  # of the prior, in logarithms, against one measurement

Measured = list[tuple[str, Geometry, dict[str, float]]]  # layer, problem, milliseconds by algorithm


def load(path: Path) -> tuple[Measured, dict]:
    sweep = json.loads(path.read_text())
    measured = []
    for layer, problem, geometry in problems():
        times = sweep["times"].get(layer, {}).get(problem)
        if times:
            timings = {name: Timing(*timing).in_a_program_ms(sweep["platform"]) for name, timing in times.items()}
            measured.append((layer, geometry, timings))
    return measured, sweep


def fit(measured: Measured, platform: str) -> CostModel:
    """Plain algorithms first; then rewrites, whose parts those serve, twice, as some parts are rewritten again."""
    constants = fit_kinds(measured, list(PLAIN), CostModel({}, platform), {})
    for _ in range(2):
        constants |= fit_kinds(measured, list(REWRITES), CostModel(constants, platform), constants)
    return CostModel(constants, platform)


def fit_kinds(measured: Measured, names: Sequence[str], model: CostModel, known: Constants) -> Constants:
    samples = collections.defaultdict(list)
    for _, geometry, times in measured:
        for name in times.keys() & set(names):
            work = ALGORITHMS[name].work(geometry)
            parts = model.of_parts(work)
            if parts is not None:
                samples[work.kind].append((work, parts, times[name]))
    return {kind: fit_one(rows, known.get(kind, PRIOR)) for kind, rows in sorted(samples.items())}


def fit_one(rows: Sequence[tuple], start: dict[str, float]) -> dict[str, float]:
    def residuals(logs: np.ndarray) -> np.ndarray:
        c = dict(zip(TERMS, np.exp(logs), strict=True))
        errors = [math.log((own_time(work, c) + parts) / ms) for work, parts, ms in rows]
        return np.array([*errors, *(PULL * (logs - prior))])

    prior = np.log([PRIOR[term] for term in TERMS])
    found = least_squares(residuals, np.log([start[term] for term in TERMS]), loss="soft_l1", f_scale=1.0)
    return {term: float(f"{value:.4g}") for term, value in zip(TERMS, np.exp(found.x), strict=True)}


def regrets(measured: Measured, model: CostModel) -> list[tuple[float, str, str, str]]:
    """Time of what the model chooses over the time of the best that may be taken unasked, worst first."""
    found = []
    for layer, geometry, times in measured:
        if layer.endswith("reduced"):  # all of them take as long as a call does
            continue
        estimates = model.estimates(geometry)
        allowed = {n: times[n] for n in admissible(geometry, model.platform) if n in times}
        chosen = preferred({name: estimates[name] for name in allowed.keys() & estimates.keys()})
        best = min(allowed, key=allowed.__getitem__)
        kind = "kernel gradient" if geometry.is_kernel_gradient else "forward or input gradient"
        found.append((allowed[chosen] / allowed[best], f"{layer}, {kind}", chosen, best))
    return sorted(found, reverse=True)


def accuracy(found: Sequence[tuple[float, str, str, str]]) -> dict[str, float]:
    ratios = [ratio for ratio, *_ in found]
    return {
        "problems": len(ratios),
        "best chosen": round(sum(ratio == 1 for ratio in ratios) / len(ratios), 3),
        "within 10 %": round(sum(ratio <= 1.1 for ratio in ratios) / len(ratios), 3),
        "geometric mean": round(math.exp(sum(map(math.log, ratios)) / len(ratios)), 4),
        "worst": round(max(ratios), 3),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fit", description=__doc__.split("\n")[0])
    parser.add_argument("--sweep", type=Path, required=True, help="what benchmarks.sweep wrote")
    parser.add_argument("--out", type=Path, help="where the constants go; nowhere if not given")
    parser.add_argument("--tables", type=Path, help="the folder where the measurements go that ship with the package")
    parser.add_argument("--worst", type=int, default=10, help="how many of the worst choices to print")
    args = parser.parse_args(argv)
    measured, sweep = load(args.sweep)
    layers = list(dict.fromkeys(layer for layer, *_ in measured))
    held_out = []
    for third in range(3):  # each third is judged by a fit to the other two
        unseen = set(layers[third::3])
        model = fit([m for m in measured if m[0] not in unseen], sweep["platform"])
        held_out += regrets([m for m in measured if m[0] in unseen], model)
    final = fit(measured, sweep["platform"])
    report = {"held out": accuracy(held_out), "all": accuracy(regrets(measured, final))}
    for name, numbers in report.items():
        print(f"{name}: " + ", ".join(f"{what} {number}" for what, number in numbers.items()))
    for ratio, problem, chosen, best in sorted(held_out, reverse=True)[: args.worst]:
        print(f"  {ratio:.2f}  {problem}: {chosen}, best {best}")
    if args.out:
        content = {"jaxlib": sweep["jaxlib"], "accuracy": report, "nanoseconds": final.nanoseconds}
        args.out.write_text(json.dumps(content, indent=1) + "\n")
    if args.tables:
        args.tables.mkdir(exist_ok=True)
        versions = {f"jaxlib {sweep['jaxlib']}, revision {REVISION}": table(measured)}
        content = cache.document(sweep["device"], versions)
        (args.tables / cache.file_name(sweep["device"])).write_text(json.dumps(content, indent=0) + "\n")


def table(measured: Measured) -> dict[str, dict[str, float]]:
    """By problem, the milliseconds of the two fastest that may be taken unasked, and of xla; no small likenesses."""
    found = {}
    for layer, geometry, times in measured:
        allowed = [name for name in admissible(geometry, "cpu") if name in times]
        best = sorted(allowed, key=times.__getitem__)[:2]
        if not layer.endswith("reduced"):
            kept = [name for name in dict.fromkeys([*best, "xla"]) if name in times]
            if len(kept) < 2:  # nothing was compared
                continue
            found[cache.problem_key(geometry)] = {name: round(times[name], 3) for name in kept}
    return found


if __name__ == "__main__":
    main()
