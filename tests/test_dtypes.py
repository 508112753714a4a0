"""Numbers are a contract: what each dtype is summed in, what is returned, and which integers are exact."""

from __future__ import annotations

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import convjax
from convjax._core.algorithms import PORTABLE
from convjax._core.dtypes import default_integer_output
from convjax._core.primitive import convolve
from convjax.testing import CASES, Case, assert_close, case, direct_conv, direct_grads, draw, tolerance

FLOATS = (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64, jnp.complex64, jnp.complex128)
SIXTEEN_BITS = (jnp.float16, jnp.bfloat16)
INTEGERS = (jnp.int8, jnp.uint8, jnp.int16, jnp.int32, jnp.uint32, jnp.int64)
TRANSFORMS = [name for name in PORTABLE if all(c.refusal(name, jnp.int32) for c in CASES)]  # they round

every_algorithm = pytest.mark.parametrize("algorithm", ["auto", *PORTABLE])
DENSE = next(c for c in CASES if str(c) == "dense 3x3")


def name(dtype):
    return jnp.dtype(dtype).name


def wide(dtype):
    return jax.enable_x64(True) if name(dtype) in ("float64", "complex128", "int64") else contextlib.nullcontext()


def first_served(algorithm: str, dtype) -> Case:
    return next(c for c in (*CASES, *MANY_ONES) if c.refusal(algorithm, dtype) is None)


# --- floats -----------------------------------------------------------------------------------------------------------


@every_algorithm
@pytest.mark.parametrize("dtype", FLOATS, ids=name)
def test_floats(dtype, algorithm):
    """Value and gradients have the operands' dtype and the accuracy of their sums."""
    c = first_served(algorithm, dtype)
    (x, w), ct = c.operands(dtype), c.cotangent(dtype)
    with wide(dtype):

        @jax.jit
        def run(x, w, ct):
            y, pullback = jax.vjp(lambda x, w: convolve(x, w, c.using(algorithm, gradients=True)), x, w)
            return y, *pullback(ct)

        actual = run(x, w, ct)
    expected = direct_conv(x, w, c.spec), *direct_grads(x, w, ct, c.spec)
    x, w, ct = (abs(np.asarray(a).astype(np.complex128)) for a in (x, w, ct))
    magnitudes = direct_conv(x, w, c.spec), *direct_grads(x, w, ct, c.spec)
    for a, e, magnitude, problem in zip(actual, expected, magnitudes, (c, c.lhs_grad, c.rhs_grad), strict=True):
        assert a.dtype == dtype
        assert_close(a, e, tolerance(algorithm, dtype, magnitude, problem.terms))


# Sums of some 4096 ones. In 16 bits they stop growing at 2048 (float16) or 256 (bfloat16).
MANY_ONES = [
    case("channels", (1, 4, 4, 456), (3, 3, 456, 2)),
    case("long signal, short response", (1, 1031, 124), (33, 124, 1)),
    case("transposed", (1, 33, 32, 4), (64, 63, 4, 2), lhs_dilation=2),
    case("strided", (1, 66, 66, 1), (64, 64, 1, 2), stride=2),
    case("groups", (1, 32, 32, 8), (32, 32, 4, 4), groups=2),
    case("dilated", (1, 128, 127, 1), (64, 64, 1, 2), rhs_dilation=2),
    case("depthwise taps", (1, 4100, 2), (4096, 1, 2), groups=2),
    case("batch groups", (2, 65, 64, 1), (64, 64, 1, 2), batch_groups=2),
    case("megabytes of patches", (1, 63, 63, 4), (32, 32, 4, 1)),
]


