"""`convjax.signal` against SciPy itself: values, shapes, dtypes, what is refused, gradients, and memory."""

from __future__ import annotations

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st

from convjax import signal
from convjax.signal.border import extend
from convjax.signal.method import by_size, exact_float
from convjax.signal.part import convolve_part, part

MODES = ("full", "same", "valid")
BOUNDARIES = ("fill", "pad", "wrap", "circular", "symm", "symmetric")
# Small and large, even and odd, the second longer, one element, a size of 1, mixed
SHAPES = (
    ((6,), (3,)),
    ((5,), (4,)),
    ((3,), (7,)),
    ((4,), (1,)),
    ((5, 4), (2, 3)),
    ((3, 4), (4, 4)),
    ((1, 5), (3, 2)),
    ((3, 5), (4, 2)),
    ((2, 3, 4), (2, 1, 3)),
)
EVERY_SHAPE = pytest.mark.parametrize(("shape1", "shape2"), SHAPES)
EVERY_MODE = pytest.mark.parametrize("mode", MODES)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def draw(shape, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind in "iub":
        return rng.integers(0, 2 if np.dtype(dtype).kind == "b" else 100, shape).astype(dtype)
    values = rng.standard_normal(shape)
    return (values + 1j * rng.standard_normal(shape) if np.dtype(dtype).kind == "c" else values).astype(dtype)


def assert_as_scipy(name, *args, **options):
    """Same values, shape and dtype, or the same type of error."""
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            expected = getattr(scipy.signal, name)(*args, **options)
    except ValueError:
        with pytest.raises(ValueError, match=f"^{name}: .*Type"):
            getattr(signal, name)(*args, **options)
        return
    actual = getattr(signal, name)(*args, **options)
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
@EVERY_MODE
@EVERY_SHAPE
@pytest.mark.parametrize("name", ("convolve", "correlate"))
def test_all_axes(name, shape1, shape2, mode):
    a, b = draw(shape1), draw(shape2, seed=1)
    for method in ("auto", "direct", "fft"):
        assert_as_scipy(name, a, b, mode, method)


@pytest.mark.usefixtures("x64")
@EVERY_MODE
@pytest.mark.parametrize("kinds", (("complex128", "complex128"), ("float64", "complex128")), ids="-".join)
def test_complex(kinds, mode):
    a, b = draw((5, 4), kinds[0]), draw((2, 3), kinds[1], seed=1)
    for name in ("convolve", "correlate"):
        assert_as_scipy(name, a, b, mode, "direct")
        assert_as_scipy(name, a, b, mode, "fft")
    for name in ("fftconvolve", "oaconvolve", "convolve2d", "correlate2d"):
        assert_as_scipy(name, a, b, mode)


@pytest.mark.usefixtures("x64")
@EVERY_MODE
@pytest.mark.parametrize("axes", (None, 0, -1, (1, 0), np.array([1])), ids=("all", "0", "-1", "both", "array"))
@pytest.mark.parametrize(
    "shapes",
    (((5, 4), (2, 3)), ((5, 4), (5, 3)), ((5, 4), (1, 3)), ((1, 4), (5, 3)), ((1, 4), (4, 1)), ((3, 4), (3, 4))),
    ids=str,
)
def test_axes_broadcast(shapes, axes, mode):
    a, b = (draw(shape, seed=i) for i, shape in enumerate(shapes))
    assert_as_scipy("fftconvolve", a, b, mode, axes)
    assert_as_scipy("oaconvolve", a, b, mode, axes)


@pytest.mark.usefixtures("x64")
@EVERY_MODE
@pytest.mark.parametrize("shapes", (((700,), (9,)), ((9,), (700,)), ((3, 700), (1, 8)), ((160, 140), (3, 4))), ids=str)
def test_blocks(shapes, mode):
    a, b = (draw(shape, seed=i) for i, shape in enumerate(shapes))
    axes = (-1,) if shapes[1][0] == 1 else None
    assert_as_scipy("oaconvolve", a, b, mode, axes)


@pytest.mark.usefixtures("x64")
@EVERY_MODE
@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("shapes", (((4, 5), (3, 2)), ((2, 3), (5, 8))), ids=str)
def test_planar(shapes, boundary, mode):
    a, b = (draw(shape, seed=i) for i, shape in enumerate(shapes))
    for name in ("convolve2d", "correlate2d"):
        assert_as_scipy(name, a, b, mode, boundary)
        assert_as_scipy(name, a, b, mode, boundary, -1.5)


def test_same_is_centred_on_the_first_input():
    a, b = jnp.array([1, 2, 3, 4]), jnp.array([1, 10])
    np.testing.assert_array_equal(signal.convolve(a, b, "same"), [1, 12, 23, 34])
    assert signal.convolve(b, a, "same").shape == (2,)  # numpy's has 4


def test_planar_correlation_of_even_size_is_centred_as_in_scipy():
    point, template = jnp.zeros((4, 4)).at[1, 1].set(1.0), jnp.arange(4.0).reshape(2, 2)
    expected = scipy.signal.correlate2d(np.asarray(point), np.asarray(template), "same")
    np.testing.assert_array_equal(signal.correlate2d(point, template, "same"), expected)
    assert not np.array_equal(signal.correlate(point, template, "same"), expected)


@pytest.mark.usefixtures("x64")
@settings(derandomize=True, deadline=None, database=None, max_examples=8)
@given(
    st.integers(1, 3).flatmap(lambda n: st.tuples(*[st.tuples(*[st.integers(1, 6)] * n)] * 2)),
    st.sampled_from(MODES),
    st.sampled_from((np.float64, np.complex128, np.int64)),
)
def test_any_shapes(shapes, mode, dtype):
    a, b = (draw(shape, dtype, seed=i) for i, shape in enumerate(shapes))
    assert_as_scipy("convolve", a, b, mode)
    assert_as_scipy("correlate", a, b, mode)
    if dtype != np.int64:  # of which SciPy makes floats, unless all sizes are 1
        assert_as_scipy("fftconvolve", a, b, mode)


def test_numbers():
    for name in ("convolve", "correlate", "fftconvolve", "oaconvolve"):
        assert getattr(signal, name)(2, 3) == 6
        assert getattr(signal, name)(2.0, 3j) == getattr(scipy.signal, name)(2.0, 3j)


@EVERY_MODE
@pytest.mark.parametrize("lengths", ((5, 3), (3, 5), (4, 3), (5, 2), (4, 4), (2, 7), (0, 3), (3, 0)), ids=str)
def test_lags(lengths, mode):
    expected = scipy.signal.correlation_lags(*lengths, mode)
    if min(lengths):
        np.testing.assert_array_equal(signal.correlation_lags(*lengths, mode), expected)
    if min(lengths) and (mode != "same" or (lengths[0] - lengths[1]) % 2 == 0 or lengths[0] % 2 == 0):
        delayed, pulse = (np.eye(1, n)[0] for n in lengths)  # at lag 0 both begin
        at = int(np.argmax(signal.correlate(jnp.asarray(delayed), jnp.asarray(pulse), mode)))
        assert 0 not in expected or expected[at] == 0


# --- dtypes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ("float16", "bfloat16", "float32", "complex64"))
def test_floating_inputs_keep_their_dtype(dtype):
    a, b = jnp.ones((6, 5), dtype), jnp.ones((3, 2), dtype)
    for name in ("convolve", "correlate", "fftconvolve", "oaconvolve", "convolve2d", "correlate2d"):
        y = getattr(signal, name)(a, b)
        assert y.dtype == dtype
        np.testing.assert_allclose(
            y.astype(complex).real, scipy.signal.convolve(np.ones((6, 5)), np.ones((3, 2))), 0.01
        )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "bool"))
