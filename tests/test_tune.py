"""tune() measures what a function holds, remembers it, and `auto` follows; in each mode of CONVJAX_TUNE."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import convjax
from convjax._core import cache, measure, tuning
from convjax._core.algorithms import ALGORITHMS
from convjax._core.geometry import Geometry
from convjax.testing import case

X, W = np.ones((2, 9, 8, 4), np.float32), np.ones((3, 3, 4, 3), np.float32)


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CONVJAX_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("CONVJAX_TUNE", raising=False)
    cache.forget()
    jax.clear_caches()
    yield tmp_path
    cache.forget()
    jax.clear_caches()


@pytest.fixture
def stopwatch(monkeypatch):
    """In place of the clock: `gather` and `slices` are fastest, whatever the machine; what was asked is kept."""
    asked = []

    def timings(g, candidates, device=None):
        asked.append(g)
        order = ["indirect", "slices", *ALGORITHMS]
        return {n: measure.Timing(1.0 + order.index(n), 0.1, 0) for n in candidates}

    monkeypatch.setattr(measure, "measure", timings)
    monkeypatch.setattr(tuning, "PROMISING", 1e9)
    return asked


def chosen(fn, *args):
    return [c.algorithm for c in convjax.analysis.collect(fn, *args)]


def test_auto_follows_what_was_measured(stopwatch):
    assert chosen(convjax.conv, X, W) != ["indirect"]
    run = jax.jit(convjax.conv)
    assert "indirect" not in run.lower(X, W).as_text(debug_info=True)
    report = convjax.tune(convjax.conv, X, W)
    assert [tuned.best for tuned in report.problems] == ["indirect"] * 3  # forward and both gradients
    assert len(stopwatch) == 3
    assert chosen(convjax.conv, X, W) == ["indirect"]
    assert "indirect" in run.lower(X, W).as_text(debug_info=True)
    cache.forget()  # as a new process
    assert chosen(convjax.conv, X, W) == ["indirect"]
    (record,) = convjax.analysis.collect(convjax.conv, X, W)
    assert record.why.startswith("measured on this kind of device, yours: 1 ms")


def test_functions_compiled_before_follow_too(stopwatch):
    run = jax.jit(convjax.conv)
    before = run(X, W)
    convjax.tune(convjax.conv, X, W)
    assert jnp.allclose(run(X, W), before)
    assert run._cache_size() == 1  # compiled anew: the caches were cleared


def test_the_report_tells_what_changed(stopwatch, own_folder):
    report = convjax.tune(convjax.conv, X, W, gradients=False)
    (tuned,) = report.problems
    assert tuned.before in ALGORITHMS
    assert tuned.ms == dict(sorted(tuned.ms.items(), key=lambda pair: pair[1]))
    assert tuned.gain == tuned.ms[tuned.before] / tuned.ms["indirect"]
    assert report.saved_to.startswith(str(own_folder))
    assert "1 convolutions measured" in str(report)
    assert f"{tuned.before} -> indirect" in str(report)


def test_what_is_known_is_not_measured_again(stopwatch):
    convjax.tune(convjax.conv, X, W)
    assert convjax.tune(convjax.conv, X, W).problems == ()
    assert len(stopwatch) == 3
    assert len(convjax.tune(convjax.conv, X, W, again=True).problems) == 3
    assert len(stopwatch) == 6


def test_a_training_step_is_measured_as_it_is(stopwatch):
    step = jax.grad(lambda w, x: jnp.sum(convjax.conv(x, w) ** 2))
    assert len(convjax.tune(step, W, X, gradients=False).problems) == 2  # forward, and the gradient in the kernel


def test_loops_branches_and_batches_are_looked_into(stopwatch):
    def fn(x, w):
        x = lax.scan(lambda x, _: (convjax.conv(x, w[..., :4]), None), x, None, length=3)[0]
        return jax.vmap(lambda x: lax.cond(w[0, 0, 0, 0] > 0, lambda: convjax.conv(x, w), lambda: x))(x)

    report = convjax.tune(fn, X, np.ones((3, 3, 4, 4), np.float32), gradients=False)
    assert len(report.problems) == 1  # the same problem in both


def test_convolutions_of_lax_are_measured_for_accelerate(stopwatch):
    fn = functools.partial(
        lax.conv_general_dilated, window_strides=(1, 1), padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    assert len(convjax.tune(fn, X, W).problems) == 3
    with convjax.accelerate():
        assert "indirect" in jax.jit(fn).lower(X, W).as_text(debug_info=True)


def test_what_the_chooser_does_not_decide_is_left_out(stopwatch):
    assert convjax.tune(convjax.conv, X[:0], W).problems == ()
    assert len(convjax.tune(convjax.conv, X.astype(np.int32), W.astype(np.int32)).problems) == 1  # no gradients


def test_bad_arguments():
    with pytest.raises(TypeError, match="not callable"):
        convjax.tune(3, X, W)
    with pytest.raises(TypeError, match="not callable"):
        convjax.analysis.collect(None)


# --- modes ------------------------------------------------------------------------------------------------------------


def test_off_reads_nothing(stopwatch, monkeypatch):
    convjax.tune(convjax.conv, X, W)
    monkeypatch.setenv("CONVJAX_TUNE", "off")
    assert chosen(convjax.conv, X, W) != ["indirect"]


def test_measure_measures_at_the_first_compilation(stopwatch, monkeypatch):
    monkeypatch.setenv("CONVJAX_TUNE", "measure")
    run = jax.jit(convjax.conv)
    assert jnp.allclose(run(X, W), convjax.conv(X, W, algorithm="xla"))
    assert len(stopwatch) == 1
    run(X, W), jax.jit(convjax.conv)(X, W)
    assert len(stopwatch) == 1  # remembered
    assert cache.lookup(cache.device_kind(jax.devices()[0]), cache.problem_key(stopwatch[0]))[1] == "yours"


def test_explaining_measures_nothing(stopwatch, monkeypatch):
    monkeypatch.setenv("CONVJAX_TUNE", "measure")
    convjax.explain(X.shape, W.shape)
    convjax.analysis.collect(convjax.conv, X, W)
    assert not stopwatch


def test_measuring_for_another_platform_is_not_tried(stopwatch, monkeypatch):
    monkeypatch.setenv("CONVJAX_TUNE", "measure")
    jax.export.export(jax.jit(convjax.conv), platforms=["tpu"])(X, W)
    assert not stopwatch


def test_accelerate_measures_while_its_handle_is_in_force(stopwatch):
    fn = lambda x, w: lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    with convjax.accelerate(tune=True):
        jax.jit(fn)(X, W)
        assert len(stopwatch) == 1
    assert tuning.mode() == "cached"
    jax.jit(fn)(X[:1], W)
    assert len(stopwatch) == 1


def test_an_unknown_mode_is_refused(monkeypatch):
    monkeypatch.setenv("CONVJAX_TUNE", "sometimes")
    with pytest.raises(ValueError, match="CONVJAX_TUNE='sometimes' is none of off, cached, measure"):
        convjax.explain(X.shape, W.shape)


def test_explain_shows_what_was_measured(stopwatch, capsys):
    convjax.tune(convjax.conv, X, W)
    verdict = convjax.explain(X.shape, W.shape).forward
    times = {c.algorithm: c.measured_ms for c in verdict.candidates}
    assert times["indirect"] == 1.0
    assert "measured on this kind of device, yours" in capsys.readouterr().out


# --- the clock itself -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", ["forward", "kernel_grad"])
def test_measuring_runs_each_candidate(problem):
    c = case("", (2, 12, 10, 4), (3, 3, 4, 5), pads=1)
    c = c if problem == "forward" else c.rhs_grad
    g = Geometry(c.spec, c.lhs_shape, c.rhs_shape, np.dtype(np.float32))
    assert g.is_kernel_gradient == (problem == "kernel_grad")
    names = [n for n in ALGORITHMS if c.refusal(n) is None]
    timings = measure.measure(g, names)
    assert set(timings) == set(names)
    assert all(t.ms > 0 and t.compile_s > 0 and t.temporary_bytes >= 0 for t in timings.values())


def test_a_candidate_that_fails_is_left_out(monkeypatch):
    monkeypatch.setattr(ALGORITHMS["gemm"], "run", lambda *_: 1 / 0)
    c = case("", (2, 12, 10, 4), (3, 3, 4, 5), pads=1)
    g = Geometry(c.spec, c.lhs_shape, c.rhs_shape, np.dtype(np.float32))
    assert set(measure.measure(g, ["xla", "gemm"])) == {"xla"}


@pytest.mark.parametrize("dtype", [np.int8, jnp.bfloat16, np.complex64], ids=lambda d: np.dtype(d).name)
def test_any_dtype_is_measured(dtype):
    c = case("", (1, 12, 4), (3, 4, 5), pads=1)
    g = Geometry(c.spec.replace(preferred_element_type=None), c.lhs_shape, c.rhs_shape, np.dtype(dtype))
    assert set(measure.measure(g, ["xla", "gemm"])) == {"xla", "gemm"}
