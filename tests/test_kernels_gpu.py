"""The depthwise kernels for Hopper, interpreted on the CPU with their races detected: values, gradients, limits.

What only a device can show (speed, bank conflicts, TMA itself) is not in here; `make check-gpu` compiles the same
kernels for one, and `benchmarks.device` checks them on one.
"""

from __future__ import annotations

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.aot_gpu_cases import PROGRAMS
from convjax._core import epilogue
from convjax._core.kernels.mosaic_gpu import depthwise, depthwise_grad, hopper, registers, tiles
from convjax.testing import assert_close, case, direct_conv, direct_grads, tolerance
from tests import gpu_interpreter

LACKING = hopper.unavailable("cuda")
needs_mosaic = pytest.mark.skipif(LACKING is not None, reason=str(LACKING))
BF16, F16, F32 = jnp.bfloat16, jnp.float16, jnp.float32


def depthwise_case(name, size, channels, k, *, batch=1, multiplier=1, **options):
    kernel = (k,) * len(size) if isinstance(k, int) else k
    return case(name, (batch, *size, channels), (*kernel, 1, channels * multiplier), groups=channels, **options)


# What a block must get right: borders of several images, channels that fill no tile, rows and columns left over.
PLAIN = depthwise_case("3x3, two images, odd sizes, 96 channels", (6, 5), 96, 3, batch=2, pads=1)
STRIDED = depthwise_case("3x3/2, 128 channels", (7, 6), 128, 3, stride=2, pads=1)
LINE = depthwise_case("1-D causal, 192 channels", (21,), 192, 4, batch=2, pads=((3, 0),))
SMALL = depthwise_case("3x3, 40 channels", (5, 4), 40, 3, batch=2, pads=1)
SHORT = depthwise_case("1-D, 20 channels", (11,), 20, 4, batch=2, pads=((3, 1),))
FORWARD = (
    (PLAIN, BF16),
    (depthwise_case("3 channels", (4, 5), 3, 3, batch=2, pads=1), F32),
    (depthwise_case("pads of either sign", (9, 8), 64, 3, pads=((-2, 3), (4, -1))), BF16),
    (STRIDED, BF16),
    (depthwise_case("strides 1 and 3, dilations 3 and 1", (9, 7), 8, 2, stride=(1, 3), rhs_dilation=(3, 1)), F32),
    (depthwise_case("5x5 dilated 2, kernel beyond the image", (4, 3), 16, 5, pads=4, rhs_dilation=2), F16),
    (depthwise_case("1x31", (2, 7), 32, (1, 31), pads=((0, 0), (15, 15))), BF16),
    (depthwise_case("31x1", (7, 2), 32, (31, 1), pads=((15, 15), (0, 0))), F32),
    (LINE, BF16),
    (depthwise_case("1-D, strided and dilated", (37,), 64, 3, stride=2, rhs_dilation=3, pads=((2, 5),)), F32),
    (depthwise_case("multiplier 2", (4, 5), 24, 3, batch=2, multiplier=2, pads=1), BF16),
    (case("two channels to one", (1, 4, 5, 48), (3, 3, 2, 24), pads=1, groups=24), BF16),
)
KERNEL_GRADIENTS = (
    (PLAIN, BF16),
    (STRIDED, BF16),
    (SHORT, F32),
    (depthwise_case("dilation 2, 3 channels", (6, 5), 3, 3, batch=2, pads=2, rhs_dilation=2), F32),
    (depthwise_case("multiplier 2", (4, 5), 8, 2, batch=2, multiplier=2), F32),
    (depthwise_case("taps in two sets", (4, 5), 32, (9, 8), pads=4), BF16),
)
named = partial(pytest.mark.parametrize, ids=lambda value: value.name if hasattr(value, "spec") else None)


@pytest.fixture
def interpreted(monkeypatch):
    gpu_interpreter.mend(monkeypatch)
    monkeypatch.setattr(depthwise_grad, "BLOCKS", 4)  # each takes its time to interpret
    cached = depthwise_grad.plan
    cached.cache_clear()
    yield
    cached.cache_clear()
    gpu_interpreter.forget()


def shapes(problem, dtype):
    return [jax.ShapeDtypeStruct(shape, dtype) for shape in (problem.lhs_shape, problem.rhs_shape)]


