"""The cost model: what it says of each algorithm's work is what the algorithm does, and it chooses by that."""

from __future__ import annotations

import functools
import json
import math
from importlib import resources

import jax
import numpy as np
import pytest

from convjax._core import cost, neighbours
from convjax._core.algorithms import PORTABLE, REWRITES
from convjax._core.algorithms.windows import MUCH_PADDING
from convjax._core.collect import convolutions, gradients
from convjax._core.geometry import Geometry, Work
from convjax._core.primitive import convolve
from convjax._core.spec import dilate
from convjax.testing import CASES, case, direct_conv


def problems():
    for c in CASES:
        for problem in (c, c.lhs_grad, c.rhs_grad):
            yield problem, Geometry(problem.spec, problem.lhs_shape, problem.rhs_shape, np.dtype(np.float32))


def served(problem):
    return [name for name in PORTABLE if problem.refusal(name) is None]


@pytest.mark.parametrize("name", list(REWRITES))
def test_the_parts_that_a_rewrite_names_are_those_it_makes(name):
    """Otherwise its estimate is of another problem."""
    plain = lambda spec: spec.replace(preferred_element_type=None)  # the accumulator of a sum over parts
    compared = 0
    for problem, g in problems():
        if name in served(problem):
            traced = jax.make_jaxpr(functools.partial(PORTABLE[name].run, g.spec))(*g.operands)
            made = {(part.lhs, part.rhs, plain(part.spec)): 0 for part, _ in convolutions(traced.jaxpr)}
            for part, times in convolutions(traced.jaxpr):
                made[part.lhs, part.rhs, plain(part.spec)] += times
            named = dict.fromkeys(made, 0)
            for times, part in PORTABLE[name].work(g).parts:
                named[part.lhs, part.rhs, plain(part.spec)] += times
            assert named == made, problem
            compared += 1
    assert compared >= (1 if name == "by_feature" else 5)  # which starts at a megabyte


def test_work_is_finite_and_not_negative():
    for problem, g in problems():
        for name in served(problem):
            work = PORTABLE[name].work(g)
            for amount in (work.macs, work.moved, work.steps):
                assert math.isfinite(amount), (problem, name)
                assert amount >= 0, (problem, name)
            assert bool(work.parts) == (name in REWRITES) or not work.parts, (problem, name)


def test_direct_algorithms_count_the_products_of_the_oracle():
    for problem, g in problems():
        direct = problem.spec.flops(problem.lhs_shape, problem.rhs_shape) / 2
        assert g.macs == direct
        for name in {"taps", "offsets"} & set(served(problem)):
            assert PORTABLE[name].work(g).macs == direct, (problem, name)
        dilated = [dilate(size, d) for size, d in zip(g.lhs[1:-1], g.spec.lhs_dilation, strict=True)]
        plain, ones = g.spec.replace(lhs_dilation=(1,) * g.spec.ndim), np.ones((g.lhs[0], *dilated, g.lhs[-1]))
        without_padding = direct_conv(ones, np.ones(g.rhs), plain).sum()
        for name in {"windows", "kn2row"} & set(served(problem)):
            left_out = name == "kn2row" or without_padding < (1 - MUCH_PADDING) * direct
            expected = without_padding if left_out else direct
            assert PORTABLE[name].work(g).macs == pytest.approx(expected), (problem, name)
        for name in {"gemm", "indirect"} & set(served(problem)):  # whole vectors of outputs
            assert direct <= PORTABLE[name].work(g).macs <= 8 * direct, (problem, name)


def test_patches_are_counted_in_all_groups():
    c = case("", (2, 8, 8, 12), (3, 3, 4, 6), pads=1, groups=3)
    assert Geometry(c.spec, c.lhs_shape, c.rhs_shape, np.dtype(np.float32)).patches == 2 * 64 * 9 * 12


def test_estimates_follow_the_constants():
    """Time is what the formula says, and a part costs what is best for it."""
    flat = {"fixed": 0.0, "macs": 1.0, "moved": 0.0, "steps": 0.0}
    model = cost.CostModel({"taps": flat | {"fixed": 5e6}, "gemm": flat, "subpixel": flat | {"fixed": 2e6}}, "cpu")
    c = case("", (1, 9, 8), (3, 8, 16), pads=1)
    g = Geometry(c.spec, c.lhs_shape, c.rhs_shape, np.dtype(np.float32))
    ms = g.macs * 1e-6  # xla and the others are not known here
    assert model.estimates(g) == {"taps": pytest.approx(5 + ms), "gemm": pytest.approx(ms)}
    c = case("", (1, 8, 4), (4, 4, 16), pads=2, lhs_dilation=2)
    g = Geometry(c.spec, c.lhs_shape, c.rhs_shape, np.dtype(np.float32))
    ((_, first), (_, second)) = PORTABLE["subpixel"].work(g).parts
    assert model.estimate("subpixel", g) == pytest.approx(2 + 1e-6 * (first.macs + second.macs))
    assert model.estimate("xla", g) is None


