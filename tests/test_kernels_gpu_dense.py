"""The wgmma kernels for Hopper, interpreted on the CPU with their races detected: values, gradients, limits, reasons.

What only a device can show (layouts, swizzles, speed) is not in here; `make check-gpu` compiles the same kernels.
"""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.aot_gpu_cases import PROGRAMS
from convjax import testing
from convjax._core import epilogue
from convjax._core.kernels.mosaic_gpu import gemm_tiles, grouped, hopper, implicit_gemm, panels, tiles
from convjax.testing import case, direct_conv, direct_grads
from tests import gpu_interpreter

LACKING = hopper.unavailable("cuda")
needs_mosaic = pytest.mark.skipif(LACKING is not None, reason=str(LACKING))
BF16 = jnp.bfloat16

FORWARD = (
    case("3x3, odd sizes, two images", (2, 9, 7, 64), (3, 3, 64, 64), pads=1),
    case("3x3, stride 2", (2, 6, 10, 128), (3, 3, 128, 96), stride=2, pads=1),
    case("3x3, stride 2, pads of SAME", (1, 8, 8, 64), (3, 3, 64, 8), stride=2, pads=((0, 1), (0, 1))),
    case("3x1, stride 1 and 2", (1, 5, 6, 64), (3, 1, 64, 64), stride=(1, 2), pads=((1, 1), (0, 0))),
    case("1x1, 96 to 192", (3, 5, 9, 96), (1, 1, 96, 192)),
    case("5x5, 8 channels", (1, 6, 5, 8), (5, 5, 8, 16), pads=2),
    case(
        "3x3, dilation 2, uneven and negative pads",
        (1, 9, 11, 64),
        (3, 3, 64, 64),
        pads=((3, 2), (-1, 2)),
        rhs_dilation=2,
    ),
    case("3x3 on one row", (2, 1, 9, 8), (3, 3, 8, 8), pads=1),
    case("3x3, stride 2, on two rows", (1, 2, 18, 64), (3, 3, 64, 8), stride=2, pads=1),
    case("1-D, k 4, causal", (2, 21, 64), (4, 64, 64), pads=((3, 0),)),
)
GROUPED = (
    case("8 of 8", (1, 6, 5, 64), (3, 3, 8, 64), pads=1, groups=8),
    case("3 of 64, the last pack alone", (1, 5, 9, 192), (3, 3, 64, 192), pads=1, groups=3),
    case("5 of 32, half a pack", (2, 4, 5, 160), (1, 1, 32, 160), groups=5),
    case("16 of 4 to 16", (1, 4, 5, 64), (1, 3, 4, 256), pads=((0, 0), (1, 1)), groups=16),
    case("6 of 32 to 8", (1, 4, 5, 192), (3, 1, 32, 48), pads=((1, 1), (0, 0)), groups=6),
)


@pytest.fixture
def interpreted(monkeypatch):
    gpu_interpreter.mend(monkeypatch)
    yield
    gpu_interpreter.forget()


def kernel_of(problem):
    return grouped if problem.spec.groups > 1 else implicit_gemm


def shapes(problem, dtype=BF16):
    return [jax.ShapeDtypeStruct(shape, dtype) for shape in (problem.lhs_shape, problem.rhs_shape)]


def refusal(problem, dtype=BF16, platform="cuda", kernel=None, **changes):
    kernel = kernel or kernel_of(problem)
    return kernel.supports(problem.spec.replace(**changes), *shapes(problem, dtype), platform)


def run(problem, lhs, rhs, **options):
    assert refusal(problem, lhs.dtype) is None
    y = kernel_of(problem).run(problem.spec, jnp.asarray(lhs), jnp.asarray(rhs), interpret=True, **options)
    assert not gpu_interpreter.races_found()
    return np.asarray(y)


def assert_right(actual, problem, lhs, rhs):
    magnitude = direct_conv(np.abs(lhs), np.abs(rhs), problem.spec)
    allowed = testing.tolerance("taps", lhs.dtype, magnitude, problem.terms)
    testing.assert_close(actual, direct_conv(lhs, rhs, problem.spec), allowed, str(problem))


