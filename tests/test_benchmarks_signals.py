"""The benchmark of long signals, at tiny size: all compute the same, and who is left out is told."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the benchmarks need pip install 'convjax[examples]'")
pytest.importorskip("tqdm", reason="the benchmarks need pip install 'convjax[examples]'")

from benchmarks import signals

SMALL = (signals.Case("a signal", (90,), (31,)), signals.Case("an image", (24, 20), (5, 7)))


@pytest.fixture(scope="module", autouse=True)
def a_parent_that_held_much():
    """Half a GiB: the peak is of another process."""
    del_me = np.ones(2**26)
    assert del_me.sum() == 2**26


def test_all_compute_the_same_and_are_timed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(signals, "CASES", SMALL)
    path = tmp_path / "signals.json"
    found = signals.main(["--rounds", "2", "--json", str(path)])
    assert json.loads(path.read_text()) == found
    told = capsys.readouterr().out
    for record, case in zip(found["records"], SMALL, strict=True):
        assert record["case"] == case.name in told
        assert len(record["contenders"]) == 4
        for name, entry in record["contenders"].items():
            assert entry["error"] < 1e-6, name
            assert entry["ms"] > 0
            assert name == signals.OURS or name in told
        assert 50 < record["contenders"][signals.OURS]["peak_mib"] < 512


def test_what_takes_too_long_or_fails_is_told(monkeypatch, capsys):
    monkeypatch.setattr(signals, "CASES", (SMALL[0], signals.Case("empty", (0,), (3,))))
    first, second = signals.main(["--rounds", "1", "--limit", "0"])["records"]
    assert first["contenders"]["jax.scipy.signal.convolve"] == {"left_out": "about 0 s a call"}
    assert second["failed"].startswith("ValueError: convolve: in1")
    told = capsys.readouterr().out
    assert "about 0 s a call" in told
    assert "failed: ValueError" in told


def test_the_real_cases_are_large():
    few, *many = (case.direct_s for case in signals.CASES)
    assert few < 30 < min(many)  # seconds beyond which a direct sum is left out
