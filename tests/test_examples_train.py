"""The image-folder script: it learns, shares batches between devices, survives interruptions and says what is wrong."""

from __future__ import annotations

import json
import os
import resource
import shutil
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
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import nnx
from matplotlib.image import imread
from PIL import Image

from examples import command_line, image_folder, train, training
from examples.checkpoints import Checkpoints
from examples.image_folder import Augmentation, CannotTrain, Decoder, ImageError, Images

ROOT = Path(__file__).parent.parent
# `python -m examples.train`, but with the checkout last on the path, so that the installed convjax is what runs.
COMMAND = f"""
import runpy, sys
sys.path.append({str(ROOT)!r})
runpy.run_module("examples.train", run_name="__main__")
"""
# The same, but the checkpoint of step 9 is written, and the process killed where that should get its name.
KILLED_WHILE_SAVING = f"""
import os, signal, sys
sys.path.append({str(ROOT)!r})
from orbax.checkpoint import CheckpointManager
from examples import train
save = CheckpointManager.save
def save_or_die(self, step, *args, **options):
    if step == 9:
        os.rename = os.replace = lambda *names, **options: os.kill(os.getpid(), signal.SIGKILL)
    return save(self, step, *args, **options)
CheckpointManager.save = save_or_die
train.main(sys.argv[1:])
"""
SMALL = (
    "--model",
    "lenet5",
    "--size",
    16,
    "--grey",
    "--no-flip",
    "--pad",
    2,
    "--batch",
    8,
    "--lr",
    3e-3,
    "--warmup",
    2,
)
RUN = (*SMALL, "--steps", 13, "--checkpoint-every", 3)  # four steps an epoch: checkpoints fall into epochs


def start(command: str, *options: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-P", "-c", command, *map(str, options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def run(*options: object) -> train.Report:
    return train.run(train.parse([*map(str, options)]))


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """Forty-five digits of three classes: thirty-six to train on."""
    everything = image_folder.write_digits(tmp_path_factory.mktemp("digits") / "all")
    folder = everything.with_name("some")
    for label in "012":
        (folder / label).mkdir(parents=True)
        for file in sorted((everything / label).iterdir())[:15]:
            shutil.copy(file, folder / label)
    return folder


@pytest.fixture
def copied(digits, tmp_path) -> Path:
    return Path(shutil.copytree(digits, tmp_path / "data"))


@pytest.fixture(scope="module")
def unbroken(digits, tmp_path_factory) -> train.Report:
    return run("--data", digits, *RUN, "--out", tmp_path_factory.mktemp("unbroken") / "train")


def arrays_of(report: train.Report) -> dict[str, np.ndarray]:
    saved = report.metrics.parent / "checkpoints"
    step = max(int(path.name) for path in saved.iterdir() if path.name.isdigit())
    with ocp.StandardCheckpointer() as checkpointer:
        return jax.tree.map(np.asarray, checkpointer.restore(saved / str(step) / "state"))


def assert_same_end(report: train.Report, unbroken: train.Report) -> None:
    assert report.history == unbroken.history
    assert report.accuracy == unbroken.accuracy
    jax.tree.map(np.testing.assert_array_equal, arrays_of(report), arrays_of(unbroken))


def test_it_learns_draws_and_notes(tmp_path):
    data = image_folder.write_digits(tmp_path / "digits")
    options = ("--data", data, *SMALL, "--batch", 32, "--steps", 100, "--dtype", "bfloat16")
    report = run(*options, "--out", tmp_path / "train")
    assert report.accuracy > 0.7  # guessing gives 0.1
    assert json.loads(report.metrics.read_text())["accuracy"] == report.accuracy
    assert len(report.history["loss"]) == 100
    assert [step for step, _ in report.history["held_out"]] == [44, 88, 100]
    height, width = imread(report.picture).shape[:2]
    assert min(height, width) > 500


def test_killed_while_saving_it_goes_on_to_the_same_end(digits, unbroken, tmp_path, capsys):
    options = ("--data", digits, *RUN, "--out", tmp_path / "train")
    process = start(KILLED_WHILE_SAVING, *options)
    _, err = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL, err
    saved = tmp_path / "train" / "checkpoints"
    left = {path.name for path in saved.iterdir()}
    assert {"3", "6"} <= left
    assert "9" not in left
    assert any(name.startswith("9") for name in left)  # the unfinished one
    report = run(*options)
    assert "going on from step 6 of 13" in capsys.readouterr().out
    assert_same_end(report, unbroken)
    assert {path.name for path in saved.iterdir()} >= {"9", "12", "13"}
    assert sum(path.is_dir() for path in saved.iterdir()) == 3


def test_a_truncated_image_is_named_and_loses_nothing(copied, digits, unbroken, tmp_path):
    options = ("--data", copied, *RUN, "--workers", 1, "--out", tmp_path / "train")
    trained_on = image_folder.open_folder(copied, 0.2, 0)[0]
    victim = trained_on.files[image_folder.epoch_order(36, 0, 0)[23]]  # of the third batch
    whole = victim.read_bytes()
    victim.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match=rf"{victim}: cannot be read .*Replace or remove"):
        run(*options)
    assert (tmp_path / "train" / "checkpoints" / "2").is_dir()  # the next would be of step 3
    victim.write_bytes(whole)
    assert_same_end(run(*options), unbroken)


