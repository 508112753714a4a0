"""Check and time every algorithm on this device, in one call of known length; made for GPUs and TPUs.

    python -m benchmarks.device                      writes benchmarks/results/<device kind>.json, in under 8 minutes
    python -m benchmarks.device --filter depthwise --seconds 120 --json out/depthwise.json
    python -m benchmarks.device --dry-run            reduced layers, on whatever there is, nothing written: does it run?

The work is done in another process. Where that dies, hangs at one job, or loses its device to an error of one, as CUDA
does, the job has failed and a new process goes on with the next.

First the ceilings (a large dot in each dtype, a large copy) and the price of a dispatch. Then values, on fresh random
data and at the highest precision, against the float64 oracle: the kernels of this platform where they are most likely
to be wrong, then each algorithm of the registry. Then times, for the forward problem and both gradients of layers at
batches that fill the device; and for the depthwise kernel those of the tiles that promise most, each of which must give
the same bits.

A time is that of a long row of calls, dispatched one after the other and waited for once at the end, over their number:
the device runs them in order. The operands change from call to call among enough of them to exceed the last cache, so
that nothing is read from it; a time of less than twice the price of a dispatch is marked as bound by it. The file is
written again after each result, and what the time did not suffice for is listed in it. At the end the times of what
failed no check are written to convjax/_core/tables, or to a folder `tuned` beside the file of `--json`, as
`convjax.tune` keeps them: with `CONVJAX_CACHE_DIR` of that folder `auto` goes by them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from tqdm import tqdm

import convjax
from benchmarks.cases import by_name
from benchmarks.layer import Layer
from benchmarks.run import describe, versions, write
from benchmarks.timing import ceilings, fraction_of_ceiling, machine
from convjax import testing
from convjax._core import cache, measure
from convjax._core.algorithms import ALGORITHMS
from convjax._core.choose import choose
from convjax._core.geometry import Geometry
from convjax._core.kernels import CAUSAL, KERNELS
from convjax._core.kernels.mosaic_gpu import depthwise, tiles
from convjax._core.primitive import convolve
from convjax._core.tuning import lowering_platform
from convjax.testing import Case, assert_close, direct_conv, tolerance

RESULTS = Path(__file__).parent / "results"
TABLES = Path(convjax.__file__).parent / "_core" / "tables"
COLD_BYTES = 2**29  # of operands that calls take turns on: four times the largest last cache of a GPU (126 MB, B200)
CHECKS_SHARE, TIMES_SHARE = 0.3, 0.85  # of the time, when the checks end at the latest, and the times
ROW_S, ROWS = 0.03, 3  # seconds of a row of calls, and rows
LONGEST_COMPILATION_S = 20.0  # time that is left alone before the end, as a compilation cannot be stopped
JOB_LIMIT_S = 60.0  # a job that says nothing for so long hangs; the ceilings are one too
LOST_DEVICE = 75  # exit status of a process that goes on in another (EX_TEMPFAIL)

# Layers by name, with the batch that fills a large GPU, and the dtypes that they are timed in; the first ones matter
# most, should the time not suffice.
SELECTION: tuple[tuple[str, int, tuple[str, ...]], ...] = (
    ("depthwise 3x3 128 @56 N8", 128, ("bfloat16", "float32")),
    ("1-D depthwise causal k4 512 L2048 N4", 128, ("bfloat16",)),
    ("3x3 256->256 @14 N8", 512, ("bfloat16", "float32")),
    ("depthwise 7x7 192 @28 N8", 256, ("bfloat16",)),
    ("3x3 groups 32, 256 @28 N8", 128, ("bfloat16",)),
    ("depthwise 31x31 128 @32 N1", 64, ("bfloat16", "float32")),
    ("1-D depthwise k1024 64 L16384 N1", 16, ("float32",)),
    ("transposed 4x4/2 256->128 @16 N8", 256, ("bfloat16",)),
    ("3x3 dilation 12 256->64 @65 N1", 32, ("bfloat16",)),
    ("7x7/2 3->64 @224 N8", 128, ("bfloat16",)),
    ("1x1 64->256 @56 N8", 128, ("bfloat16",)),
    ("3x3 64->64 @56 N8", 128, ("bfloat16",)),
    ("depthwise 3x3/2 128 @56 N8", 256, ("bfloat16",)),
    ("1-D k2 dilation 256 64->128 L16000", 64, ("bfloat16",)),
    ("3-D 3x3x3 64->64 @16x28x28 N1", 32, ("bfloat16",)),
    ("3-D transposed 4x4x4/2 256->128 @8 N1", 32, ("bfloat16",)),
)

# Where a kernel that is right on paper is wrong first: copies that begin before the image or the sequence, borders
# between several images, more channels than a block has, pads of either sign, strides and gaps between taps.
BORDERS: tuple[Case, ...] = (
    testing.case("depthwise 3x3, 160", (3, 19, 21, 160), (3, 3, 1, 160), pads=1, groups=160),
    testing.case("depthwise 3x3/2, 96", (2, 23, 18, 96), (3, 3, 1, 96), stride=2, pads=((0, 1), (1, 0)), groups=96),
    testing.case(
        "depthwise 5x5 dilated 2, 72",
        (2, 33, 30, 72),
        (5, 5, 1, 72),
        pads=((-3, 9), (8, -2)),
        rhs_dilation=2,
        groups=72,
    ),
    testing.case("depthwise 31x31, 64", (2, 20, 17, 64), (31, 31, 1, 64), pads=15, groups=64),
    testing.case("depthwise x2, 3", (2, 11, 9, 3), (3, 3, 1, 6), pads=1, groups=3),
    testing.case("1-D depthwise causal k4, 136", (3, 517, 136), (4, 1, 136), pads=((3, 0),), groups=136),
    testing.case(
        "1-D depthwise k16/2 dilated 3, 64",
        (2, 301, 64),
        (16, 1, 64),
        stride=2,
        pads=((50, 11),),
        rhs_dilation=3,
        groups=64,
    ),
    testing.case("3x3 128->192", (3, 13, 21, 128), (3, 3, 128, 192), pads=1),
    testing.case("3x3/2 128->64", (2, 14, 19, 128), (3, 3, 128, 64), stride=2, pads=((0, 1), (1, 1))),
    testing.case("5x5 dilated 2 64->64", (2, 17, 15, 64), (5, 5, 64, 64), pads=((4, 3), (5, -2)), rhs_dilation=2),
    testing.case("1x1 96->192", (3, 9, 11, 96), (1, 1, 96, 192)),
    testing.case("3x3 groups of 8, 256", (2, 15, 13, 256), (3, 3, 8, 256), pads=1, groups=32),
    testing.case("3x3 groups of 64, 192", (2, 15, 13, 192), (3, 3, 64, 192), pads=1, groups=3),
)
BORDER_DTYPES = ("bfloat16", "float16", "float32")
TILES = 8  # of the depthwise kernel, the most promising ones by its own count


def main(argv: Sequence[str] | None = None) -> int:
    """Run it all; 0 unless nothing could begin."""
    argv = sys.argv[1:] if argv is None else list(argv)
    args = parse(argv)
    if args.state:
        run(args)
        return 0
    with tempfile.TemporaryDirectory(prefix="convjax-device-") as folder:
        state = Path(folder) / "state.json"
        command = [sys.executable, "-m", "benchmarks.device", *argv, "--seed", str(args.seed), "--state", str(state)]
        return supervise(command, state)


def supervise(command: Sequence[str], state: Path, limit_s: float = JOB_LIMIT_S) -> int:
    """Run a process until it ends by itself, anew each time that it does not, with what it was at marked as failed."""
    while True:
        child, begun, hung = subprocess.Popen(command), time.time(), False
        try:
            while child.poll() is None:
                time.sleep(0.1)
                heard = max(begun, state.stat().st_mtime) if state.exists() else begun + 2 * limit_s
                if hung := time.time() - heard > limit_s:
                    child.kill()
                    child.wait()
        finally:
            child.kill()
        if child.returncode == LOST_DEVICE:
            continue
        report = json.loads(state.read_text()) if state.exists() else {}
        if child.returncode == 0 or not report.get("running"):
            return child.returncode
        key, names = report.pop("running")
        reason = f"nothing for {limit_s:.0f} s" if hung else f"it ended the process ({child.returncode})"
        report[key].append(names | {"failed": reason})
        write(state, json.dumps(report))


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Go on from `args.state`, where there is such a file, and return what is written."""
    layers, reserve_s = selected(args.filter, dry_run=args.dry_run), min(LONGEST_COMPILATION_S, args.seconds / 10)
    if args.json is None and not args.dry_run:
        if jax.default_backend() == "cpu":
            sys.exit("this is a CPU, which benchmarks.run is for: add --dry-run, or --json PATH")
        args.json, args.tables = RESULTS / file_name(), TABLES
    report = json.loads(args.state.read_text()) if args.state and args.state.exists() else begin(args, layers)
    done = {(key, about(entry)) for key in ("checks", "times", "tiles") for entry in report[key]}

    def save() -> None:
        text = json.dumps(report, indent=1) + "\n"
        for path in filter(None, (args.state, args.json)):
            write(path, text)

    def work_through(key: str, jobs: Sequence[Job], step: Callable[[Job, dict[str, Any]], Any], share: float) -> None:
        for job in tqdm(jobs, disable=None, desc=key):
            if (key, about(job.names)) in done:
                continue
            if time.time() + reserve_s > report["began"] + share * args.seconds:
                report["left_out"] = sorted({*report["left_out"], f"{key}: {job}"})
                continue
            report["running"] = key, job.names
            save()
            report[key].append(step(job, report))
            del report["running"]
            save()
            if args.state and "failed" in report[key][-1] and not device_answers():
                os._exit(LOST_DEVICE)  # where the device is lost, what is run at the end may wait for it

    jobs = [*borders(args.seed), *signals(args.seed), *checks(layers, args.seed)]
    work_through("checks", jobs, check, CHECKS_SHARE)
    work_through("times", timings(layers), timing, TIMES_SHARE)
    work_through("tiles", tilings(layers), timing, 1.0)
    report["tuned"] = tuned(report)
    save()
    if args.json:
        write((args.tables or args.json.parent / "tuned") / file_name(), json.dumps(report["tuned"]) + "\n")
    print(summary(report) + (f"\nwrote {args.json}" if args.json else ""))
    return report


