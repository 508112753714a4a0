"""The fit of the cost model recovers what it is given, and the documentation says what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import docs, fit, sweep
from convjax._core import cost
from convjax._core.algorithms import ALGORITHMS
from convjax._core.geometry import Geometry
from convjax._core.measure import Timing
from convjax.testing import case

ROOT = Path(__file__).parent.parent
TRUTH = {
    "xla": {"fixed": 5e4, "macs": 0.05, "moved": 0.1, "steps": 10.0},
    "gemm": {"fixed": 2e4, "macs": 0.02, "moved": 0.5, "steps": 2e3},
}


def measured(noise=0.0, problems=60, seed=0):
    """Times that two algorithms would take by `TRUTH`, on problems of many sizes."""
    rng, model, rows = np.random.default_rng(seed), cost.CostModel(TRUTH, "cpu"), []
    for i in range(problems):
        n, size, channels, features = (int(v) for v in rng.integers((1, 6, 1, 2), (9, 60, 96, 96)))
        c = case(f"layer {i}", (n, size, size, channels), (3, 3, channels, features), pads=1)
        g = Geometry(c.spec, c.lhs_shape, c.rhs_shape, np.dtype(np.float32))
        times = {name: model.estimate(name, g) * np.exp(noise * rng.standard_normal()) for name in TRUTH}
        rows.append(((c.name,), g, times))
    return rows


@pytest.mark.parametrize(("noise", "within"), [(0.0, 0.05), (0.1, 0.15)])
def test_a_fit_predicts_what_was_measured(noise, within):
    rows = measured(noise)
    model = fit.fit(rows, "cpu")
    assert set(model.nanoseconds) == set(TRUTH)
    ratios = [
        model.estimate(name, g) / cost.CostModel(TRUTH, "cpu").estimate(name, g) for _, g, _ in rows for name in TRUTH
    ]
    assert np.abs(np.log(ratios)).mean() < within


def test_what_the_formula_misses_is_learnt_from_neighbours():
    """Products with few outputs at a fraction of the rate: no constants tell, problems alike do."""
    slower = lambda rows: [(name, g, times | {"gemm": times["gemm"] * (1 + 20 / g.outputs)}) for name, g, times in rows]
    model = fit.fit(slower(measured(problems=120)), "cpu")
    formula = cost.CostModel(model.nanoseconds, "cpu")
    unseen = slower(measured(problems=40, seed=1))
    error = lambda m: np.abs([np.log(m.estimate("gemm", g) / times["gemm"]) for _, g, times in unseen]).mean()
    assert error(model) < 0.6 * error(formula)


def test_what_is_held_out_is_not_seen_under_another_name(monkeypatch):
    rows = measured(problems=6)
    rows[0] = (("layer 0", "layer 1 NCHW"), *rows[0][1:])
    rows[3] = ((f"layer 0{sweep.REDUCED}",), *rows[3][1:])
    seen = []
    monkeypatch.setattr(fit, "fit", lambda rest, platform: seen.append(rest) or cost.CostModel(TRUTH, platform))
    found = fit.held_out(rows, "cpu", 3)
    assert len(found) == 5  # the small likeness is not judged
    assert not {"layer 0", f"layer 0{sweep.REDUCED}"} & {layer for layers, *_ in seen[0] for layer in layers}
    assert all(len(rest) < len(rows) for rest in seen)


def test_regret_is_of_what_is_chosen_over_the_best():
    rows = measured()
    right = fit.accuracy(fit.regrets(rows, cost.CostModel(TRUTH, "cpu")))
    assert right["problems"] == 60
    assert right["worst"] < 1.25  # xla is kept where little is promised
    wrong = cost.CostModel({"xla": TRUTH["gemm"], "gemm": TRUTH["xla"] | {"fixed": 1e9}}, "cpu")
    assert fit.accuracy(fit.regrets(rows, wrong))["worst"] > right["worst"]


def test_the_sweep_names_every_problem_of_the_suite_once():
    found = list(sweep.problems("per-example"))
    assert len({(layer, problem) for layer, problem, _ in found}) == len(found) >= 12
    kernels = [g for layer, problem, g in found if "kernels" in layer and problem == "forward"]
    assert all(g.spec.feature_groups > 1 for g in kernels)  # what vmap makes of a kernel for each example


def test_a_sweep_goes_on_where_it_stopped(tmp_path, monkeypatch):
    path, asked = tmp_path / "sweep.json", []

    def timings(g, names):
        asked.append(list(names))
        return {n: Timing(1.0, 0.1, 0) for n in names}

    monkeypatch.setattr(sweep, "measure", timings)
    sweep.main(["--json", str(path), "--filter", "3x3 64->64 @56 N8 NCHW"])
    first = path.read_text()
    calls = len(asked)  # the layer and its small likeness
    assert calls == 6
    assert all("xla" in names for names in asked)
    sweep.main(["--json", str(path), "--filter", "3x3 64->64 @56 N8 NCHW"])
    assert asked[calls:] == [[]] * calls
    assert path.read_text() == first


def test_the_plot_shows_how_far_choices_are_from_the_best(tmp_path):
    path = tmp_path / "choice.png"
    fit.plot({"held out": [(2.0, "", "a", "b"), (1.0, "", "a", "a")], "all": [(1.0, "", "a", "a")]}, "a device", path)
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("page", ["README.md", "docs/algorithms.md"])
def test_pages_say_what_the_json_says(page):
    text = (ROOT / page).read_text()
    assert docs.filled(text) == text, "run python -m benchmarks.docs"
    assert "<!-- begin" in text


@pytest.mark.parametrize("name", ["cpu-avx-512", "cpu-avx2"])
def test_the_constants_are_those_of_the_sweep(name):
    """Fitting again gives what is shipped."""
    rows, swept = fit.load(ROOT / "benchmarks" / "results" / f"sweep-{name}.json")
    shipped = json.loads((ROOT / "convjax" / "_core" / "constants" / f"{name}.json").read_text())
    assert swept["jaxlib"] == shipped["jaxlib"]
    assert any({"3x3 64->64 @56 N8", "3x3 64->64 @56 N8 NCHW"} == set(layers) for layers, *_ in rows)
    assert len({g for _, g, _ in rows}) == len(rows)
    platform = swept["platform"]
    plain = fit.fit_kinds(rows, ["taps"], cost.CostModel({}, platform))
    for kind, constants in plain.items():
        assert shipped["nanoseconds"][kind] == pytest.approx(constants, rel=0.05), kind
    weighed = fit.weigh(rows, ["taps"], cost.CostModel(shipped["nanoseconds"], platform))
    for row, ours in zip(shipped["neighbours"], weighed, strict=True):
        assert row["sizes"] == list(ours["sizes"])
        assert row["weights"].get("taps", 0) == pytest.approx(ours["weights"].get("taps", 0), abs=1e-3)
    kinds = {ALGORITHMS[name].work(g).kind for _, g, times in rows for name in times}
    assert set(shipped["nanoseconds"]) == kinds
