"""300 random problems of `tests/fuzz.py`, of which `make fuzz` runs 10,000; and that a wrong result would be found."""

from __future__ import annotations

import jax
import pytest

from convjax._core.algorithms import PORTABLE, xla
from tests import fuzz

SEED, CHUNK = 0, 25


@pytest.mark.parametrize("first", range(0, 300, CHUNK))
def test_random_problems(first):
    reports = [fuzz.outcome(SEED, index)[1] for index in range(first, first + CHUNK)]
    assert not any(reports), "\n".join(filter(None, reports))


def test_problems_are_varied_and_repeatable():
    drawn = [fuzz.problem(SEED, index) for index in range(300)]
    assert drawn[7] == fuzz.problem(SEED, 7)
    assert {p.algorithm for p in drawn} == {"auto", *PORTABLE} - {"by_feature"}  # which starts at a megabyte
    assert {p.dtype for p in drawn} == set(fuzz.SHARES)
    assert {p.case.spec.ndim for p in drawn} == {0, 1, 2, 3, 4}
    assert any(p.case.spec.batch_groups > 1 for p in drawn)
    assert any(lo < 0 for p in drawn for lo, _ in p.case.spec.padding)


def test_a_wrong_algorithm_is_found(monkeypatch):
    """With the taps read in reverse, problems differ, and the report says how to repeat one."""
    right = xla.run
    monkeypatch.setattr(xla, "run", lambda spec, x, w: right(spec, x, w[::-1]))
    jax.clear_caches()
    drawn = ((i, fuzz.problem(SEED, i)) for i in range(300))
    asked = [i for i, p in drawn if p.algorithm == "xla" and p.case.rhs_shape[0] > 2][:5]  # one may see a single tap
    reports = [(index, fuzz.outcome(SEED, index)[1]) for index in asked]
    jax.clear_caches()
    index, report = next((index, report) for index, report in reports if report is not None)
    assert "beyond tolerance" in report
    assert f"--seed {SEED} --first {index} --problems 1" in report