def begin(args: argparse.Namespace, layers: Sequence[Layer]) -> dict[str, Any]:
    """What is known of the machine before the first job."""
    began = time.time()
    size = dict(side=128, copied_bytes=2**20, calls=2) if args.dry_run else dict(side=8192, copied_bytes=2**31)
    return {
        "machine": machine(),
        "versions": versions(),
        "settings": {"seconds": args.seconds, "filter": args.filter, "dry_run": args.dry_run, "seed": args.seed},
        "ceilings": ceilings({layer.dtype for layer in layers}, **size),
        "dispatch_us": dispatch_us(),
        "began": began,
        "checks": [],
        "times": [],
        "tiles": [],
        "left_out": [],
    }


def device_answers() -> bool:
    """Whether it still computes: after some errors every later call fails with the same."""
    try:
        return float(jnp.ones(8).sum()) == 8.0
    except Exception:  # of whatever kind
        return False


def selected(text: str, *, dry_run: bool) -> list[Layer]:
    layers = [by_name(name).at(batch=batch, dtype=d) for name, batch, dtypes in SELECTION for d in dtypes]
    layers = [layer for layer in layers if text.lower() in layer.name.lower()]
    return [layer.reduced() for layer in layers] if dry_run else layers


def about(entry: Mapping[str, Any]) -> str:
    """What an entry is about, however it was read."""
    return json.dumps([entry.get(name) for name in ("layer", "dtype", "problem", "algorithm", "tile")])


