"""Fit the cost model to a sweep, and say how well it chooses.

    python -m benchmarks.fit --sweep benchmarks/results/sweep-cpu-avx2.json \\
        --out convjax/_core/constants/cpu-avx2.json --tables convjax/_core/tables --each --plot docs/choice.png

For each kind of work, four positive constants that minimise the squared logarithm of formula over measurement, drawn
to those of the kind that it is a special case of. Then, for each algorithm, a Gaussian process on what that leaves:
how much each measured problem weighs in the estimates of those like it.

Every third layer is held out; what is reported of accuracy is of those, by models that have seen neither them nor the
same problem in another layer; with --each, which takes a minute, also of every layer by a model of all the others. The
model that is written is fitted to all. Likenesses are held out with their layer; the smallest are there for what a call
costs, and not judged.
"""

from __future__ import annotations

import argparse
import collections
import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import linalg
from scipy.optimize import least_squares

from benchmarks.report import COLOURS
from benchmarks.sweep import HALVED, REDUCED, problems
from convjax._core import cache, choose
from convjax._core.algorithms import ALGORITHMS, PLAIN, REVISION, REWRITES
from convjax._core.cost import Constants, CostModel, admissible
from convjax._core.geometry import Geometry, Work
from convjax._core.measure import Timing
from convjax._core.neighbours import Row, place, similarity, sizes

TERMS = ("fixed", "macs", "moved", "steps")
# What a fit is drawn to where data are few: nanoseconds of an operation, a multiply-add, an element written and read,
# a round of a loop.
PRIOR = {"fixed": 2e4, "macs": 0.02, "moved": 0.5, "steps": 1e3}
PULL = 0.1  # of the prior, in logarithms, against one measurement
# Of the Gaussian processes, in logarithms. Measurements of one problem in two layers differ by 0.12; what is as many
# times slower than the best need not be known as well, and is taken to be as noisy as INDIFFERENCE of that.
SPREAD, NOISE, INDIFFERENCE = 0.5, 0.15, 0.3

Measured = list[tuple[tuple[str, ...], Geometry, dict[str, float]]]  # layers, problem, milliseconds by algorithm


class Known(CostModel):
    """A model that looks at each problem once for all fits."""

    def work(self, name: str, geometry: Geometry) -> Work:
        return known_work(name, geometry)

    def admissible(self, geometry: Geometry) -> Sequence[str]:
        return known_admissible(geometry, self.platform)


known_work = functools.cache(lambda name, geometry: ALGORITHMS[name].work(geometry))
known_admissible = functools.cache(admissible)


def load(path: Path) -> tuple[Measured, dict]:
    """Every problem once: where several layers have it, the geometric means of its times in them."""
    sweep = json.loads(path.read_text())
    found = collections.defaultdict(list)
    for layer, problem, geometry in problems():
        times = sweep["times"].get(layer, {}).get(problem)
        if times:
            timings = {name: Timing(*timing).in_a_program_ms(sweep["platform"]) for name, timing in times.items()}
            found[geometry].append((layer, timings))
    measured = []
    for geometry, several in found.items():
        layers, timings = zip(*several, strict=True)
        names = [name for name in timings[0] if all(name in times for times in timings)]
        means = {name: math.exp(np.mean([math.log(times[name]) for times in timings])) for name in names}
        measured.append((tuple(dict.fromkeys(layers)), geometry, means))
    return measured, sweep


def fit(measured: Measured, platform: str) -> CostModel:
    """Plain algorithms first; then rewrites, whose parts those serve, twice, as some parts are rewritten again."""
    constants = plain = fit_kinds(measured, list(PLAIN), Known({}, platform))
    neighbours = known = weigh(measured, list(PLAIN), Known(plain, platform))
    for _ in range(2):
        constants = plain | fit_kinds(measured, list(REWRITES), Known(constants, platform, neighbours))
        found = weigh(measured, list(REWRITES), Known(constants, platform, neighbours))
        neighbours = [a | {"weights": a["weights"] | b["weights"]} for a, b in zip(known, found, strict=True)]
    return Known(constants, platform, neighbours)


