"""`convjax.filters` against `scipy.ndimage`, and against formulas where that has no such filter."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from convjax import filters

MODES = ("reflect", "constant", "nearest", "mirror", "wrap", "grid-mirror", "grid-wrap", "grid-constant")
EVERY_MODE = pytest.mark.parametrize("mode", MODES)
# ours: ndimage's, arguments
ALIKE = {
    "box": ("uniform_filter", (3,), {}),
    "box, even": ("uniform_filter", (4,), dict(origin=-1)),
    "box, wider than the image": ("uniform_filter", ((9, 2),), {}),
    "gaussian": ("gaussian_filter", (1.3,), {}),
    "gaussian, by axis": ("gaussian_filter", ((0, 0.7),), dict(truncate=3.0)),
    "gaussian, derivatives": ("gaussian_filter", (0.9,), dict(order=(1, 2))),
    "gaussian, third derivative": ("gaussian_filter", (0.9,), dict(order=3, radius=2)),
    "sobel": ("sobel", (0,), {}),
    "prewitt": ("prewitt", (), {}),
    "laplacian": ("laplace", (), {}),
    "laplacian_of_gaussian": ("gaussian_laplace", ((0.8, 1.1),), {}),
}


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def assert_close(actual, expected):
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    np.testing.assert_allclose(actual, expected, rtol=1e-11, atol=1e-12)


# --- equal to ndimage -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
@EVERY_MODE
@pytest.mark.parametrize("size", ((3, 3), (2, 5), (1, 4), (7, 9)), ids=str)
def test_correlate_and_convolve(size, mode):
    x, weights = draw(4, 6), draw(*size, seed=1)
    for name in ("correlate", "convolve"):
        expected = getattr(scipy.ndimage, name)(x, weights, mode=mode, cval=1.5)
        assert_close(getattr(filters, name)(x, weights, mode=mode, cval=1.5), expected)


@pytest.mark.usefixtures("x64")
@EVERY_MODE
@pytest.mark.parametrize("name", ALIKE)
def test_filters(name, mode):
    theirs, args, options = ALIKE[name]
    x = draw(4, 5)
    expected = getattr(scipy.ndimage, theirs)(x, *args, mode=mode, cval=-2.0, **options)
    assert_close(getattr(filters, name.partition(",")[0])(x, *args, mode=mode, cval=-2.0, **options), expected)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("shape", ((7,), (2, 3, 4), (1, 1), (2, 1, 2, 3)), ids=str)
def test_any_number_of_axes(shape):
    x, weights = draw(*shape), draw(*(2, 3, 1, 2)[: len(shape)], seed=1)
    assert_close(filters.convolve(x, weights), scipy.ndimage.convolve(x, weights))
    assert_close(filters.gaussian(x, 0.7, order=1), scipy.ndimage.gaussian_filter(x, 0.7, order=1))
    assert_close(filters.sobel(x), scipy.ndimage.sobel(x))


@pytest.mark.usefixtures("x64")
def test_origins_modes_and_axes():
    x, weights = draw(5, 6, 2), draw(3, 4, seed=1)
    for origin in ((-1, -2), (1, 1), 0):
        for name in ("correlate", "convolve"):
            options = dict(mode="nearest", origin=origin)
            expected = getattr(scipy.ndimage, name)(x, weights, axes=(0, 1), **options)
            assert_close(getattr(filters, name)(x, weights, axes=(0, 1), **options), expected)
    continued = np.pad(np.pad(x, ((5, 5), (0, 0), (0, 0)), "wrap"), ((0, 0), (6, 6), (0, 0)), constant_values=2.0)
    expected = scipy.ndimage.correlate(continued, weights, axes=(0, 1))[5:-5, 6:-6]
    assert_close(filters.correlate(x, weights, axes=(0, 1), mode=("wrap", "constant"), cval=2.0), expected)
    expected = np.stack([scipy.ndimage.sobel(x[..., i], 1) for i in range(2)], -1)
    assert_close(filters.sobel(x, 1, axes=(0, 1)), expected)
    by_axis = scipy.ndimage.gaussian_filter(x, (1, 2), axes=(2, 0), mode=("mirror", "nearest"))
    assert_close(filters.gaussian(x, (1, 2), axes=(-1, 0), mode=("mirror", "nearest")), by_axis)
    transposed = filters.correlate(x.transpose(1, 0, 2), weights, axes=(1, 0))
    assert_close(transposed, scipy.ndimage.correlate(x, weights, axes=(0, 1)).transpose(1, 0, 2))


@pytest.mark.usefixtures("x64")
def test_complex_weights_and_images():
    x, weights = draw(4, 5) + 1j * draw(4, 5, seed=2), draw(3, 2, seed=1) * (1 + 2j)
    assert_close(filters.convolve(x, weights), scipy.ndimage.convolve(x, weights))
    assert_close(filters.convolve(x.real, weights), scipy.ndimage.convolve(x.real, weights))
    assert_close(filters.convolve(x, filters.separate(weights)), scipy.ndimage.convolve(x, weights))


@pytest.mark.usefixtures("x64")
def test_large_kernels_are_transformed():
    x, weights = draw(90, 80), draw(41, 37, seed=1)
    transformed = "fft" in str(jax.make_jaxpr(lambda v: filters.convolve(v, weights))(x))
    assert transformed
    assert_close(filters.convolve(x, weights, mode="mirror"), scipy.ndimage.convolve(x, weights, mode="mirror"))


# --- filters by formula -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
def test_scharr():
    x = draw(5, 6)
    weights = np.outer([3, 10, 3], [-1, 0, 1])
    assert_close(filters.scharr(x, 1), scipy.ndimage.correlate(x, weights.astype(float)))
    assert_close(filters.scharr(x, 0), scipy.ndimage.correlate(x, weights.T.astype(float)))


@pytest.mark.usefixtures("x64")
def test_sharpening_and_relief():
    x = draw(5, 6)
    cross = np.array([[0, -1, 0], [-1, 5, -1], [0, -1, 0.0]])
    assert_close(filters.sharpen(x, mode="wrap"), scipy.ndimage.correlate(x, cross, mode="wrap"))
    expected = x + 0.5 * (x - scipy.ndimage.gaussian_filter(x, 2.0))
    assert_close(filters.unsharp(x, 2.0, 0.5), expected)
    relief = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2.0]])
    assert_close(filters.emboss(x, mode="nearest"), scipy.ndimage.correlate(x, relief, mode="nearest"))
    expected = scipy.ndimage.gaussian_filter(x, 1.0) - scipy.ndimage.gaussian_filter(x, 1.6)
    assert_close(filters.difference_of_gaussians(x, 1.0), expected)
    expected = scipy.ndimage.gaussian_filter(x, (1, 2)) - scipy.ndimage.gaussian_filter(x, 3)
    assert_close(filters.difference_of_gaussians(x, (1, 2), 3), expected)


@pytest.mark.usefixtures("x64")
def test_gaussian_kernel_is_a_derivative():
    t = np.arange(-12, 13)
    for order, polynomial in enumerate((1, -t / 4, t**2 / 16 - 1 / 4, -(t**3) / 64 + 3 * t / 16)):
        expected = np.exp(-(t**2) / 8) * polynomial / np.exp(-(t**2) / 8).sum()
        np.testing.assert_allclose(filters.gaussian_kernel(2.0, order=order, truncate=6), expected, atol=1e-15)


@pytest.mark.usefixtures("x64")
def test_gabor_is_a_wave_under_a_gaussian():
    kernel = filters.gabor_kernel(5.0, 0.3, sigma=2.0, aspect=0.5)
    assert kernel.shape == (25, 25)
    for y, x in ((0, 0), (3, -2), (-4, 1)):
        u, v = x * np.cos(0.3) + y * np.sin(0.3), y * np.cos(0.3) - x * np.sin(0.3)
        expected = np.exp(-(u**2) / 8 - v**2 / 32) / (2 * np.pi * 2 * 4) * np.exp(2j * np.pi * u / 5)
        np.testing.assert_allclose(kernel[12 + y, 12 + x], expected, rtol=1e-12)
    image = draw(8, 9)
    response = filters.gabor(image, 5.0, 0.3, sigma=2.0, aspect=0.5, mode="mirror")
    assert_close(response, scipy.ndimage.convolve(image, np.asarray(kernel), mode="mirror"))
    # half the response at half an octave from the centre, as the bandwidth of 1 says
    spectrum = np.abs(np.fft.fft(np.pad(np.asarray(filters.gabor_kernel(8.0)).sum(0), (0, 5000))))
    n = len(spectrum)
    low, high = (spectrum[round(n / 8 * f)] / spectrum.max() for f in (2 / 3, 4 / 3))
    np.testing.assert_allclose((low, high), 0.5, atol=0.01)


@pytest.mark.usefixtures("x64")
def test_motion_is_a_line():
    np.testing.assert_allclose(filters.motion_kernel(5)[2], np.full(5, 0.2))
    np.testing.assert_allclose(filters.motion_kernel(4, np.pi / 2)[:, 2], np.array([0.5, 1, 1, 1, 0.5]) / 4, atol=1e-15)
    diagonal = np.asarray(filters.motion_kernel(1 + 4 * np.sqrt(2), np.pi / 4))
    assert (np.diag(diagonal)[1:-1] > 2 * np.diag(diagonal, 1)[1:]).all()  # downwards and to the right
    np.testing.assert_allclose((diagonal.sum(), filters.motion_kernel(1).sum()), 1)
    x = draw(6, 7, 2)
    expected = scipy.ndimage.convolve(x, np.asarray(filters.motion_kernel(4, 0.6)), axes=(0, 1))
    assert_close(filters.motion(x, 4, 0.6, axes=(0, 1)), expected)


# --- low rank ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
@EVERY_MODE
def test_separated_weights_filter_alike(mode):
    x = draw(4, 5)
    for weights in (draw(3, 4, seed=1), np.outer([1.0, 2, 1], [-1, 0, 1])):
        low_rank = filters.separate(weights)
        for name in ("correlate", "convolve"):
            expected = getattr(scipy.ndimage, name)(x, weights, mode=mode, cval=1.5, origin=-1)
            assert_close(getattr(filters, name)(x, low_rank, mode=mode, cval=1.5, origin=-1), expected)


@pytest.mark.usefixtures("x64")
def test_rank():
    y, x = np.mgrid[-3:4, -3:4]
    gaussian = np.exp(-(x**2 + y**2) / 4)
    assert filters.separate(gaussian).rank == 1
    assert filters.separate((x**2 + y**2 - 4) * gaussian).rank == 2  # the Laplacian of a Gaussian
    assert filters.separate(np.eye(4)).rank == 4
    z = np.exp(-(np.arange(-2, 3) ** 2))
    assert filters.separate(np.einsum("ij,k->ijk", gaussian, z)).rank == 1
    assert filters.separate(np.zeros((2, 3))).rank == 1
    assert filters.separate(np.arange(1, 5)).rank == 1


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("shape", ((5,), (4, 6), (3, 4, 5), (2, 3, 2, 2)), ids=str)
def test_separation_is_exact_or_within_tolerance(shape):
    kernel = draw(*shape)
    whole = filters.separate(kernel, tolerance=0.0)
    assert whole.shape == shape
    np.testing.assert_allclose(whole.kernel(), kernel, atol=1e-12)
    norm = np.linalg.norm(kernel)
    some = filters.separate(kernel, tolerance=0.4)
    assert some.rank < whole.rank or len(shape) == 1
    assert np.linalg.norm(some.kernel() - kernel) <= 0.4 * norm
    fewer = filters.separate(kernel, rank=max(1, some.rank - 1))
    assert fewer.rank == max(1, some.rank - 1)
    assert some.rank == 1 or np.linalg.norm(fewer.kernel() - kernel) > 0.4 * norm
    if len(shape) == 2:  # Eckart and Young
        singular = np.linalg.svd(kernel, compute_uv=False)
        np.testing.assert_allclose(np.linalg.norm(fewer.kernel() - kernel) ** 2, (singular[fewer.rank :] ** 2).sum())


def test_separated_dtypes():
    assert filters.separate(np.ones((2, 2), np.float16)).factors[0].dtype == np.float16
    assert filters.separate(np.ones((2, 2), int)).kernel().dtype == np.float32
    assert filters.separate(1j * np.ones((2, 2))).rank == 1


# --- dtypes, transformations, errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ("float16", "bfloat16", "float32", "complex64"))
def test_floats_keep_their_dtype(dtype):
    x = jnp.asarray(draw(5, 6), dtype)
    wide = np.asarray(x, complex).real
    tolerance = 3 * float(jnp.finfo(dtype).eps)
    for ours, theirs in (
        (filters.gaussian(x, 1.0), scipy.ndimage.gaussian_filter(wide, 1.0)),
        (filters.box(x, 3), scipy.ndimage.uniform_filter(wide, 3)),
        (filters.correlate(x, filters.separate(np.eye(2))), scipy.ndimage.correlate(wide, np.eye(2))),
    ):
        assert ours.dtype == dtype
        np.testing.assert_allclose(np.asarray(ours, complex).real, theirs, rtol=tolerance, atol=tolerance)
    assert filters.gabor(x, 4.0, sigma=0.5).dtype == np.complex64


def test_integers_are_exact_with_integer_weights():
    x = np.random.default_rng(0).integers(0, 256, (5, 6)).astype(np.uint8)
    wide = x.astype(np.int64)
    for ours, theirs in (
        (filters.sobel(x), scipy.ndimage.sobel(wide)),
        (filters.laplacian(x), scipy.ndimage.laplace(wide)),
        (filters.correlate(x, np.array([[1, -3]])), scipy.ndimage.correlate(wide, np.array([[1, -3]]))),
    ):
        assert ours.dtype == np.int32
        np.testing.assert_array_equal(ours, theirs)
    for ours in (filters.gaussian(x, 1.0), filters.box(x), filters.sharpen(x), filters.correlate(x, np.ones((1, 1)))):
        assert ours.dtype == np.float32
    np.testing.assert_allclose(filters.gaussian(x, 1.0), scipy.ndimage.gaussian_filter(x * 1.0, 1.0), rtol=1e-5)


@pytest.mark.usefixtures("x64")
def test_gradients_in_image_weights_and_sigma():
    x, weights, dx = draw(4, 5), draw(3, 2, seed=1), draw(4, 5, seed=2)

    @jax.jit
    def products(x, ct):
        _, pull = jax.vjp(lambda v: filters.gaussian(v, 1.0, order=1, mode="mirror"), x)
        return jnp.sum(ct * filters.gaussian(dx, 1.0, order=1, mode="mirror")), jnp.sum(pull(ct)[0] * dx)

    np.testing.assert_allclose(*products(x, draw(4, 5, seed=3)), rtol=1e-12)
    dw = draw(3, 2, seed=4)
    loss = jax.jit(lambda w: jnp.sum(filters.convolve(x, w, mode="wrap") ** 2))
    steps = (loss(weights + 1e-6 * dw) - loss(weights - 1e-6 * dw)) / 2e-6
    np.testing.assert_allclose(jnp.sum(jax.grad(loss)(weights) * dw), steps, rtol=1e-7)
    blur = jax.jit(lambda s: jnp.sum(filters.gaussian(x, s, radius=3) ** 2))
    np.testing.assert_allclose(jax.grad(blur)(0.8), (blur(0.8 + 1e-6) - blur(0.8 - 1e-6)) / 2e-6, rtol=1e-7)


def test_vmap_is_a_loop():
    images = draw(3, 5, 6).astype(np.float32)
    function = lambda image: filters.laplacian_of_gaussian(image, 0.8, mode="wrap")
    expected = np.stack([scipy.ndimage.gaussian_laplace(image, 0.8, mode="wrap") for image in images])
    np.testing.assert_allclose(jax.jit(jax.vmap(function))(images), expected, atol=1e-5)


def test_empty_images_stay_empty():
    for shape in ((0,), (3, 0), (0, 2)):
        assert filters.gaussian(jnp.zeros(shape), 1.0).shape == shape
        assert filters.laplacian(jnp.zeros(shape)).shape == shape
        assert filters.correlate(jnp.zeros(shape), jnp.ones((2,) * len(shape))).shape == shape
    assert filters.gaussian(2.0, 1.0) == 2.0


# --- symbolic sizes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["reflect", "mirror", "nearest", "wrap", "constant"])
def test_export_with_symbolic_sizes(mode):
    """More weights than pixels on one axis, so that what lies beyond is reached several times over."""
    sizes = jax.export.symbolic_shape("b, n, 7")
    run = jax.jit(lambda x: filters.gaussian(x, 1.0, mode=mode, axes=(1, 2)))
    x = draw(2, 3, 7).astype(np.float32)
    exported = jax.export.export(run)(jax.ShapeDtypeStruct(sizes, np.float32))
    np.testing.assert_allclose(exported.call(x), run(x), rtol=1e-5, atol=1e-5)


X = np.ones((4, 5))
REFUSED = {
    "mode": (filters.sobel, (X,), dict(mode="symmetric"), "mode='symmetric' is not known"),
    "modes": (filters.box, (X,), dict(mode=["wrap"]), "has 1 entries for 2 axes"),
    "axis": (filters.sobel, (X, 2), {}, "must name axes of x"),
    "axis twice": (filters.box, (X,), dict(axes=(0, -2)), "must name axes of x"),
    "axis not among axes": (filters.prewitt, (X, 0), dict(axes=1), "axis=0 is not one of axes=(1,)"),
    "weights": (filters.convolve, (X, np.ones(3)), {}, "weights of shape (3,) cannot filter"),
    "no weights": (filters.correlate, (X, np.ones((0, 2))), {}, "weights of shape (0, 2)"),
    "origin": (filters.correlate, (X, np.ones((3, 2))), dict(origin=1), "origin=1 leaves the 2 weights. Type -1 to 0"),
    "size": (filters.box, (X, 0), {}, "size must be at least 1"),
    "sigma": (filters.gaussian, (X, -1.0), {}, "sigma must be more than 0"),
    "order": (filters.gaussian, (X, 1.0), dict(order=-1), "order must be at least 0"),
    "radius": (filters.gaussian, (X, 1.0), dict(radius=-1), "radius must be at least 0"),
    "image": (filters.motion, (np.ones((2, 2, 2)), 3), {}, "the filter has 2 axes"),
    "length": (filters.motion, (X, 0.5), {}, "length must be at least 1"),
    "wavelength": (filters.gabor, (X, 0.0), {}, "wavelength must be more than 0"),
    "kernel": (filters.separate, (np.ones((0, 3)),), {}, "has no weights"),
    "rank": (filters.separate, (X,), dict(rank=0), "rank must be at least 1"),
    "tolerance": (filters.separate, (X,), dict(tolerance=-1.0), "tolerance must not be negative"),
}


@pytest.mark.parametrize(("function", "args", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(function, args, options, message):
    with pytest.raises(ValueError, match=f"^{function.__name__}: ") as error:
        function(*args, **options)
    assert message in str(error.value)
    assert "Type" in str(error.value)


def test_refused_by_type():
    with pytest.raises(TypeError, match="kernel must be static"):
        jax.jit(filters.separate)(X)
    with pytest.raises(TypeError, match="sigma must be static"):
        jax.jit(lambda s: filters.gaussian(X, s))(1.0)
    with pytest.raises(TypeError, match="x must hold numbers"):
        filters.sobel(X > 0)
    with pytest.raises(TypeError, match="length must be a number"):
        filters.motion(X, "long")
