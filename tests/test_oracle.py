"""The oracle is right: against SciPy's correlation for values, and against lax in float64 for values and gradients."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import scipy.signal
from jax import lax

from convjax._core.bridge import lax_params
from convjax.testing import CASES, EMPTY_CASES, Case, assert_close, direct_conv, direct_grads, tolerance


def zero_inserted(a: np.ndarray, dilation: tuple[int, ...], padding: tuple[tuple[int, int], ...]) -> np.ndarray:
    """Spread the axes of `a`, then pad or crop them."""
    spread = np.zeros([(size - 1) * d + 1 for size, d in zip(a.shape, dilation, strict=True)])
    spread[tuple(slice(None, None, d) for d in dilation)] = a
    spread = np.pad(spread, np.maximum(padding, 0).astype(int)) if padding else spread
    kept = zip(spread.shape, padding, strict=True)
    return spread[tuple(slice(max(-lo, 0), size - max(-hi, 0)) for size, (lo, hi) in kept)]


def correlate(x: np.ndarray, w: np.ndarray, case: Case) -> np.ndarray:
    """`direct_conv` from SciPy's plain correlation of one channel, everything else written out."""
    spec, none = case.spec, ((0, 0),) * case.spec.ndim
    batch, channels = x.shape[0] // spec.batch_groups, x.shape[-1] // spec.feature_groups
    y = np.zeros(case.out_shape)
    for n, f, c in np.ndindex(batch, w.shape[-1], channels):
        g = f * spec.groups // w.shape[-1]
        at = (n + g * batch, c) if spec.batch_groups > 1 else (n, c + g * channels)
        image = zero_inserted(x[at[0], ..., at[1]], spec.lhs_dilation, spec.padding)
        kernel = zero_inserted(w[..., c, f], spec.rhs_dilation, none)
        dense = scipy.signal.correlate(image, kernel, "valid", method="direct")
        y[n, ..., f] += dense[tuple(slice(None, None, s) for s in spec.strides)]
    return y


@pytest.mark.parametrize("case", CASES, ids=str)
def test_value_equals_scipy(case):
    x, w = case.operands(np.float64)
    np.testing.assert_allclose(direct_conv(x, w, case.spec), correlate(x, w, case), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_value_and_gradients_equal_lax(case):
    with jax.enable_x64(True):
        operands, ct = case.operands(np.float64), case.cotangent(np.float64)

        @jax.jit
        def run(x, w, ct):
            y, pullback = jax.vjp(lambda x, w: lax.conv_general_dilated(x, w, **lax_params(case.spec)), x, w)
            return y, *pullback(ct)

        actual = run(*operands, ct)
    expected = direct_conv(*operands, case.spec), *direct_grads(*operands, ct, case.spec)
    for name, a, e in zip(("value", "input gradient", "kernel gradient"), actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-10, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("case", EMPTY_CASES, ids=str)
def test_empty_problems_are_zero(case):
    operands, ct = case.operands(), case.cotangent()
    y, (x_grad, w_grad) = direct_conv(*operands, case.spec), direct_grads(*operands, ct, case.spec)
    assert y.shape == ct.shape
    assert (x_grad.shape, w_grad.shape) == (case.lhs_shape, case.rhs_shape)
    assert not y.any()
    assert not x_grad.any()
    assert not w_grad.any()


def test_dtypes_are_widened():
    case = CASES[0]
    for dtype, wide in ((np.float16, np.float64), (np.complex64, np.complex128), (np.int8, np.int64)):
        assert direct_conv(*case.operands(dtype), case.spec).dtype == wide


def test_tolerance_tells_right_from_wrong():
    """One rounding of the result passes; a sum in 16 bits, or a single wrong tap, does not."""
    magnitude, one = np.full(3, 100.0), np.full(3, 100.0)
    allowed = tolerance("xla", np.float32, magnitude, terms=27)
    assert_close(one * (1 + 1e-7), one, allowed)
    for wrong in (one * (1 + 1e-3), one + 1, one * np.nan):
        with pytest.raises(AssertionError, match="3 of 3 elements"):
            assert_close(wrong, one, allowed, "sum")
    with pytest.raises(AssertionError, match="shape"):
        assert_close(one[:2], one, allowed)
    assert not tolerance("xla", np.int32, magnitude, 27).any()
