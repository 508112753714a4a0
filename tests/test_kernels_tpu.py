"""The TPU kernels in interpret mode, with races detected and memory that is NaN until written, against the oracle.

Interpret mode accepts what the compiler for TPUs refuses: that side is `benchmarks.aot_tpu`, whose reading of the
compiler's output is tested here on a sample.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convjax._core import epilogue
from convjax._core.kernels.tpu import causal1d, depthwise, signal
from convjax._core.kernels.tpu.causal1d_grad import backward
from convjax._core.kernels.tpu.finish import FUSES
from convjax.testing import Case, assert_close, case, direct_conv, draw, tolerance

BF16 = jnp.dtype("bfloat16")


def refusal(problem: Case, dtype=np.float32, kernel=depthwise, platform="tpu", rhs_dtype=None):
    operands = (
        jax.ShapeDtypeStruct(problem.lhs_shape, dtype),
        jax.ShapeDtypeStruct(problem.rhs_shape, rhs_dtype or dtype),
    )
    return kernel.supports(problem.spec, *operands, platform)


def depthwise_case(name, space, channels, kernel, batch=1, multiplier=1, **options) -> Case:
    shape = (*kernel, 1, channels * multiplier)
    return case(name, (batch, *space, channels), shape, groups=channels, **options)


# --- depthwise --------------------------------------------------------------------------------------------------------

DEPTHWISE = (
    (depthwise_case("3x3, odd sizes, 3 channels", (9, 7), 3, (3, 3), batch=2, pads=1), np.float32),
    (depthwise_case("3x3, 128 channels", (6, 5), 128, (3, 3), pads=1), BF16),
    (depthwise_case("192 channels, dilated", (7, 9), 192, (3, 3), pads=2, rhs_dilation=2), np.float32),
    (depthwise_case("stride 2, multiplier 2", (9, 8), 3, (3, 2), 2, 2, stride=2, pads=((0, 1), (1, 1))), np.float32),
    (depthwise_case("crops, 64 channels", (9, 8), 64, (3, 3), pads=((-1, 2), (1, -2))), np.float32),
    (depthwise_case("two chunks of columns", (2, 70), 96, (1, 3), pads=((0, 0), (1, 1))), BF16),
    (depthwise_case("3x3 of 8 images", (4, 5), 6, (3, 3), batch=8, pads=1), np.float32),
    (depthwise_case("2x5 of 24 images, crops", (3, 13), 8, (2, 5), batch=24, pads=((1, 0), (-1, 3))), BF16),
    (depthwise_case("signals, dilated", (21,), 6, (3,), batch=16, pads=((4, 0),), rhs_dilation=2), np.float32),
    (depthwise_case("a signal", (21,), 6, (4,), batch=2, pads=((3, 0),)), np.float32),
)


@pytest.mark.parametrize(
    ("problem", "dtype"), DEPTHWISE, ids=lambda value: str(value) if isinstance(value, Case) else ""
)
def test_depthwise_and_its_kernel_gradient_equal_the_direct_sum(problem, dtype):
    for part in (problem, problem.rhs_grad):
        assert refusal(part, dtype) is None
        lhs, rhs = part.operands(dtype)
        out = depthwise.run(part.spec, jnp.asarray(lhs), jnp.asarray(rhs), interpret=True)
        assert out.dtype == dtype
        magnitude = direct_conv(np.abs(lhs), np.abs(rhs), part.spec)
        allowed = tolerance("tpu_depthwise", dtype, magnitude, part.terms)
        assert_close(out, direct_conv(lhs, rhs, part.spec), allowed, str(part))


def test_depthwise_in_tiles_of_rows_and_a_loop_over_the_kernel(monkeypatch):
    """Sizes that real layers have, met by small ones when the limits are small too."""
    from convjax._core.kernels.tpu import plane, tiles

    problem = depthwise_case("tiles", (11, 6), 4, (5, 3), pads=((3, 2), (1, 1)))
    lhs, rhs = problem.operands()
    monkeypatch.setattr(tiles, "UNROLLED_PRODUCTS", 10)
    monkeypatch.setattr(tiles, "CARRIED_SUMS", 2)
    monkeypatch.setattr(tiles, "VMEM_BYTES", 450_000)
    chosen = tiles.choose(plane.forward(problem.spec, lhs, rhs))
    assert not chosen.unrolled
    assert chosen.vmem <= tiles.VMEM_BYTES
    assert 11 % chosen.rows, "the last tile is a part of one"
    out = depthwise.run(problem.spec, jnp.asarray(lhs), jnp.asarray(rhs), interpret=True)
    expected, magnitude = direct_conv(lhs, rhs, problem.spec), direct_conv(np.abs(lhs), np.abs(rhs), problem.spec)
    assert_close(out, expected, tolerance("", np.float32, magnitude, problem.terms), "tiles")


@pytest.mark.parametrize("dtype", [np.float32, BF16], ids=["float32", "bfloat16"])
def test_the_epilogue_is_fused_in_order(dtype):
    problem = depthwise_case("fused", (4, 4), 8, (3, 3), pads=1)
    lhs, rhs = map(jnp.asarray, problem.operands(dtype))
    rng = np.random.default_rng(1)
    bias, residual = (jnp.asarray(draw(rng, shape, dtype)) for shape in ((8,), problem.out_shape))
    out = depthwise.run(problem.spec, lhs, rhs, bias=bias, residual=residual, activation="silu", interpret=True)
    total = direct_conv(lhs, rhs, problem.spec) + np.asarray(bias, np.float64) + np.asarray(residual, np.float64)
    expected = total / (1 + np.exp(-total))
    assert_close(out, expected, 4 * tolerance("", dtype, np.abs(total) + 3, problem.terms), "fused")


def test_every_activation_that_is_named_is_the_same_function():
    from convjax._core.kernels.tpu.finish import finish

    x = jnp.linspace(-6, 6, 97)
    assert FUSES.issubset(epilogue.ACTIVATIONS)
    for name in FUSES:
        for dtype in (jnp.float32, jnp.bfloat16):
            expected = epilogue.ACTIVATIONS[name](x + 0.5)
            got = finish(x, jnp.float32(0.5), None, name, dtype)
            np.testing.assert_allclose(
                got.astype(jnp.float32), expected, rtol=1e-2 if dtype != jnp.float32 else 1e-6, atol=1e-6
            )


def test_the_input_gradient_is_the_same_kernel_and_the_transpose_of_the_forward_pass():
    """Dot products: <conv(x, w), ct> = <x, input gradient of ct> = <w, kernel gradient of (x, ct)>."""
    problem = depthwise_case("transposed", (6, 5), 3, (3, 2), pads=((1, 0), (0, 1)))
    lhs, rhs = map(jnp.asarray, problem.operands())
    ct = jnp.asarray(problem.cotangent())
    run = lambda part, a, b: depthwise.run(part.spec, a, b, interpret=True)
    forward = jnp.vdot(run(problem, lhs, rhs), ct)
    assert refusal(problem.lhs_grad) is None
    by_input = jnp.vdot(run(problem.lhs_grad, ct, jnp.flip(rhs, (0, 1))), lhs)
    grad = run(problem.rhs_grad, jnp.swapaxes(lhs, 0, -1), jnp.moveaxis(ct, 0, -2))
    by_kernel = jnp.vdot(jnp.moveaxis(grad, 0, -2), rhs)
    np.testing.assert_allclose(np.array([by_input, by_kernel]), forward, rtol=1e-5)


REFUSED = (
    (depthwise_case("", (8, 8), 4, (3, 3), pads=1), dict(platform="cpu"), "for TPUs, and this is cpu"),
    (case("", (1, 8, 8, 4), (3, 3, 2, 4), groups=2), {}, "2 channels a group"),
    (case("", (1, 8, 8, 4), (3, 3, 2, 4), groups=2).rhs_grad, {}, "several channels a group"),
    (depthwise_case("", (8, 8), 4, (3, 3), lhs_dilation=2), {}, "subpixel"),
    (depthwise_case("", (8, 8, 8), 4, (3, 3, 3)), {}, "3 spatial axes"),
    (depthwise_case("", (40,), 4, (33,)), {}, "33 taps"),
    (depthwise_case("", (8,), 4, (3,)), dict(dtype=np.float16), "float32 or bfloat16"),
    (depthwise_case("", (8,), 4, (3,)), dict(rhs_dtype=BF16), "both alike"),
    (depthwise_case("", (2**20,), 4, (3,)), {}, "MiB of VMEM"),
)


@pytest.mark.parametrize(("problem", "options", "words"), REFUSED, ids=[words for *_, words in REFUSED])
def test_depthwise_says_what_it_does_not_serve(problem, options, words):
    assert words in (refusal(problem, **options) or "served")


# --- causal -----------------------------------------------------------------------------------------------------------


def direct_causal(x, w, bias, state, ids, silu, dilation):
    """The definition, an output at a time."""
    taps, reach = w.shape[0], (w.shape[0] - 1) * dilation
    state = jnp.zeros((x.shape[0], reach, x.shape[2]), x.dtype) if state is None else state
    seen = jnp.concatenate([state, x], axis=1)
    y = jnp.zeros(x.shape, jnp.float32) + (0 if bias is None else bias)
    for i in range(taps):
        part = seen[:, i * dilation : i * dilation + x.shape[1]]
        if ids is not None:
            own = jnp.concatenate([jnp.repeat(ids[:, :1], reach, axis=1), ids], axis=1)
            same = own[:, i * dilation : i * dilation + x.shape[1]] == ids
            part = jnp.where(same[..., None], part, 0)
        y = y + part * w[i]
    y = jax.nn.silu(y) if silu else y
    return y, seen[:, seen.shape[1] - reach :]


CAUSAL = {
    "plain": (dict(), 21, 3, 4),
    "several tiles, state, segments, SiLU": (dict(state=True, ids=True, silu=True, bias=True), 70, 130, 3),
    "width 16": (dict(bias=True, silu=True), 19, 5, 16),
    "shorter than its state": (dict(state=True, dilation=3), 4, 6, 4),
}


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_and_all_its_gradients_equal_the_definition(name, monkeypatch):
    monkeypatch.setattr(signal, "ROWS", 32)
    wanted, length, channels, taps = CAUSAL[name]
    dilation, silu = wanted.get("dilation", 1), wanted.get("silu", False)
    rng = np.random.default_rng(0)
    drawn = lambda *shape: jnp.asarray(draw(rng, shape, np.float32))
    x, w, reach = drawn(2, length, channels), drawn(taps, channels), (taps - 1) * dilation
    bias = drawn(channels) if "bias" in wanted else None
    state = drawn(2, reach, channels) if "state" in wanted else None
    ids = jnp.asarray(np.sort(rng.integers(0, 4, (2, length)), axis=1)) if "ids" in wanted else None
    kernel = lambda: causal1d.forward(x, w, bias, state, ids, silu, dilation=dilation, interpret=True)
    y, after = kernel()
    zero = (jnp.zeros(channels), jnp.zeros((2, reach, channels)))
    both = (zero[0] if bias is None else bias, zero[1] if state is None else state)
    definition = lambda x, w, bias, state: direct_causal(x, w, bias, state, ids, silu, dilation)
    expected, pull = jax.vjp(definition, x, w, *both)
    np.testing.assert_allclose(y, expected[0], rtol=2e-5, atol=2e-5)
    np.testing.assert_array_equal(after, expected[1])
    dy, dafter = drawn(*y.shape), drawn(*after.shape)
    grads = backward(x, w, bias, state, ids, silu, dy, dafter, dilation=dilation, interpret=True)
    for got, want, which in zip(grads, pull((dy, dafter)), ("x", "w", "bias", "state"), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4, err_msg=which)


def test_causal_as_an_algorithm():
    problem = depthwise_case("causal", (13,), 4, (3,), pads=((4, 0),), rhs_dilation=2)
    assert refusal(problem, kernel=causal1d) is None
    lhs, rhs = problem.operands()
    bias = np.arange(4, dtype=np.float32)
    out = causal1d.run(
        problem.spec, jnp.asarray(lhs), jnp.asarray(rhs), bias=jnp.asarray(bias), activation="relu", interpret=True
    )
    np.testing.assert_allclose(out, np.maximum(direct_conv(lhs, rhs, problem.spec) + bias, 0), rtol=1e-5, atol=1e-5)


CAUSAL_REFUSED = (
    (depthwise_case("", (40,), 4, (3,), pads=((2, 0),), stride=2), "an output for every input"),
    (depthwise_case("", (40,), 4, (3,), pads=1), "a causal one"),
    (depthwise_case("", (40,), 4, (17,), pads=((16, 0),)), "2 to 16"),
    (depthwise_case("", (5000,), 4, (3,), pads=((2400, 0),), rhs_dilation=1200), "sees 2400 inputs before now"),
    (depthwise_case("", (9, 9), 4, (3, 3), pads=1), "in one dimension"),
)


@pytest.mark.parametrize(("problem", "words"), CAUSAL_REFUSED, ids=[words for *_, words in CAUSAL_REFUSED])
def test_causal_says_what_it_does_not_serve(problem, words):
    assert words in (refusal(problem, kernel=causal1d) or "served")


# --- how the kernels are run and read ---------------------------------------------------------------------------------


def test_interpret_mode_shows_a_copy_that_was_not_waited_for(capfd):
    """What every test above relies on: such a kernel reads NaN, and is told as a race."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    from convjax._core.kernels.tpu.blocks import interpret_mode

    def careless(x_ref, o_ref, scratch, semaphore):
        copy = pltpu.make_async_copy(x_ref, scratch, semaphore)
        copy.start()
        o_ref[...] = scratch[...]
        copy.wait()

    run = pl.pallas_call(
        careless,
        out_shape=jax.ShapeDtypeStruct((8, 128), np.float32),
        in_specs=[pl.BlockSpec(memory_space=pl.ANY)],
        scratch_shapes=[pltpu.VMEM((8, 128), jnp.float32), pltpu.SemaphoreType.DMA],
        interpret=interpret_mode(True),
    )
    told = ""
    try:
        assert np.isnan(run(jnp.ones((8, 128)))).all()
    except RuntimeError as error:  # jax 0.12 raises, 0.10 prints
        told = str(error)
    assert "race" in (told + "".join(capfd.readouterr())).lower()


