"""Compile every GPU kernel for an H200 without one, and record what the compiler says. Nothing runs: static figures.

    python -m benchmarks.aot_gpu --quick              lower a few, with the CPU's wheels alone; under a minute
    python -m benchmarks.aot_gpu                      lower all, then compile all in an environment of its own
    python -m benchmarks.aot_gpu --filter depthwise --environment ~/cuda

Lowering finds layouts that do not exist, boxes that TMA cannot copy and too much shared memory; ptxas finds what sm_90
cannot do, and says how many registers a thread needs and whether they spill. The full run writes
benchmarks/results/aot-gpu.json and docs/kernels-gpu.md. The environment is made on first use (1.4 GB, a few minutes).
Exits with an error where a program fails or spills registers, or is refused and was not when that file was written;
what a kernel refuses is listed with its reason.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks import report
from benchmarks.aot_gpu_cases import PROGRAMS, Program
from benchmarks.run import describe, versions, write

ROOT = Path(__file__).parent.parent
ENVIRONMENT = ROOT / "build" / "cuda"
RESULT, DOCS = ROOT / "benchmarks" / "results" / "aot-gpu.json", ROOT / "docs" / "kernels-gpu.md"
BATCH, LIMIT_S = 12, 600  # programs that a process compiles, and the time that it may take

# Versions that were tried together; the plugin's own dependencies, the CUDA libraries, are for running alone.
JAX = ("jax==0.11.2", "jaxlib==0.11.2")
PLUGIN = (
    "jax-cuda13-plugin==0.11.2",
    "jax-cuda13-pjrt==0.11.2",
    "nvidia-cuda-nvcc==13.0.*",
    "nvidia-nvvm==13.0.*",
    "nvidia-cuda-nvdisasm",
)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    chosen = {i: p for i, p in enumerate(PROGRAMS) if args.filter in str(p) and (p.quick or not args.quick)}
    accepted = recorded()
    records = {}
    for i, program in chosen.items():
        records[i] = describe_program(program) | lowered(program)
        if "refused" in records[i] and key(records[i]) in accepted:
            records[i]["failed"] = f"{records[i].pop('refused')} (accepted in {RESULT.name})"
        print(line(records[i]), flush=True)
    if not args.quick:
        python = environment(args.environment)
        numbers = [i for i, record in records.items() if "lower_s" in record]
        for i, figures in compiled(python, numbers):
            records[i] |= figures
            print(line(records[i]), flush=True)
        whole = {
            "what": "static figures of the compiler for an H200 (sm_90): nothing ran",
            "versions": versions() | {"compiled with": [*JAX, *PLUGIN]},
            "programs": list(records.values()),
        }
        if not args.filter:
            write(RESULT, json.dumps(whole, indent=1) + "\n")
            write(DOCS, page(whole))
            print(f"wrote {RESULT} and {DOCS}")
    wrong = [r for r in records.values() if "failed" in r or any(k["spilled_bytes"] for k in r.get("kernels", ()))]
    refused = sum("refused" in r for r in records.values())
    print(f"{len(records)} programs, {refused} refused, {len(wrong)} failed")
    return bool(wrong)


# --- lowering ---------------------------------------------------------------------------------------------------------


def describe_program(program: Program) -> dict[str, Any]:
    return {"kernel": program.kernel, "layer": program.name, "problem": program.problem}


def key(record: dict[str, Any]) -> tuple[str, ...]:
    return record["kernel"], record["layer"], record["problem"]


def recorded() -> set[tuple[str, ...]]:
    """What was accepted in the last full run."""
    programs = json.loads(RESULT.read_text())["programs"] if RESULT.exists() else ()
    return {key(record) for record in programs if "kernels" in record}


def lowered(program: Program) -> dict[str, Any]:
    """How long lowering took, or why not."""
    if reason := program.refusal():
        return {"refused": reason}
    start = time.perf_counter()
    try:
        function, shapes = program.make()
        jax.jit(function).trace(*shapes).lower(lowering_platforms=("cuda",))
    except Exception as error:  # the others go on
        return {"failed": describe(error)}
    return {"lower_s": round(time.perf_counter() - start, 2)}


# --- compilation ------------------------------------------------------------------------------------------------------


def environment(folder: Path) -> Path:
    """Its interpreter; the environment is made where there is none."""
    python = folder / "bin" / "python"
    if not (folder / "made").exists():
        print(f"making {folder}: 1.4 GB, a few minutes", flush=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([*pip, str(ROOT), *JAX], check=True)
        subprocess.run([*pip, "--no-deps", *PLUGIN], check=True)
        (folder / "made").touch()
    return python


def compiled(python: Path, numbers: Sequence[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Figures of each program, from other processes, as a compiler may die or never end: the next one goes on then."""
    left = list(numbers)
    while left:
        batch = left[:BATCH]
        command = [str(python), "-m", "benchmarks.aot_gpu_compile", *map(str, batch)]
        reason = "the compiler said nothing of it"
        try:
            done = subprocess.run(command, cwd=ROOT, env=clean(), text=True, capture_output=True, timeout=LIMIT_S)
            said = done.stdout
            if done.returncode:
                reason = f"the compiler died ({done.returncode}): {done.stderr.strip()[-300:]}"
        except subprocess.TimeoutExpired as error:
            said = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
            reason = f"it and those before it were not compiled after {LIMIT_S} s"
        for figures in map(json.loads, said.splitlines()):
            left.remove(number := figures.pop("number"))
            yield number, figures
        if left and left[0] in batch:
            yield left.pop(0), {"failed": reason}


