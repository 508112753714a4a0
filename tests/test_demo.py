"""The digits demo, at small size: it learns, it measures, it draws, it explains itself and it can be stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the examples need pip install 'convjax[examples]'")
pytest.importorskip("matplotlib", reason="the examples need pip install 'convjax[examples]'")

import jax
from matplotlib.image import imread

from examples import command_line, digits, digits_network, digits_training

ROOT = Path(__file__).parent.parent
# `python -m examples.digits`, but with the checkout last on the path, so that the installed convjax is what runs.
COMMAND = f"""
import runpy, sys
sys.path.append({str(ROOT)!r})
runpy.run_module("examples.digits", run_name="__main__")
"""


def start(*options: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-P", "-c", COMMAND, *map(str, options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XLA_FLAGS": "", "PYTHONUNBUFFERED": "1"},
    )


def test_it_learns_measures_and_draws(tmp_path, capsys):
    report = digits.run(steps=60, repeats=2, seed=0, out=tmp_path / "new folder" / "digits.png")
    assert report.accuracy > 0.8  # guessing gives 0.1; 60 steps gave 0.93, the demo's 600 give 0.99
    assert set(report.ms) == {"convjax", "lax"}
    assert all(ms > 0 for ms in report.ms.values())
    height, width = imread(report.picture).shape[:2]
    assert height > 800
    assert width > 800
    text = capsys.readouterr().out
    for part in ("device: cpu", "test accuracy", "held out", "convjax", "lax", "wrote"):
        assert part in text


def test_both_sides_compute_the_same_step():
    data = digits_training.load(seed=0)
    optimizer = digits_training.make_optimizer(steps=10)
    state = digits_training.initial_state(optimizer, seed=0)
    batch = data.train_images[:8], data.train_labels[:8]
    steps = [digits_training.make_step(optimizer, algorithm) for algorithm in ("auto", "xla")]
    (_, ours), (_, lax) = (step(state, *batch) for step in steps)
    np.testing.assert_allclose(ours, lax, rtol=1e-5)


def test_held_out_digits_are_stratified_and_never_trained_on():
    data = digits_training.load(seed=3)
    assert len(data.train_labels) + len(data.test_labels) == 1797
    share = np.bincount(data.test_labels) / np.bincount(np.append(data.train_labels, data.test_labels))
    assert np.all(np.abs(share - digits_training.HELD_OUT) < 0.01)
    batch_images = [images for images, _ in digits_training.batches(data, 30, seed=0)]
    train = {image.tobytes() for image in data.train_images}
    assert {image.tobytes() for image in np.concatenate(batch_images)} <= train


def test_a_batch_never_repeats_a_digit_within_a_pass():
    data = digits_training.load(seed=0)
    per_pass = len(data.train_labels) // digits_training.BATCH
    order = np.concatenate([labels for _, labels in digits_training.batches(data, per_pass, seed=0)])
    assert len(order) == per_pass * digits_training.BATCH


def test_disturbed_digits_keep_shape_and_range():
    images = digits_training.load(seed=0).train_images[:16]
    moved = digits_training.disturb(jax.random.key(0), images)
    assert moved.shape == images.shape
    assert float(moved.min()) >= 0
    assert float(moved.max()) <= 1 + 1e-6
    assert float(np.abs(moved - images).max()) > 0.1


def test_feature_maps_shrink_by_the_stride():
    params = digits_network.init(jax.random.key(0))
    maps = jax.eval_shape(digits_network.features, params, jax.ShapeDtypeStruct((2, 8, 8, 1), np.float32))
    assert len(maps) == len(digits_network.STAGES)
    assert [m.shape for m in maps] == [(2, 8, 8, 32)] * 2 + [(2, 4, 4, 64)] * 3


def test_help():
    process = start("--help")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert err == ""
    for part in ("handwritten digits", "--steps", "--seed", "--out", "default"):
        assert part in out


@pytest.mark.parametrize("wrong", [("--steps", "0"), ("--steps", "many"), ("--repeats", "-1"), ("--colour", "red")])
def test_a_wrong_option_is_named(wrong):
    process = start(*wrong)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert wrong[0] in err
    assert "Traceback" not in err


def test_ctrl_c_ends_it_cleanly(tmp_path):
    process = start("--steps", 100_000, "--out", tmp_path / "digits.png")
    assert process.stdout is not None
    assert "device" in process.stdout.readline()
    time.sleep(1.0)  # into compilation or training
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == command_line.INTERRUPTED
    assert "Traceback" not in err
    assert err.rstrip().endswith("stopped by Ctrl-C")
    assert not (tmp_path / "digits.png").exists()