def test_integers_are_exact_and_wrap_around(dtype):
    a, b = draw(50, dtype), draw(40, dtype, seed=1)
    for method in ("direct", "fft"):
        for name in ("convolve", "correlate"):
            actual = getattr(signal, name)(a, b, method=method)
            assert actual.dtype == dtype
            np.testing.assert_array_equal(actual, getattr(scipy.signal, name)(a, b, method="direct"))
    if dtype != "bool":
        assert_as_scipy("convolve2d", a[:, None], b[None])


def test_large_integers_do_not_lose_digits():
    a = jnp.array([2**30, 1, -1] * 2000, jnp.int32)
    b = jnp.array([1, 0, -1] * 600, jnp.int32)
    for method in ("auto", "fft"):
        expected = scipy.signal.convolve(np.asarray(a), np.asarray(b), method="direct")
        np.testing.assert_array_equal(signal.convolve(a, b, method=method), expected)


def test_a_transform_of_integers_is_taken_where_it_is_exact():
    wanted = part("full", (3000,), (2000,), [0])
    assert exact_float(wanted, np.dtype(np.bool_)) == np.float32
    assert exact_float(wanted, np.dtype(np.int8)) is None
    with jax.enable_x64(True):
        assert exact_float(wanted, np.dtype(np.int8)) == np.float64
        assert exact_float(wanted, np.dtype(np.int16)) == np.float64
        assert exact_float(wanted, np.dtype(np.int32)) is None
        largest = np.full(3000, -(2**15), np.int16), np.full(2000, -(2**15), np.int16)
        y = convolve_part(*(jnp.asarray(v, np.float64) for v in largest), wanted, "fft")
        assert np.abs(np.asarray(y) - np.rint(y)).max() < 0.25
        np.testing.assert_array_equal(np.rint(y).max(), 2.0**30 * 2000)