def test_a_full_disk_is_told_and_loses_nothing(digits, unbroken, tmp_path):
    options = ("--data", digits, *RUN, "--out", tmp_path / "train")
    saves = Checkpoints.save

    def full_from_step_6(self, step, *args):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        if step >= 6:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))  # no file may grow: as a full disk
        try:
            saves(self, step, *args)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", full_from_step_6)
        with pytest.raises(CannotTrain, match=r"checkpoint of step 6 could not be written, step 3 is safe .*Make room"):
            run(*options)
    assert_same_end(run(*options), unbroken)


def test_a_finished_run_only_tests_and_another_recipe_is_refused(digits, unbroken, capsys):
    out = unbroken.metrics.parent
    again = run("--data", digits, *RUN, "--out", out)
    assert again.history == unbroken.history
    assert again.accuracy == unbroken.accuracy
    assert train.main(["--data", str(digits), *map(str, RUN), "--seed", "1", "--out", str(out)]) == 1
    assert "seed 0 (now 1)" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CannotTrain, match=r"file/checkpoints: cannot be written to .*--out"):
        Checkpoints(tmp_path / "file" / "checkpoints", {})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_eight_devices_take_the_step_of_one(dtype):
    rng = np.random.default_rng(0)
    images, labels = rng.standard_normal((16, 8, 8, 1)).astype(np.float32), rng.integers(0, 3, 16)
    recipe = training.Recipe("sgd", 0.1, 1e-4, 0, 2, 0.0)
    ends = []
    for devices in (jax.devices()[:1], jax.devices()):
        small = dict(depths=(1,), widths=(4,), strides=(1,), stem_width=4)
        trainer = training.Trainer(training.build("small", small, 3, 8, 1, dtype, 0), recipe, devices)
        batch = trainer.put((images, labels))
        assert batch[0].sharding.shard_shape(batch[0].shape)[0] == 16 // len(devices)
        state = trainer.start()
        before = jax.tree.map(np.asarray, state.params)
        state, figures = trainer.step(state, *batch)
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.params))
        assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state))
        changes = jax.tree.map(lambda new, old: np.asarray(new) - old, state.params, before)
        ends.append((changes, nnx.to_pure_dict(state.others), figures))
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(ends[0][0])) > 1e-3
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    jax.tree.map(lambda one, eight: np.testing.assert_allclose(one, eight, atol=tolerance, rtol=tolerance), *ends)


def test_the_learning_rate_rises_and_falls_and_norms_do_not_decay():
    recipe = training.Recipe("adamw", 0.1, 0.5, 10, 100, 0.0)
    schedule = training.learning_rate(recipe)
    np.testing.assert_allclose([schedule(step) for step in (0, 5, 10, 55, 100)], [0, 0.05, 0.1, 0.05, 0], atol=1e-6)
    params = {"kernel": jnp.ones((2, 2)), "scale": jnp.ones(2)}
    for name in ("adamw", "sgd"):
        optimizer = training.make_optimizer(recipe._replace(optimizer=name, warmup=0))
        updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
        assert np.all(np.asarray(updates["kernel"]) < 0)
        assert np.all(np.asarray(updates["scale"]) == 0)


def test_batches_depend_on_seed_and_step_alone(digits):
    images, _ = image_folder.open_folder(digits, 0.2, 0)
    load = lambda step, seed=0: image_folder.train_batch(Decoder(images, 16, 3), 9, seed, Augmentation(2), step)
    first = [load(step) for step in range(8)]
    ahead = list(image_folder.prefetch(load, range(5, 8), workers=3))
    for (left, left_labels), (right, right_labels) in zip(ahead, first[5:], strict=True):
        np.testing.assert_array_equal(left, right)
        np.testing.assert_array_equal(left_labels, right_labels)
    for epoch in (first[:4], first[4:]):  # each shows every image once
        labels = np.concatenate([labels for _, labels in epoch])
        np.testing.assert_array_equal(np.bincount(labels), np.bincount(images.labels))
    assert not np.array_equal(first[0][0], first[4][0])
    assert not np.array_equal(first[0][0], load(0, seed=1)[0])


def test_the_held_out_part_is_stratified_and_hardly_moves(copied):
    train_part, held_out = image_folder.open_folder(copied, 0.2, 0)
    assert not set(train_part.files) & set(held_out.files)
    assert np.bincount(held_out.labels).tolist() == [3, 3, 3]
    train_part.files[0].unlink()
    assert image_folder.open_folder(copied, 0.2, 0)[1].files == held_out.files


