"""The variants' benchmark, at tiny size: whoever is timed computes the same, and what fails is told."""

from __future__ import annotations

import json
from functools import partial

import jax.numpy as jnp
import pytest

pytest.importorskip("matplotlib", reason="the benchmarks need pip install 'convjax[examples]'")
pytest.importorskip("tqdm", reason="the benchmarks need pip install 'convjax[examples]'")

import convjax
from benchmarks import variants

NHWC, NWC = variants.NHWC, variants.NWC
SMALL = (
    variants.Deformable("v1", (2, 5, 4, 3), 4, modulated=False),
    variants.Deformable("v2", (1, 4, 5, 3), 2, modulated=True),
    variants.PerExample("dense", 3, (5, 4, 4), (3, 3, 4, 6), variants.convolution(convjax.conv, "SAME", NHWC)),
    variants.PerExample(
        "depthwise", 3, (5, 4, 4), (3, 3, 1, 4), variants.convolution(partial(convjax.conv, groups=4), "SAME", NHWC, 4)
    ),
    variants.PerExample("causal", 2, (9, 3), (3, 3, 4), variants.convolution(convjax.causal_conv, [(2, 0)], NWC)),
    variants.PerExample("local", 2, (4, 5, 2), (4, 5, 3, 3, 2, 3), variants.unshared((4, 5), 3, 2)),
    variants.PerExample("deformed", 2, (4, 5, 3 + 18), (3, 3, 3, 2), variants.deformed(3)),
    variants.Chained("chained", (1, 5, 4, 3), k=3, layers=2),
    variants.Streaming("stream", taps=70, channels=2, block=8, blocks=5),
)


def test_all_compute_the_same_and_are_timed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(variants, "CASES", SMALL)
    paths = {name: tmp_path / "new" / f"variants.{name}" for name in ("json", "md")}
    found = variants.main(["--rounds", "2", "--json", str(paths["json"]), "--markdown", str(paths["md"])])
    assert json.loads(paths["json"].read_text()) == found
    assert [(r["case"], r["mode"]) for r in found["records"]] == [(c.name, mode) for c in SMALL for mode in c.modes]
    told = paths["md"].read_text()
    assert told in capsys.readouterr().out
    for record in found["records"]:
        assert "failed" not in record, record
        ours, *others = record["contenders"].values()
        assert ours["ms"] > 0
        assert "difference" not in ours
        for entry in others:
            assert entry["difference"] < 1e-5, record
            assert (entry["ms"] > 0, entry["calls"]) == (True, 2)
        for name in record["contenders"]:
            assert name in told
    assert set(found["records"][0]["contenders"]) == {"convjax", "map_coordinates", "gathers"}


def test_a_wrong_result_shows_and_a_failure_is_told(monkeypatch, capsys):
    wrong = variants.Pair(convjax.conv, {"lax": lambda x, w: 2 * convjax.conv(x, w)})
    broken = variants.Pair(convjax.conv, {"lax": lambda x, w: jnp.ones(3) @ jnp.ones(4)})
    shapes = 2, (5, 4, 4), (3, 3, 4, 6)
    cases = [variants.PerExample(name, *shapes, pair) for name, pair in (("wrong", wrong), ("broken", broken))]
    monkeypatch.setattr(variants, "CASES", cases)
    first, second = variants.main(["--rounds", "1"])["records"]
    assert first["contenders"]["lax"]["difference"] > 0.5
    assert second["failed"].startswith("TypeError")
    assert "failed: TypeError" in capsys.readouterr().out


def test_the_real_cases_are_of_the_sizes_that_they_name():
    names = [case.name for case in variants.CASES]
    assert len(set(names)) == len(names)
    for case in variants.CASES:
        if isinstance(case, variants.PerExample):
            assert case.name.endswith(f"{case.shape[0]} B{case.batch}")
        elif isinstance(case, variants.Deformable):
            assert f" {case.shape[-1]}->{case.features} @{case.shape[1]}" in case.name
            assert case.name.startswith("DCNv2" if case.modulated else "DCNv1")
        elif isinstance(case, variants.Chained):
            batch, size, _, channels = case.shape
            assert case.name == f"{case.layers} depthwise {case.k}x{case.k} {channels} @{size} N{batch}"
        else:
            assert case.name.startswith(f"{case.taps} taps, {case.channels} channel")
            assert case.name.endswith(f", {case.blocks} blocks of {case.block}")
