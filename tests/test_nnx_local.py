"""`local_conv` and `LocalConv`: unshared kernels against a loop over outputs, in value and in both gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import convjax
import convjax.nnx
from convjax.unshared import local_conv

# name: input (*batch, *space, C), kernel (*k, C // groups, O), options, pads that the oracle takes
CASES = {
    "1-D": ((2, 7, 3), (3, 3, 4), dict(padding="VALID"), [(0, 0)]),
    "same": ((2, 7, 3), (4, 3, 4), dict(), [(1, 2)]),
    "2-D strided, dilated": ((2, 9, 8, 2), (3, 2, 2, 3), dict(stride=(2, 3), dilation=(2, 1), padding=1), [(1, 1)] * 2),
    "grouped": ((1, 5, 6, 4), (3, 3, 2, 6), dict(groups=2, padding=[(2, 0), (0, 1)]), [(2, 0), (0, 1)]),
    "depthwise": ((2, 8, 3), (3, 1, 6), dict(groups=3, padding="CAUSAL"), [(2, 0)]),
    "3-D": ((1, 3, 4, 3, 2), (2, 2, 2, 2, 3), dict(padding="VALID"), [(0, 0)] * 3),
    "input dilated": ((1, 4, 2), (3, 2, 2), dict(input_dilation=2, padding=2), [(2, 2)]),
    "cropped": ((2, 9, 2), (3, 2, 2), dict(padding=[(-1, -2)]), [(-1, -2)]),
    "large batch": ((70, 5, 2), (3, 2, 1), dict(padding="VALID"), [(0, 0)]),
    "no batch": ((6, 5, 2), (3, 3, 2, 2), dict(padding="VALID"), [(0, 0)] * 2),
    "matrix": ((3, 5), (5, 4), dict(), []),
}
CASE = pytest.mark.parametrize(("x_shape", "kernel_shape", "options", "pads"), CASES.values(), ids=CASES)


def oracle(x, w, pads, stride=1, dilation=1, input_dilation=1, groups=1, **_):
    """Each output by itself, in float64."""
    n = len(pads)
    strides, dilations = (np.broadcast_to(v, n) for v in (stride, dilation))
    batch = x.shape[: x.ndim - n - 1]
    x = np.asarray(x, np.float64).reshape(-1, *x.shape[len(batch) :])
    spread = np.zeros((len(x), *((s - 1) * input_dilation + 1 for s in x.shape[1:-1]), x.shape[-1]))
    spread[(slice(None), *(slice(None, None, input_dilation),) * n)] = x
    spread = np.pad(spread, [(0, 0), *((max(lo, 0), max(hi, 0)) for lo, hi in pads), (0, 0)])
    crop = tuple(slice(max(-lo, 0), s - max(-hi, 0)) for (lo, hi), s in zip(pads, spread.shape[1:-1], strict=True))
    spread = spread[(slice(None), *crop)]
    out, (per_group, features) = w.shape[:n], w.shape[-2:]
    y = np.zeros((len(x), *out, features))
    for at in np.ndindex(*out):
        for tap in np.ndindex(*w.shape[n : 2 * n]):
            where = tuple(a * s + t * d for a, s, t, d in zip(at, strides, tap, dilations, strict=True))
            for f in range(features):
                first = f // (features // groups) * per_group
                value = spread[(slice(None), *where, slice(first, first + per_group))]
                y[(slice(None), *at, f)] += value @ np.asarray(w[(*at, *tap, slice(None), f)], np.float64)
    return y.reshape(*batch, *y.shape[1:])


def operands(x_shape, kernel_shape, options):
    rng = np.random.default_rng(0)
    arrays = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (x_shape, kernel_shape))
    shared = jax.eval_shape(lambda x, w: convjax.conv(x, w, **options), *arrays)
    out = shared.shape[len(x_shape) - len(kernel_shape) + 1 : -1]
    return (rng.standard_normal(s).astype(np.float32) for s in (x_shape, (*out, *kernel_shape), shared.shape))


@CASE
def test_value_and_gradients_equal_the_loop(x_shape, kernel_shape, options, pads):
    """It is bilinear, so that the loop on a direction tells the gradients: <y(x', w), g> = <x', dx>."""
    x, w, cotangent = operands(x_shape, kernel_shape, options)
    y, pullback = jax.vjp(jax.jit(lambda x, w: local_conv(x, w, **options)), x, w)
    np.testing.assert_allclose(y, oracle(x, w, pads, **options), rtol=1e-5, atol=1e-5)
    dx, dw = pullback(cotangent)
    rng = np.random.default_rng(1)
    for _ in range(3):
        tx, tw = (rng.standard_normal(a.shape) for a in (x, w))
        np.testing.assert_allclose(np.vdot(oracle(tx, w, pads, **options), cotangent), np.vdot(tx, dx), rtol=1e-3)
        np.testing.assert_allclose(np.vdot(oracle(x, tw, pads, **options), cotangent), np.vdot(tw, dw), rtol=1e-3)


def test_equal_kernels_everywhere_are_a_convolution():
    x, w, _ = operands((2, 6, 7, 3), (3, 2, 3, 4), dict(padding_mode="reflect"))
    shared = np.broadcast_to(w[:1, :1], w.shape)
    y = local_conv(x, shared, padding_mode="reflect", bias=jnp.arange(4.0))
    expected = convjax.conv(x, w[0, 0], padding_mode="reflect", bias=jnp.arange(4.0))
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_nan_stays_in_its_patch():
    x, w, _ = operands((1, 9, 2), (3, 2, 2), dict(padding="VALID"))
    x[0, 4] = np.nan
    y = np.asarray(local_conv(x, w, padding="VALID"))
    np.testing.assert_array_equal(np.isnan(y).any((0, 2)), [False, False, True, True, True, False, False])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.int8, jnp.complex64])
def test_dtypes(dtype):
    """16 bits are summed in 32, narrow integers do not wrap around, complex numbers are not conjugated."""
    x, w = np.full((1, 10, 30), 1), np.full((1, 10, 30, 1), 1)
    factor = 1j if dtype == jnp.complex64 else 1
    y = local_conv(jnp.asarray(x * factor, dtype), jnp.asarray(w * factor, dtype), padding="VALID")
    assert y.dtype == {jnp.bfloat16: jnp.bfloat16, jnp.int8: jnp.int32}.get(dtype, dtype)
    assert complex(y[0, 0, 0]) == 300 * factor * factor


@pytest.mark.parametrize("gradient", [False, True])
def test_patches_of_a_large_batch_are_not_all_held_at_once(gradient):
    batch, size, k, channels = 64, 64, 25, 4
    x = jax.ShapeDtypeStruct((batch, size + k - 1, channels), jnp.float32)
    w = jax.ShapeDtypeStruct((size, k, channels, 1), jnp.float32)
    run = lambda x, w: local_conv(x, w, padding="VALID")
    if gradient:
        run = jax.grad(lambda x, w: (local_conv(x, w, padding="VALID") ** 2).sum(), (0, 1))
    needed = jax.jit(run).lower(x, w).compile().memory_analysis().temp_size_in_bytes
    assert needed < 4 * batch * size * k * channels / 2


def test_vmap_and_second_order_gradient():
    x, w, _ = operands((2, 6, 2), (3, 2, 2), dict())
    xs, ws = jnp.stack([x, 2 * x]), jnp.stack([w, -w])
    np.testing.assert_allclose(jax.vmap(local_conv)(xs, ws)[1], -2 * local_conv(x, w), rtol=1e-5, atol=1e-6)
    energy = lambda w: (local_conv(x, w) ** 2).sum()
    direction = jnp.ones_like(w)
    second = jax.jvp(jax.grad(energy), (w,), (direction,))[1]  # quadratic in w: its Hessian is constant
    np.testing.assert_allclose(second, jax.grad(energy)(direction), rtol=1e-4, atol=1e-4)


def test_layer_has_a_unit_variance_and_its_own_bias_at_each_position():
    layer = convjax.nnx.LocalConv(32, 8, (3, 3), input_size=(9, 8), padding="VALID", rngs=nnx.Rngs(0))
    assert layer.kernel.shape == (7, 6, 288, 8)
    assert layer.bias.shape == (7, 6, 8)
    y = layer(np.random.default_rng(0).standard_normal((4, 9, 8, 32)).astype(np.float32))
    assert 0.9 < float(y.std()) < 1.1
    layer.bias[...] = jnp.arange(7.0 * 6 * 8).reshape(7, 6, 8)
    np.testing.assert_allclose(layer(jnp.zeros((9, 8, 32))), layer.bias[...])


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (
            lambda: local_conv(jnp.ones((1, 8, 3)), jnp.ones((5, 3, 3, 4)), padding="VALID"),
            r"w of shape \(6, 3, 3, 4\)",
        ),
        (lambda: local_conv(jnp.ones((1, 8, 3)), jnp.ones((6, 3, 4))), r"w must be \(\*out, \*k"),
        (lambda: local_conv(jnp.ones((1, 8, 3)), jnp.ones((8, 3, 2, 4))), r"x has 3 channels, w has 2 for each of 1"),
        (lambda: local_conv(jnp.ones((1, 2, 3)), jnp.ones((1, 3, 3, 4)), padding="VALID"), "larger than the padded"),
        (lambda: local_conv(jnp.ones((1, 8, 3)), jnp.ones((8, 3, 3, 4)), bias=jnp.ones(3)), r"bias has shape \(3,\)"),
        (
            lambda: local_conv(jnp.ones((1, 4, 3)), jnp.ones((7, 3, 3, 4)), input_dilation=2, padding_mode="circular"),
            "padding_mode='circular' is not defined together with input_dilation",
        ),
    ],
    ids=["outputs", "rank", "channels", "size", "bias", "mode"],
)
def test_errors_say_what_to_type(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_another_input_size_is_refused_by_the_layer():
    layer = convjax.nnx.LocalConv(3, 4, 3, input_size=8, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"an input of \(9,\) gives \(9,\)"):
        layer(jnp.ones((1, 9, 3)))
