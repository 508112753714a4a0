"""Train a small ConvNeXt on 1,797 handwritten digits, then time its training step against lax's own convolutions.

Run as `python -m examples.digits`, or `make demo`. Prints the accuracy on a held-out fifth and both times, and draws
digits, learned kernels, feature maps and the times into out/digits.png. Takes one to two minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from examples.command_line import leave_at_ctrl_c, positive


class Report(NamedTuple):
    """What a run found: `accuracy` from 0 to 1, `ms` of one training step by who runs its convolutions."""

    accuracy: float
    ms: dict[str, float]
    picture: Path


def run(steps: int, repeats: int, seed: int, out: Path) -> Report:
    """Train, test, time, draw."""
    import jax  # here, so that --help is quick

    from examples import digits_picture, digits_training

    device = jax.devices()[0]
    data = digits_training.load(seed)
    print(
        f"{len(data.train_labels)} digits to train on, {len(data.test_labels)} held out; "
        f"device: {device.platform} ({device.device_kind}), jax {jax.__version__}",
        flush=True,
    )

    start = time.perf_counter()
    optimizer = digits_training.make_optimizer(steps)
    state = digits_training.initial_state(optimizer, seed)
    ours = digits_training.make_step(optimizer, "auto")
    state = digits_training.train(ours, state, data, steps, seed)
    predicted = digits_training.predict(state.params, data.test_images)
    right = predicted == data.test_labels
    print(
        f"test accuracy {100 * right.mean():.2f} % ({int((~right).sum())} of {len(right)} wrong), "
        f"{steps} steps in {time.perf_counter() - start:.0f} s, compilation included",
        flush=True,
    )

    both = {"convjax": ours, "lax": digits_training.make_step(optimizer, "xla")}
    ms = digits_training.step_times(both, state, data, repeats)
    print(f"one training step of {digits_training.BATCH} images, median of {repeats}, taking turns:")
    print(f"  convjax  {ms['convjax']:8.1f} ms")
    print(f"  lax      {ms['lax']:8.1f} ms   {ms['lax'] / ms['convjax']:.1f} times as long", flush=True)

    digits_picture.draw(out, state.params, data.test_images, data.test_labels, predicted, ms)
    print(f"wrote {out}")
    return Report(float(right.mean()), ms, out)


def parse(argv: Sequence[str] | None) -> dict[str, Any]:
    """The command line as arguments of `run`."""
    opening, details = (__doc__ or "").split("\n\n", 1)
    parser = argparse.ArgumentParser(prog="python -m examples.digits", description=opening, epilog=details)
    parser.add_argument("--steps", type=positive, default=600, help="training steps (default: %(default)s)")
    parser.add_argument("--repeats", type=positive, default=20, help="timings of each side (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of split, weights and batches (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("out/digits.png"), help="the picture (default: %(default)s)")
    return vars(parser.parse_args(argv))


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    run(**parse(argv))


if __name__ == "__main__":
    leave_at_ctrl_c("stopped by Ctrl-C")
    main()
