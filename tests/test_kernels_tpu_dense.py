"""The TPU kernels for dense and grouped convolution in interpret mode, with races detected and memory that is NaN until
written, against the oracle. What the compiler for TPUs makes of them is `benchmarks.aot_tpu`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convjax._core.algorithms.pack_groups import MATRIX_CHANNELS, PackGroups
from convjax._core.geometry import Geometry
from convjax._core.kernels.tpu import gemm_tiles, grouped, implicit_gemm
from convjax.testing import Case, assert_close, case, direct_conv, draw, tolerance

BF16 = jnp.dtype("bfloat16")


def refusal(kernel, problem: Case, dtype=np.float32, platform="tpu", rhs_dtype=None, **changes):
    lhs, rhs = (
        jax.ShapeDtypeStruct(problem.lhs_shape, dtype),
        jax.ShapeDtypeStruct(problem.rhs_shape, rhs_dtype or dtype),
    )
    return kernel.supports(problem.spec.replace(**changes), lhs, rhs, platform)


def check(kernel, problem: Case, dtype=np.float32):
    assert refusal(kernel, problem, dtype) is None
    lhs, rhs = problem.operands(dtype)
    out = kernel.run(problem.spec, jnp.asarray(lhs), jnp.asarray(rhs), interpret=True)
    assert out.dtype == dtype
    magnitude = direct_conv(np.abs(lhs), np.abs(rhs), problem.spec)
    assert_close(out, direct_conv(lhs, rhs, problem.spec), tolerance("", dtype, magnitude, problem.terms), str(problem))


# --- against the oracle -----------------------------------------------------------------------------------------------

DENSE = (
    (case("3x3, odd sizes, 3 to 5 channels", (2, 9, 7, 3), (3, 3, 3, 5), pads=1), np.float32),
    (case("3x3/2, 64 to 96 channels", (2, 6, 5, 64), (3, 3, 64, 96), stride=2, pads=((0, 1), (1, 1))), BF16),
    (case("1x1, 128 to 192 channels", (2, 4, 6, 128), (1, 1, 128, 192)), BF16),
    (case("1x1, as the block lies there", (2, 4, 8, 3), (1, 1, 3, 4)), np.float32),
    (case("5x5/2, padded", (1, 6, 5, 2), (5, 5, 2, 3), stride=2, pads=2), np.float32),
    (case("crops, dilated", (2, 9, 8, 3), (2, 2, 3, 2), pads=((-1, 3), (2, -1)), rhs_dilation=2), np.float32),
    (case("a signal, 192 channels", (2, 11, 192), (3, 192, 8), pads=((2, 0),)), np.float32),
)
FOLDED = (  # few channels: the taps of several kernel rows make one product, the last ones fewer
    (case("5x2 of 40 channels", (2, 6, 9, 40), (5, 2, 40, 3), pads=((2, 1), (1, 0))), BF16),
    (
        case("4x3/2 of 64 channels, dilated", (1, 9, 6, 64), (4, 3, 64, 5), stride=2, pads=1, rhs_dilation=(2, 1)),
        np.float32,
    ),
    (case("3x1 of 48 channels, 8 images", (8, 4, 3, 48), (3, 1, 48, 8), pads=((1, 1), (0, 0))), BF16),
)
BESIDE = (  # eight images or more whose columns fill no whole registers: they lie side by side
    (case("3x3 of 8 images", (8, 4, 3, 5), (3, 3, 5, 4), pads=1), np.float32),
    (case("3x3 of 16 images, 64 to 130 channels", (16, 2, 3, 64), (3, 3, 64, 130), pads=1), BF16),
    (case("2x3/2, uneven padding", (8, 5, 5, 3), (2, 3, 3, 4), stride=2, pads=((1, 0), (1, 2))), np.float32),
    (
        case(
            "strides of columns, dilated, cropped",
            (8, 2, 9, 2),
            (1, 2, 2, 3),
            stride=(1, 3),
            pads=((0, 0), (-1, 2)),
            rhs_dilation=(1, 2),
        ),
        BF16,
    ),
    (case("1x1 of 8 images", (8, 2, 7, 3), (1, 1, 3, 4)), np.float32),
    (case("1x1/2 of 8 images", (8, 3, 7, 3), (1, 1, 3, 4), stride=2), np.float32),
    (case("2x2 of 24 images in three groups", (24, 3, 3, 3), (2, 2, 3, 4), pads=((0, 1), (1, 0))), BF16),
    (case("signals", (8, 11, 3), (3, 3, 4), pads=((2, 0),)), np.float32),
)
GROUPED = (
    (case("32 groups of 8, two packs", (2, 5, 6, 256), (1, 3, 8, 256), pads=1, groups=32), np.float32),
    (case("24 groups of 8, all in one pack", (1, 5, 4, 192), (1, 3, 8, 192), pads=((0, 0), (1, 1)), groups=24), BF16),
    (case("3 groups of 4 to 8, stride 2", (2, 7, 6, 12), (3, 2, 4, 24), pads=1, stride=2, groups=3), np.float32),
    (case("2 groups of 8 images", (8, 2, 3, 8), (2, 3, 4, 8), pads=((1, 0), (1, 1)), groups=2), np.float32),
)
named = lambda value: str(value) if isinstance(value, Case) else np.dtype(value).name


@pytest.mark.parametrize(("problem", "dtype"), DENSE + FOLDED + BESIDE, ids=named)
def test_dense_convolution_and_its_kernel_gradient_equal_the_direct_sum(problem, dtype):
    check(implicit_gemm, problem, dtype)
    if Geometry(
        problem.rhs_grad.spec, problem.rhs_grad.lhs_shape, problem.rhs_grad.rhs_shape, dtype
    ).is_kernel_gradient:
        check(implicit_gemm, problem.rhs_grad, dtype)


@pytest.mark.parametrize(("problem", "dtype"), GROUPED, ids=named)
def test_grouped_convolution_and_its_kernel_gradient_equal_the_direct_sum(problem, dtype):
    check(grouped, problem, dtype)
    check(grouped, problem.rhs_grad, dtype)


def test_tiles_of_rows_columns_and_output_channels(monkeypatch):
    """Sizes that real layers have, met by small ones when the limits are small too."""
    problem = case("tiles", (2, 7, 19, 2), (2, 2, 2, 256), pads=((0, 1), (1, 0)))
    monkeypatch.setattr(gemm_tiles, "COLUMNS", 16)
    monkeypatch.setattr(gemm_tiles, "STEP_POSITIONS", 4 * 32)
    monkeypatch.setattr(gemm_tiles, "KERNEL_BYTES", 2 * 8 * 4 * 128)
    monkeypatch.setattr(gemm_tiles, "UNROLLED_PRODUCTS", 2 * 4)
    monkeypatch.setattr(gemm_tiles, "WORTH_TWICE", 0.0)
    for part, describe in ((problem, gemm_tiles.forward), (problem.rhs_grad, gemm_tiles.of_gradient)):
        p = describe(part.spec, *(jax.ShapeDtypeStruct(s, np.float32) for s in (part.lhs_shape, part.rhs_shape)), 1)
        t = gemm_tiles.choose(p, gradient=part is not problem)
        assert (t.outputs, t.columns) == (128, 16)
        assert t.group == 2
        assert t.rows == 4  # the last step is a part of it
        check(implicit_gemm, part)


def test_images_lie_side_by_side_where_columns_fill_no_whole_registers_and_there_is_room():
    shapes = lambda problem: (jax.ShapeDtypeStruct(s, BF16) for s in (problem.lhs_shape, problem.rhs_shape))
    arranged = lambda problem: gemm_tiles.forward(problem.spec, *shapes(problem), 1)
    assert arranged(case("", (8, 28, 28, 128), (3, 3, 128, 128), pads=1)).beside == 8
    assert arranged(case("", (8, 56, 56, 128), (3, 3, 128, 128), pads=1)).beside == 1
    assert arranged(case("", (4, 28, 28, 128), (3, 3, 128, 128), pads=1)).beside == 1
    assert arranged(case("", (256, 28, 28, 128), (3, 3, 128, 128), pads=1)).beside == 16
    assert arranged(case("", (16, 3, 20_001, 128), (3, 3, 128, 128), pads=1)).beside == 1


def test_strided_columns_of_images_side_by_side_in_chunks(monkeypatch):
    """The chunks end inside a column's images, and the last is no whole one."""
    monkeypatch.setattr(gemm_tiles, "COLUMNS", 32)
    problem = case("chunks", (24, 3, 5, 2), (2, 3, 2, 3), stride=(1, 2), pads=1)
    for part in (problem, problem.rhs_grad):
        check(implicit_gemm, part)


