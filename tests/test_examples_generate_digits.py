"""The DCGAN example, at small size: it learns, its measures tell good from bad, and held-out digits train nothing."""

from __future__ import annotations

import pytest

pytest.importorskip("sklearn", reason="the examples need pip install 'convjax[examples]'")
pytest.importorskip("matplotlib", reason="the examples need pip install 'convjax[examples]'")

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from matplotlib.image import imread

from convjax.models import LeNet5
from examples import generate_digits
from examples.digits_training import load


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(generate_digits, "CLASSIFIER_STEPS", 150)
    monkeypatch.setattr(generate_digits, "WIDTHS", (24, 16))
    monkeypatch.setattr(generate_digits, "BATCH", 32)


@pytest.mark.slow
def test_it_learns_measures_and_draws(small, tmp_path, capsys):
    report = generate_digits.run(steps=150, seed=0, out=tmp_path / "new folder" / "digits.png")
    held_out, generated, _, noise = (report.quality[name] for name in generate_digits.SETS)
    assert list(report.distances) == [0, 2, 4, 9, 18, 37, 75, 150]
    assert report.distances[150] == generated.distance
    assert generated.distance < 0.1 * report.distances[0]  # before training it draws nothing but grey
    assert generated.distance < 0.25 * noise.distance
    assert held_out.distance < generated.distance
    assert np.count_nonzero(generated.classes) >= 8  # the modes have not collapsed
    assert generated.classes.sum() == pytest.approx(1)
    assert held_out.nearest < generated.nearest < noise.nearest
    height, width = imread(report.picture).shape[:2]
    assert height > 800
    assert width > 800
    text = capsys.readouterr().out
    for part in ("1437 digits to train on, 360 held out", "device: cpu", "parameters", *generate_digits.SETS, "wrote"):
        assert part in text


def test_held_out_digits_train_neither_network(small, monkeypatch, tmp_path):
    seen = {"classifier": [], "gan": []}

    def train_classifier(images, labels, seed):
        seen["classifier"].append(images)
        return LeNet5(image_size=generate_digits.SIZE, rngs=nnx.Rngs(seed))

    def train_step(gan, real, key):
        seen["gan"].append(real)
        return jnp.zeros(2)

    monkeypatch.setattr(generate_digits, "train_classifier", train_classifier)
    monkeypatch.setattr(generate_digits, "train_step", train_step)
    monkeypatch.setattr(generate_digits, "picture", lambda *_: None)
    generate_digits.run(steps=20, seed=3, out=tmp_path / "digits.png")
    data = load(3)
    scaled = lambda images: generate_digits.scale(images).round(4)
    training = {image.tobytes() for image in scaled(data.train_images)}
    assert training.isdisjoint(image.tobytes() for image in scaled(data.test_images))
    for name, batches in seen.items():
        assert {image.tobytes() for image in np.concatenate(batches).round(4)} <= training, name
    assert len(seen["gan"]) == 20


def test_quality_of_the_training_digits_themselves():
    training = generate_digits.scale(load(0).train_images[:300])
    classifier = LeNet5(image_size=generate_digits.SIZE, rngs=nnx.Rngs(0))
    same = generate_digits.quality(classifier, training, training)
    assert same.distance == pytest.approx(0, abs=1e-4)
    assert same.nearest == 0
    inverted = generate_digits.quality(classifier, -training, training)
    assert inverted.distance > 1
    assert inverted.nearest > 10


def test_frechet_distance_between_two_gaussians(monkeypatch):
    """Independent features of deviations a and b and a shift of m: the sum of m^2 + (a - b)^2."""
    rng = np.random.default_rng(0)
    deviations, others, shift = np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 1.0]), np.array([0.0, 1.0, -2.0])
    sets = {
        300: deviations * rng.standard_normal((200_000, 3)),
        200: shift + others * rng.standard_normal((200_000, 3)),
    }
    features = lambda _, images: {"hidden2": sets[len(images)], "logits": jnp.zeros((len(images), 10))}
    monkeypatch.setattr(generate_digits, "features", features)
    images = np.zeros((300, 16, 16, 1), np.float32)
    distance = generate_digits.quality(None, images[:200], images).distance
    assert distance == pytest.approx(float((shift**2 + (deviations - others) ** 2).sum()), rel=0.02)


def test_digits_move_by_a_pixel_at_most():
    image = np.full((200, 16, 16, 1), -1, np.float32)
    image[:, 8, 8] = 1
    moved = np.asarray(generate_digits.shifted(jax.random.key(0), image))
    rows, columns = np.nonzero(moved[..., 0] == 1)[1:]
    assert len(rows) == 200
    assert set(rows) == set(columns) == {7, 8, 9}


def test_help_and_wrong_options(capsys):
    with pytest.raises(SystemExit, match="0"):
        generate_digits.main(["--help"])
    out = capsys.readouterr().out
    for part in ("DCGAN", "held out", "--steps", "--seed", "--out", "default"):
        assert part in out
    for wrong in (("--steps", "0"), ("--steps", "many"), ("--seed", "-1"), ("--colour", "red")):
        with pytest.raises(SystemExit, match="2"):
            generate_digits.main(wrong)
        assert wrong[0] in capsys.readouterr().err