# Not planar, whose outputs are sums of 81 products at most: the next test has some that 16 bits would lose.
@pytest.mark.parametrize("algorithm", ["auto", *(name for name in PORTABLE if name != "planar")])
@pytest.mark.parametrize("dtype", SIXTEEN_BITS, ids=name)
def test_sixteen_bits_are_summed_in_float32(dtype, algorithm):
    served = [c for c in MANY_ONES if c.refusal(algorithm, dtype) is None]
    assert served
    for c in served[:2]:
        ones = jnp.ones(c.lhs_shape, dtype), jnp.ones(c.rhs_shape, dtype)
        y = convolve(*ones, c.using(algorithm))
        assert y.dtype == dtype
        exact = direct_conv(*ones, c.spec)
        assert exact.max() >= 4000
        assert_close(y, exact, tolerance(algorithm, dtype, exact, c.terms), f"{c}, {algorithm}")


@pytest.mark.parametrize("dtype", SIXTEEN_BITS, ids=name)
def test_few_products_of_sixteen_bits_are_summed_in_float32(dtype):
    """4096 and 80 ones: added one by one in 16 bits they stay 4096."""
    x = jnp.ones((1, 9, 9, 1), dtype).at[0, 0, 0].set(4096)
    y = convjax.conv(x, jnp.ones((9, 9, 1, 1), dtype), padding="VALID", algorithm="planar")
    assert y.item() == np.asarray(4096 + 80).astype(dtype) > 4096


@pytest.mark.parametrize("dtype", SIXTEEN_BITS, ids=name)
def test_gradients_of_sixteen_bits_are_summed_in_float32(dtype):
    """Over the positions for the kernel's, over the output channels for the input's."""
    positions, features = case("", (1, 66, 66, 1), (3, 3, 1, 1)), case("", (1, 2, 2, 1), (1, 1, 1, 4096))
    for c, which in ((positions, 1), (features, 0)):
        operands, ct = (jnp.ones(c.lhs_shape, dtype), jnp.ones(c.rhs_shape, dtype)), jnp.ones(c.out_shape, dtype)
        gradient = jax.vjp(lambda x, w, c=c: convolve(x, w, c.spec), *operands)[1](ct)[which]
        assert gradient.dtype == dtype
        np.testing.assert_array_equal(gradient.astype(np.float32), 4096.0)


@pytest.mark.parametrize("dtype", SIXTEEN_BITS, ids=name)
def test_preferred_float32_keeps_the_sum(dtype):
    """1 + 2^-11 is lost in 16 bits, and kept in the float32 that the caller asks for."""
    x, w = jnp.array([[[1.0, 2.0**-11]]], dtype), jnp.ones((1, 2, 1), dtype)
    assert convjax.conv(x, w).item() == 1.0
    y = convjax.conv(x, w, preferred_element_type=jnp.float32)
    assert y.dtype == jnp.float32
    assert y.item() == 1 + 2.0**-11


@every_algorithm
def test_cotangents_of_another_dtype(algorithm):
    """bfloat16 operands, float32 out: the cotangent is float32, the gradients are bfloat16 of its full precision."""
    c, dtype = first_served(algorithm, jnp.bfloat16), jnp.bfloat16
    spec = c.using(algorithm, gradients=True).replace(preferred_element_type=np.dtype(np.float32))
    (x, w), ct = c.operands(dtype), c.cotangent(np.float32)
    gradients = jax.jit(lambda x, w, ct: jax.vjp(lambda x, w: convolve(x, w, spec), x, w)[1](ct))(x, w, ct)
    expected = direct_grads(x, w, ct, c.spec)
    magnitudes = direct_grads(*(abs(np.asarray(a).astype(float)) for a in (x, w, ct)), c.spec)
    for a, e, magnitude, problem in zip(gradients, expected, magnitudes, (c.lhs_grad, c.rhs_grad), strict=True):
        assert a.dtype == dtype
        assert_close(a, e, tolerance(algorithm, dtype, magnitude, problem.terms))


