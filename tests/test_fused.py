"""A kernel that takes the epilogue gets it; all else about the fused primitive is a convolution and then that."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import convjax
from convjax._core import fused
from convjax._core.algorithms import ALGORITHMS, KERNELS, xla
from convjax._core.geometry import Work


class Kernel:
    """Computes what is asked for, and remembers what that was."""

    FUSES = frozenset({"relu"})

    def __init__(self):
        self.asked = []

    def supports(self, spec, lhs, rhs, platform):
        return None if rhs.shape[-2] == 3 else "3 channels only"

    def work(self, g):
        return Work("kernel", macs=g.macs)

    def run(self, spec, lhs, rhs, *, bias=None, residual=None, activation=None):
        self.asked.append((bias is not None, residual is not None, activation))
        y = xla.run(spec, lhs, rhs)
        y = y if bias is None else y + bias
        y = y if residual is None else y + residual
        return y if activation is None else jax.nn.relu(y)


@pytest.fixture
def kernel(monkeypatch):
    kernel = Kernel()
    monkeypatch.setitem(KERNELS, "kernel", kernel)
    monkeypatch.setitem(ALGORITHMS, "kernel", kernel)
    jax.clear_caches()
    yield kernel
    jax.clear_caches()


def normal(*shape):
    return jnp.asarray(np.random.default_rng(len(shape)).standard_normal(shape, np.float32))


X, W, BIAS, RESIDUAL = normal(2, 5, 6, 3), normal(3, 3, 3, 4), normal(4), normal(2, 5, 6, 4)
EVERYTHING = dict(bias=BIAS, residual=RESIDUAL, activation="relu")


@pytest.mark.parametrize("given", [{}, *({name: EVERYTHING[name]} for name in EVERYTHING), EVERYTHING], ids="-".join)
def test_a_kernel_is_handed_the_epilogue(kernel, given):
    y = convjax.conv(X, W, algorithm="kernel", **given)
    assert kernel.asked == [("bias" in given, "residual" in given, given.get("activation"))]
    np.testing.assert_allclose(y, convjax.conv(X, W, algorithm="xla", **given), rtol=1e-5, atol=1e-5)


def test_an_activation_that_it_does_not_know_follows_it(kernel):
    for activation in ("gelu", lambda y: y * 2):
        y = convjax.conv(X, W, algorithm="kernel", bias=BIAS, activation=activation)
        np.testing.assert_allclose(y, convjax.conv(X, W, bias=BIAS, activation=activation), rtol=1e-5, atol=1e-5)
    assert set(kernel.asked) == {(False, False, None)}


def test_other_algorithms_do_one_after_the_other(kernel):
    w = normal(3, 3, 2, 4)
    y = convjax.conv(X[..., :2], w, algorithm="xla", **EVERYTHING)
    assert not kernel.asked
    np.testing.assert_allclose(y, jax.nn.relu(convjax.conv(X[..., :2], w) + BIAS + RESIDUAL), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ["channels_last", "channels_first", "HWNC"])
def test_every_layout(kernel, layout):
    axes = {"channels_last": (0, 1, 2, 3), "channels_first": (0, 3, 1, 2), "HWNC": (1, 2, 0, 3)}[layout]
    x, residual = jnp.transpose(X, axes), jnp.transpose(RESIDUAL, axes)
    run = lambda name: convjax.conv(
        x, W, bias=BIAS, residual=residual, activation="relu", layout=layout, algorithm=name
    )
    np.testing.assert_allclose(run("kernel"), run("xla"), rtol=1e-5, atol=1e-5)
    assert kernel.asked == [(True, True, "relu")]


def loss(x, w, bias, residual, *, algorithm="kernel"):
    y = convjax.conv(x, w, bias=bias, residual=residual, activation="relu", algorithm={"forward": algorithm})
    return jnp.sum(jnp.sin(y))


@pytest.mark.parametrize("over", [(0, None, None, 0), (0, 0, None, 0), (None, 0, 0, None), (0, None, None, None)])
def test_vmap(kernel, over):
    shapes = [(2, *a.shape) if axis == 0 else a.shape for a, axis in zip((X, W, BIAS, RESIDUAL), over, strict=True)]
    operands = [normal(*shape) for shape in shapes]
    mapped = lambda name: jax.vmap(lambda *a: loss(*a, algorithm=name), over)(*operands)
    np.testing.assert_allclose(mapped("kernel"), mapped("xla"), rtol=1e-4, atol=1e-4)
    together = over == (0, None, None, 0)
    assert ((True, True, "relu") in kernel.asked) == together


def test_derivatives(kernel):
    operands, every = (X, W, BIAS, RESIDUAL), (0, 1, 2, 3)
    for differentiate in (jax.grad, jax.jacfwd):
        got = differentiate(lambda w: loss(X, w, BIAS, RESIDUAL))(W)
        expected = differentiate(lambda w: loss(X, w, BIAS, RESIDUAL, algorithm="xla"))(W)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    for got, expected in zip(
        jax.grad(loss, every)(*operands),
        jax.grad(lambda *a: loss(*a, algorithm="xla"), every)(*operands),
        strict=True,
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_a_gradient_in_the_bias_alone_convolves_once(kernel):
    """A zero tangent, made an array, would be convolved too."""
    jaxpr = jax.make_jaxpr(jax.grad(lambda bias: loss(X, W, bias, RESIDUAL)))(BIAS)
    assert str(jaxpr).count("convjax_conv[") == 1


def test_analysis_and_remat_see_it(kernel):
    (record,) = convjax.analysis.collect(lambda x, w: convjax.conv(x, w, algorithm="kernel", **EVERYTHING), X, W)
    assert record.algorithm == "kernel"
    remat = jax.checkpoint(loss, policy=convjax.save_convolutions)
    np.testing.assert_allclose(
        jax.grad(remat)(X, W, BIAS, RESIDUAL), jax.grad(loss)(X, W, BIAS, RESIDUAL), rtol=1e-5, atol=1e-5
    )


def test_on_a_cpu_nothing_changes_unasked():
    jaxpr = jax.make_jaxpr(lambda x, w: convjax.conv(x, w, **EVERYTHING))(X, W)
    assert fused.fused_p.name not in str(jaxpr)
