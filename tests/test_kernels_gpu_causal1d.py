"""The causal kernel for Hopper and its gradients, interpreted on the CPU with races detected, against plain sums."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.aot_gpu_cases import PROGRAMS
from convjax._core.kernels.mosaic_gpu import causal1d, causal1d_grad, hopper, tiles
from convjax.testing import assert_close, case, direct_conv, tolerance
from tests import gpu_interpreter

LACKING = hopper.unavailable("cuda")
needs_mosaic = pytest.mark.skipif(LACKING is not None, reason=str(LACKING))
SILU = lambda z: z / (1 + np.exp(-z))
STATE, SEGMENTS, SILU_TOO = "state", "segments", "silu"

# N, L, C, taps, dilation, and what is given: stretches of 8 positions, so that blocks begin within the sequence.
PROBLEMS = (
    (2, 37, 32, 4, 1, ()),
    (1, 35, 20, 2, 3, (STATE, SILU_TOO)),
    (2, 6, 3, 4, 1, (STATE, SEGMENTS, SILU_TOO)),
    (1, 33, 32, 3, 2, (SEGMENTS, SILU_TOO)),
)


@pytest.fixture
def interpreted(monkeypatch):
    gpu_interpreter.mend(monkeypatch)
    monkeypatch.setattr(causal1d, "COLUMNS", (16, 8))
    monkeypatch.setattr(causal1d, "PREFERRED_BYTES", 0)  # short stretches are chosen
    monkeypatch.setattr(causal1d_grad, "BLOCKS", 2)
    yield
    gpu_interpreter.forget()


def operands(batch, length, channels, taps, dilation, given, dtype=np.float32):
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape).astype(dtype)
    state = draw(batch, (taps - 1) * dilation, channels) if STATE in given else None
    ids = np.sort(rng.integers(0, 4, (batch, length))).astype(np.int32) if SEGMENTS in given else None
    return draw(batch, length, channels), draw(taps, channels), draw(channels), state, ids


def by_hand(x, w, bias, state, ids, silu, dilation):
    """Position by position, in float64; and the state for the next call."""
    (batch, length, channels), reach = x.shape, (w.shape[0] - 1) * dilation
    before = np.zeros((batch, reach, channels)) if state is None else state
    whole = np.concatenate([before, x], axis=1).astype(np.float64)
    ids = np.zeros((batch, length), int) if ids is None else ids
    ids = np.concatenate([np.repeat(ids[:, :1], reach, axis=1), ids], axis=1)
    z = np.zeros(x.shape) + bias
    for position in range(length):
        for k, tap in enumerate(w.astype(np.float64)):
            at = position + k * dilation
            same = ids[:, at] == ids[:, position + reach]
            z[:, position] += same[:, None] * whole[:, at] * tap
    kept = whole[:, length:] * (ids[:, length:] == ids[:, -1:])[..., None]
    return SILU(z) if silu else z, kept


@needs_mosaic
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_forward(interpreted, problem):
    *_, dilation, given = problem
    arguments = operands(*problem)
    run = partial(causal1d.forward, silu=SILU_TOO in given, dilation=dilation, interpret=True)
    y, kept = jax.jit(run)(*arguments)
    assert not gpu_interpreter.races_found()
    expected = by_hand(*arguments, SILU_TOO in given, dilation)
    np.testing.assert_allclose(y, expected[0], atol=2e-5)
    np.testing.assert_allclose(kept, expected[1], atol=1e-7)


@needs_mosaic
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_gradients_are_those_of_the_sums(interpreted, problem):
    """Along random directions, by the central difference of `by_hand` in float64."""
    *_, dilation, given = problem
    *arguments, ids = operands(*problem)
    silu = SILU_TOO in given
    rng = np.random.default_rng(1)
    outputs = by_hand(*arguments, ids, silu, dilation)
    cts = [rng.standard_normal(y.shape).astype(np.float32) for y in outputs]
    run = partial(causal1d_grad.backward, silu=silu, dilation=dilation, interpret=True)
    grads = jax.jit(run)(*arguments, ids, dy=cts[0], dstate_after=cts[1])
    assert not gpu_interpreter.races_found()
    loss = lambda *a: sum(np.vdot(y, ct) for y, ct in zip(by_hand(*a, ids, silu, dilation), cts, strict=True))
    wide = [None if a is None else a.astype(np.float64) for a in arguments]
    for i, (argument, grad) in enumerate(zip(wide, grads, strict=True)):
        assert (argument is None) == (grad is None)
        if argument is not None:
            direction = 1e-5 * rng.standard_normal(argument.shape)
            ends = [loss(*wide[:i], argument + sign * direction, *wide[i + 1 :]) for sign in (1, -1)]
            slope = np.linalg.norm(np.asarray(grad)) * np.linalg.norm(direction)
            assert abs((ends[0] - ends[1]) / 2 - np.vdot(np.asarray(grad, np.float64), direction)) < 1e-5 * slope


@needs_mosaic
def test_calls_one_after_the_other_are_one(interpreted):
    """A sequence in two parts, the state handed over within a segment, is the sequence."""
    x, w, bias, _, _ = operands(1, 20, 32, 4, 1, ())
    ids = np.repeat(np.arange(3, dtype=np.int32), [7, 8, 5])[None]
    run = jax.jit(partial(causal1d.forward, interpret=True))
    whole, kept = run(x, w, bias, None, ids)
    first, state = run(x[:, :9], w, bias, None, ids[:, :9])
    second, last = run(x[:, 9:], w, bias, state, ids[:, 9:])
    np.testing.assert_allclose(np.concatenate([first, second], axis=1), whole, atol=1e-6)
    np.testing.assert_array_equal(last, kept)


@needs_mosaic
@pytest.mark.parametrize("activation", [None, "silu", "relu"])
def test_as_an_algorithm(interpreted, activation):
    problem = case("causal", (2, 18, 72), (4, 1, 72), pads=((3, 0),), groups=72)
    x, w = problem.operands(jnp.bfloat16)
    assert causal1d.supports(problem.spec, x, w, "cuda") is None
    bias = np.linspace(-1, 1, 72).astype(jnp.bfloat16)
    y = np.asarray(jax.jit(partial(causal1d.run, problem.spec, activation=activation, interpret=True))(x, w, bias=bias))
    z = direct_conv(x, w, problem.spec) + bias.astype(np.float64)
    expected = {None: z, "silu": SILU(z), "relu": np.maximum(z, 0)}[activation]
    magnitude = direct_conv(np.abs(x), np.abs(w), problem.spec) + np.abs(bias.astype(np.float64))
    assert_close(y, expected, 2 * tolerance("taps", jnp.bfloat16, magnitude, problem.terms))


@needs_mosaic
@pytest.mark.parametrize(
    ("options", "shape", "words"),
    [
        (dict(pads=((3, 0),), groups=8), (4, 1, 8), None),
        (dict(pads=1, groups=8), (3, 1, 8), "the padding (2, 0)"),
        (dict(pads=((3, 0),), groups=8, stride=2), (4, 1, 8), "stride 1"),
        (dict(pads=((16, 0),), groups=8), (17, 1, 8), "2 to 16"),
        (dict(pads=((150, 0),), groups=8, rhs_dilation=10), (16, 1, 8), "looks back 150"),
        (dict(pads=((3, 0),), groups=8), (4, 1, 16), "each channel with one output"),
        (dict(pads=((3, 0),)), (4, 8, 8), "depthwise"),
    ],
    ids=str,
)
def test_reasons(options, shape, words):
    problem = case("a problem", (2, 40, 8), shape, **options)
    like = [jax.ShapeDtypeStruct(s, np.float32) for s in (problem.lhs_shape, problem.rhs_shape)]
    reason = causal1d.supports(problem.spec, *like, "cuda")
    assert reason is None if words is None else words in reason
    assert "not for cpu" in causal1d.supports(problem.spec, *like, "cpu")
    assert "not in int32" in causal1d.refusal(4, 1, np.dtype(np.int32))


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("gradients", [False, True])
def test_blocks_keep_to_shared_memory(itemsize, gradients):
    """Whatever is not refused fits, counted anew from the buffers of the kernels."""
    dtype = np.dtype({2: np.float16, 4: np.float32}[itemsize])
    for taps, dilation in [(2, 1), (4, 1), (4, 8), (16, 1), (16, 3), (8, 9)]:
        strip = causal1d.STRIP_BACK if gradients else causal1d.STRIP
        block = causal1d.Block.of((2, 999, 65), taps, dilation, dtype, strip, gradients=gradients)
        if block is None:
            assert causal1d.refusal(taps, dilation, dtype, gradients=gradients) is not None
            continue
        reach, channels = (taps - 1) * dilation, 128 // itemsize
        length = block.columns + (-(-reach // strip) * strip if gradients else 0)
        floats = length + taps + 1 if gradients else 0
        need = 4 * channels * ((reach + 2 * length) * itemsize + floats * 4) + 16 * length
        assert need <= tiles.SHARED_BYTES
        assert reach <= block.columns
        assert block.columns % strip == 0


@needs_mosaic
@pytest.mark.parametrize("program", [p for p in PROGRAMS if p.quick and p.kernel == "gpu_causal1d"], ids=str)
def test_lowering_for_a_gpu(program):
    assert program.refusal() is None
    function, shapes = program.make()
    assert "mosaic_gpu" in jax.jit(function).trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()