def refusal(problem, dtype=BF16, platform="cuda", **changes):
    return depthwise.supports(problem.spec.replace(**changes), *shapes(problem, dtype), platform)


def run(spec, *operands, **options):
    assert depthwise.supports(spec, *operands[:2], "cuda") is None
    y = jax.jit(partial(depthwise.run, spec, interpret=True, **options))(*operands)
    assert not gpu_interpreter.races_found()
    return np.asarray(y)


def assert_right(actual, problem, lhs, rhs):
    magnitude = direct_conv(np.abs(lhs), np.abs(rhs), problem.spec)
    allowed = tolerance("taps", lhs.dtype, magnitude, problem.terms, actual.dtype)
    assert_close(actual, direct_conv(lhs, rhs, problem.spec), allowed, str(problem))


# --- values -----------------------------------------------------------------------------------------------------------


@needs_mosaic
@named(("problem", "dtype"), FORWARD)
def test_forward(interpreted, problem, dtype):
    lhs, rhs = problem.operands(dtype, seed=1)
    assert_right(run(problem.spec, lhs, rhs), problem, lhs, rhs)


@needs_mosaic
def test_warpgroups_and_strips_share_a_tile(interpreted):
    problem = depthwise_case("3x3", (9, 7), 32, 3, pads=1)
    lhs, rhs = problem.operands(F32)
    tile = tiles.Tile(rows=8, strip=2, strips=3, channels=32, warpgroups=2)
    assert_right(run(problem.spec, lhs, rhs, tile=tile), problem, lhs, rhs)


@needs_mosaic
def test_output_of_another_dtype(interpreted):
    problem = depthwise_case("3x3", (4, 5), 20, 3, pads=1)
    lhs, rhs = problem.operands(BF16)
    wide = dataclasses.replace(problem, spec=problem.spec.replace(preferred_element_type=np.dtype(F32)))
    y = run(wide.spec, lhs, rhs)
    assert y.dtype == F32
    assert_right(y, wide, lhs, rhs)


@needs_mosaic
@named(("problem", "dtype"), KERNEL_GRADIENTS)
def test_kernel_gradient(interpreted, problem, dtype):
    gradient = problem.rhs_grad
    lhs, rhs = gradient.operands(dtype, seed=2)
    assert depthwise_grad.is_kernel_gradient(gradient.spec, lhs, rhs)
    assert_right(run(gradient.spec, lhs, rhs), gradient, lhs, rhs)


@needs_mosaic
def test_kernel_gradient_takes_turns_on_its_slots(interpreted, monkeypatch):
    """Five tiles in two blocks: slots of shared memory are filled anew, and one turn has no tile left."""
    gradient = depthwise_case("3x3", (17, 4), 32, 3, pads=1).rhs_grad
    lhs, rhs = gradient.operands(F32)
    plan = depthwise_grad.plan(gradient.spec, gradient.lhs_shape, gradient.rhs_shape, np.dtype(F32))
    plan = dataclasses.replace(plan, tile=tiles.Tile(4, 4, 1, 32), splits=2)
    assert plan.tiles == 5
    monkeypatch.setattr(depthwise_grad, "plan", lambda *_: plan)
    assert_right(run(gradient.spec, lhs, rhs), gradient, lhs, rhs)


@needs_mosaic
def test_sums_of_many_blocks(interpreted):
    sums = np.random.default_rng(0).standard_normal((48, 2, 3)).astype(F32)
    np.testing.assert_allclose(depthwise_grad.in_order(jnp.asarray(sums)), sums.sum(0, dtype=np.float64), rtol=1e-5)


@needs_mosaic
@named("problem", (SMALL, SHORT))
def test_gradients_satisfy_the_dot_product_identity(interpreted, problem):
    """<ct, A x> = <A' ct, x>, where A is the kernel's convolution and A' either of its gradients."""
    x, w = problem.operands(F32)
    ct = problem.cotangent(F32)
    space = tuple(range(problem.spec.ndim))
    y = run(problem.spec, x, w)
    dx = run(problem.lhs_grad.spec, ct, np.flip(w, space))
    dw = run(problem.rhs_grad.spec, np.swapaxes(x, 0, -1), np.moveaxis(ct, 0, -2))
    dot = lambda a, b: float(np.vdot(a.astype(np.float64), b))
    scale = np.linalg.norm(y) * np.linalg.norm(ct)
    assert abs(dot(ct, y) - dot(dx, x)) < 1e-6 * scale
    assert abs(dot(ct, y) - dot(np.moveaxis(dw, 0, -2), w)) < 1e-6 * scale
    for actual, expected in zip((dx, np.moveaxis(dw, 0, -2)), direct_grads(x, w, ct, problem.spec), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-4)