def test_transforms_of_integers_give_floats():
    a = np.arange(5)
    assert signal.fftconvolve(a, a).dtype == np.float32
    with jax.enable_x64(True):
        assert_as_scipy("fftconvolve", a, a)
        assert_as_scipy("oaconvolve", a > 2, a > 1)


def test_two_dtypes_meet_as_in_jax():
    assert signal.convolve(jnp.ones(3, jnp.float16), jnp.ones(3, jnp.int32)).dtype == jnp.float16
    assert signal.convolve(np.ones(3, np.int8), np.ones(3, np.uint8)).dtype == np.int16
    assert signal.convolve(np.ones(3), np.ones(3, complex)).dtype == np.complex64


# --- empty inputs and errors ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
@EVERY_MODE
@pytest.mark.parametrize("lengths", ((0, 3), (3, 0), (0, 0)), ids=str)
def test_empty(lengths, mode):
    a, b = (np.zeros(n) for n in lengths)
    for name in ("convolve", "correlate", "fftconvolve", "oaconvolve"):
        assert_as_scipy(name, a, b, mode)
    if lengths != (0, 0):
        assert_as_scipy("convolve2d", a[:, None], np.zeros((b.size, 2)), mode)
        assert_as_scipy("correlate2d", a[:, None], np.zeros((b.size, 2)), mode)


@pytest.mark.parametrize("dtype", (np.float16, np.float32))
def test_empty_results_keep_the_dtype(dtype):
    assert signal.fftconvolve(np.zeros((0, 3), dtype), np.ones((2, 2), dtype)).dtype == dtype
    assert signal.convolve(np.zeros(0, dtype), np.ones(2, dtype), "same").dtype == dtype


ONES = np.ones((3, 4))
REFUSED = {
    "mode": ("convolve", (ONES, ONES, "Full"), "mode='Full' is not known"),
    "mode of a transform": ("fftconvolve", (ONES, ONES, None), "mode=None is not known"),
    "mode of blocks": ("oaconvolve", (ONES, ONES[:2], "some"), "mode='some' is not known"),
    "mode, planar": ("convolve2d", (ONES, ONES, 2), "mode=2 is not known"),
    "mode of lags": ("correlation_lags", (3, 4, "all"), "mode='all' is not known"),
    "method": ("correlate", (ONES, ONES, "full", "fast"), "method='fast' is not known"),
    "ranks": ("convolve", (ONES, np.ones(3)), "in1 of shape (3, 4) has 2 axes, in2 of shape (3,) has 1"),
    "ranks of a transform": ("oaconvolve", (ONES, 1.0), "in2[..., None]"),
    "valid": ("correlate", (np.ones((3, 5)), np.ones((5, 3)), "valid"), "at least as large"),
    "valid, planar": ("correlate2d", (np.ones((3, 5)), np.ones((5, 3)), "valid"), "at least as large"),
    "valid, transformed": ("fftconvolve", (np.ones((3, 5)), np.ones((5, 3)), "valid"), "at least as large"),
    "not planar": ("convolve2d", (np.ones(3), np.ones(3)), "have 1 axes"),
    "boundary": ("convolve2d", (ONES, ONES, "full", "mirror"), "boundary='mirror' is not known"),
    "fillvalues": ("convolve2d", (ONES, ONES, "full", "fill", [1, 2]), "fillvalue has shape (2,)"),
    "complex fillvalue": ("correlate2d", (ONES, ONES, "full", "fill", 1j), "fillvalue is complex"),
    "planar bools": ("convolve2d", (ONES > 0, ONES > 0), "hold bools"),
    "no axes": ("fftconvolve", (ONES, ONES, "full", ()), "is empty"),
    "double axes": ("oaconvolve", (ONES, ONES, "full", (1, -1)), "names an axis twice"),
    "missing axis": ("fftconvolve", (ONES, ONES, "full", 2), "are not in an array of 2 axes"),
    "fractional axis": ("fftconvolve", (ONES, ONES, "full", 0.5), "must be integers"),
    "other axes differ": ("oaconvolve", (ONES, np.ones((2, 2)), "full", 1), "differ on axis 0"),
}


