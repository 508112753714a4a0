"""Time `convjax.signal.convolve` on long signals and large images against SciPy and `jax.scipy.signal`, side by side.

    python -m benchmarks.signals --json benchmarks/results/signals-cpu.json

SciPy's `convolve` chooses between direct sums and one transform; its `oaconvolve` works in blocks. That of JAX sums
directly by default, and is left out where its products would take longer than `--limit` seconds. Rounds are
interleaved, and medians count. Errors are of the largest output, against SciPy in float64; the peak is the most memory
that a process held which made the signals, convolved them once and did nothing else, JAX included (on Linux).
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.signal
import numpy as np
import scipy.signal
from tqdm import tqdm

import convjax
from benchmarks import report
from benchmarks.run import describe, versions, write
from benchmarks.timing import Run, interleaved, machine, timed

OURS = "convjax"
DIRECT_RATE = 1.5e9  # multiply-adds a second of XLA's direct sums of one channel, generously


class Case(NamedTuple):
    """Two inputs of one convolution, mode "full"."""

    name: str
    shape: tuple[int, ...]
    response: tuple[int, ...]

    def operands(self) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(0)
        return tuple(rng.standard_normal(shape, np.float32) for shape in (self.shape, self.response))  # type: ignore[return-value]

    @property
    def direct_s(self) -> float:
        return math.prod(self.shape) * math.prod(self.response) / DIRECT_RATE


CASES = (
    Case("1 s by 1 s of 48 kHz", (48_000,), (48_000,)),  # few enough products for a direct sum
    Case("10 s by 10 s of 48 kHz", (480_000,), (480_000,)),
    Case("1M by 100K", (1_000_000,), (100_000,)),
    Case("4096x4096 by 101x101", (4096, 4096), (101, 101)),
    Case("16M by 1M", (2**24,), (2**20,)),
)


def contenders(case: Case, limit_s: float) -> dict[str, Run | str]:
    """What computes the result and waits for it, or the reason why there is nothing."""
    a, b = case.operands()

    def compiled(convolve: Callable[..., Any]) -> Run:
        operands = jnp.asarray(a), jnp.asarray(b)
        program = jax.jit(convolve).lower(*operands).compile()
        return lambda: jax.block_until_ready(program(*operands))

    found: dict[str, Run | str] = {OURS: compiled(convjax.signal.convolve)}
    found["scipy.signal.convolve"] = partial(scipy.signal.convolve, a, b)
    found["scipy.signal.oaconvolve"] = partial(scipy.signal.oaconvolve, a, b)
    too_long = f"about {case.direct_s:.0f} s a call"
    found["jax.scipy.signal.convolve"] = compiled(jax.scipy.signal.convolve) if case.direct_s <= limit_s else too_long
    return found


def record(case: Case, rounds: int, patience_s: float, limit_s: float) -> dict[str, Any]:
    """Milliseconds and error of every contender, and the peak memory of convjax."""
    exact = scipy.signal.fftconvolve(*(a.astype(np.float64) for a in case.operands()))
    entries: dict[str, dict[str, Any]] = {}
    runs, first_s = {}, {}
    for name, run in contenders(case, limit_s).items():
        if isinstance(run, str):
            entries[name] = {"left_out": run}
            continue
        values, first_s[name] = timed(run)
        runs[name] = run
        entries[name] = {"error": float(f"{np.abs(np.asarray(values) - exact).max() / np.abs(exact).max():.2g}")}
        del values
    for name, seconds in interleaved(runs, first_s, rounds, patience_s).items():
        entries[name] |= {"ms": round(1e3 * float(np.median(seconds)), 3), "calls": len(seconds)}
    with multiprocessing.get_context("spawn").Pool(1) as alone:
        entries[OURS]["peak_mib"] = alone.apply(peak_mib, (case,))
    return {"case": case.name, "contenders": entries}


def peak_mib(case: Case) -> int:
    """In a process of its own: the most memory it ever held, by Linux; 0 elsewhere.

    Not `ru_maxrss`, which begins with that of the process that forked.
    """
    jax.block_until_ready(jax.jit(convjax.signal.convolve)(*case.operands()))
    status = Path("/proc/self/status")
    found = re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(), re.MULTILINE) if status.exists() else None
    return int(found[1]) // 1024 if found else 0


def table(measured: Mapping[str, Any]) -> str:
    """A line for each contender but convjax: its milliseconds, and how many times convjax's they are."""
    head = ["signal", "convjax, ms", "peak, MiB", "error", "instead of it", "ms", "ratio", "error"]
    rows = []
    for found in measured["records"]:
        if "failed" in found:
            rows.append([found["case"], f"failed: {found['failed']}", *[""] * (len(head) - 2)])
            continue
        ours, *others = found["contenders"].items()
        ms, lead = ours[1]["ms"], [found["case"], *_told(ours[1], "ms", "peak_mib", "error")]
        for name, entry in others:
            if "left_out" in entry:
                rows.append([*lead, name, entry["left_out"], "", ""])
            else:
                rows.append([*lead, name, *_told(entry, "ms"), f"{entry['ms'] / ms:.3g}", *_told(entry, "error")])
    return report.table(head, rows)


def _told(entry: Mapping[str, Any], *keys: str) -> list[str]:
    return [f"{entry[key]:.0e}" if key == "error" else f"{entry[key]:.4g}" for key in keys]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args = parse(argv)
    measured: dict[str, Any] = {"machine": machine(), "versions": versions(), "records": []}
    for case in tqdm([case for case in CASES if args.filter in case.name], disable=None, unit="case"):
        try:
            found = record(case, args.rounds, args.patience, args.limit)
        except Exception as error:  # the others go on
            found = {"case": case.name, "failed": describe(error)}
        measured["records"].append(found)
        if args.json:
            write(args.json, json.dumps(measured, indent=1) + "\n")
    print(table(measured))
    return measured


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.signals", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--json", type=Path, metavar="PATH", help="where the measurements go")
    add("--filter", default="", metavar="TEXT", help="only cases whose name holds this text")
    add("--rounds", type=int, default=5, help="timed calls of each contender at most (default: %(default)s)")
    add("--patience", type=float, default=5.0, metavar="S", help="seconds for the calls of one (default: %(default)s)")
    add("--limit", type=float, default=30.0, metavar="S", help="leave longer direct sums out (default: %(default)s)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