# Shortened from what libtpu 0.0.50 writes for a kernel with two nested loops in its grid.
SCHEDULE = """
     0   :  { %s7_s0 = smov 0  ;;  %s9_s2 = smov 0 }
   0x1   :  { %3 = vsyncpa [#allocation4], 0 }
   0x2 LB: > { %s1_s15 = sadd.s32 4294967295, %s5_s14 /* iteration index, stage = 1 */  ;;  %s5_s14 = sphi %s7_s0, %s19_s14 } /* Start region 130 :: Start region 9 */
   0x3   : > { %s19_s14 = sadd.s32 1, %s5_s14  ;;  %s30_s3 = smov 4 }
   0x4 LB: >> { %s2_s1 = sphi %s30_s3, %s40_s3 } /* Start region 108 */
   0x5   : >> { %s40_s3 = sadd.s32 2, %s2_s1  ;;  %v1 = vmatmul.f32.gmra.mxu0 %v0 }
   0x6   : >> { %3011 = vst [vmem:[#allocation13_spill] sm:$0xff] /*vst_source=*/%v1  ;;  %p404_p6 = scmp.ge.s32.totalorder %s40_s3, 14 /* loop exit test */ }
   0x7   : >> { %406 = sbr.rel (!%p404_p6) target = $region108 }
   0x8   : >> { %v2 = vmatmul.msk.f32.gmra.mxu1 %v1 }
   0x9   : >> {}
   0xa   : >> {}
   0xb   : >> {}
   0xc   : > { %p16_p6 = scmp.ge.s32.totalorder (%p404_p6), %s19_s14, 10 /* loop exit test */ }
   0xd   : > { %18 = sbr.rel (!%p16_p6) target = $region130 } /* End region 9 */
   0xe   :  { %19 = vsyncpa [#allocation4], 1 }
"""  # noqa: E501

