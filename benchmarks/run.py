"""Time convjax against lax, PyTorch and SciPy on real layers, side by side in one process.

    python -m benchmarks.run --suite anchors         the table of the README
    python -m benchmarks.run --peers lax,torch --json out/bench.json --markdown out/bench.md --plot out/bench.png
    python -m benchmarks.run --filter depthwise --mode kernel_grad --algorithms auto,offsets,fft
    python -m benchmarks.run --from-json out/bench.json --plot out/bench.png

Rounds are interleaved, so that a machine that slows down slows every peer down; medians count. A peer whose first call
is slow is measured less often, and one that would take too long is left out, with the reason. Every result is compared
with a float64 reference, and a wrong one has no time. A case that fails is reported, and the rest goes on; Ctrl-C ends
the run, and keeps what was measured.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jaxlib
import numpy as np
import scipy
from tqdm import tqdm

import convjax
from benchmarks import peers, report
from benchmarks.cases import SUITES, select
from benchmarks.layer import MODES, Layer
from benchmarks.reference import Results, largest_error, reference, relative_error
from benchmarks.timing import ceilings, fraction_of_ceiling, interleaved, machine, timed

DEFAULT_MODES = ("forward", "train")
MIB = 2**20


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the suite as the arguments say, print the table, and return everything that was measured."""
    args = parse(argv)
    if args.from_json:
        measured = json.loads(args.from_json.read_text())
    else:
        found = versions(name for name in args.peers if name == "torch")
        measured = {"machine": machine(), "versions": found, "settings": settings(args)}
        run_suite(measured, args)
    print("\n" + report.summary(measured))
    if args.markdown:
        write(args.markdown, report.markdown(measured))
    if args.plot:
        args.plot.parent.mkdir(parents=True, exist_ok=True)
        report.plot(measured, args.plot)
    return measured


def run_suite(measured: dict[str, Any], args: argparse.Namespace) -> None:
    """Fill in ceilings and records, and keep them on disk from case to case."""
    layers = [layer.reduced() if args.reduced else layer for layer in select(args.suite, args.filter)]
    jobs = [(layer, mode) for layer in layers for mode in args.mode]
    size = dict(side=128, copied_bytes=MIB, calls=2) if args.reduced else {}
    measured["ceilings"] = ceilings({"float32", *(layer.dtype for layer in layers)}, **size)
    measured["records"] = []
    bar = tqdm(jobs, disable=None, unit="case")
    try:
        for layer, mode in bar:
            bar.set_description(f"{layer.name}, {mode}")
            result = record(layer, mode, args, measured["ceilings"])
            measured["records"].append(result)
            tqdm.write(report.line(result))
            if args.json:
                write(args.json, json.dumps(measured, indent=1) + "\n")
    except KeyboardInterrupt:
        measured["interrupted"] = True
        tqdm.write(f"interrupted after {len(measured['records'])} of {len(jobs)} cases")
    if args.json:
        write(args.json, json.dumps(measured, indent=1) + "\n")


def record(layer: Layer, mode: str, args: argparse.Namespace, ceiling: dict[str, Any]) -> dict[str, Any]:
    """Everything about one layer in one mode, its failure included."""
    result: dict[str, Any] = {
        "layer": layer.name,
        "mode": mode,
        "family": layer.family,
        "source": layer.source,
        "tags": list(layer.tags),
        "dtype": layer.dtype,
        "layout": layer.layout,
        "flops": layer.flops(mode),
        "bytes": layer.bytes(mode),
    }
    try:
        return result | measure(layer, mode, args, ceiling)
    except Exception as error:
        return result | {"failed": describe(error)}


