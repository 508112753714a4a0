"""Sums of taps stay apart from the program around them: nothing that reads one computes it anew, on CPUs."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import convjax
from convjax._core.in_place import written

TAPS = dict(algorithm={"forward": "taps", "input_grad": "taps", "kernel_grad": "offsets"})


def chain(conv, layers=3):
    """The loss of so many layers, each of which reads every output of the one before it at every tap."""

    def loss(w, x):
        for _ in range(layers):
            x = jax.nn.relu(conv(x, w))
        return jnp.mean(x * x)

    return loss


def gathers(layers):
    """Reads of the program of a training step: gathers and slices, wherever they are fused."""
    conv = functools.partial(convjax.depthwise_conv, **TAPS)
    x, w = np.ones((2, 24, 24, 16), np.float32), np.ones((3, 3, 16, 1), np.float32)
    text = jax.jit(jax.grad(chain(conv, layers), argnums=(0, 1))).lower(w, x).compile().as_text()
    return text.count(" gather(") + text.count(" slice(")


def test_the_program_grows_with_its_layers_and_not_faster():
    two, four = gathers(2), gathers(4)
    assert four < 2.5 * two


@pytest.mark.parametrize(
    "dtype", [np.float32, jnp.bfloat16, np.float64, np.complex64, np.int32], ids=lambda d: np.dtype(d).name
)
def test_what_is_written_is_what_it_was(dtype):
    with jax.enable_x64(np.dtype(dtype) == np.float64):
        y = jnp.arange(-6, 6).astype(dtype).reshape(3, 4)
        for other in (np.nan, 0.0, np.inf):
            other = jnp.full((2,), 0 if np.issubdtype(dtype, np.integer) else other, dtype)
            found = jax.jit(written)(y, other)
            assert found.dtype == y.dtype
            np.testing.assert_array_equal(found, y)


def test_a_chain_of_layers_computes_what_lax_does():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 9, 8, 6)).astype(np.float32), rng.standard_normal((3, 3, 6, 1)).astype(np.float32)

    def by_lax(x, w):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, jnp.swapaxes(w, 2, 3), (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=6
        )

    step = lambda conv: jax.jit(jax.value_and_grad(chain(conv), argnums=(0, 1)))(w, x)
    ours, lax = (jax.tree.leaves(step(conv)) for conv in (functools.partial(convjax.depthwise_conv, **TAPS), by_lax))
    for found, expected in zip(ours, lax, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