PROGRAM = """HloModule jit_f
ENTRY %main.1 (x.1: bf16[8,56,56,128]) -> bf16[8,56,56,128] {
  %x.1 = bf16[8,56,56,128]{3,2,1,0:T(8,128)(2,1)} parameter(0)
  %fusion = bf16[8,56,56,128]{3,0,2,1:T(8,128)(2,1)S(1)} fusion(%x.1), kind=kOutput, backend_config={"window_config":{"estimated_cycles":"76766"},"used_scoped_memory_configs":[{"memory_space":"1","offset":"0","size":"5169152"}],"convolution_algorithm_config":{"emitter":"EmitDepthwiseInputBatchInSublanes"}}
  ROOT %copy.2 = bf16[8,56,56,128]{3,2,1,0:T(8,128)(2,1)} copy(%fusion), backend_config={"window_config":{"estimated_cycles":"47028"},"used_scoped_memory_configs":[{"memory_space":"1","offset":"0","size":"3211264"}]}
}
"""  # noqa: E501


def test_a_schedule_is_read_loop_by_loop():
    from benchmarks.bundles import read

    schedule = read(SCHEDULE)
    assert schedule.loops == ((2, 8, 5), (1, 13, 8))  # from 4 by 2 to 14; to 10, two of which only move blocks
    assert schedule.cycles == 2 + 8 * (5 + 5 * 8)
    assert (schedule.bundles, schedule.spills, schedule.unknown_trips) == (15, 1, 0)
    assert schedule.matrix == {"vmatmul": 2}