def fit_kinds(measured: Measured, names: Sequence[str], model: CostModel) -> Constants:
    """Of each kind of work; those of "xla, 3-D" are drawn to those of all that begins with "xla"."""
    rows = collections.defaultdict(list)
    for _, geometry, times in measured:
        for name in sorted(times.keys() & set(names)):
            work = known_work(name, geometry)
            parts = model.of_parts(work)
            if parts is not None:
                rows[work.kind].append((1.0, work.macs, work.moved, work.steps, parts, times[name]))

    @functools.cache
    def logs(kind: str) -> np.ndarray:
        if not kind:
            return np.log([PRIOR[term] for term in TERMS])
        special = [
            row for other in sorted(rows) if other == kind or other.startswith(f"{kind}, ") for row in rows[other]
        ]
        return fit_one(np.array(special), logs(kind.rpartition(", ")[0]))

    found = {}
    for kind in sorted(rows):
        own = fit_one(np.array(rows[kind]), logs(kind))
        found[kind] = {term: float(f"{value:.4g}") for term, value in zip(TERMS, np.exp(own), strict=True)}
    return found


def fit_one(rows: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Logarithms of the constants; a row has the amounts of the terms, milliseconds of parts, milliseconds measured."""
    amounts, parts, measured = 1e-6 * rows[:, : len(TERMS)], rows[:, -2], np.log(rows[:, -1])

    def residuals(logs: np.ndarray) -> np.ndarray:
        return np.concatenate([np.log(amounts @ np.exp(logs) + parts) - measured, PULL * (logs - start)])

    def slopes(logs: np.ndarray) -> np.ndarray:
        terms = amounts * np.exp(logs)
        return np.concatenate([terms / (terms.sum(1) + parts)[:, None], PULL * np.eye(len(logs))])

    return least_squares(residuals, start, slopes, loss="soft_l1").x


def weigh(measured: Measured, names: Sequence[str], model: CostModel) -> list[Row]:
    """How much each problem weighs in the estimates of those like it: a Gaussian process for each algorithm."""
    found: list[Row] = [{"sizes": sizes(geometry), "weights": {}} for _, geometry, _ in measured]
    places = np.array([place(row["sizes"]) for row in found])
    alike = SPREAD**2 * similarity(places[:, None], places)
    for name in names:
        left, noise = {}, []
        for i, (_, geometry, times) in enumerate(measured):
            formula = model.formula(known_work(name, geometry)) if name in times else None
            if formula is not None:
                left[i] = math.log(times[name] / formula)
                noise.append(NOISE**2 + (INDIFFERENCE * math.log(times[name] / min(times.values()))) ** 2)
        if left:
            covariance = alike[np.ix_(list(left), list(left))] + np.diag(noise)
            weights = SPREAD**2 * linalg.solve(covariance, list(left.values()), assume_a="pos")
            for i, weight in zip(left, weights, strict=True):
                found[i]["weights"][name] = round(float(weight), 4)
    return found


def held_out(measured: Measured, platform: str, folds: int) -> list[tuple[float, str, str, str]]:
    """Regrets of each fold of the layers, by a model fitted to the rest."""
    layers = list(dict.fromkeys(whole(layers[0]) for layers, *_ in measured))
    found = []
    for fold in range(folds):
        unseen = set(layers[fold::folds])
        rest = [m for m in measured if not unseen & set(map(whole, m[0]))]
        found += regrets([m for m in measured if whole(m[0][0]) in unseen], fit(rest, platform))
    return sorted(found, reverse=True)


def whole(layer: str) -> str:
    """The layer that a likeness is of."""
    return layer.removesuffix(REDUCED).removesuffix(HALVED)


def regrets(measured: Measured, model: CostModel) -> list[tuple[float, str, str, str]]:
    """Time of what the model chooses over the time of the best that may be taken unasked, worst first."""
    found = []
    for (layer, *_), geometry, times in measured:
        if layer.endswith(REDUCED):  # all of them take as long as a call does
            continue
        estimates = model.estimates(geometry)
        allowed = {n: times[n] for n in known_admissible(geometry, model.platform) if n in times}
        known = {name: estimates[name] for name in allowed.keys() & estimates.keys()}
        chosen = choose.preferred(known, choose.WORTHWHILE_MS)
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


def plot(regretted: Mapping[str, Sequence[tuple[float, str, str, str]]], device: str, path: Path) -> None:
    """How many of the problems get an algorithm that takes at most so many times as long as the best."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter, StrMethodFormatter

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for (name, found), colour, style in zip(regretted.items(), COLOURS, ("-", "--"), strict=False):
        ratios = sorted(ratio for ratio, *_ in found)
        share = np.arange(1, len(ratios) + 1) / len(ratios)
        axes.step([1, *ratios], [0, *share], where="post", color=colour, linestyle=style, label=name)
    axes.set_xscale("log")
    axes.set_xlim(left=1)
    axes.set_xticks([1, 1.2, 1.5, 2, 3, 5, 10])
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("time of the chosen algorithm over that of the best")
    axes.set_ylabel("problems, up to this ratio")
    axes.set_title(device)
    axes.grid(color="0.88", linewidth=0.6)
    axes.legend(loc="lower right", title="layers of the suite")
    figure.savefig(path, dpi=150)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fit", description=__doc__.split("\n")[0])
    parser.add_argument("--sweep", type=Path, required=True, help="what benchmarks.sweep wrote")
    parser.add_argument("--out", type=Path, help="where the constants go; nowhere if not given")
    parser.add_argument("--tables", type=Path, help="the folder where the measurements go that ship with the package")
    parser.add_argument("--each", action="store_true", help="also hold out one layer at a time")
    parser.add_argument("--plot", type=Path, help="draw how far choices are from the best")
    parser.add_argument("--worst", type=int, default=10, help="how many of the worst choices to print")
    args = parser.parse_args(argv)
    measured, sweep = load(args.sweep)
    platform, layers = sweep["platform"], len({whole(layers[0]) for layers, *_ in measured})
    final, thirds = fit(measured, platform), held_out(measured, platform, 3)
    seen = regrets(measured, final)
    report = {"held out": accuracy(thirds)}
    if args.each:
        report["each held out"] = accuracy(held_out(measured, platform, layers))
    report["all"] = accuracy(seen)
    for name, numbers in report.items():
        print(f"{name}: " + ", ".join(f"{what} {number}" for what, number in numbers.items()))
    for ratio, problem, chosen, best in thirds[: args.worst]:
        print(f"  {ratio:.2f}  {problem}: {chosen}, best {best}")
    if args.out:
        content = {"jaxlib": sweep["jaxlib"], "accuracy": report, "nanoseconds": final.nanoseconds}
        rows = ",\n".join(f"  {json.dumps(row)}" for row in final.neighbours)  # one a line
        args.out.write_text(json.dumps(content, indent=1)[:-2] + f',\n "neighbours": [\n{rows}\n ]\n}}\n')
    if args.plot:
        plot({"held out": thirds, "all": seen}, sweep["device"], args.plot)
    if args.tables:
        args.tables.mkdir(exist_ok=True)
        versions = {f"jaxlib {sweep['jaxlib']}, revision {REVISION}": table(measured)}
        content = cache.document(sweep["device"], versions)
        (args.tables / cache.file_name(sweep["device"])).write_text(json.dumps(content, indent=0) + "\n")


def table(measured: Measured) -> dict[str, dict[str, float]]:
    """By problem, the milliseconds of the two fastest that may be taken unasked, and of xla; no small likenesses."""
    found = {}
    for (layer, *_), geometry, times in measured:
        allowed = [name for name in known_admissible(geometry, "cpu") if name in times]
        best = sorted(allowed, key=times.__getitem__)[:2]
        if not layer.endswith(REDUCED):
            kept = [name for name in dict.fromkeys([*best, "xla"]) if name in times]
            if len(kept) < 2:  # nothing was compared
                continue
            found[cache.problem_key(geometry)] = {name: round(times[name], 3) for name in kept}
    return found


if __name__ == "__main__":
    main()
