"""Every algorithm gives the direct sum, on every case that it serves."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from convjax._core.algorithms import ALGORITHMS
from convjax._core.primitive import convolve
from convjax.testing import CASES, EMPTY_CASES, assert_close, direct_conv, tolerance


@functools.cache
def expected(case):
    x, w = case.operands()
    return direct_conv(x, w, case.spec), direct_conv(abs(x), abs(w), case.spec)


@pytest.mark.parametrize("algorithm", ["auto", *ALGORITHMS])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_equals_direct_sum(case, algorithm):
    if reason := case.refusal(algorithm):
        pytest.skip(reason)
    value, magnitude = expected(case)
    y = convolve(*map(jnp.asarray, case.operands()), case.spec.replace(algorithms=(algorithm, "auto", "auto")))
    assert y.dtype == jnp.float32
    assert_close(y, value, tolerance(algorithm, y.dtype, magnitude, case.terms), algorithm)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_serves_something(algorithm):
    served = [case for c in CASES for case in (c, c.lhs_grad, c.rhs_grad) if case.refusal(algorithm) is None]
    assert served
    if algorithm == "xla":
        assert len(served) == 3 * len(CASES)


@pytest.mark.parametrize("algorithm", ["auto", *(f"{name}?" for name in ALGORITHMS)])
@pytest.mark.parametrize("case", EMPTY_CASES, ids=str)
def test_empty_problems_give_zeros(case, algorithm):
    spec = case.spec.replace(algorithms=(algorithm, "auto", "auto"))
    y = convolve(*map(jnp.asarray, case.operands()), spec)
    np.testing.assert_array_equal(y, np.zeros(case.out_shape, np.float32), strict=True)