def test_a_program_is_read_operation_by_operation():
    from benchmarks.aot_tpu import CHIPS, of_program

    found = of_program(PROGRAM, {"fusion": 18362, "copy.2": 3297}, CHIPS["v5e"])
    moved = round(8 * 56 * 56 * 128 * 2 / CHIPS["v5e"].bandwidth * CHIPS["v5e"].clock)
    assert found["operations"] == {"fusion": (18362, moved), "copy.2": (3297, moved)}  # between them it is in VMEM
    assert found["time"] == 18362 + moved
    assert found["estimated"] == 76766 + 47028
    assert found["vmem_bytes"] == 5169152
    assert found["copies"] == ["bf16[8,56,56,128]"]
    assert found["emitters"] == ["EmitDepthwiseInputBatchInSublanes"]


def test_the_quick_run_compiles_every_kernel_without_lax(monkeypatch, capsys):
    from benchmarks import aot_tpu
    from convjax._core.kernels import KERNELS

    asked = []
    refused = lambda arguments, limit_s: asked.append(arguments) or {"accepted": False, "reason": "too wide"}
    monkeypatch.setattr(aot_tpu, "in_a_process", refused)
    monkeypatch.setattr(aot_tpu, "versions", dict)
    with pytest.raises(SystemExit, match="1"):
        aot_tpu.main(["--quick"])
    compiled = [argument for _, *argument in asked]
    for name in (name for name in KERNELS if name.startswith("tpu_")):
        for target in aot_tpu.QUICK:
            assert any(name in case and target == on for case, on, _ in compiled)
    assert {what for *_, what in compiled} == {"kernel"}
    assert capsys.readouterr().err.count("too wide") == len(asked)
