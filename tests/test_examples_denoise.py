"""The denoising example, at small size: it learns, never sees what it is tested on, draws and explains itself."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("skimage", reason="the examples need pip install 'convjax[examples]'")
pytest.importorskip("sklearn", reason="the examples need pip install 'convjax[examples]'")
pytest.importorskip("matplotlib", reason="the examples need pip install 'convjax[examples]'")

from matplotlib.image import imread
from skimage.metrics import peak_signal_noise_ratio

from examples import denoise


@pytest.fixture(scope="module")
def photographs() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    return denoise.load()


def test_it_learns_and_draws(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(denoise, "PATCH", 32)
    monkeypatch.setattr(denoise, "BATCH", 4)
    report = denoise.run(steps=100, width=8, sigma=25, seed=0, out=tmp_path / "new folder" / "denoise.png")
    noisy, variation, means, network = report.psnr.values()
    assert noisy == pytest.approx(20.5, abs=0.5)  # -20 log10(25 / 255) = 20.2, and clipping
    assert network > noisy + 2  # a network of zeros returns the noisy picture; 100 steps gained 2.9 dB
    assert means > variation > noisy + 6
    assert min(imread(report.picture).shape[:2]) > 800
    out = capsys.readouterr().out
    for part in ("device: cpu", "held out: coffee, chelsea, rocket", "PSNR", "non-local means", "U-Net", "wrote"):
        assert part in out


def test_held_out_pictures_are_not_trained_on(photographs):
    train, test = photographs
    assert set(test) == set(denoise.CROPS)
    assert not set(train) & set(test)
    everything = [*train.values(), *test.values()]
    assert len({picture.tobytes() for picture in everything}) == len(everything)
    for picture in everything:
        assert picture.dtype == np.float32
        assert picture.shape[2] == 3
        assert 0 <= picture.min() < 0.1
        assert 0.9 < picture.max() <= 1


def test_drawn_crops_lie_within_their_pictures(photographs):
    for name, corner in denoise.CROPS.items():
        assert np.all(np.array(corner) + denoise.CROP <= photographs[1][name].shape[:2])


def test_patches_come_from_all_the_given_pictures_and_all_ways_round():
    ramp = np.arange(30.0).reshape(5, 6, 1)  # every value tells its place
    pictures = [ramp, 100 + ramp]
    found = denoise.patches(pictures, 4, 400, np.random.default_rng(0))
    assert found.shape == (400, 4, 4, 1)
    assert set(np.unique(found)) == set(np.unique(pictures))
    steps = {(patch[0, 1, 0] - patch[0, 0, 0], patch[1, 0, 0] - patch[0, 0, 0]) for patch in found}
    assert steps == {(s * a, t * b) for a, b in ((1, 6), (6, 1)) for s in (1, -1) for t in (1, -1)}


def test_noise_and_psnr(photographs):
    clean = photographs[1]["chelsea"]
    noisy = denoise.add_noise(clean, 0.1, seed=0)
    assert np.std(noisy - clean) == pytest.approx(0.1, rel=0.01)
    assert not np.array_equal(noisy, denoise.add_noise(clean, 0.1, seed=1))
    expected = peak_signal_noise_ratio(clean, np.clip(noisy, 0, 1), data_range=1)
    assert denoise.psnr(clean, noisy) == pytest.approx(expected, abs=1e-3)


def test_the_strength_of_a_baseline_is_the_best_of_those_tried():
    pictures = [np.full((200, 210, 3), 0.5, np.float32)]
    towards = lambda noisy, sigma, strength: 0.5 + (0.1 + abs(strength - 0.8)) * (noisy - 0.5)  # best at 0.8
    assert denoise.tune(towards, pictures, 0.1, seed=0).keywords == dict(sigma=0.1, strength=0.8)


def test_help_and_wrong_options(capsys):
    with pytest.raises(SystemExit, match="0"):
        denoise.parse(["--help"])
    out = capsys.readouterr().out
    for part in ("U-Net", "scikit-image", "--steps", "--width", "--sigma", "--seed", "--out", "default: 25"):
        assert part in out
    for wrong in (("--steps", "0"), ("--width", "wide"), ("--sigma", "-1"), ("--colour", "red")):
        with pytest.raises(SystemExit, match="2"):
            denoise.parse(wrong)
        assert wrong[0] in capsys.readouterr().err