@pytest.mark.parametrize(
    ("kernel", "problem"),
    [
        (implicit_gemm, case("dense", (2, 4, 5, 3), (3, 3, 3, 8), pads=1)),
        (implicit_gemm, case("side by side", (8, 2, 3, 3), (3, 3, 3, 8), pads=1)),
        (grouped, case("grouped", (1, 3, 5, 8), (3, 3, 4, 8), pads=1, groups=2)),
    ],
    ids=["dense", "side by side", "grouped"],
)
@pytest.mark.parametrize("dtype", [np.float32, BF16], ids=named)
def test_the_epilogue_is_fused_in_order(kernel, problem, dtype):
    lhs, rhs = map(jnp.asarray, problem.operands(dtype))
    rng = np.random.default_rng(1)
    bias, residual = (jnp.asarray(draw(rng, shape, dtype)) for shape in ((8,), problem.out_shape))
    added = dict(bias=bias, residual=residual) if dtype == np.float32 else dict(bias=bias)
    out = kernel.run(problem.spec, lhs, rhs, **added, activation="silu", interpret=True)
    total = direct_conv(lhs, rhs, problem.spec) + sum(np.asarray(a, np.float64) for a in added.values())
    allowed = 4 * tolerance("", dtype, direct_conv(abs(lhs), abs(rhs), problem.spec) + 6, problem.terms)
    assert_close(out, total / (1 + np.exp(-total)), allowed, "fused")


