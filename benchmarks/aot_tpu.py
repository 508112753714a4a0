"""Compile the TPU kernels for TPUs that are not here, and say what the compiler made of them.

    python -m benchmarks.aot_tpu                     writes benchmarks/results/aot-tpu.json, and prints a table
    python -m benchmarks.aot_tpu --quick             each kernel once for v5e and v6e, without lax, nothing written
    python -m benchmarks.aot_tpu --filter 7x7 --targets v6e --json out/aot.json

Needs libtpu beside jax (`pip install "libtpu==0.0.50.*"` for jax 0.12, 0.0.42.* for 0.10), and no TPU. Each case is
compiled in a process of its own with a time limit, as libtpu may abort. Beside every problem lax's own convolution of
it is compiled, its copies included.

All figures are static: nothing ran. `cycles` are bundles, one a cycle at best, as often as their loops run
(`benchmarks.bundles`); `bound` is what operands and result need at the peak bandwidth. `time`, by which kernel and lax
are compared, is the larger of an operation's bundles and its transfers to and from HBM, summed over the operations of
the program, copies included, and at least `bound`: XLA also moves operands to VMEM, and results from it, beside all
operations, in transfers that have no bundles. `estimated` is the cost model of XLA's compiler: it knows nothing of
kernels, and says three to five times as much as `time` does for lax.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.aot_cases import TPU, AotCase
from benchmarks.report import table

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "aot-tpu.json"
LIMIT_S = 150.0


@dataclasses.dataclass(frozen=True)
class Chip:
    """One core of a generation, peak figures of cloud.google.com/tpu/docs/system-architecture-tpu-vm.

    Attributes:
      topology: what libtpu calls the smallest one.
      clock: Hz, the peak FLOP/s in bfloat16 over the products that the matrix units make in a cycle.
      bandwidth: of HBM, bytes per second.
    """

    topology: str
    clock: float
    bandwidth: float


CHIPS = {
    "v5e": Chip("v5e:1x1", 197e12 / 2**17, 819e9),
    "v6e": Chip("v6e:1x1", 918e12 / 2**19, 1638e9),
    "v5p": Chip("v5p:2x2x1", 459e12 / 2**18, 2765e9),
    "tpu7x": Chip("tpu7x:2x2x1", 2307e12 / 2 / 2**19, 7380e9 / 2),  # a chip has two cores
}
QUICK = ("v5e", "v6e")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Compile what is asked for; return what is written. Exits with 1 where a kernel is refused by the compiler."""
    args = parse(argv)
    if args.worker:
        name, target, what = args.worker
        return worker(next(case for case in TPU if str(case) == name), target, what)
    wanted = lambda case: args.filter.lower() in str(case).lower() and (case.quick or not args.quick)
    cases = list(filter(wanted, TPU))
    jobs: list[tuple[AotCase, str, str]] = []
    for target in args.targets:
        seen: set[tuple[str, ...]] = set()
        for case in cases:
            if case.targets and target not in case.targets:
                continue
            jobs.append((case, target, "kernel"))
            if not args.quick and (problem := (case.name, *case.epilogue)) not in seen:
                jobs.append((case, target, "lax"))
                seen.add(problem)
    entries: list[dict[str, Any]] = []
    report = {"versions": versions(), "figures": "static: compiled, not run", "entries": entries}

    def compiled(job: tuple[AotCase, str, str]) -> dict[str, Any]:
        case, target, what = job
        kernel = case.kernel if what == "kernel" else "lax"
        found = {"case": case.name, "kernel": kernel, "target": target, "epilogue": list(case.epilogue)}
        return found | in_a_process(["--worker", str(case), target, what], args.limit)

    at_once = ThreadPoolExecutor(os.cpu_count() if args.quick else 1)
    for entry in tqdm(at_once.map(compiled, jobs), total=len(jobs), disable=None):
        entries.append(entry)
        if args.json:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(report, indent=1) + "\n")
    print(document(report))
    failed = [e for e in entries if e["kernel"] != "lax" and not e["accepted"]]
    for entry in failed:
        print(f"{entry['target']}, {entry['case']}, {entry['kernel']}: {entry['reason']}", file=sys.stderr)
    if failed:
        sys.exit(1)
    return report


