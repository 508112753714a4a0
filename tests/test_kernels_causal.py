"""Where a kernel for causal convolutions is named, it is handed state, segments, bias and SiLU, and all gradients.

With the kernels interpreted on the CPU, against the plain path; and with one that is simple, for what has nothing to do
with how a kernel computes.
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import convjax
from convjax._core import causal, compat
from convjax._core.kernels import CAUSAL
from convjax._core.kernels.mosaic_gpu import causal1d as gpu
from convjax._core.kernels.mosaic_gpu import causal1d_grad as gpu_grad
from convjax._core.kernels.mosaic_gpu import hopper
from convjax._core.kernels.tpu import signal
from convjax._core.spec import ConvSpec
from convjax.streaming import causal_conv_update
from tests import gpu_interpreter

LACKING = hopper.unavailable("cuda")
NAMES = (
    "tpu_causal1d",
    pytest.param("gpu_causal1d", marks=pytest.mark.skipif(LACKING is not None, reason=str(LACKING))),
)


def normal(*shape):
    return jnp.asarray(np.random.default_rng(len(shape)).standard_normal(shape, np.float32))


X, W, BIAS, STATE = normal(2, 7, 3), normal(3, 3), normal(3), normal(2, 4, 3)
IDS = jnp.asarray([[0, 0, 0, 1, 1, 2, 2], [5, 5, 6, 6, 6, 6, 5]])
KINDS = ("state", "segments", "state out", "alone")


def loss(x, w, bias, state, *, kind, algorithm="tpu_causal1d", activation="silu"):
    also = {"state": dict(state=state), "segments": dict(segment_ids=IDS), "state out": dict(return_state=True)}
    options = dict(bias=bias, dilation=2, activation=activation, algorithm=algorithm)
    found = convjax.causal_conv(x, w, **options, **also.get(kind, {}))
    return sum(jnp.sum(jnp.sin(a + i)) for i, a in enumerate(jax.tree.leaves(found)))


def by_kernels(name, function, *args):
    """What a traced function computes, with its causal convolutions by the interpreted kernels.

    One equation after the other: what an interpreted kernel does to memory cannot be part of a compiled program.
    """
    closed = jax.make_jaxpr(function)(*args)
    known = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    known |= zip(closed.jaxpr.invars, jax.tree.leaves(args), strict=True)
    value = lambda v: v.val if hasattr(v, "val") else known[v]
    primitives = []
    for equation in closed.jaxpr.eqns:
        inputs = list(map(value, equation.invars))
        if equation.primitive is causal.causal_p:
            outputs = [causal.by_kernel(name, *inputs, **equation.params)]
        elif equation.primitive is causal.gradient_p:
            outputs = causal.gradient_by_kernel(name, *inputs, **equation.params)
        else:
            outputs = compat.evaluate(equation, inputs)
        primitives.append(equation.primitive)
        known |= zip(equation.outvars, outputs, strict=True)
    assert causal.causal_p in primitives
    return list(map(value, closed.jaxpr.outvars)), primitives


@pytest.fixture
def interpreted(monkeypatch):
    for name, (forward, backward) in CAUSAL.items():
        run = SimpleNamespace(run=partial(forward.run, interpret=True))
        monkeypatch.setitem(CAUSAL, name, (run, SimpleNamespace(backward=partial(backward.backward, interpret=True))))
    monkeypatch.setattr(signal, "ROWS", 16)
    monkeypatch.setattr(gpu, "COLUMNS", (8,))
    monkeypatch.setattr(gpu_grad, "BLOCKS", 2)
    if LACKING is None:
        gpu_interpreter.mend(monkeypatch)
    yield
    if LACKING is None:
        gpu_interpreter.forget()


@pytest.mark.parametrize("name", NAMES)
def test_segments_are_those_of_the_plain_path(interpreted, name):
    run = lambda algorithm: partial(loss, kind="segments", algorithm=algorithm)
    (found,) = by_kernels(name, run(name), X, W, BIAS, STATE)[0]
    np.testing.assert_allclose(found, run("auto")(X, W, BIAS, STATE), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_and_its_gradients_are_those_of_the_plain_path(interpreted, name):
    def total(x, state, w, bias, algorithm):
        y, after = causal_conv_update(x, state, w, bias=bias, dilation=2, activation="silu", algorithm=algorithm)
        return jnp.sum(jnp.sin(y)) + jnp.sum(after**2), (y, after)

    run = lambda algorithm: jax.grad(partial(total, algorithm=algorithm), (0, 1, 2, 3), has_aux=True)
    found, primitives = by_kernels(name, run(name), X[:, 0], STATE, W, BIAS)
    assert causal.gradient_p in primitives
    for got, expected in zip(found, jax.tree.leaves(run("auto")(X[:, 0], STATE, W, BIAS)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_lowering_for_a_tpu_has_the_kernels(kind):
    x, w, bias, state = (jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (X, W, BIAS, STATE))
    run = jax.value_and_grad(partial(loss, kind=kind), (0, 1, 2, 3))
    text = jax.export.export(jax.jit(run), platforms=("tpu",))(x, w, bias, state).mlir_module()
    assert "convjax_causal1d_gradients" in text
    assert text.count("@tpu_custom_call") == 2
    assert "stablehlo.convolution" not in text


@pytest.mark.skipif(LACKING is not None, reason=str(LACKING))
def test_lowering_for_a_gpu_has_the_kernels():
    run = jax.value_and_grad(partial(loss, kind="segments", algorithm="gpu_causal1d"), (0, 1, 2))
    text = jax.jit(run).trace(X, W, BIAS, STATE).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@mosaic_gpu") == 2
    assert "stablehlo.convolution" not in text


@pytest.mark.parametrize("kind", KINDS)
def test_on_a_cpu_nothing_changes_unasked(kind):
    jaxpr = jax.make_jaxpr(jax.grad(partial(loss, kind=kind, algorithm="auto")))(X, W, BIAS, STATE)
    assert "convjax_conv" in str(jaxpr)
    assert causal.causal_p.name not in str(jaxpr)


@pytest.mark.parametrize(
    ("w", "options", "reason"),
    [
        (W, dict(state=STATE), "for TPUs, and this is cpu"),
        (W, dict(segment_ids=IDS), "for TPUs, and this is cpu"),
    ],
    ids=["state", "segments"],
)
def test_a_kernel_that_cannot_serve_says_why(w, options, reason):
    with pytest.raises(ValueError, match=reason):
        convjax.causal_conv(X, w, dilation=2, algorithm="tpu_causal1d", **options)


@pytest.mark.parametrize(
    ("w", "options", "reason"),
    [
        (normal(3, 3, 2), {}, "one kernel a channel"),
        (W, dict(stride=2), "an output for every input"),
        (normal(17, 3), {}, "2 to 16"),
    ],
    ids=["dense", "strided", "wide"],
)
def test_what_no_kernel_takes_is_refused_when_it_is_lowered_for_a_tpu(w, options, reason):
    run = partial(convjax.causal_conv, segment_ids=IDS, algorithm="tpu_causal1d", **options)
    with pytest.raises(ValueError, match=reason):
        jax.jit(run).trace(X, w).lower(lowering_platforms=("tpu",))


# --- all else about the primitives, with a kernel that computes by the definition -------------------------------------


@pytest.fixture
def simple(monkeypatch):
    """Serves as `tpu_causal1d`, and counts the signals that it is given."""
    asked = []

    def run(spec, x, w, *, activation, **named):
        asked.append(("run", len(x)))
        return causal.definition(x, w, *named.values(), spec=spec, given=tuple(named), silu=activation is not None)

    def backward(x, w, bias, state, segment_ids, silu, dy, *, dilation):
        asked.append(("backward", len(x)))
        named = dict(bias=bias, state=state, segment_ids=segment_ids)
        given = {name: value for name, value in named.items() if value is not None}
        spec = ConvSpec((1,), (((len(w) - 1) * dilation, 0),), (1,), (dilation,), x.shape[-1])
        grads = causal.gradient(x, w[:, None], *given.values(), dy, spec=spec, given=tuple(given), silu=silu)
        found = dict(zip(given, grads[2:], strict=False))
        return grads[0], grads[1][:, 0], found.get("bias"), found.get("state")

    chosen = lambda spec, *_, **__: spec.algorithms[0].rstrip("?")
    monkeypatch.setattr(causal, "choose", chosen)
    pair = SimpleNamespace(run=run), SimpleNamespace(backward=backward, refusal=lambda *_: None)
    monkeypatch.setitem(CAUSAL, "tpu_causal1d", pair)
    jax.clear_caches()
    yield asked
    jax.clear_caches()


def both(function):
    """By the kernel, and by the plain path."""
    return function("tpu_causal1d"), function("auto")


@pytest.mark.parametrize("kind", KINDS[:2])
def test_derivatives_of_every_mode(simple, kind):
    operands, every = (X, W, BIAS, STATE), (0, 1, 2, 3)
    along = tuple(normal(*a.shape) + 0.5 for a in operands)
    of = lambda name: partial(loss, kind=kind, algorithm=name)
    forward = lambda name: jax.jit(lambda *a: jax.jvp(of(name), a, along))(*operands)
    reverse = lambda name: jax.jit(jax.grad(of(name), every))(*operands)
    second = lambda name: jax.jit(lambda *a: jax.jvp(jax.grad(of(name), every), a, along))(*operands)
    for function in (forward, reverse, second):
        got, expected = map(jax.tree.leaves, both(function))
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    assert {what for what, _ in simple} == {"run", "backward"}


@pytest.mark.parametrize("over", [(0, None, None, 0), (0, None, None, None), (0, 0, None, 0)], ids=str)
def test_vmap(simple, over):
    operands = [normal(3, *a.shape) if axis == 0 else a for a, axis in zip((X, W, BIAS, STATE), over, strict=True)]
    of = lambda name: partial(loss, kind="state", algorithm=name)
    total = lambda name: lambda *operands: jnp.sum(jax.vmap(of(name), over)(*operands))
    for function in (
        lambda name: jax.jit(jax.value_and_grad(total(name), (0, 1, 2, 3)))(*operands),
        lambda name: jax.jit(jax.vmap(jax.grad(of(name), (1, 3)), over))(*operands),
    ):
        got, expected = map(jax.tree.leaves, both(function))
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    merged = {("run", 6), ("backward", 6)}  # signals become more of the batch, kernels of their own do not
    assert merged <= set(simple) if over[1] is None else not merged & set(simple)


def test_steps_in_a_scan_with_their_gradients(simple):
    def total(w, name):
        def step(state, now):
            y, state = causal_conv_update(now, state, w, dilation=2, activation="silu", algorithm=name)
            return state, y

        return jnp.sum(jax.lax.scan(step, STATE, X.swapaxes(0, 1))[1] ** 2)

    np.testing.assert_allclose(
        *both(lambda name: jax.jit(jax.grad(partial(total, name=name)))(W)), rtol=1e-4, atol=1e-4
    )
    assert ("backward", 2) in simple


def test_a_residual_and_other_activations_follow(simple):
    run = lambda name: convjax.causal_conv(
        X, W, bias=BIAS, dilation=2, state=STATE, residual=X, activation="gelu", algorithm=name
    )[0]
    np.testing.assert_allclose(*both(run), rtol=1e-5, atol=1e-5)
    assert simple == [("run", 2)]


def test_gradients_by_another_name(simple):
    names = dict(forward="tpu_causal1d", input_grad="xla")
    jax.jit(jax.grad(partial(loss, kind="state", algorithm=names))).lower(X, W, BIAS, STATE)
    assert {what for what, _ in simple} == {"run"}


def test_analysis_sees_it(simple):
    run = jax.grad(partial(loss, kind="segments"), (0, 1))
    records = convjax.analysis.collect(run, X, W, BIAS, STATE, platform="tpu")
    assert len(records) == 3  # the gradients are told as the convolutions that they are elsewhere
    assert records[0].algorithm == "tpu_causal1d"