def file_name() -> str:
    """Of results and measurements of this device."""
    return cache.file_name(cache.device_kind(jax.local_devices()[0]))


@dataclasses.dataclass(frozen=True)
class Job:
    """One algorithm on one problem."""

    layer: Layer
    problem: str
    case: Case
    algorithm: str
    seed: int = 0
    tile: tiles.Tile | None = None

    def __str__(self) -> str:
        return ", ".join([self.layer.name, self.problem, self.algorithm, *([str(self.tile)] if self.tile else [])])

    @property
    def names(self) -> dict[str, Any]:
        tile = {"tile": dataclasses.asdict(self.tile)} if self.tile else {}
        own = {"layer": self.layer.name, "dtype": self.layer.dtype, "problem": self.problem}
        return own | {"algorithm": self.algorithm} | tile


def problems(layer: Layer) -> dict[str, Case]:
    """The three problems of a layer, each a convolution."""
    return {"forward": layer.case, "input_grad": layer.case.lhs_grad, "kernel_grad": layer.case.rhs_grad}


# --- checks -----------------------------------------------------------------------------------------------------------


def borders(seed: int) -> list[Job]:
    """Every kernel that serves here, on every problem of `BORDERS` and its gradients that it serves, in each dtype."""
    found = []
    for dtype in BORDER_DTYPES:
        for border in BORDERS:
            layer = Layer(border, source="", family="borders", dtype=dtype)
            for problem, case in problems(layer).items():
                for name in KERNELS:
                    if case.refusal(name, jnp.dtype(dtype), lowering_platform()) is None:
                        found.append(Job(layer, problem, case, name, seed))
    return found