def test_augmentation_shifts_and_mirrors():
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[3, 2] = 255
    still = image_folder.augment(pixels, Augmentation(0, flip=False, jitter=0), np.random.default_rng(0))
    np.testing.assert_array_equal(still, pixels / np.float32(255))
    moved = [image_folder.augment(pixels, Augmentation(1, True, 0), np.random.default_rng(i)) for i in range(200)]
    where = {tuple(np.argwhere(image[..., 0] == 1)[0].tolist()) for image in moved}
    assert where == {(row, column) for row in (2, 3, 4) for column in (1, 2, 3, 4, 5, 6)}
    grey = image_folder.augment(pixels // 2, Augmentation(0, False, 0.3), np.random.default_rng(1))
    assert 0 <= grey.min() < grey.max() <= 1


def test_images_are_scaled_cropped_and_turned_upright(tmp_path):
    picture = Image.new("RGB", (40, 20), (255, 0, 0))
    picture.paste((0, 0, 255), (10, 0, 30, 20))  # a blue square in the middle
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    picture.save(tmp_path / "a.png", exif=exif)
    pixels = Decoder(Images((tmp_path / "a.png",), np.array([0]), ("a", "b")), 10, 3)(0)
    assert pixels.shape == (10, 10, 3)
    np.testing.assert_array_equal(pixels[1:-1, 1:-1], np.broadcast_to([0, 0, 255], (8, 8, 3)))


def test_what_is_wrong_with_a_folder_is_told(copied, tmp_path):
    with pytest.raises(CannotTrain, match="no such folder"):
        image_folder.open_folder(tmp_path / "nowhere", 0.2, 0)
    (copied / "empty").mkdir()
    with pytest.raises(CannotTrain, match=r"empty: this class has no images .*Add some or remove it"):
        image_folder.open_folder(copied, 0.2, 0)
    shutil.copy(next((copied / "0").iterdir()), copied / "empty")
    with pytest.raises(CannotTrain, match="empty: has one image"):
        image_folder.open_folder(copied, 0.2, 0)
    with pytest.raises(CannotTrain, match="has 0 sub-folders"):
        image_folder.open_folder(copied / "0", 0.2, 0)
    parted = tmp_path / "parted"
    shutil.copytree(copied, parted / "train")
    shutil.copytree(copied / "0", parted / "val" / "0")
    shutil.copytree(copied / "1", parted / "val" / "1")
    with pytest.raises(CannotTrain, match="only one of them has 2, empty"):
        image_folder.open_folder(parted, 0.2, 0)
    shutil.copytree(copied / "2", parted / "val" / "2")
    shutil.rmtree(parted / "train" / "empty")
    train_part, held_out = image_folder.open_folder(parted, 0.2, 0)
    assert train_part.classes == held_out.classes == ("0", "1", "2")


def test_what_does_not_fit_is_told():
    with pytest.raises(CannotTrain, match=r"not known\. Type one of: small "):
        training.build("resnet19", {}, 3, 16, 1, "float32", 0)
    with pytest.raises(CannotTrain, match="--model lenet5 with --size 8"):
        training.build("lenet5", {}, 3, 8, 1, "float32", 0)
    with pytest.raises(CannotTrain, match="Type --batch 10"):
        training.check_batch(16, 10, 2)
    with pytest.raises(CannotTrain, match="Type --batch 8"):
        training.check_batch(12, 100, 8)


def test_a_loss_that_is_not_finite_stops_the_run(digits, tmp_path):
    with pytest.raises(CannotTrain, match=r"the loss of step \d+ is (nan|inf).*smaller --lr"):
        run("--data", digits, *RUN, "--lr", 1e30, "--warmup", 0, "--out", tmp_path / "train")


def test_help_and_wrong_options(capsys):
    with pytest.raises(SystemExit, match="0"):
        train.parse(["--help"])
    out = capsys.readouterr().out
    for part in ("sub-folder", "--data", "--dtype", "--checkpoint-every", "without --data"):
        assert part in out
    for wrong in (("--steps", "0"), ("--lr", "fast"), ("--held-out", "1"), ("--set", "stem"), ("--colour", "red")):
        with pytest.raises(SystemExit, match="2"):
            train.parse(wrong)
        assert wrong[0] in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_ends_it_cleanly(digits, tmp_path):
    process = start(COMMAND, "--data", digits, *SMALL, "--steps", 1_000_000, "--out", tmp_path / "train")
    assert process.stdout is not None
    assert "images to train on" in process.stdout.readline()
    time.sleep(1.0)  # into compilation or training
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == command_line.INTERRUPTED
    assert "Traceback" not in err
    assert "stopped by Ctrl-C" in err