def measure(layer: Layer, mode: str, args: argparse.Namespace, ceiling: dict[str, Any]) -> dict[str, Any]:
    """Times, errors and the rest of each contender, and what the errors are relative to."""
    operands = layer.operands()
    entries: dict[str, dict[str, Any]] = {}
    ready: dict[str, peers.Peer] = {}
    results: dict[str, Results] = {}
    first_s: dict[str, float] = {}
    for name in (*args.algorithms, *args.peers):
        try:
            offered = peers.offer(name, layer, mode, operands, args.limit)
            if isinstance(offered, str):
                entries[name] = {"left_out": offered}
                continue
            value, first_s[name] = timed(offered.run)
            results[name], ready[name], entries[name] = offered.read(value), offered, dict(offered.facts)
        except Exception as error:  # the others go on
            entries[name] = {"failed": describe(error)}
    source, expected = reference(layer, mode, operands) or _stand_in(results)
    for name in list(ready):
        if name == source:
            continue
        entries[name]["error"] = off = relative_error(results.pop(name), expected)
        if not off <= largest_error(layer.dtype):
            entries[name]["failed"] = f"wrong: relative error {off:.1e} against {source}"
            del ready[name]
    times = interleaved({name: peer.run for name, peer in ready.items()}, first_s, args.rounds, args.patience)
    for name, seconds in times.items():
        median = float(np.median(seconds))
        entries[name] |= {
            "ms": median * 1e3,
            "least_ms": min(seconds) * 1e3,
            "most_ms": max(seconds) * 1e3,
            "calls": len(seconds),
            "gflops": layer.flops(mode) / median / 1e9,
            "gbs": layer.bytes(mode) / median / 1e9,
            "fraction": fraction_of_ceiling(median, layer.flops(mode), layer.bytes(mode), layer.dtype, ceiling),
        }
    return {"reference": source, "contenders": entries}


def _stand_in(results: dict[str, Results]) -> tuple[str, Results]:
    """Where no float64 reference is affordable: lax, else whoever has a result."""
    for name in ("lax", "torch", *results):
        if name in results:
            return name, results[name]
    return "nothing", {}


def describe(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"


def versions(others: Iterable[str] = ()) -> dict[str, str]:
    modules = {"jax": jax, "jaxlib": jaxlib, "convjax": convjax, "numpy": np, "scipy": scipy}
    found = {"python": platform.python_version()} | {name: module.__version__ for name, module in modules.items()}
    return found | {name: importlib.metadata.version(name) for name in others}


def settings(args: argparse.Namespace) -> dict[str, Any]:
    names = ("suite", "filter", "mode", "algorithms", "peers", "rounds", "patience", "limit", "reduced")
    return {name: getattr(args, name) for name in names}


def write(path: Path, text: str) -> None:
    """All of it or nothing: a run may be killed while it writes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)


# --- arguments --------------------------------------------------------------------------------------------------------


def some_of(options: Iterable[str]) -> Callable[[str], list[str]]:
    """A comma-separated choice, for argparse."""
    known = tuple(options)

    def read(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",") if name.strip()]
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is not known; type some of {','.join(known)}")
        return names

    return read


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--suite", choices=tuple(SUITES), default="all", help="anchors: the layers of the README's table")
    add("--filter", default="", metavar="TEXT", help="only layers whose name, family or tags hold this text")
    add("--mode", type=some_of(MODES), default=list(DEFAULT_MODES), help=f"some of {','.join(MODES)}")
    algorithms = ("auto", *convjax.algorithms())
    add("--algorithms", type=some_of(algorithms), default=["auto"], help="some of auto and convjax.algorithms()")
    add("--peers", type=some_of(peers.PEERS), default=["lax"], help=f"some of {','.join(peers.PEERS)}")
    add("--rounds", type=int, default=7, help="measurements of each contender at most")
    add("--patience", type=float, default=1.5, metavar="S", help="seconds for one contender, at least one call")
    add("--limit", type=float, default=30.0, metavar="S", help="leave out direct sums estimated at more than this")
    add("--reduced", action="store_true", help="every layer at the size that the tests use: no times worth reading")
    add("--json", type=Path, metavar="PATH", help="write every number here, from case to case")
    add("--markdown", type=Path, metavar="PATH", help="write the tables here")
    add("--plot", type=Path, metavar="PATH", help="draw the ratios here")
    add("--from-json", type=Path, metavar="PATH", help="measure nothing: tables and plot of an earlier run")
    args = parser.parse_args(argv)
    if "torch" in args.peers and not importlib.util.find_spec("torch"):
        parser.error("PyTorch is not installed: leave torch out of --peers, or pip install torch")
    if not args.mode or not args.algorithms:
        parser.error("--mode and --algorithms need at least one name each")
    return args


if __name__ == "__main__":
    main()
