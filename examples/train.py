"""Train a network of convjax.models on a folder of images, and go on from the last checkpoint after any interruption.

Run as `python -m examples.train --data FOLDER --model resnet18`. FOLDER has a sub-folder of images for each class, or
train/ and val/ with such sub-folders. Without --data, scikit-learn's digits are written to out/digits_images, and a
small network reads them, in under two minutes on two CPU cores. All local devices share each batch. Checkpoints and
metrics.json go into the folder --out, the picture beside it. Killed and started again with the same options, a run
ends as if it had never stopped.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from examples.command_line import leave_at_ctrl_c, number, positive, share, whole

FOR_FOLDERS = dict(model="resnet18", size=224, grey=False, flip=True, pad=16, batch=64, lr=1e-3)
FOR_DIGITS = dict(model="small", size=16, grey=True, flip=False, pad=2, batch=64, lr=3e-3)
NOT_OF_THE_RECIPE = ("data", "out", "workers", "checkpoint_every")  # may differ when a run goes on
SHOWN = 20  # images in the picture


class Report(NamedTuple):
    """What a run found: `accuracy` on held-out images, from 0 to 1."""

    accuracy: float
    history: dict[str, list]
    metrics: Path
    picture: Path


def run(options: dict[str, Any]) -> Report:
    """Train from where the last run stopped, test, draw."""
    import jax  # here, so that --help is quick

    from examples import checkpoints, image_folder, training, training_loop, training_picture

    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax tells every file
    begun = time.perf_counter()
    root = options["data"] or image_folder.write_digits(Path("out/digits_images"))
    train, held_out = image_folder.open_folder(root, options["held_out"], options["seed"])
    classes, devices = train.classes, jax.local_devices()
    print(
        f"{len(train.files)} images to train on, {len(held_out.files)} held out, {len(classes)} classes; "
        f"devices: {len(devices)} {devices[0].platform} ({devices[0].device_kind}), jax {jax.__version__}",
        flush=True,
    )
    training.check_batch(options["batch"], len(train.files), len(devices))

    size, channels = options["size"], 1 if options["grey"] else 3
    data = training_loop.Pipeline(
        image_folder.Decoder(train, size, channels),
        image_folder.Decoder(held_out, size, channels),
        image_folder.Augmentation(options["pad"], options["flip"], options["jitter"]),
        options["batch"],
        options["seed"],
        options["workers"],
    )
    recipe = training.Recipe(
        options["optimizer"],
        options["lr"],
        options["weight_decay"],
        options["warmup"],
        options["steps"] or options["epochs"] * data.steps_per_epoch,
        options["label_smoothing"],
    )
    model = training.build(
        options["model"], dict(options["set"]), len(classes), size, channels, options["dtype"], options["seed"]
    )
    told = {name: value for name, value in options.items() if name not in NOT_OF_THE_RECIPE} | {"classes": classes}
    trainer = training.Trainer(model, recipe, devices)
    with contextlib.closing(checkpoints.Checkpoints(options["out"] / "checkpoints", told)) as saved:
        state, history = training_loop.fit(trainer, data, saved, options["checkpoint_every"])

    accuracy, read = training_loop.test(trainer, data, state)
    wrong = [i for i, label in enumerate(held_out.labels) if read[i] != label]
    print(
        f"held-out accuracy {100 * accuracy:.2f} % ({len(wrong)} of {len(read)} wrong), {recipe.steps} steps, "
        f"{time.perf_counter() - begun:.0f} s in this run, compilation included",
        flush=True,
    )
    metrics, picture = options["out"] / "metrics.json", Path(f"{options['out']}.png")
    checkpoints.write_json(metrics, {"accuracy": accuracy, "recipe": told, "history": history})
    right = sorted(set(range(len(read))) - set(wrong))
    shown = wrong[: SHOWN // 2] + right[:: max(1, len(right) // SHOWN)]
    training_picture.draw(
        picture,
        history,
        [data.held_out(i) for i in shown[:SHOWN]],
        [classes[held_out.labels[i]] for i in shown],
        [classes[read[i]] for i in shown],
    )
    print(f"wrote {metrics} and {picture}")
    return Report(accuracy, history, metrics, picture)


def parse(argv: Sequence[str] | None) -> dict[str, Any]:
    """The command line as options of `run`."""
    opening, details = (__doc__ or "").split("\n\n", 1)
    parser = argparse.ArgumentParser(prog="python -m examples.train", description=opening, epilog=details)
    both = {name: f"(default: {value}; {FOR_DIGITS[name]} without --data)" for name, value in FOR_FOLDERS.items()}
    add = parser.add_argument
    add("--data", type=Path, help="the folder (default: the digits of scikit-learn)")
    add("--model", help=f"a name of convjax.models.list_models(), or small {both['model']}")
    add("--set", type=_setting, action="append", default=[], metavar="NAME=VALUE", help="of the model: stem=cifar")
    add("--size", type=positive, help=f"height and width that images are scaled to {both['size']}")
    add("--grey", action=argparse.BooleanOptionalAction, help=f"one channel instead of three {both['grey']}")
    add("--flip", action=argparse.BooleanOptionalAction, help=f"mirror every second image {both['flip']}")
    add("--pad", type=whole, help=f"pixels added on each side before a random crop {both['pad']}")
    add("--jitter", type=share, default=0.1, help="change of brightness, contrast, saturation (default: %(default)s)")
    add("--batch", type=positive, help=f"images a step, on all devices together {both['batch']}")
    add("--epochs", type=positive, default=15, help="passes over the training images (default: %(default)s)")
    add("--steps", type=positive, help="training steps, instead of --epochs")
    add("--optimizer", choices=("adamw", "sgd"), default="adamw", help="(default: %(default)s)")
    add("--lr", type=number, help=f"learning rate at its highest {both['lr']}")
    add("--weight-decay", type=number, default=0.05, help="(default: %(default)s; for sgd 1e-4 is usual)")
    add("--warmup", type=whole, default=50, help="steps in which the learning rate rises (default: %(default)s)")
    add("--label-smoothing", type=share, default=0.1, help="(default: %(default)s)")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="computed in; weights float32")
    add("--held-out", type=share, default=0.2, help="share of each class, without train/ and val/ (default: 0.2)")
    add("--seed", type=whole, default=0, help="of split, weights, order and augmentation (default: %(default)s)")
    add("--checkpoint-every", type=positive, default=100, help="steps; the last three are kept (default: %(default)s)")
    add("--workers", type=positive, default=min(8, os.cpu_count() or 1), help="threads that load images")
    add(
        "--out",
        type=Path,
        default=Path("out/train"),
        help="folder; the picture is this with .png (default: %(default)s)",
    )
    options = vars(parser.parse_args(argv))
    defaults = FOR_DIGITS if options["data"] is None else FOR_FOLDERS
    return options | {name: value for name, value in defaults.items() if options[name] is None}


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return name, value  # a word


def main(argv: Sequence[str] | None = None) -> int:
    """The command: its exit status."""
    options = parse(argv)
    from examples.image_folder import CannotTrain

    try:
        run(options)
    except CannotTrain as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    leave_at_ctrl_c("stopped by Ctrl-C; the same command goes on from the last checkpoint")
    sys.exit(main())