def signs(shape, seed):
    """Of -1, 0 and 1: sums of some hundred products are integers that bfloat16 holds."""
    return np.random.default_rng(seed).integers(-1, 2, shape).astype(BF16)


# --- values -----------------------------------------------------------------------------------------------------------


@needs_mosaic
@pytest.mark.parametrize("problem", FORWARD + GROUPED, ids=str)
def test_forward_equals_direct_sum(problem, interpreted):
    dtype = np.float16 if problem in FORWARD[:1] else BF16
    lhs, rhs = problem.operands(dtype)
    assert_right(run(problem, lhs, rhs), problem, lhs, rhs)


@needs_mosaic
@pytest.mark.parametrize(("shape", "outputs"), [((2, 8, 16), 2), ((1, 1, 128), 4), ((1, 16, 8), 1)], ids=str)
def test_every_form_of_tile_computes_the_same(shape, outputs, interpreted, monkeypatch):
    problem = case("1x2", (3, 3, 17, 72), (1, 2, 72, 136))
    tile = gemm_tiles.Tile(shape, outputs, gemm_tiles.stages(math.prod(shape), outputs))
    monkeypatch.setattr(gemm_tiles, "choose", lambda *_: tile)
    lhs, rhs = problem.operands(BF16)
    assert_right(run(problem, lhs, rhs), problem, lhs, rhs)


@needs_mosaic
@pytest.mark.parametrize(
    ("has_bias", "has_residual", "activation"),
    [(True, False, None), (False, True, None), (True, True, "silu"), (True, True, "gelu"), (False, False, "relu")],
)
def test_what_follows_is_fused(has_bias, has_residual, activation, interpreted):
    problem = case("1x1", (2, 3, 9, 64), (1, 1, 64, 72))
    lhs, rhs = problem.operands(BF16)
    rng = np.random.default_rng(5)
    bias = testing.draw(rng, (72,), BF16) if has_bias else None
    residual = testing.draw(rng, problem.out_shape, BF16) if has_residual else None
    y = run(problem, lhs, rhs, bias=bias, residual=residual, activation=activation)
    sums = direct_conv(lhs, rhs, problem.spec)
    for addend in (bias, residual):
        sums = sums if addend is None else sums + np.asarray(addend, np.float64)
    expected = sums if activation is None else np.asarray(epilogue.ACTIVATIONS[activation](jnp.asarray(sums)))
    assert y.dtype == BF16
    np.testing.assert_allclose(y.astype(np.float64), expected, rtol=2**-8, atol=1e-3)


@needs_mosaic
def test_a_gradient_is_finished_too(interpreted):
    problem = case("1x1", (8, 3, 5, 16), (1, 1, 16, 8)).rhs_grad
    lhs, rhs = problem.operands(BF16)
    y = run(problem, lhs, rhs, bias=np.full(8, 0.5, BF16), activation="relu")
    expected = np.maximum(direct_conv(lhs, rhs, problem.spec) + 0.5, 0)
    np.testing.assert_allclose(y.astype(np.float64), expected, rtol=2**-7, atol=1e-3)


# --- gradients --------------------------------------------------------------------------------------------------------

DENSE_GRADIENTS = (
    case("3x3, one panel by one", (2, 5, 7, 64), (3, 3, 64, 64), pads=1),
    case("3x1, two by two", (1, 9, 6, 128), (3, 1, 128, 128), pads=((1, 1), (0, 0))),
    case("1x1, two by one, ragged", (2, 5, 9, 72), (1, 1, 72, 40)),
    case("1x2, stride 2, one by two", (2, 3, 10, 64), (1, 2, 64, 192), stride=(1, 2), pads=((0, 0), (1, 1))),
    case("3x3 on one row", (1, 1, 19, 8), (3, 3, 8, 8), pads=1),
    case("1x1, shifted by a row", (1, 3, 9, 8), (1, 1, 8, 8), pads=((1, -1), (0, 0))),
    case("1-D, dilated", (2, 19, 8), (3, 8, 16), pads=2, rhs_dilation=2),
)