def signals(seed: int) -> list[Job]:
    """The kernels for causal convolutions with what they take beside the signal, gradients included."""
    border = next(case for case in BORDERS if case.name.startswith("1-D depthwise causal"))
    return [
        Job(Layer(border, source="", family="borders", dtype=dtype), kind, border, name, seed)
        for dtype in BORDER_DTYPES
        for kind in ("state", "segments")
        for name in CAUSAL
        if border.refusal(name, jnp.dtype(dtype), lowering_platform()) is None
    ]


def check_signal(job: Job) -> None:
    """Values and all gradients against those of a plain path in float32."""
    rng, (batch, length, channels) = np.random.default_rng(job.seed), job.case.lhs_shape
    taps, dtype = job.case.rhs_shape[0], job.layer.dtype
    shapes = [(batch, length, channels), (taps, channels), (channels,), (batch, taps - 1, channels)]
    *operands, ct = (jnp.asarray(rng.standard_normal(shape), dtype) for shape in (*shapes, shapes[0]))
    ids = jnp.asarray(np.sort(rng.integers(0, 9, (batch, length))))

    def block(algorithm: str, x: Array, w: Array, bias: Array, state: Array) -> Array:
        options: dict[str, Any] = dict(bias=bias, activation="silu", algorithm=algorithm, precision="highest")
        options |= dict(state=state) if job.problem == "state" else dict(segment_ids=ids)
        return jax.tree.leaves(convjax.causal_conv(x, w, **options))[0]

    def values(algorithm: str, *operands: Array) -> list[Array]:
        y, pull = jax.vjp(partial(block, algorithm), *operands)
        return [y, *pull(ct.astype(y.dtype))]

    found = jax.jit(partial(values, job.algorithm))(*operands)
    expected = jax.jit(partial(values, "xla"))(*(a.astype(jnp.float32) for a in operands))
    for name, got, want in zip(("y", "x", "w", "bias", "state"), found, expected, strict=True):
        got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
        allowed = 16 * float(jnp.finfo(dtype).eps) * np.max(np.abs(want))
        assert_close(got, want, np.broadcast_to(allowed, want.shape), f"{job}, {name}")


def checks(layers: Sequence[Layer], seed: int) -> list[Job]:
    """For each algorithm the first problem of each kind that it serves; then the same in the other dtypes."""
    found: dict[tuple[str, ...], Job] = {}
    for layer in layers:
        small = layer.reduced()
        for problem, case in problems(small).items():
            for name in ALGORITHMS:
                if case.refusal(name, jnp.dtype(layer.dtype), lowering_platform()) is None:
                    found.setdefault((layer.dtype, problem, name), Job(small, problem, case, name, seed))
    return list(found.values())


