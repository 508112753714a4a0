"""Work in blocks: an algorithm that cuts a problem into parts gives the direct sum however small they are."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convjax._core import blocks
from convjax._core.algorithms import frames, gemm, windows, winograd
from convjax._core.algorithms.winograd import Winograd
from convjax.testing import assert_close, case, direct_conv, tolerance

DENSE = case("3x3", (2, 11, 9, 3), (3, 3, 3, 2), pads=1)
DILATED = case("3x3 dilation (3, 2)", (1, 13, 9, 3), (3, 3, 3, 2), pads=3, rhs_dilation=(3, 2))
WIDE = case("2x3x3/2", (2, 9, 7, 7, 2), (2, 3, 3, 2, 3), stride=2, pads=1)
PIXELS = case("1x1", (3, 6, 5, 2), (1, 1, 2, 2))

# The file, its limits while the test runs, the algorithm, and a problem that they cut.
CUT = [
    *((winograd, dict(BLOCK_BYTES=1), Winograd(2), c) for c in (DENSE, DENSE.rhs_grad, DILATED, DILATED.rhs_grad)),
    *((winograd, dict(BLOCK_BYTES=2**20), Winograd(2), c) for c in (DILATED, DILATED.rhs_grad)),
    (winograd, dict(BLOCK_BYTES=4000), Winograd(2), DENSE),
    *((frames, dict(ROUND_BYTES=n), frames, WIDE) for n in (1, 3000, 2**20)),
    (frames, {}, frames, WIDE.rhs_grad),
    (gemm, dict(IMAGE_ROWS=1), gemm, PIXELS),
    (windows, dict(SMALL=0), windows, PIXELS.rhs_grad),
]
PARAMETERS = [
    pytest.param(*row, dtype, id=f"{row[0].__name__.rpartition('.')[2]} {row[1]} {row[3]} {dtype.__name__}")
    for row in CUT
    for dtype in (jnp.float32, jnp.bfloat16)
    if dtype == jnp.float32 or 1 in row[1].values()
]


@pytest.mark.parametrize(("file", "limits", "algorithm", "case", "dtype"), PARAMETERS)
def test_parts_make_the_direct_sum(file, limits, algorithm, case, dtype, monkeypatch):
    for name, value in limits.items():
        monkeypatch.setattr(file, name, value)
    x, w = (jnp.asarray(a, dtype) for a in case.operands())
    assert algorithm.supports(case.spec, x, w, "cpu") is None
    y = jax.jit(lambda x, w: algorithm.run(case.spec, x, w))(x, w)
    assert y.dtype == dtype
    x, w = (np.asarray(a, np.float32) for a in (x, w))
    value, magnitude = direct_conv(x, w, case.spec), direct_conv(abs(x), abs(w), case.spec)
    assert_close(y, value, tolerance("winograd_f2" if file is winograd else "slices", y.dtype, magnitude, case.terms))


def test_bfloat16_is_cut_and_stored_as_it_is():
    x = jnp.arange(12, dtype=jnp.bfloat16).reshape(1, 6, 2)
    part = lambda index: blocks.cut(x, index, 2, 3, axis=1)
    np.testing.assert_array_equal(blocks.stacked(part, 2, axis=1), jnp.concatenate([x[:, :3], x[:, 2:5]], 1))
    np.testing.assert_array_equal(blocks.summed(part, 2), x[:, :3] + x[:, 2:5])