# --- the epilogue -----------------------------------------------------------------------------------------------------


@needs_mosaic
@pytest.mark.parametrize("addends", ["residual", "bias residual"])
@pytest.mark.parametrize(("problem", "activation"), [(SMALL, "relu"), (SHORT, "silu")], ids=["2-D", "1-D"])
def test_epilogue(interpreted, problem, activation, addends):
    lhs, rhs = problem.operands(BF16)
    rng = np.random.default_rng(3)
    bias = rng.standard_normal(problem.out_shape[-1]).astype(BF16) if "bias" in addends else None
    residual = rng.standard_normal(problem.out_shape).astype(BF16) if "residual" in addends else None
    spec = problem.spec
    given = [a for a in (bias, residual) if a is not None]

    def kernel(lhs, rhs, *given):
        each = iter(given)
        bias, residual = (next(each) if word in addends.split() else None for word in ("bias", "residual"))
        return depthwise.run(spec, lhs, rhs, bias=bias, residual=residual, activation=activation, interpret=True)

    actual = np.asarray(jax.jit(kernel)(lhs, rhs, *given))
    assert not gpu_interpreter.races_found()
    plain = direct_conv(lhs, rhs, spec)
    wide = [None if a is None else a.astype(np.float64) for a in (bias, residual)]
    expected = np.asarray(epilogue.apply(plain, *wide, epilogue.ACTIVATIONS[activation]), np.float64)
    magnitude = direct_conv(np.abs(lhs), np.abs(rhs), spec) + sum(np.abs(a) for a in wide if a is not None)
    assert_close(actual, expected, 2 * tolerance("taps", BF16, magnitude, problem.terms), addends)


@needs_mosaic
def test_epilogue_with_a_channel_multiplier(interpreted):
    problem = depthwise_case("multiplier 2", (3, 4), 12, 2, multiplier=2)
    lhs, rhs = problem.operands(F32)
    bias, residual = np.arange(24, dtype=F32), problem.cotangent(F32)
    actual = jax.jit(partial(depthwise.run, problem.spec, interpret=True))(lhs, rhs, bias=bias, residual=residual)
    np.testing.assert_allclose(actual, direct_conv(lhs, rhs, problem.spec) + bias + residual, atol=1e-4)


@pytest.mark.parametrize("name", sorted(registers.FUSES))
def test_activations_are_those_of_the_package(name):
    x = jnp.linspace(-9.0, 9.0, 97)
    np.testing.assert_allclose(registers.ACTIVATIONS[name](x), epilogue.ACTIVATIONS[name](x), rtol=2e-5, atol=1e-6)


# --- limits and reasons -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("platform", ["cpu", "tpu", "rocm"])
def test_only_cuda(platform):
    assert f"not for {platform}" in refusal(PLAIN, platform=platform)


@pytest.mark.parametrize(("capability", "serves"), [("9.0", True), ("8.0", False), ("10.0", False)])
def test_only_hopper(monkeypatch, capability, serves):
    class Device:
        compute_capability = capability

    hopper._other_device.cache_clear()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [Device])
    reason = hopper._other_device()
    hopper._other_device.cache_clear()
    assert (reason is None) == serves
    assert serves or capability in reason


