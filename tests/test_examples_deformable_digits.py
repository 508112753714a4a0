"""The deformable example, at small size: it trains, moves its taps, and shows the places that an output depends on."""

from __future__ import annotations

import pytest

pytest.importorskip("sklearn", reason="the examples need pip install 'convjax[examples]'")
pytest.importorskip("matplotlib", reason="the examples need pip install 'convjax[examples]'")

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from matplotlib.image import imread

from convjax.models import parameter_count
from examples import deformable_digits as example
from examples.deformable_digits import DEFORMABLE, NETWORKS, RIGID, RIGID_DILATED, SIDE, STRIDE, Network


def test_it_trains_moves_its_taps_and_draws(tmp_path, monkeypatch, capsys):
    small = {name: setting._replace(width=8) for name, setting in NETWORKS.items() if name != RIGID_DILATED}
    monkeypatch.setattr(example, "NETWORKS", small | {RIGID_DILATED: small[RIGID]})
    monkeypatch.setattr(example, "TURNS", 1)
    for name, value in dict(BATCH=16, ANGLE=10.0, HEIGHTS=(16.0, 20.0), SHIFT=0.5, LEARNING_RATE=0.03).items():
        monkeypatch.setattr(example, name, value)
    report = example.run(steps=60, seeds=2, out=tmp_path / "new folder" / "digits.png")
    assert set(report.results) == set(NETWORKS)
    for result in report.results.values():
        assert result.right.shape == (2, 450)
        assert result.curve.shape == (2, 60)
        assert np.all(result.curve[:, -10:].mean(1) < result.curve[:, :10].mean(1) - 0.1)
        assert result.right.mean() > 0.2  # guessing gives 0.1
        assert result.step_ms > 0
        one, other = (jax.tree.leaves(nnx.state(model, nnx.Param)) for model in result.models)
        assert any(np.any(np.asarray(a) != np.asarray(b)) for a, b in zip(one, other, strict=True))
    for model in report.results[DEFORMABLE].models:
        for conv in list(model.convs)[1:]:
            assert float(jnp.abs(conv.offset.kernel[...]).max()) > 1e-3  # zeros before training
    assert min(imread(report.picture).shape[:2]) > 800
    out = capsys.readouterr().out
    for part in (
        "1347 digits to train on, 450 held out",
        "device: cpu",
        "parameters",
        "leads the better rigid",
        "wrote",
    ):
        assert part in out


def test_networks_are_of_equal_size():
    count = lambda setting: parameter_count(nnx.eval_shape(lambda: Network(setting, rngs=nnx.Rngs(0))))
    rigid, dilated, deformable = (count(NETWORKS[name]) for name in (RIGID, RIGID_DILATED, DEFORMABLE))
    assert rigid == dilated
    assert abs(deformable / rigid - 1) < 0.02


def test_rigid_points_are_a_lattice():
    model = Network(NETWORKS[RIGID_DILATED], rngs=nnx.Rngs(0))
    (points,) = example.sampling_points(model, jnp.zeros((1, SIDE, SIDE, 1)))
    middle = STRIDE * (SIDE // STRIDE // 2) + 1
    np.testing.assert_array_equal(points[40], [middle, middle])
    np.testing.assert_array_equal(np.unique(points), middle + 2 * STRIDE * np.arange(-2, 3))
    assert len(np.unique(points, axis=0)) == 25


@pytest.mark.parametrize("name", [RIGID, DEFORMABLE])
def test_the_middle_output_depends_on_the_sampled_pixels_alone(name):
    model = Network(NETWORKS[name]._replace(width=2), rngs=nnx.Rngs(0))
    model.eval()
    for seed, conv in enumerate(list(model.convs)[1:]):
        conv.kernel[...] = jnp.ones_like(conv.kernel[...])
        if name == DEFORMABLE:  # by whole pixels, so that no sample lies between two
            conv.offset.bias[...] = jax.random.randint(jax.random.key(seed), (18,), -1, 2).astype(jnp.float32)
    model.convs[0].kernel[...] = jnp.zeros_like(model.convs[0].kernel[...]).at[1, 1].set(1.0)  # the middle tap
    image, side = jnp.ones((SIDE, SIDE, 1)), SIDE // STRIDE // 2
    grads = jax.grad(lambda image: model.features(image[None])[-1][0, side, side].sum())(image)[..., 0]
    (points,) = example.sampling_points(model, image[None])
    inside = points[((points >= 0) & (points < SIDE)).all(-1)]
    assert {tuple(p) for p in np.argwhere(grads)} == {tuple(p) for p in inside.astype(int)}
    assert len(np.unique(inside, axis=0)) > (30 if name == DEFORMABLE else 24)


def test_digits_are_turned_scaled_and_moved():
    image = np.zeros((SIDE, SIDE), np.float32)
    image[4:20, 8:12] = 1
    place = lambda angle, height, shift: np.asarray(
        example.place(image[None], np.array([angle]), np.array([height]), np.array([shift]))
    )[0, ..., 0]
    np.testing.assert_allclose(place(0.0, float(SIDE), (0.0, 0.0)), image, atol=1e-5)
    np.testing.assert_allclose(place(90.0, float(SIDE), (0.0, 0.0)), np.rot90(image), atol=1e-4)
    np.testing.assert_allclose(place(0.0, float(SIDE), (2.0, -1.0)), np.roll(image, (2, -1), (0, 1)), atol=1e-5)
    small = place(0.0, SIDE / 2, (0.0, 0.0))
    assert small.sum() == pytest.approx(image.sum() / 4, rel=0.05)
    assert np.flatnonzero(small.max(1)).tolist() == list(range(8, 16))


def test_only_offsets_learn_slowly():
    model = Network(NETWORKS[DEFORMABLE]._replace(width=2), rngs=nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    rule = example.adam(10)
    state = rule.init(params)
    ones = jax.tree.map(jnp.ones_like, params)
    for _ in range(2):  # the first step of the warm-up is of nought
        updates, state = rule.update(ones, state, params)
    offset, kernel = updates["convs"][1]["offset"]["kernel"][...], updates["convs"][1]["kernel"][...]
    np.testing.assert_allclose(offset.mean() / kernel.mean(), example.OF_OFFSETS, rtol=1e-4)


def test_help_and_wrong_options(capsys):
    with pytest.raises(SystemExit, match="0"):
        example.main(["--help"])
    out = capsys.readouterr().out
    for part in ("DeformConv", "rigid", "--steps", "--seeds", "--out", "default: 800"):
        assert part in out
    for wrong in (("--steps", "0"), ("--seeds", "many"), ("--colour", "red")):
        with pytest.raises(SystemExit, match="2"):
            example.parse(wrong)
        assert wrong[0] in capsys.readouterr().err
