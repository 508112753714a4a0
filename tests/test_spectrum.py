"""Transforms of one long axis in two steps: as accurate as one transform, and what long convolutions take."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import convjax
from convjax._core import spectrum
from convjax._core.algorithms import dft, fft
from convjax._core.spec import ConvSpec


@pytest.mark.parametrize("dtype", ("float32", "float64"))
@pytest.mark.parametrize("n", (spectrum.LONG, spectrum.LONG + 1, 50_000))
def test_circular_convolution(n, dtype):
    with jax.enable_x64(True):
        (length,) = spectrum.fast_lengths([n], np.dtype(dtype), 2)
        assert length >= n
        assert length % spectrum.ROWS == 0
        rng = np.random.default_rng(0)
        x, k = (rng.standard_normal((2, length)).astype(dtype) for _ in range(2))
        y = spectrum.forward(jnp.asarray(x), [length], 2) * spectrum.forward(jnp.asarray(k), [length], 2)
        assert y.shape == (2, spectrum.ROWS // 2 + 1, length // spectrum.ROWS)
        actual = spectrum.backward(y, [length], np.dtype(dtype), 2)
    assert actual.dtype == dtype
    expected = np.fft.irfft(np.fft.rfft(x) * np.fft.rfft(k), length)
    np.testing.assert_allclose(actual, expected, atol=8 * np.finfo(dtype).eps * np.abs(expected).max())


def test_short_many_and_complex_axes_take_one_step():
    cases = (
        ([spectrum.LONG - 64], np.float32, 1),
        ([2**15, 2], np.float32, 1),
        ([2**15], np.complex64, 1),
        ([2**15], np.float32, spectrum.FEW + 1),
    )
    for lengths, dtype, planes in cases:
        assert spectrum.fast_lengths(lengths, np.dtype(dtype), planes) == [spectrum.fast_length(n) for n in lengths]
        x = jnp.zeros(lengths, dtype)
        assert spectrum.forward(x, lengths, planes).ndim == len(lengths)


def test_long_convolution_and_its_gradients():
    rng = np.random.default_rng(1)
    x, w, ct = (rng.standard_normal(n).astype(np.float32) for n in (20_000, 9_000, 11_001))

    @jax.jit
    def all_three(x, w, ct):
        f = lambda x, w: convjax.conv(x[:, None], w[:, None, None], padding="VALID", algorithm="fft")[:, 0]
        y, pull = jax.vjp(f, x, w)
        return y, *pull(ct)

    n = 2**15
    product = lambda a, b: np.fft.irfft(np.fft.rfft(a.astype(np.float64), n) * np.fft.rfft(b.astype(np.float64), n), n)
    expected = (
        product(x, w[::-1])[len(w) - 1 : len(x)],
        product(ct, w)[: len(x)],
        product(x, ct[::-1])[len(ct) - 1 : len(x)],
    )
    for actual, exact in zip(all_three(x, w, ct), expected, strict=True):
        np.testing.assert_allclose(actual, exact, atol=2e-6 * np.abs(exact).max())


@pytest.mark.parametrize("dtype", (jnp.float32, jnp.bfloat16), ids=("float32", "bfloat16"))
@pytest.mark.parametrize("algorithm", (fft, dft), ids=("fft", "dft"))
def test_blocks_of_groups_give_what_all_at_once_do(algorithm, dtype, monkeypatch):
    ones = (1, 1)
    spec = ConvSpec(ones, ((2, 2), (1, 3)), ones, ones, feature_groups=6)
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.standard_normal(n), dtype) for n in ((2, 9, 8, 12), (5, 4, 2, 18)))
    whole = algorithm.run(spec, x, w)
    monkeypatch.setattr(algorithm, "BLOCK_BYTES", 2**13)
    jaxpr = jax.make_jaxpr(lambda x, w: algorithm.run(spec, x, w))(x, w)
    assert "scan" in str(jaxpr)
    np.testing.assert_allclose(
        *(np.asarray(y, np.float32) for y in (algorithm.run(spec, x, w), whole)), atol=1e-5, rtol=2**-7
    )