def test_estimates_follow_what_neighbours_took():
    """As much as they weigh on the same problem, half as much 0.97 units away, nothing but caution far away."""
    c = case("", (1, 9, 8), (3, 8, 16), pads=1)
    g = Geometry(c.spec, c.lhs_shape, c.rhs_shape, np.dtype(np.float32))
    rows = [{"sizes": neighbours.sizes(g), "weights": {"taps": math.log(2), "fft": 1.0}}]
    flat = {"fixed": 1e6, "macs": 0.0, "moved": 0.0, "steps": 0.0}
    model = cost.CostModel({"taps": flat, "gemm": flat}, "cpu", rows)
    assert model.estimates(g) == {"taps": pytest.approx(2), "gemm": pytest.approx(1)}
    batch = round(math.exp(neighbours.UNIT * 0.97))
    near = Geometry(c.spec, (batch, *g.lhs[1:]), g.rhs, g.dtype)
    assert model.estimate("taps", near) == pytest.approx(math.sqrt(2) * math.exp(neighbours.CAUTION * 3 / 4), rel=0.02)
    far = Geometry(c.spec, (10**9, 10**9, 8), (3, 8, 10**9), g.dtype)
    assert model.estimate("taps", far) == pytest.approx(math.exp(neighbours.CAUTION), rel=1e-3)


def test_a_special_case_without_constants_has_those_of_the_general_one():
    general, special = {"fixed": 1.0}, {"fixed": 2.0}
    model = cost.CostModel({"xla": general, "xla, 3-D": special}, "cpu")
    assert model.constants("xla, 3-D, grouped") is special
    assert model.constants("xla, depthwise") is general
    assert model.constants("taps") is None


def test_own_time_is_linear_in_the_work():
    c = {"fixed": 1e6, "macs": 2.0, "moved": 3.0, "steps": 5.0}
    assert cost.own_time(Work("any", 1e6, 1e6, 1e6), c) == pytest.approx(1 + 2 + 3 + 5)


def test_a_platform_that_was_not_measured_has_no_estimates():
    c = CASES[0]
    g = Geometry(c.spec, c.lhs_shape, c.rhs_shape, np.dtype(np.float32))
    assert cost.model("a platform of the future").estimates(g) == {}


@pytest.mark.parametrize(
    ("vectors", "name"), [("AVX-512", "cpu-avx-512"), ("AVX2", "cpu-avx2"), ("NEON", "cpu-avx2"), ("", "cpu-avx2")]
)
def test_a_cpu_has_the_constants_of_its_vectors(vectors, name, monkeypatch):
    """Those of AVX2 where none were measured."""
    monkeypatch.setattr(cost.processor, "vectors", lambda: vectors)
    file = resources.files("convjax._core") / "constants" / f"{name}.json"
    assert cost.model.__wrapped__("cpu").nanoseconds == json.loads(file.read_text())["nanoseconds"]


def test_the_constants_of_the_cpu_cover_the_cases():
    known = cost.model("cpu").nanoseconds
    for problem, g in problems():
        hopeless = {"xla"} if cost.model("cpu").constants(PORTABLE["xla"].work(g).kind) is None else set()
        assert set(cost.model("cpu").estimates(g)) | hopeless == set(cost.admissible(g, "cpu")), problem
    for kind, c in known.items():
        assert set(c) == {"fixed", "macs", "moved", "steps"}, kind
        assert all(math.isfinite(value) and value >= 0 for value in c.values()), kind


@pytest.mark.parametrize("name", ["cpu-avx-512", "cpu-avx2"])
def test_the_constants_say_how_well_they_choose(name):
    file = resources.files("convjax._core") / "constants" / f"{name}.json"
    held_out = json.loads(file.read_text())["accuracy"]["held out"]
    assert held_out["problems"] > 100
    assert 1 <= held_out["geometric mean"] <= held_out["worst"]


def traced_gradients(g):
    pullback = lambda x, w, ct: jax.vjp(functools.partial(convolve, spec=g.spec), x, w)[1](ct)
    traced = jax.make_jaxpr(pullback)(*g.operands, jax.ShapeDtypeStruct(g.out_shape, g.dtype))
    _, *found = convolutions(traced.jaxpr)
    return {problem for problem, _ in found}


def test_gradients_are_those_that_differentiation_makes():
    for c in (c for c in CASES if 0 not in c.out_shape):
        g = Geometry(c.spec, c.lhs_shape, c.rhs_shape, np.dtype(np.float32))
        assert traced_gradients(g) == set(gradients(g)), c


def test_accuracy_that_is_not_promised_is_not_taken_unasked():
    c = case("", (1, 400, 1), (200, 1, 1))
    g = Geometry(c.spec, c.lhs_shape, c.rhs_shape, np.dtype(np.float32))
    assert cost.reserve("fft", g) is None
    assert "highest" in cost.reserve(
        "fft", Geometry(c.using("taps").replace(algorithms=("auto",) * 3), c.lhs_shape, c.rhs_shape, g.dtype)
    )
    short = case("", (1, 400, 1), (100, 1, 1))
    assert "128" in cost.reserve("fft", Geometry(short.spec, short.lhs_shape, short.rhs_shape, g.dtype))
    assert cost.reserve("winograd", g)
    assert not {"winograd", "fft"} & set(
        cost.admissible(Geometry(short.spec, short.lhs_shape, short.rhs_shape, g.dtype), "cpu")
    )
