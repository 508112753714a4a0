"""Random convolutions against the oracle: all ranks, dtypes and algorithms, value and both gradients.

    python -m tests.fuzz --problems 10000 --seed 0        or: make fuzz

Problem i of seed s is a function of (s, i), so that a failure is repeated alone with what its report says.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import functools
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from convjax._core.algorithms import ALGORITHMS
from convjax._core.dtypes import default_integer_output
from convjax._core.primitive import convolve
from convjax.testing import Case, assert_close, direct_conv, direct_grads, random_case, tolerance

FLOATS = ("float32", "bfloat16", "float16", "float64", "complex64", "complex128")
INTEGERS = ("int8", "uint8", "int16", "int32", "int64")
SHARES = dict(zip(FLOATS + INTEGERS, (0.4, 0.1, 0.06, 0.1, 0.08, 0.04, 0.05, 0.03, 0.04, 0.06, 0.04), strict=True))
FAST_COMPILATION = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
CACHE_LIMIT = 500  # compiled problems kept by jax, none of which comes again


@dataclasses.dataclass(frozen=True)
class Problem:
    """Problem `index` of `seed`."""

    seed: int
    index: int
    case: Case
    dtype: str
    algorithm: str

    def __str__(self) -> str:
        c = self.case
        return f"{self.algorithm}, {self.dtype}, input {c.lhs_shape}, kernel {c.rhs_shape}, {c.spec}"

    @property
    def repeat(self) -> str:
        return f"python -m tests.fuzz --seed {self.seed} --first {self.index} --problems 1"


def problem(seed: int, index: int) -> Problem:
    rng = np.random.default_rng((seed, index))
    case = random_case(rng)
    dtype = str(rng.choice(list(SHARES), p=list(SHARES.values())))
    preferred = default_integer_output(jnp.dtype(dtype))
    if dtype in ("bfloat16", "float16") and rng.random() < 0.3:
        preferred = np.dtype(np.float32)
    case = dataclasses.replace(case, spec=case.spec.replace(preferred_element_type=preferred))
    serving = [
        name
        for name in ALGORITHMS
        if any(c.refusal(name, jnp.dtype(dtype)) is None for c in (case, case.lhs_grad, case.rhs_grad))
    ]
    return Problem(seed, index, case, dtype, str(rng.choice(["auto", *serving])))


def check(problem: Problem) -> None:
    """Raise AssertionError where value or a gradient is beyond tolerance; errors of the package pass through."""
    case, dtype = problem.case, jnp.dtype(problem.dtype)
    differentiable = jnp.issubdtype(dtype, jnp.inexact)
    out_dtype = np.dtype(case.spec.preferred_element_type or dtype)
    (x, w), ct = case.operands(dtype, problem.index), case.cotangent(out_dtype, problem.index)
    run = functools.partial(convolve, spec=case.using(problem.algorithm, gradients=True))

    def value_and_gradients(x, w, ct):
        y, pullback = jax.vjp(run, x, w)
        return y, *pullback(ct)

    wide = dtype.itemsize // (2 if dtype.kind == "c" else 1) == 8
    with jax.enable_x64(True) if wide else contextlib.nullcontext():
        if differentiable:
            actual = jax.jit(value_and_gradients)(x, w, ct)
        else:
            actual = (jax.jit(run)(x, w),)
    oracle = lambda x, w, ct: (direct_conv(x, w, case.spec), *direct_grads(x, w, ct, case.spec))
    expected = oracle(x, w, ct)
    sizes = [abs(a.astype(np.complex128)) for a in (x, w, ct)]
    magnitudes = oracle(*sizes)
    x_size, w_size, ct_size = (float(np.max(a, initial=0.0)) for a in sizes)
    products = x_size * w_size, ct_size * w_size, x_size * ct_size
    parts = dict(value=case, input_gradient=case.lhs_grad, kernel_gradient=case.rhs_grad)
    compared = zip(parts.items(), actual, expected, magnitudes, products, strict=False)
    for (part, c), a, e, magnitude, product in compared:
        want = out_dtype if part == "value" else dtype
        assert a.dtype == want, f"{part}: {a.dtype}, expected {want}"
        allowed = tolerance(problem.algorithm, dtype, magnitude, c.terms, want, product)
        assert_close(a, e, allowed, part)


def outcome(seed: int, index: int) -> tuple[str, str | None]:
    """The algorithm, and the report of a failure."""
    if index % CACHE_LIMIT == 0:
        jax.clear_caches()
    tried = problem(seed, index)
    try:
        check(tried)
    except Exception as error:  # whatever happens is a finding
        message = str(error).strip().splitlines() or [""]
        return tried.algorithm, f"{tried}\n  {type(error).__name__}: {message[0]}\n  repeat: {tried.repeat}"
    return tried.algorithm, None


def outcomes(seed: int, indices: range, jobs: int) -> Iterator[tuple[str, str | None]]:
    if jobs == 1:
        yield from map(functools.partial(outcome, seed), indices)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap_unordered(functools.partial(outcome, seed), indices, chunksize=8)


def with_progress(results: Iterable, total: int) -> Iterable:
    try:
        from tqdm import tqdm
    except ImportError:
        return results
    return tqdm(results, total=total, unit="problem", disable=None, smoothing=0.05)


def compile_fast() -> None:
    """Ask XLA for less optimisation of its own, before any process starts it: twice the problems in a minute."""
    flags = os.environ.get("XLA_FLAGS", "")
    if "optimization_level" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {FAST_COMPILATION}".strip()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=10_000, help="how many (default: 10000)")
    parser.add_argument("--seed", type=int, default=0, help="a family of problems (default: 0)")
    parser.add_argument("--first", type=int, default=0, help="index of the first problem (default: 0)")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes (default: 2)")
    options = parser.parse_args()
    compile_fast()
    start, failures, counts = time.perf_counter(), 0, collections.Counter[str]()
    indices = range(options.first, options.first + options.problems)
    jobs = min(options.jobs, max(1, options.problems // 16))
    try:
        for algorithm, report in with_progress(outcomes(options.seed, indices, jobs), options.problems):
            counts[algorithm] += 1
            if report:
                failures += 1
                print(f"\nDIFFERS: {report}", flush=True)
    except KeyboardInterrupt:
        print("\nstopped")
    print(", ".join(f"{name} {count}" for name, count in sorted(counts.items())))
    print(
        f"{sum(counts.values())} problems of seed {options.seed} in {time.perf_counter() - start:.0f} s: "
        f"{failures or 'none'} differ{'' if failures else 's'}"
    )
    return 1 if failures or not counts else 0


if __name__ == "__main__":
    sys.exit(main())