# --- one case, in a process of its own --------------------------------------------------------------------------------


def in_a_process(arguments: Sequence[str], limit_s: float) -> dict[str, Any]:
    """What a worker found; the reason where it was aborted, failed, or took too long."""
    with tempfile.TemporaryDirectory(prefix="aot-") as folder:
        out = Path(folder) / "found.json"
        environment = os.environ | {
            "TPU_SKIP_MDS_QUERY": "1",
            "JAX_PLATFORMS": "cpu",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # else a lock file lets in one process at a time
            "CONVJAX_TUNE": "off",
            "AOT_FOLDER": folder,
            "LIBTPU_INIT_ARGS": f"--xla_jf_dump_to={folder}/dump --xla_jf_dump_llo_text=true",
        }
        command = [sys.executable, "-m", "benchmarks.aot_tpu", *arguments]
        start = time.monotonic()
        try:
            done = subprocess.run(
                command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=limit_s, check=False
            )
        except subprocess.TimeoutExpired:
            return {"accepted": False, "reason": f"took longer than {limit_s:.0f} s"}
        if not out.exists():
            return {"accepted": False, "reason": f"ended with {done.returncode}: {done.stderr.strip()[-300:]}"}
        return json.loads(out.read_text()) | {"seconds": round(time.monotonic() - start, 1)}


def worker(case: AotCase, target: str, what: str) -> dict[str, Any]:
    """Compile one program and write what was found to the folder that the environment names."""
    folder = Path(os.environ["AOT_FOLDER"])
    try:
        found = figures(case, target, what, folder / "dump")
    except Exception as error:  # the compiler's reason is the result
        found = {"accepted": False, "reason": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}
    (folder / "found.json").write_text(json.dumps(found))
    return found


def figures(case: AotCase, target: str, what: str, dump: Path) -> dict[str, Any]:
    import jax
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    from benchmarks import bundles

    chip, problem = CHIPS[target], case.problem()
    if what == "kernel" and (reason := refusal(case)):
        return {"accepted": False, "reason": f"supports: {reason}"}
    run, operands = case.program(what) if case.program else program(case, what)
    (device, *_) = topologies.get_topology_desc(platform="tpu", topology_name=chip.topology).devices
    arguments = [jax.ShapeDtypeStruct(shape, dtype, sharding=SingleDeviceSharding(device)) for shape, dtype in operands]
    dump.mkdir(exist_ok=True)
    compiled = jax.jit(run).lower(*arguments).compile()
    schedules, memory, text = bundles.read_dump(dump), compiled.memory_analysis(), compiled.as_text()
    assert memory is not None
    assert text is not None
    moved = memory.argument_size_in_bytes + memory.output_size_in_bytes
    matrix: dict[str, int] = {}
    for schedule in schedules.values():
        for kind, count in schedule.matrix.items():
            matrix[kind] = matrix.get(kind, 0) + count
    bound = round(moved / chip.bandwidth * chip.clock)
    operations = of_program(text, {name: schedule.cycles for name, schedule in schedules.items()}, chip)
    return {
        "accepted": True,
        "flops": problem.spec.flops(problem.lhs_shape, problem.rhs_shape),
        "moved_bytes": moved,
        "bound": bound,
        "cycles": sum(schedule.cycles for schedule in schedules.values()),
        "unknown_trips": sum(schedule.unknown_trips for schedule in schedules.values()),
        "spills": sum(schedule.spills for schedule in schedules.values()),
        "matrix": matrix,
        "temporary_bytes": memory.temp_size_in_bytes,
        **operations,
        "time": max(bound, operations["time"]),
    }


