"""Winograd's transforms: F(m, r) for any m and r, and the accuracy that the registry's two members are known for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convjax._core.algorithms.winograd import Winograd, transforms
from convjax.testing import case, direct_conv

# m + r - 1 points, up to the twelve that there are.
SIZES = [(m, r) for m in range(1, 8) for r in range(1, 7) if m + r - 1 <= 9]


@pytest.mark.parametrize(("m", "r"), SIZES)
def test_transforms_are_a_correlation(m, r):
    rng = np.random.default_rng((m, r))
    data, kernel = rng.standard_normal(m + r - 1), rng.standard_normal(r)
    to_data, to_kernel, to_outputs = transforms(m, r)
    actual = to_outputs @ ((to_kernel @ kernel) * (to_data @ data))
    np.testing.assert_allclose(actual, np.correlate(data, kernel), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("m", "k", "limit"),
    # largest error over largest output in float32, about twice what was measured
    [
        (2, (3,), 1e-6),
        (2, (3, 3), 1e-6),
        (2, (5, 5), 6e-6),
        (4, (3, 3), 1.2e-5),
        (4, (5, 5), 1e-5),
        (4, (3, 3, 3), 8e-5),
    ],
    ids=str,
)
def test_accuracy(m, k, limit):
    n = len(k)
    problem = case("", (1, *(13,) * n, 16), (*k, 16, 4), pads=1)
    x, w = problem.operands()
    y = jax.jit(lambda x, w: Winograd(m).run(problem.spec, x, w))(jnp.asarray(x), jnp.asarray(w))
    expected = direct_conv(x, w, problem.spec)
    assert np.abs(np.asarray(y, np.float64) - expected).max() < limit * np.abs(expected).max()