@needs_mosaic
@pytest.mark.parametrize(
    ("problem", "dtype", "words"),
    [
        (PLAIN, np.int32, "not from int32"),
        (PLAIN, np.float64, "not from float64"),
        (STRIDED.lhs_grad, BF16, "subpixel"),
        (case("dense", (1, 5, 5, 8), (3, 3, 8, 8)), BF16, "several inputs and several outputs"),
        (case("grouped", (1, 5, 5, 8), (3, 3, 2, 8), groups=4), BF16, "several inputs and several outputs"),
        (case("3-D", (1, 5, 5, 5, 8), (3, 3, 3, 1, 8), groups=8), BF16, "3 spatial axes"),
        (depthwise_case("33 taps", (99,), 8, 33), BF16, "at most 31"),
        (depthwise_case("33 taps", (99,), 8, 33).rhs_grad, BF16, "at most 31"),
        (depthwise_case("31x31, far apart", (99, 99), 8, 31, rhs_dilation=3), BF16, "shared memory"),
        (depthwise_case("wide", (5, 999), 8, (1, 2), rhs_dilation=(1, 300)), BF16, "more than the 256"),
        (case("batch groups", (8, 5, 5, 3), (3, 3, 3, 8), batch_groups=4), BF16, "batch groups"),
    ],
    ids=lambda value: value.name if hasattr(value, "spec") else None,
)
def test_reasons(problem, dtype, words):
    assert words in refusal(problem, dtype)


def test_tiles_keep_to_the_limits():
    """Of problems of many sizes: within shared memory and a TMA box, by sums of their own."""
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(60):
        k, s, d = rng.integers(1, 32, 2), rng.integers(1, 4, 2), rng.integers(1, 4, 2)
        out, itemsize = rng.integers(1, 200, 2), int(rng.choice([2, 4]))
        sizes = dict(out=tuple(out), kernel=tuple(k), strides=tuple(s), dilation=tuple(d))
        problem = tiles.Depthwise(
            **sizes, examples=3, channels=72, planes=1, outputs=1, itemsize=itemsize, out_itemsize=2
        )
        tile = tiles.choose(problem)
        if tile is None:
            continue
        found += 1
        high = (tile.rows - 1) * s[0] + (k[0] - 1) * d[0] + 1
        wide = (tile.columns - 1) * s[1] + (k[1] - 1) * d[1] + 1
        outputs = 2 * tile.rows * tile.columns * tile.channels
        assert high * wide * tile.channels * itemsize + outputs < 227 * 1024
        assert max(wide, tile.rows, tile.columns) <= 256
        assert tile.columns * tile.channels * 2 % 128 == 0
    assert found > 20


@needs_mosaic
def test_a_tile_that_breaks_a_limit_is_refused():
    problem = depthwise.problem_of(PLAIN.spec, *shapes(PLAIN, BF16))
    refuse = lambda *tile: problem.refusal(tiles.Tile(*tile))
    assert refuse(4, 8, 1, 64) is None
    assert "shared memory" in refuse(32, 8, 8, 64)
    assert "more than the 256" in refuse(4, 8, 32, 64)
    assert "four rows a warpgroup" in refuse(4, 8, 1, 64, 2)
    assert "no multiple of 128 bytes" in refuse(4, 7, 1, 32)
    best, *others = tiles.ranked(problem, 5)
    assert best == tiles.choose(problem)
    assert best not in others


# --- lowering ---------------------------------------------------------------------------------------------------------


@needs_mosaic
@pytest.mark.parametrize(
    "program", [p for p in PROGRAMS if p.quick and p.kernel == "gpu_depthwise" and "float32" not in p.name], ids=str
)
def test_lowering_for_a_gpu(program):
    """Layouts exist, boxes are such as TMA copies, and shared memory suffices: of real layers, without a GPU."""
    assert program.refusal() is None
    function, shapes = program.make()
    assert "mosaic_gpu" in jax.jit(function).trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("known", [True, False])
def test_what_the_record_has_accepted_may_not_be_refused(monkeypatch, tmp_path, capsys, known):
    from benchmarks import aot_gpu

    program = aot_gpu.Program(
        "a kernel", "a layer", "forward", make=lambda: None, quick=True, refusal=lambda: "too wide"
    )
    record = {"kernel": "a kernel", "layer": "a layer", "problem": "forward", "kernels": []}
    (tmp_path / "aot.json").write_text(json.dumps({"programs": [record] * known}))
    monkeypatch.setattr(aot_gpu, "PROGRAMS", (program,))
    monkeypatch.setattr(aot_gpu, "RESULT", tmp_path / "aot.json")
    assert aot_gpu.main(["--quick"]) == known
    assert "too wide" in capsys.readouterr().out
