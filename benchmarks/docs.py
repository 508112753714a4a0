"""Write what was measured into the documentation, between its markers, from the JSON files.

python -m benchmarks.docs
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import aot_tpu, networks, report, signals, variants
from benchmarks.cases import LAYERS
from benchmarks.sweep import problems
from convjax._core.cost import admissible

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
CONSTANTS = ROOT / "convjax" / "_core" / "constants"
SWEPT = "sweep-cpu-avx2.json"  # on the machine of the other tables
CLEARLY = 1.05  # as many times as long the next best must take
NAMED = 4  # layers that are named of those where an algorithm wins


def accuracy() -> str:
    """How well the model of each platform chooses."""
    rows = []
    for path in sorted(CONSTANTS.glob("*.json")):
        content = json.loads(path.read_text())
        for what, numbers in content["accuracy"].items():
            best, close = (f"{100 * numbers[key]:.0f} %" for key in ("best chosen", "within 10 %"))
            rest = [f"{numbers[key]:.3g}" for key in ("geometric mean", "worst")]
            rows.append([path.stem, content["jaxlib"], what, str(numbers["problems"]), best, close, *rest])
    head = ["platform", "jaxlib", "layers", "problems", "best chosen", "within 10 %", "auto / best, mean", "worst"]
    return report.table(head, rows)


def wins() -> str:
    """For each algorithm the problems on which every other takes clearly longer."""
    best = defaultdict(list)
    sweep = json.loads((RESULTS / SWEPT).read_text())
    for layer, problem, geometry in problems():
        timings = sweep["times"].get(layer, {}).get(problem, {})
        times = sorted((timings[name][0], name) for name in admissible(geometry, "cpu") if name in timings)
        if len(times) > 1 and times[1][0] > CLEARLY * times[0][0] and not layer.endswith("reduced"):
            best[times[0][1]].append((problem, layer))
    rows = []
    for name, won in sorted(best.items(), key=lambda item: -len(item[1])):
        by_problem = defaultdict(list)
        for problem, layer in won:
            by_problem[problem].append(layer)
        rows += [[name, problem, str(len(layers)), "; ".join(layers[:NAMED])] for problem, layers in by_problem.items()]
    return report.table(["algorithm", "problem", "wins", "such as"], rows)


def speed() -> str:
    """The table of the suite."""
    return report.summary(json.loads((RESULTS / "cpu.json").read_text()))


def anchors() -> str:
    """The layers of the README."""
    measured = json.loads((RESULTS / "cpu.json").read_text())
    names = {layer.name for layer in LAYERS if "anchor" in layer.tags}
    return report.summary(measured | {"records": [r for r in measured["records"] if r["layer"] in names]})


def told(file: str, table: Callable[[Any], str], *versions: str) -> str:
    """A table, under what it was measured on."""
    measured = json.loads((RESULTS / file).read_text())
    machine = measured["machine"]
    those = ", ".join(f"{name} {measured['versions'][name]}" for name in versions)
    return f"{machine['processor']} ({machine['cores']} cores), {those}.\n\n{table(measured)}"


def tpu() -> str:
    """Static figures of the TPU kernels."""
    return aot_tpu.document(json.loads((RESULTS / "aot-tpu.json").read_text()))


SECTIONS: dict[str, Callable[[], str]] = {
    "accuracy": accuracy,
    "wins": wins,
    "speed": speed,
    "anchors": anchors,
    "training": partial(told, "networks-cpu.json", networks.table, "jax", "flax"),
    "variants": partial(told, "variants-cpu.json", variants.table, "jax"),
    "signals": partial(told, "signals-cpu.json", signals.table, "jax", "scipy"),
    "tpu": tpu,
}


def filled(text: str) -> str:
    """The text with every section between markers made anew."""

    def section(found: re.Match) -> str:
        return f"{found['begin']}\n{SECTIONS[found['name']]()}\n{found['end']}"

    pattern = r"(?P<begin><!-- begin (?P<name>\w+): .*? -->)\n.*?(?P<end><!-- end (?P=name) -->)"
    return re.sub(pattern, section, text, flags=re.DOTALL)


def main() -> None:
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        text = path.read_text()
        if (now := filled(text)) != text:
            path.write_text(now)
            print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