def test_a_tap_that_a_folded_kernel_has_not_spreads_no_infinity():
    """Three kernel rows in pairs: what lies where the fourth would be must not be multiplied by zero."""
    problem = case("3x1 in pairs of rows", (1, 8, 2, 64), (3, 1, 64, 4))
    lhs, rhs = map(jnp.asarray, problem.operands())
    out = implicit_gemm.run(problem.spec, lhs.at[0, 7].set(jnp.inf), rhs, interpret=True)
    assert_close(out[:, :5], direct_conv(lhs, rhs, problem.spec)[:, :5], 1e-4, "rows that do not see it")


# --- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "problem"),
    [
        (implicit_gemm, case("dense", (2, 5, 6, 3), (2, 2, 3, 4), pads=((1, 0), (0, 1)))),
        (grouped, case("grouped", (2, 5, 6, 6), (2, 2, 2, 9), pads=((1, 0), (0, 1)), groups=3)),
    ],
    ids=["dense", "grouped"],
)
def test_gradients_are_the_transposes_of_the_forward_pass(kernel, problem):
    """Dot products: <conv(x, w), ct> = <x, input gradient of ct> = <w, kernel gradient of (x, ct)>."""
    lhs, rhs = map(jnp.asarray, problem.operands())
    ct = jnp.asarray(problem.cotangent())
    run = lambda part, a, b: kernel.run(part.spec, a, b, interpret=True)
    forward = jnp.vdot(run(problem, lhs, rhs), ct)
    groups, (*k, features, _) = problem.spec.groups, problem.rhs_shape
    blocks = jnp.flip(rhs, (0, 1)).reshape(*k, features, groups, -1)
    exchanged = jnp.swapaxes(blocks, -3, -1).reshape(*k, -1, lhs.shape[-1])
    by_input = jnp.vdot(run(problem.lhs_grad, ct, exchanged), lhs)
    grad = run(problem.rhs_grad, jnp.swapaxes(lhs, 0, -1), jnp.moveaxis(ct, 0, -2))
    by_kernel = jnp.vdot(jnp.moveaxis(grad, 0, -2), rhs)
    np.testing.assert_allclose(np.array([by_input, by_kernel]), forward, rtol=1e-5)


