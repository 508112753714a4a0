"""Initialisers: Flax's are all there; ICNR starts without a checkerboard; delta-orthogonal keeps norms."""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.nnx.nn import initializers as flax_initializers

import convjax
import convjax.nnx
from convjax import initializers

KEY = jax.random.key(0)


# all of Flax's but the one that ours goes beyond
FLAX = [n for n, value in vars(flax_initializers).items() if inspect.isfunction(value) and n != "delta_orthogonal"]


@pytest.mark.parametrize("name", FLAX)
def test_those_of_flax_are_re_exported(name):
    assert getattr(initializers, name) is getattr(flax_initializers, name)


@pytest.mark.parametrize(("scale", "ndim"), [(2, 2), ((2, 3), 2), (3, 1)])
def test_icnr_equals_nearest_neighbour_upsampling_of_one_kernel(scale, ndim):
    """The definition: convolve and shuffle equals convolve, then repeat each pixel."""
    factors = (scale,) * ndim if isinstance(scale, int) else scale
    phases = int(np.prod(factors))
    kernel = initializers.icnr(scale=scale, ndim=ndim)(KEY, (*(3,) * ndim, 4, 2 * phases))
    x = jax.random.normal(KEY, (*(5,) * ndim, 4))
    y = convjax.conv(x, kernel).reshape(*(5,) * ndim, 2, *factors)
    for axis, factor in enumerate(factors):  # the pixel shuffle, an axis at a time
        y = jnp.moveaxis(y, ndim + 1, axis + 1)
        y = y.reshape(*y.shape[:axis], 5 * factor, *y.shape[axis + 2 :])
    expected = convjax.conv(x, kernel[..., ::phases])
    for axis, factor in enumerate(factors):
        expected = jnp.repeat(expected, factor, axis)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    assert float(jnp.std(expected)) > 0.1


def test_icnr_draws_each_phase_from_the_given_initialiser():
    kernel = initializers.icnr(initializers.ones_init(), scale=2)(KEY, (3, 3, 2, 8), jnp.bfloat16)
    assert kernel.dtype == jnp.bfloat16
    np.testing.assert_array_equal(kernel, 1)


def test_icnr_says_which_channels_fit():
    with pytest.raises(ValueError, match=r"10 output channels, which the 4 phases.*Type 12 output channels"):
        initializers.icnr(scale=2)(KEY, (3, 3, 8, 10))


@pytest.mark.parametrize(
    ("k", "inputs", "outputs", "groups"),
    [((3,), 4, 4, 1), ((4, 3), 4, 6, 1), ((3, 3, 3), 4, 4, 1), ((2, 1, 3, 2), 3, 3, 1), ((3, 5), 8, 8, 2)],
)
def test_delta_orthogonal_keeps_the_norm_of_the_input(k, inputs, outputs, groups):
    kernel = initializers.delta_orthogonal(groups=groups)(KEY, (*k, inputs // groups, outputs))
    x = jax.random.normal(KEY, (*(4,) * len(k), inputs))
    y = convjax.conv(x, kernel, groups=groups, padding="SAME")
    np.testing.assert_allclose(jnp.linalg.norm(y), jnp.linalg.norm(x), rtol=1e-5)


def test_delta_orthogonal_with_fewer_outputs_has_orthonormal_columns():
    kernel = initializers.delta_orthogonal(2.0)(KEY, (3, 6, 4))
    np.testing.assert_allclose(kernel[1].T @ kernel[1], 4 * np.eye(4), atol=1e-5)
    np.testing.assert_array_equal(kernel[np.array([0, 2])], 0)


def test_delta_orthogonal_says_which_groups_fit():
    with pytest.raises(ValueError, match=r"groups=4 does not divide the 6 output channels"):
        initializers.delta_orthogonal(groups=4)(KEY, (3, 2, 6))


def test_they_serve_as_kernel_init():
    layer = convjax.nnx.Conv(4, 4, (3, 3), kernel_init=initializers.delta_orthogonal(), rngs=nnx.Rngs(0))
    np.testing.assert_allclose(layer.kernel[1, 1].T @ layer.kernel[1, 1], np.eye(4), atol=1e-5)
