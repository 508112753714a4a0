"""Every algorithm gives the gradients of the direct sum, in the input and in the kernel, where it serves either."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convjax._core.algorithms import PORTABLE
from convjax._core.primitive import convolve
from convjax.testing import CASES, EMPTY_CASES, assert_close, direct_grads, tolerance


@functools.cache
def expected(case):
    (x, w), ct = case.operands(), case.cotangent()
    return direct_grads(x, w, ct, case.spec), direct_grads(abs(x), abs(w), abs(ct), case.spec)


@functools.partial(jax.jit, static_argnames="spec")
def gradients(x, w, ct, spec):
    _, pullback = jax.vjp(lambda x, w: convolve(x, w, spec), x, w)
    return pullback(ct)


# Pairs of which neither gradient is served are not collected: `Case.refusal` has the reasons, hundreds of them.
THINNED = {"offsets": 4}  # a second of compilation each: one case in four
SERVED = [
    pytest.param(case, name, id=f"{case}-{name}")
    for name in ("auto", *PORTABLE)
    for case in CASES[:: THINNED.get(name, 1)]
    if None in (case.lhs_grad.refusal(name), case.rhs_grad.refusal(name))
]


@pytest.mark.parametrize(("case", "algorithm"), SERVED)
def test_gradients_equal_direct_sum(case, algorithm):
    values, magnitudes = expected(case)
    actual = gradients(*case.operands(), case.cotangent(), spec=case.using(algorithm, gradients=True))
    problems = dict(input=case.lhs_grad, kernel=case.rhs_grad)
    for (name, problem), a, value, magnitude in zip(problems.items(), actual, values, magnitudes, strict=True):
        assert a.dtype == jnp.float32
        allowed = tolerance(algorithm, a.dtype, magnitude, problem.terms)
        assert_close(a, value, allowed, f"{algorithm}, {name} gradient")


@pytest.mark.parametrize("case", EMPTY_CASES, ids=str)
def test_gradients_of_empty_problems_are_zero(case):
    x_grad, w_grad = gradients(*case.operands(), case.cotangent(), spec=case.spec)
    np.testing.assert_array_equal(x_grad, np.zeros(case.lhs_shape, np.float32), strict=True)
    np.testing.assert_array_equal(w_grad, np.zeros(case.rhs_shape, np.float32), strict=True)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradient_problems_have_the_sums_that_they_should(case):
    """The oracle's counting of terms, which tolerances rest on: each product of the forward sum occurs once in each."""
    products = math.prod(case.out_shape) * case.terms
    assert case.lhs_grad.terms == math.prod(case.rhs_shape[:-2]) * case.rhs_shape[-1] // case.spec.groups
    assert math.prod(case.rhs_shape) * case.rhs_grad.terms == products