# --- reasons ----------------------------------------------------------------------------------------------------------

SQUARE = case("", (1, 8, 8, 4), (3, 3, 4, 4), pads=1)
FOUR = case("", (1, 8, 8, 8), (3, 3, 2, 8), pads=1, groups=4)
REFUSED = (
    (implicit_gemm, SQUARE, dict(platform="cpu"), "for TPUs, and this is cpu"),
    (implicit_gemm, FOUR, {}, "tpu_grouped for these"),
    (grouped, SQUARE, {}, "tpu_implicit_gemm serves it"),
    (grouped, FOUR, dict(platform="cuda"), "this is cuda"),
    (grouped, case("", (1, 8, 8, 320), (3, 3, 64, 320), groups=5), {}, "together exceed 256"),
    (implicit_gemm, case("", (1, 8, 8, 8, 4), (3, 3, 3, 4, 4)), {}, "3 spatial axes"),
    (implicit_gemm, case("", (1, 8, 8, 4), (3, 3, 4, 4), lhs_dilation=2), {}, "subpixel"),
    (implicit_gemm, SQUARE, dict(dtype=np.int8), "float32 or bfloat16"),
    (implicit_gemm, SQUARE, dict(rhs_dtype=BF16), "both alike"),
    (implicit_gemm, SQUARE, dict(preferred_element_type=np.dtype(np.float16)), "writes float32 or bfloat16"),
    (implicit_gemm, SQUARE, dict(precision=(jax.lax.Precision.HIGH,) * 2), "default or highest"),
    (implicit_gemm, case("", (1, 9, 9, 4), (8, 8, 4, 4), pads=4), {}, "up to 49"),
    (implicit_gemm, case("", (1, 9, 400_000, 128), (3, 3, 128, 128)), {}, "MiB of VMEM"),
    (implicit_gemm, case("", (8, 64, 64, 4096), (3, 3, 4096, 128), pads=1).rhs_grad, {}, "MiB of VMEM"),
)


@pytest.mark.parametrize(("kernel", "problem", "options", "reason"), REFUSED, ids=[r[-1] for r in REFUSED])
def test_what_a_kernel_cannot_serve_has_its_reason(kernel, problem, options, reason):
    assert reason in refusal(kernel, problem, **options)


def test_layers_of_real_networks_are_served():
    for size, channels in ((56, 64), (28, 128), (14, 256), (7, 512)):
        dense = case("", (8, size, size, channels), (3, 3, channels, channels), pads=1)
        packed = case("", (8, size, size, 2 * channels), (3, 3, channels // 16, 2 * channels), pads=1, groups=32)
        for kernel, problem in ((implicit_gemm, dense), (grouped, packed)):
            for part in (problem, problem.lhs_grad, problem.rhs_grad):
                assert refusal(kernel, part, BF16) is None, part


# --- the rewrite for XLA ----------------------------------------------------------------------------------------------


def test_packs_for_the_matrix_unit_equal_the_direct_sum():
    algorithm = PackGroups(MATRIX_CHANNELS)
    problem = case("packs of 128", (2, 4, 5, 256), (3, 3, 32, 256), pads=1, groups=8)
    for part in (problem, problem.rhs_grad):
        geometry = Geometry(part.spec, part.lhs_shape, part.rhs_shape, np.dtype(np.float32))
        work = algorithm.work(geometry)
        ((_, packed),) = work.parts
        assert work.kind.startswith("pack_groups_128")
        assert packed.spec.groups == 2
        lhs, rhs = part.operands()
        out = algorithm.run(part.spec, jnp.asarray(lhs), jnp.asarray(rhs))
        magnitude = direct_conv(np.abs(lhs), np.abs(rhs), part.spec)
        assert_close(out, direct_conv(lhs, rhs, part.spec), tolerance("", np.float32, magnitude, part.terms))