def of_program(text: str, cycles: Mapping[str, int], chip: Chip) -> dict[str, Any]:
    """From the text of a compiled program: VMEM, copies that were inserted, emitters, times of the operations."""
    entry = text[text.rfind("\nENTRY") :]
    transfers = {name: round(size / chip.bandwidth * chip.clock) for name, size in hbm_bytes(entry).items()}
    operations = {name: (count, transfers.get(name, 0)) for name, count in cycles.items()}
    used = " ".join(re.findall(r'"used_scoped_memory_configs":\[(.*?)\]', entry))
    return {
        "vmem_bytes": max(map(int, SIZE.findall(used)), default=0),
        "copies": sorted(COPY.findall(entry)),
        "operations": operations,  # bundles, and cycles that its transfers need at the peak bandwidth
        "time": sum(map(max, operations.values())),
        "emitters": sorted(set(re.findall(r'"emitter":"(\w+)"', entry))),
        "estimated": sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', entry))),
    }


def hbm_bytes(entry: str) -> dict[str, int]:
    """Bytes that each operation reads from HBM and writes to it: what the compiler placed in VMEM is marked S(1)."""
    placed: dict[str, int] = {}
    moved = {}
    for line in OPERATION.finditer(entry):
        placed[line["name"]] = sum(
            0 if "S(1)" in array["layout"] else math.prod(map(int, filter(None, array["shape"].split(",")))) * bits // 8
            for array in ARRAY.finditer(line["result"])
            if (bits := int(re.sub(r"\D", "", array["dtype"]) or 8))
        )
        operands = re.findall(r"%([\w.-]+)", line["operands"])
        moved[line["name"]] = placed[line["name"]] + sum(placed.get(name, 0) for name in operands)
    return moved


OPERATION = re.compile(r"^  (?:ROOT )?%(?P<name>[\w.-]+) = (?P<result>.*?) [\w-]+\((?P<operands>[^)]*)\)", re.MULTILINE)
ARRAY = re.compile(r"(?P<dtype>[a-z]+\d*)\[(?P<shape>[\d,]*)\](?P<layout>(?:\{[^}]*\})?)")
SIZE = re.compile(r'"memory_space":"1","offset":"\d+","size":"(\d+)"')
COPY = re.compile(r"= (\w+\[[\d,]*\])\S* (?:copy|transpose|pad)\(")


def refusal(case: AotCase) -> str | None:
    import jax

    from convjax._core.algorithms import ALGORITHMS

    problem = case.problem()
    lhs, rhs = (jax.ShapeDtypeStruct(shape, case.dtype) for shape in (problem.lhs_shape, problem.rhs_shape))
    return ALGORITHMS[case.kernel].supports(problem.spec, lhs, rhs, "tpu")


def program(case: AotCase, what: str) -> tuple[Callable, list[tuple[tuple[int, ...], str]]]:
    """The function to compile and its operands: those that the layer has, transposed inside."""
    import jax.numpy as jnp

    from convjax._core import epilogue
    from convjax._core.algorithms import ALGORITHMS, xla

    problem = case.problem()
    lhs, rhs, out = problem.lhs_shape, problem.rhs_shape, problem.out_shape
    shapes = [lhs, rhs]
    if case.kind == "kernel_grad":
        shapes = [(lhs[-1], *lhs[1:-1], lhs[0]), (rhs[-2], *rhs[:-2], rhs[-1])]
    added = [name for name in ("bias", "residual") if name in case.epilogue]
    shapes += [{"bias": out[-1:], "residual": out}[name] for name in added]
    activation = next((name for name in case.epilogue if name not in ("bias", "residual")), None)

    def run(x: Any, w: Any, *addends: Any) -> Any:
        named = dict(zip(added, addends, strict=True))
        if case.kind == "kernel_grad":
            x, w = jnp.swapaxes(x, 0, -1), jnp.moveaxis(w, 0, -2)
        if what == "kernel":
            fused = {**named, "activation": activation} if case.epilogue else {}  # a rewrite takes none
            y = ALGORITHMS[case.kernel].run(problem.spec, x, w, **fused)
        else:
            y = xla.run(problem.spec, x, w)
            act = epilogue.read_activation("aot", activation)
            y = epilogue.apply(y, named.get("bias"), named.get("residual"), act)
        return jnp.moveaxis(y, 0, -2) if case.kind == "kernel_grad" else y

    return run, [(tuple(shape), case.dtype) for shape in shapes]