@needs_mosaic
@pytest.mark.parametrize("problem", (*DENSE_GRADIENTS, GROUPED[0], GROUPED[2]), ids=str)
def test_kernel_gradient_equals_direct_sum(problem, interpreted):
    lhs, rhs = problem.operands(BF16)
    cotangent = problem.cotangent(BF16)
    gradient = problem.rhs_grad
    actual = run(gradient, np.swapaxes(lhs, 0, -1), np.moveaxis(cotangent, 0, -2))
    _, expected = direct_grads(lhs, rhs, cotangent, problem.spec)
    _, magnitude = direct_grads(np.abs(lhs), np.abs(rhs), np.abs(cotangent), problem.spec)
    allowed = testing.tolerance("taps", BF16, magnitude, gradient.terms)
    testing.assert_close(np.moveaxis(actual, 0, -2), expected, allowed, str(problem))


@needs_mosaic
@pytest.mark.parametrize("problem", [FORWARD[0], GROUPED[0]], ids=str)
def test_the_dot_product_with_a_cotangent_is_that_of_either_gradient(problem, interpreted):
    lhs, rhs, cotangent = (
        signs(shape, i) for i, shape in enumerate((problem.lhs_shape, problem.rhs_shape, problem.out_shape))
    )
    dot = lambda a, b: int(np.sum(a.astype(np.int64) * b.astype(np.int64)))
    expected = dot(run(problem, lhs, rhs), cotangent)
    to_kernel = run(problem.rhs_grad, np.swapaxes(lhs, 0, -1), np.moveaxis(cotangent, 0, -2))
    assert dot(np.moveaxis(to_kernel, 0, -2), rhs) == expected
    groups, n = problem.spec.groups, problem.spec.ndim
    flipped = np.flip(rhs, tuple(range(n)))
    flipped = flipped.reshape(*rhs.shape[:-1], groups, -1)  # (*k, C, groups, O) to (*k, O, groups, C)
    flipped = np.moveaxis(flipped, -1, n).swapaxes(-1, -2).reshape(*rhs.shape[:n], rhs.shape[-1] // groups, -1)
    assert dot(run(problem.lhs_grad, cotangent, flipped), lhs) == expected


@needs_mosaic
def test_shares_of_the_pixels_are_added_in_the_same_order_each_time(interpreted, monkeypatch):
    problem = case("1x1", (1, 4, 72, 64), (1, 1, 64, 64)).rhs_grad
    lhs, rhs = problem.operands(BF16)
    first = run(problem, lhs, rhs)
    np.testing.assert_array_equal(first, run(problem, lhs, rhs))
    assert_right(first, problem, lhs, rhs)


# --- limits and reasons -----------------------------------------------------------------------------------------------


@needs_mosaic
@pytest.mark.parametrize(
    ("problem", "options", "words"),
    [
        (FORWARD[0], dict(platform="cpu"), "Hopper"),
        (FORWARD[0], dict(dtype=np.float32), "bfloat16 or float16"),
        (FORWARD[0], dict(preferred_element_type=np.dtype(np.float32)), "stores"),
        (FORWARD[0], dict(lhs_dilation=(2, 2)), "subpixel"),
        (case("3-D", (1, 3, 3, 3, 64), (1, 1, 1, 64, 64)), {}, "3 spatial axes"),
        (case("3 channels", (1, 8, 8, 3), (3, 3, 3, 64)), {}, "3 channels"),
        (case("12 outputs", (1, 8, 8, 64), (3, 3, 64, 12)), {}, "12 output channels"),
        (case("odd, stride 2", (1, 9, 8, 64), (3, 3, 64, 64), stride=2), {}, "9 is not a multiple"),
        (case("96, stride 2", (1, 8, 8, 96), (3, 3, 96, 64), stride=2), {}, "96 are no multiple of 64"),
        (case("far", (1, 9, 8), (3, 8, 8), pads=2**16), {}, "65536 and more"),
        (GROUPED[0], dict(kernel=implicit_gemm), "gpu_grouped"),
        (FORWARD[0], dict(kernel=grouped), "nothing to pack"),
        (case("24 a group", (1, 8, 8, 48), (3, 3, 24, 48), groups=2), {}, "24 input channels"),
        (case("8 to 24", (1, 8, 8, 16), (3, 3, 8, 48), groups=2), {}, "24 output channels"),
        (case("2 a group", (1, 8, 8, 64), (3, 3, 2, 64), groups=32), {}, "2 input channels"),
        (GROUPED[3].rhs_grad, {}, "equal numbers"),
        (case("3 channels", (1, 8, 8, 3), (3, 3, 3, 64)).rhs_grad, {}, "3 channels"),
        (case("12 outputs", (1, 8, 8, 64), (3, 3, 64, 12)).rhs_grad, {}, "12 output channels"),
        (case("odd, stride 2", (1, 9, 8, 64), (3, 3, 64, 64), stride=2).rhs_grad, {}, "9 is not a multiple"),
        (FORWARD[1].lhs_grad, {}, "subpixel"),
    ],
    ids=lambda value: value if isinstance(value, str) else "" if isinstance(value, dict) else str(value),
)
def test_what_cannot_be_served_has_its_reason(problem, options, words):
    assert words in refusal(problem, **options)


def test_an_older_jax_is_told_so():
    if LACKING is None:
        pytest.skip("this JAX has what the kernels are written with")
    assert refusal(FORWARD[0]) == refusal(GROUPED[0]) == LACKING
    assert "jax" in LACKING


@pytest.mark.parametrize("images", (1, 3, 32))
def test_tiles_keep_to_the_limits_of_the_device(images):
    sizes = (1, 7, 14, 28, 56, 112)
    for size, outputs, widest in itertools.product(sizes, (8, 64, 200, 2048), (1, 4)):
        tile = gemm_tiles.choose((images, size, size + 1), outputs, widest, 1)
        shared = panels.size(tile.stages, tile.pixels) + panels.size(tile.outputs, tile.pixels)
        shared += panels.size(tile.stages * tile.outputs, panels.WIDTH)
        assert shared + tiles.BARRIER_BYTES <= tiles.SHARED_BYTES
        assert tile.stages >= 2
        assert tile.outputs <= widest
        assert max(tile.shape) <= tiles.BOX
        assert tile.shape[-1] % panels.TILE == tile.part[-1] % panels.TILE == 0
        assert 2 * math.prod(tile.part) == tile.pixels
        assert math.prod(tile.part) % 64 == 0
        assert tile.sums <= gemm_tiles.MOST_SUMS


def test_tiles_waste_little_of_the_layers_of_resnet():
    for size, share in ((56, 1.0), (28, 7 / 8), (14, 7 / 8), (7, 7 / 8)):
        tile = gemm_tiles.choose((32, size, size), 64, 1, 1)
        covered = math.prod(tile.counts((32, size, size))) * tile.pixels
        assert 32 * size * size / covered >= share


# --- lowering ---------------------------------------------------------------------------------------------------------


@needs_mosaic
@pytest.mark.parametrize(
    "program", [p for p in PROGRAMS if p.quick and p.kernel in ("gpu_implicit_gemm", "gpu_grouped")], ids=str
)
def test_kernels_lower_for_cuda(program):
    """Layouts exist, boxes are such as TMA copies, and shared memory suffices: of real layers, without a GPU."""
    if "/2" in program.name and program.problem == "input_grad":
        assert "subpixel" in program.refusal()
        return
    assert program.refusal() is None
    function, shapes = program.make()
    text = jax.jit(function).trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("custom_call @mosaic_gpu") == 1