def clean() -> dict[str, str]:
    """This process' variables without those that would lead another interpreter astray."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "JAX_PLATFORMS")}


# --- reports ----------------------------------------------------------------------------------------------------------


def line(record: dict[str, Any]) -> str:
    head = f"{record['kernel']:18} {record['layer']:75} {record['problem']:12}"
    for word in ("refused", "failed"):
        if word in record:
            return f"{head} {word}: {record[word]}"
    if "kernels" not in record:
        return f"{head} lowered in {record['lower_s']} s"
    each = [f"{k['registers']} registers, {k['spilled_bytes']} B spilled, {k['counts']}" for k in record["kernels"]]
    return f"{head} {'; '.join(each)}"


def page(whole: dict[str, Any]) -> str:
    """The table of the documentation."""
    head = ["kernel", "layer", "problem", "registers", "spilled", "shared KB", "HGMMA", "UTMALDG", "FFMA", "LDL"]
    head += ["instructions", "temporaries MB", "beside"]
    rows = []
    for record in whole["programs"]:
        first = [record["kernel"], record["layer"], record["problem"]]
        for kernel in record.get("kernels", ()):
            counts = [str(kernel["counts"].get(name, 0)) for name in ("HGMMA", "UTMALDG", "FFMA", "LDL")]
            own = [str(kernel["registers"]), f"{kernel['spilled_bytes']} B", f"{kernel['shared_bytes'] / 1024:.1f}"]
            beside = ", ".join(f"{number} {name}" for name, number in record["beside"].items())
            rows.append(
                [*first, *own, *counts, str(kernel["instructions"]), f"{record['temp_bytes'] / 1e6:.3g}", beside]
            )
    refused = [
        f"- {r['kernel']}, {r['layer']}, {r['problem']}: {r['refused']}" for r in whole["programs"] if "refused" in r
    ]
    versions = ", ".join(whole["versions"]["compiled with"])
    return "\n".join(
        [
            "# GPU kernels, as compiled for an H200",
            "",
            "Static figures: each program was compiled for sm_90 without a GPU, and nothing ran. They show that the",
            "compilers accept the kernels, whether registers spill, and which instructions do the work; they say",
            "nothing about time. Registers are those of a thread, instructions those of the program text. Temporaries",
            "are what the program around a kernel allocates, and beside it are the operations that XLA adds.",
            "Command: `python -m benchmarks.aot_gpu`.",
            f"Compiled with {versions}.",
            "",
            report.table(head, rows),
            *(["", "Refused, with the kernel's reason:", "", *refused] if refused else []),
            "",
        ]
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.aot_gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="lower a few programs, compile none, write nothing")
    add("--filter", default="", metavar="TEXT", help="only programs whose name holds this text; writes nothing")
    add("--environment", type=Path, default=ENVIRONMENT, metavar="PATH", help="virtual environment with the compilers")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
