"""Every algorithm gives the direct sum, on every case that it serves."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from convjax._core.algorithms import PORTABLE
from convjax._core.primitive import convolve
from convjax.testing import CASES, EMPTY_CASES, assert_close, case, direct_conv, tolerance


@functools.cache
def expected(case):
    x, w = case.operands()
    return direct_conv(x, w, case.spec), direct_conv(abs(x), abs(w), case.spec)


# What an algorithm refuses is not collected: `Case.refusal` has the reasons, hundreds of them.
THINNED = {"offsets": 4}  # a second of compilation each: one case in four
SERVED = [
    pytest.param(case, name, id=f"{case}-{name}")
    for name in ("auto", *PORTABLE)
    for case in CASES[:: THINNED.get(name, 1)]
    if case.refusal(name) is None
]


@pytest.mark.parametrize(("case", "algorithm"), SERVED)
def test_forward_equals_direct_sum(case, algorithm):
    value, magnitude = expected(case)
    y = convolve(*map(jnp.asarray, case.operands()), case.using(algorithm))
    assert y.dtype == jnp.float32
    assert_close(y, value, tolerance(algorithm, y.dtype, magnitude, case.terms), algorithm)


@pytest.mark.parametrize("case", [c for c in CASES if c.terms >= 128], ids=str)
def test_the_highest_precision_is_direct(case):
    """There, what is chosen automatically has an error relative to each output, not to the largest."""
    value, magnitude = expected(case)
    highest = case.spec.replace(precision=(lax.Precision.HIGHEST,) * 2)
    y = convolve(*map(jnp.asarray, case.operands()), highest)
    assert_close(y, value, tolerance("xla", y.dtype, magnitude, case.terms))


# Kernels that see none, or a corner, of a cropped input: XLA's convolution on CPU reads beyond it in jaxlib 0.10.1.
CROPPED = [
    case("3x3", (2, 10, 4, 1), (3, 3, 1, 2), pads=((-2, 2), (-1, 1))),
    case("5x2", (3, 6, 5, 2), (5, 2, 2, 2), pads=((-2, 2), (-3, 2))),
    case("2x9", (2, 6, 9, 3), (2, 9, 3, 1), pads=((-3, 0), (-2, 2))),
    case("4x1", (2, 5, 7, 3), (4, 1, 3, 1), pads=((-1, 1), (-3, 1))),
    case("nothing left", (1, 10, 1, 2), (9, 1, 2, 2), pads=((-1, 1), (-2, 2))),
]


@pytest.mark.parametrize("algorithm", ["auto", "xla", "taps"])
@pytest.mark.parametrize("case", CROPPED, ids=str)
def test_cropped_inputs(case, algorithm):
    test_forward_equals_direct_sum(case, algorithm)


# Where the sum of shifted products reads the input itself, not a padded copy: what is outside, and between, is masked.
MASKED = [
    case(
        "dilated, strided", (2, 5, 6, 3), (4, 3, 1, 3), stride=(3, 2), pads=((5, 2), (1, 4)), lhs_dilation=2, groups=3
    ),
    case(
        "dilated by 3, stride 6", (1, 7, 5, 2), (5, 3, 1, 4), stride=6, pads=((4, 9), (2, 3)), lhs_dilation=3, groups=2
    ),
    case("taps that meet nothing", (1, 2, 3, 2), (6, 7, 1, 2), pads=((4, 1), (6, 9)), rhs_dilation=(1, 2), groups=2),
    case("all taps miss", (1, 3, 1), (2, 1, 1), stride=9, pads=((8, -3),), rhs_dilation=4),
]


@pytest.mark.parametrize("case", MASKED, ids=str)
def test_taps_outside_the_input(case):
    test_forward_equals_direct_sum(case, "taps")


def test_what_is_beyond_the_edge_is_not_read():
    """An infinite corner reaches the outputs whose kernel covers it, and no other."""
    x = np.zeros((1, 6, 5, 16), np.float32)
    x[0, 0, 0] = np.inf
    spec = case("depthwise", x.shape, (3, 3, 1, 16), pads=1, groups=16).using("taps")
    y = convolve(jnp.asarray(x), jnp.ones((3, 3, 1, 16)), spec)
    covered = np.zeros(y.shape, bool)
    covered[0, :2, :2] = True
    np.testing.assert_array_equal(np.isinf(y), covered)
    assert not np.isnan(y).any()


@pytest.mark.parametrize("algorithm", PORTABLE)
def test_every_algorithm_serves_something(algorithm):
    served = [case for c in CASES for case in (c, c.lhs_grad, c.rhs_grad) if case.refusal(algorithm) is None]
    assert served
    if algorithm == "xla":
        assert len(served) == 3 * len(CASES)


@pytest.mark.parametrize("algorithm", ["auto", *(f"{name}?" for name in PORTABLE)])
@pytest.mark.parametrize("case", EMPTY_CASES, ids=str)
def test_empty_problems_give_zeros(case, algorithm):
    spec = case.spec.replace(algorithms=(algorithm, "auto", "auto"))
    y = convolve(*map(jnp.asarray, case.operands()), spec)
    np.testing.assert_array_equal(y, np.zeros(case.out_shape, np.float32), strict=True)