def check(job: Job, _: dict[str, Any]) -> dict[str, Any]:
    """Whether the result is within the tolerance of the algorithm's error class."""
    case, dtype = job.case, jnp.dtype(job.layer.dtype)
    try:
        if job.problem in ("state", "segments"):
            check_signal(job)
            return job.names | {"passed": True}
        x, w = case.operands(dtype, job.seed)
        spec = case.spec.replace(algorithms=(job.algorithm, "auto", "auto"), precision=(jax.lax.Precision.HIGHEST,) * 2)
        out = np.asarray(jax.jit(lambda x, w: convolve(x, w, spec))(x, w))
        magnitude = direct_conv(np.abs(x), np.abs(w), spec)
        product = float(np.max(np.abs(x)).astype(np.float64) * np.max(np.abs(w)))
        allowed = tolerance(job.algorithm, dtype, magnitude, case.terms, out.dtype, product)
        assert_close(out, direct_conv(x, w, spec), allowed, str(job))
    except Exception as error:  # the others go on
        return job.names | {"failed": describe(error)}
    return job.names | {"passed": True}


# --- times ------------------------------------------------------------------------------------------------------------


def timings(layers: Sequence[Layer]) -> list[Job]:
    """Forward problems of all layers first, then the gradients; each with every algorithm that serves."""
    found = []
    for problem in ("forward", "input_grad", "kernel_grad"):
        for layer in layers:
            case = problems(layer)[problem]
            for name in ALGORITHMS:
                if case.refusal(name, jnp.dtype(layer.dtype), lowering_platform()) is None:
                    found.append(Job(layer, problem, case, name))
    return found


def tilings(layers: Sequence[Layer]) -> list[Job]:
    """The depthwise kernel for GPUs with the tiles that promise most, its own choice first."""
    found = []
    for layer in layers:
        for problem, case in problems(layer).items():
            if problem == "kernel_grad" or case.refusal("gpu_depthwise", jnp.dtype(layer.dtype), lowering_platform()):
                continue
            operands = (jax.ShapeDtypeStruct(shape, layer.dtype) for shape in (case.lhs_shape, case.rhs_shape))
            best = tiles.ranked(depthwise.problem_of(case.spec, *operands), TILES)
            found += [Job(layer, problem, case, "gpu_depthwise", tile=tile) for tile in best]
    return found


def program(job: Job, problem: Geometry) -> Callable[[Array, Array], Array]:
    if job.tile is None:
        return measure.in_place(job.algorithm, problem)
    return partial(depthwise.run, problem.spec, tile=job.tile)


def timing(job: Job, report: dict[str, Any]) -> dict[str, Any]:
    """The time of one call among many, with the input cold."""
    case, layer = job.case, job.layer
    problem = Geometry(case.spec, case.lhs_shape, case.rhs_shape, jnp.dtype(layer.dtype))
    lhs, rhs = (jax.ShapeDtypeStruct(shape, problem.dtype) for shape in measure.natural(problem))
    try:
        start = time.perf_counter()
        compiled = jax.jit(program(job, problem)).lower(lhs, rhs).compile()
        compile_s = time.perf_counter() - start
        operands = cold_operands(lhs, rhs)
        if job.tile is not None:
            chosen = jax.jit(measure.in_place(job.algorithm, problem))(*operands[0])
            if not jnp.array_equal(compiled(*operands[0]), chosen):
                return job.names | {"failed": "other bits than with the tile that the kernel chooses"}
        seconds = row_s(compiled, operands)
        memory = compiled.memory_analysis()
    except Exception as error:  # too large for this device, or beyond its compiler: the others go on
        return job.names | {"failed": describe(error)}
    median = float(np.median(seconds))
    flops, moved = layer.flops(job.problem), layer.bytes(job.problem)
    entry: dict[str, Any] = {
        "ms": median * 1e3,
        "least_ms": min(seconds) * 1e3,
        "most_ms": max(seconds) * 1e3,
        "buffers": len(operands),
        "compile_s": compile_s,
        "temp_bytes": None if memory is None else memory.temp_size_in_bytes,
        "gflops": flops / median / 1e9,
        "gbs": moved / median / 1e9,
        "fraction": fraction_of_ceiling(median, flops, moved, layer.dtype, report["ceilings"]),
        "auto": choose(case.spec, *problem.operands, lowering_platform()) == job.algorithm,
        "key": cache.problem_key(problem),
    }
    if median < 2e-6 * report["dispatch_us"]:
        entry["bound_by_dispatch"] = True
    return job.names | entry