# --- the end ----------------------------------------------------------------------------------------------------------


HEAD = (
    *("problem", "kernel", "fused", "bound", "bundles", "time", "lax: time", "estimated", "lax / kernel"),
    *("copies, lax", "VMEM, MiB", "temporaries, MiB, lax", "spills", "matrix unit, lax"),
)


def document(report: dict[str, Any]) -> str:
    """A table a target, in markdown."""
    names = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    lines = [f"Static figures, compiled ahead of time with {names}; nothing ran on a TPU. In thousands of cycles.", ""]
    entries = report["entries"]
    for target in dict.fromkeys(entry["target"] for entry in entries):
        here = [entry for entry in entries if entry["target"] == target]
        lax = {key(entry): entry for entry in here if entry["kernel"] == "lax"}
        rows = [row(entry, lax.get(key(entry), {})) for entry in here if entry["kernel"] != "lax"]
        lines += [f"**{target}**", "", table(HEAD, rows), ""]
    return "\n".join(lines).rstrip()


def key(entry: dict[str, Any]) -> tuple[str, ...]:
    """The problem and what follows it: what a kernel and lax have in common."""
    return entry["case"], *entry["epilogue"]


def row(entry: dict[str, Any], lax: dict[str, Any]) -> list[str]:
    """Of a kernel and of lax; what neither was compiled for stays empty."""
    first = [entry["case"], entry["kernel"], ", ".join(entry["epilogue"])]
    if not entry["accepted"]:
        return [*first, entry["reason"], *[""] * (len(HEAD) - len(first) - 1)]
    told = lambda of, name, unit: f"{of[name] / unit:.3g}" if name in of else "failed" if of else ""
    units = lambda of: " ".join(f"{count} {kind}" for kind, count in of.get("matrix", {}).items()) or "none"
    figures = [told(entry, name, 1e3) for name in ("bound", "cycles", "time")]
    figures += [told(lax, name, 1e3) for name in ("time", "estimated")]
    figures.append(f"{lax['time'] / entry['time']:.3g}" if "time" in lax else "")
    figures.append(f"{len(entry['copies'])}, {len(lax.get('copies', []))}")
    memory = [told(entry, "vmem_bytes", 2**20), ", ".join(told(of, "temporary_bytes", 2**20) for of in (entry, lax))]
    return [*first, *figures, *memory, str(entry["spills"]), f"{units(entry)}, {units(lax)}"]


def versions() -> dict[str, str]:
    from importlib import metadata

    return {name: metadata.version(name) for name in ("jax", "libtpu")}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.aot_tpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="each kernel once, for v5e and v6e, without lax, nothing written")
    add("--filter", default="", metavar="TEXT", help="only cases whose name holds this text")
    add("--targets", nargs="+", choices=CHIPS, help="generations; all, or v5e and v6e with --quick")
    add("--limit", type=float, default=LIMIT_S, help="seconds that a case may take")
    add("--json", type=Path, metavar="PATH", help=f"write here instead of {RESULTS.relative_to(ROOT)}")
    add("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.targets = args.targets or list(QUICK if args.quick else CHIPS)
    if not args.quick and not args.filter and not args.worker:
        args.json = args.json or RESULTS
    return args


if __name__ == "__main__":
    main()