@pytest.mark.filterwarnings("ignore:Casting complex")
@pytest.mark.parametrize(("name", "args", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_as_by_scipy(name, args, message):
    with pytest.raises(ValueError):  # noqa: PT011 (SciPy's words are its own)
        getattr(scipy.signal, name)(*args)
    with pytest.raises(ValueError, match=f"^{name}: ") as error:
        getattr(signal, name)(*args)
    assert message in str(error.value)
    assert "Type" in str(error.value)


def test_refused_by_type():
    with pytest.raises(TypeError, match="in1 must be an array"):
        signal.convolve(None, 1.0)
    with pytest.raises(TypeError, match="in1_len must be an integer"):
        signal.correlation_lags(2.5, 1)
    with pytest.raises(TypeError, match="in1 must be static"):
        jax.jit(lambda v: signal.choose_conv_method(v, v, measure=True)[0] == "fft")(jnp.ones(3))


# --- choice -----------------------------------------------------------------------------------------------------------


def test_method_is_chosen_by_size():
    assert signal.choose_conv_method(np.ones(100_000), np.ones(10)) == "direct"
    assert signal.choose_conv_method(np.ones(100_000), np.ones(10_000)) == "fft"
    assert signal.choose_conv_method(np.ones((512, 512)), np.ones((3, 3))) == "direct"
    assert signal.choose_conv_method(np.ones((512, 512)), np.ones((101, 101)), "same") == "fft"
    assert signal.choose_conv_method(np.ones(100_000, int), np.ones(10_000, int)) == "direct"
    assert signal.choose_conv_method(np.ones(100_000, bool), np.ones(1_000, bool)) == "fft"
    assert signal.choose_conv_method(1.0, 2.0) == signal.choose_conv_method([], [1.0]) == "direct"


def test_method_is_chosen_by_stopwatch():
    method, seconds = signal.choose_conv_method(np.ones(30), np.ones(20), measure=True)
    assert set(seconds) == {"fft", "direct"}
    assert min(seconds.values()) == seconds[method] > 0


def test_long_inputs_are_transformed_in_bounded_memory():
    """Blocks where one input is much longer, one transform otherwise; a direct sum would take hours."""
    for sizes, most in (((480_000, 480_000), 8), ((1_000_000, 1_000), 8), ((1_000_000, 100_000), 8)):
        wanted = part("full", *((n,) for n in sizes), [0])
        method = by_size(wanted, np.dtype(np.float32))
        assert method == "blocks"
        arrays = [jax.ShapeDtypeStruct((n,), jnp.float32) for n in sizes]
        memory = convolve_part.lower(*arrays, wanted, method).compile().memory_analysis()
        assert memory.temp_size_in_bytes < most * 4 * sum(sizes)


# --- transformations --------------------------------------------------------------------------------------------------

DIFFERENTIABLE = {
    "direct": lambda a, b: signal.convolve(a, b, "same", "direct"),
    "transformed": lambda a, b: signal.correlate(a, b, "full", "fft"),
    "blocks": lambda a, b: signal.oaconvolve(jnp.tile(a, (1, 20)), b, "same", axes=1),
    "swapped": lambda a, b: signal.fftconvolve(b, a, "valid"),
    "wrap": lambda a, b: signal.convolve2d(a, b, "same", "wrap"),
    "symm": lambda a, b: signal.correlate2d(a, b, "full", "symm"),
}


CONJUGATING = ("transformed", "symm")  # correlations, which are not linear in a complex second input


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients(name):
    """The map is linear in each input, so that its transpose is known by <ct, f(dx)> = <f'(ct), dx>."""
    dtype = "float64" if name in CONJUGATING else "complex128"
    a, b = jnp.asarray(draw((4, 5), dtype)), jnp.asarray(draw((4, 3), dtype, seed=1))
    function = DIFFERENTIABLE[name]
    for linear, x in ((lambda v: function(v, b), a), (lambda v: function(a, v), b)):

        @jax.jit
        def both(x, dx, linear=linear):
            y, pull = jax.vjp(linear, x)
            ct = jnp.asarray(draw(y.shape, dtype, seed=2))
            return jnp.sum(ct * linear(dx)), jnp.sum(pull(ct)[0] * dx), linear(dx), jax.jvp(linear, (x,), (dx,))[1]

        product, transposed, image, derivative = both(x, jnp.asarray(draw(x.shape, dtype, seed=3)))
        np.testing.assert_allclose(product, transposed, rtol=1e-10)
        np.testing.assert_allclose(image, derivative, rtol=1e-10, atol=1e-12)


def test_vmap_is_a_loop():
    a, b = draw((3, 20), np.float32), draw((3, 6), np.float32, seed=1)
    for function in (signal.convolve, functools.partial(signal.correlate, method="fft"), signal.oaconvolve):
        both = jax.jit(jax.vmap(function))(a, b)
        np.testing.assert_allclose(both, np.stack([function(*pair) for pair in zip(a, b, strict=True)]), atol=1e-5)
    images = draw((3, 5, 6), np.float32)
    one_kernel = jax.vmap(lambda v: signal.convolve2d(v, b, boundary="symm"))(images)
    assert one_kernel.shape == (3, 7, 11)
    np.testing.assert_allclose(one_kernel[1], scipy.signal.convolve2d(images[1], b, boundary="symm"), atol=1e-4)


def test_fillvalue_is_differentiable():
    grad = jax.grad(lambda v: signal.convolve2d(jnp.ones((2, 2)), jnp.ones((2, 2)), "full", "fill", v).sum())(0.0)
    assert grad == 9 * 4 - 16  # of the 36 products 16 meet the image


# --- symbolic sizes ---------------------------------------------------------------------------------------------------

rows = functools.partial(signal.fftconvolve, axes=-1)
# function, sizes of in1, with what holds of them, in2, a size to call it with
SYMBOLIC = {
    "rows, transforms": (rows, "b, 20", (), (1, 6), (3, 20)),
    "rows, blocks": (functools.partial(signal.oaconvolve, mode="same", axes=-1), "b, 20", (), (1, 6), (3, 20)),
    "length": (signal.convolve, "n", (), (4,), (9,)),
    "length, shorter": (functools.partial(signal.correlate, mode="same"), "n", (), (5,), (3,)),
    "length, valid": (functools.partial(signal.convolve, mode="valid"), "n", ("n >= 4",), (4,), (9,)),
    "image": (functools.partial(signal.convolve2d, mode="same", boundary="symm"), "n, m", (), (7, 3), (2, 9)),
}


@pytest.mark.parametrize(("function", "sizes", "known", "shape2", "shape1"), SYMBOLIC.values(), ids=SYMBOLIC)
def test_export_with_symbolic_sizes(function, sizes, known, shape2, shape1):
    a, b = draw(shape1, np.float32), draw(shape2, np.float32, seed=1)
    symbolic = jax.ShapeDtypeStruct(jax.export.symbolic_shape(sizes, constraints=known), np.float32)
    exported = jax.export.export(jax.jit(function))(symbolic, b)
    np.testing.assert_allclose(exported.call(a, b), function(a, b), rtol=1e-5, atol=1e-5)


def test_a_transform_of_symbolic_length_is_refused():
    n = jax.ShapeDtypeStruct(jax.export.symbolic_shape("n"), np.float32)
    for function, said in (
        (signal.fftconvolve, "in1 has shape (n,)"),
        (functools.partial(signal.convolve, method="fft"), "method='direct'"),
        (functools.partial(signal.convolve, mode="valid"), "constraints="),
    ):
        with pytest.raises(ValueError, match="convolve: ") as error:
            jax.export.export(jax.jit(function))(n, jnp.ones(4))
        assert said in str(error.value)


# --- border -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ("wrap", "symmetric", "reflect", "edge"))
@pytest.mark.parametrize("pads", ((0, 2), (3, 1), (9, 14), (-1, 2), (2, -3)), ids=str)
def test_extend_is_numpys_pad(mode, pads):
    x = np.arange(8).reshape(2, 4)
    lo, hi = pads
    padded = np.pad(x, ((0, 0), (max(lo, 0), max(hi, 0))), mode=mode)
    expected = padded[:, max(-lo, 0) : padded.shape[1] - max(-hi, 0)]
    np.testing.assert_array_equal(extend(jnp.asarray(x), 1, lo, hi, mode), expected)