Operands = tuple[Array, Array]


def cold_operands(lhs: jax.ShapeDtypeStruct, rhs: jax.ShapeDtypeStruct) -> list[Operands]:
    """Enough pairs of operands to exceed the last cache, made on the device.

    One pair alone may exceed it; two of them then take turns, as what was read last of one is not read first again.
    """
    size = (lhs.size + rhs.size) * lhs.dtype.itemsize
    limit = COLD_BYTES if jax.default_backend() != "cpu" else 2**22
    count = min(64, max(2, -(-limit // size)))
    draw = jax.jit(
        lambda key: tuple(
            jax.random.normal(k, like.shape, like.dtype)
            for k, like in zip(jax.random.split(key), (lhs, rhs), strict=True)
        )
    )
    return [draw(key) for key in jax.random.split(jax.random.key(0), count)]


def row_s(run: Callable[[Array, Array], Any], operands: Sequence[Operands]) -> list[float]:
    """Seconds a call, of each row."""
    jax.block_until_ready(run(*operands[0]))
    start = time.perf_counter()
    jax.block_until_ready(run(*operands[1]))
    calls = int(min(500, max(1, ROW_S / (time.perf_counter() - start))))
    rows = []
    for _ in range(ROWS):
        start = time.perf_counter()
        for i in range(calls):
            out = run(*operands[i % len(operands)])  # the one before is freed when the device is done with it
        jax.block_until_ready(out)
        rows.append((time.perf_counter() - start) / calls)
    return rows


def dispatch_us() -> float:
    """Microseconds a call of next to nothing, in a row."""
    x = jnp.zeros(8)
    run = jax.jit(lambda x, w: x + w).lower(x, x).compile()
    return float(np.median(row_s(run, [(x, x)] * 2)) * 1e6)


def tuned(report: Mapping[str, Any]) -> dict[str, Any]:
    """What was timed as a file of measurements, which `auto` follows; without what failed a check."""
    wrong = {entry["algorithm"] for entry in report["checks"] if "failed" in entry} - {"xla"}
    table: dict[str, dict[str, float]] = {}
    for entry in report["times"]:
        if "ms" in entry and entry["algorithm"] not in wrong:
            table.setdefault(entry["key"], {})[entry["algorithm"]] = round(entry["ms"], 4)
    return cache.document(cache.device_kind(jax.local_devices()[0]), {cache.VERSION: table})


# --- the end ----------------------------------------------------------------------------------------------------------


def summary(report: Mapping[str, Any]) -> str:
    """How many passed, and the fastest algorithm of each problem."""
    failed = [c for c in report["checks"] if "failed" in c]
    lines = [f"{len(report['checks'])} checks, {len(failed)} failed; {len(report['left_out'])} jobs left out"]
    lines += [f"  {c['layer']}, {c['problem']}, {c['algorithm']}: {c['failed']}" for c in failed]
    best: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in report["times"]:
        key = (entry["layer"], entry["problem"])
        if "ms" in entry and entry["ms"] < best.get(key, entry)["ms"] + 1e-12:
            best[key] = entry
    for (layer, problem), entry in best.items():
        lines.append(
            f"  {layer:50} {problem:11} {entry['algorithm']:15} {entry['ms']:.3g} ms, "
            f"{entry['fraction']:.0%} of ceiling"
        )
    return "\n".join(lines)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.device", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--json", type=Path, metavar="PATH", help="write here instead of benchmarks/results/<device kind>.json")
    add("--seconds", type=float, default=420.0, help="when to stop")
    add("--filter", default="", metavar="TEXT", help="only layers whose name holds this text")
    add(
        "--seed",
        type=int,
        default=secrets.randbelow(2**31),
        help="of the checks' data; each time another",
    )
    add("--dry-run", action="store_true", help="every layer at the size that the tests use; writes only with --json")
    add("--state", type=Path, help=argparse.SUPPRESS)
    parser.set_defaults(tables=None)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
