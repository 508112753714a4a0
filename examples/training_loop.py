"""The loop of the image-folder training script: batches in, checkpoints and curves out, from any step to the last."""

from __future__ import annotations

import contextlib
import math
from functools import partial
from typing import NamedTuple

import jax
from tqdm import tqdm

from examples import image_folder
from examples.checkpoints import Checkpoints
from examples.image_folder import Augmentation, CannotTrain, Decoder, ImageError
from examples.training import State, Trainer

READ_EVERY = 10  # steps; reading a loss waits for the devices

History = dict[str, list]


class Pipeline(NamedTuple):
    """Where the batches come from."""

    train: Decoder
    held_out: Decoder
    augmentation: Augmentation
    batch: int
    seed: int
    workers: int

    @property
    def steps_per_epoch(self) -> int:
        return len(self.train.images.files) // self.batch


def fit(trainer: Trainer, data: Pipeline, saved: Checkpoints, every: int) -> tuple[State, History]:
    """Train from the last checkpoint, or from the start, to the last step.

    Args:
      trainer: the compiled steps.
      data: the batches.
      saved: where the checkpoints are.
      every: steps from one checkpoint to the next.

    Returns:
      the state, and what was measured: loss and accuracy of each step, held-out accuracy at the end of each epoch.

    Raises:
      CannotTrain: an image that cannot be read (the state before it is saved first), a checkpoint that cannot be
        written, or a loss that is not finite.
    """
    steps = trainer.recipe.steps
    step, state = 0, trainer.start()
    history: History = {"loss": [], "accuracy": [], "held_out": []}
    if saved.last is not None:
        step, state, history = saved.restore(state)
        print(f"going on from step {step} of {steps}, saved in {saved.folder}", flush=True)
    unread: list[jax.Array] = []
    load = partial(image_folder.train_batch, data.train, data.batch, data.seed, data.augmentation)
    with (
        tqdm(total=steps, initial=step, desc="training", unit="step", mininterval=0.5) as bar,
        contextlib.closing(image_folder.prefetch(load, range(step, steps), data.workers)) as batches,
    ):
        try:
            for arrays in batches:
                state, figures = trainer.step(state, *trainer.put(arrays))
                step += 1
                unread.append(figures)
                epoch_ends = step % data.steps_per_epoch == 0 or step == steps
                save = step % every == 0 or step == steps
                if epoch_ends or save or len(unread) == READ_EVERY:
                    bar.update(len(unread))
                    _read(unread, history, saved)
                    bar.set_postfix(loss=f"{history['loss'][-1]:.3f}", refresh=False)
                if epoch_ends:
                    history["held_out"].append([step, test(trainer, data, state)[0]])
                if save:
                    saved.save(step, state, history)
        except ImageError:
            _read(unread, history, saved)
            if step:
                saved.save(step, state, history)
            raise
    return state, history


def test(trainer: Trainer, data: Pipeline, state: State) -> tuple[float, list[int]]:
    """Accuracy on the held-out images, and the class read in each."""
    count = len(data.held_out.images.files)
    load = partial(image_folder.held_out_batch, data.held_out, data.batch)
    right, read = 0.0, []
    with contextlib.closing(image_folder.prefetch(load, range(math.ceil(count / data.batch)), data.workers)) as batches:
        for arrays in batches:
            now_right, now_read = trainer.right(state, *trainer.put(arrays))
            right += float(now_right)
            read += jax.device_get(now_read).tolist()
    return right / count, read[:count]


def _read(unread: list[jax.Array], history: History, saved: Checkpoints) -> None:
    """Wait for the figures of the last steps and note them."""
    for loss, accuracy in jax.device_get(unread):
        if not math.isfinite(loss):
            raise CannotTrain(
                f"the loss of step {len(history['loss']) + 1} is {loss}; the last checkpoint is of step {saved.last}. "
                "Type a smaller --lr or a longer --warmup, and another --out."
            )
        history["loss"].append(float(loss))
        history["accuracy"].append(float(accuracy))
    unread.clear()