# --- integers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [name for name in ("auto", *PORTABLE) if name not in TRANSFORMS])
@pytest.mark.parametrize("dtype", INTEGERS, ids=name)
def test_integers_are_exact(dtype, algorithm):
    """Integers narrower than 32 bits are summed and returned as int32, others as they are; over their whole range."""
    with wide(dtype):
        c, info = first_served(algorithm, dtype), jnp.iinfo(dtype)
        rng, half = np.random.default_rng(0), info.bits > 16
        low, high = (-9 if info.min else 0, 10) if half else (info.min, info.max)
        x, w = (rng.integers(low, high, shape, endpoint=not half).astype(dtype) for shape in (c.lhs_shape, c.rhs_shape))
        if info.bits == 16:
            w = np.sign(w)  # products of 16-bit numbers can need more than 32 bits
        spec = c.spec.replace(
            algorithms=(algorithm, "auto", "auto"), preferred_element_type=default_integer_output(dtype)
        )
        y = convolve(jnp.asarray(x), jnp.asarray(w), spec)
        assert y.dtype == (jnp.int32 if info.bits < 32 else dtype)
        np.testing.assert_array_equal(y, direct_conv(x, w, c.spec))


@pytest.mark.parametrize("dtype", (jnp.int8, jnp.uint8, jnp.int16), ids=name)
def test_narrow_integers_return_int32(dtype):
    x, w = DENSE.operands(dtype)
    x = np.where(x > 0, jnp.iinfo(dtype).max, x)
    y = convjax.conv(x, w, padding=1)
    assert y.dtype == jnp.int32
    np.testing.assert_array_equal(y, direct_conv(x, w, DENSE.spec))
    assert abs(y).max() > jnp.iinfo(dtype).max


def test_large_integers_beyond_floats():
    """2^53 + 1 has no float64: nothing rounds on the way."""
    with jax.enable_x64(True):
        x, w = jnp.full((1, 1, 1), 2**53, jnp.int64), jnp.ones((1, 1, 1), jnp.int64)
        assert convjax.conv(x + 1, w).item() == 2**53 + 1
    y = convjax.conv(jnp.full((1, 1, 1), 2**24 + 1, jnp.int32), jnp.ones((1, 1, 1), jnp.int32))
    assert y.item() == 2**24 + 1


@pytest.mark.parametrize("algorithm", TRANSFORMS)
@pytest.mark.parametrize("dtype", (jnp.int8, jnp.int32), ids=name)
def test_transforms_refuse_integers(algorithm, dtype):
    x, w = draw(np.random.default_rng(0), (1, 64, 1), dtype), draw(np.random.default_rng(0), (3, 1, 1), dtype)
    with pytest.raises(ValueError, match=rf"algorithm='{algorithm}' cannot serve .*integers"):
        convjax.conv(x, w, algorithm=algorithm)


def test_only_transforms_refuse_integers():
    assert {"winograd", "fft", "overlap_add"} <= set(TRANSFORMS)
    assert {"xla", "taps", "gemm", "indirect"}.isdisjoint(TRANSFORMS)


# --- what is returned -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS[:3], ids=name)
def test_every_function_returns_the_dtype_it_was_given(dtype):
    x, w = jnp.ones((1, 6, 6, 4), dtype), jnp.ones((3, 3, 4, 4), dtype)
    bias = jnp.ones(4, dtype)
    results = dict(
        conv=convjax.conv(x, w, bias=bias, activation="relu", residual=x),
        conv_transpose=convjax.conv_transpose(x, w, bias=bias, stride=2),
        depthwise_conv=convjax.depthwise_conv(x, w[..., :1], bias=bias),
        separable_conv=convjax.separable_conv(x, w[..., :1], w[0, 0], bias=bias),
        pointwise_conv=convjax.pointwise_conv(x, w[0, 0], bias=bias),
        causal_conv=convjax.causal_conv(x[0], w[0], bias=bias),
    )
    assert {f: str(y.dtype) for f, y in results.items()} == dict.fromkeys(results, name(dtype))
