"""The picture of a training run: loss and accuracy over its steps, and held-out images with what is read in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

BLUE, VERMILLION = "#0072B2", "#D55E00"  # Okabe and Ito's; a wrong image is marked by a frame and words as well
COLUMNS = 10
SMOOTHING = 20  # steps averaged in the dark curves


def draw(path: Path, history: dict[str, Any], images: list[np.ndarray], labels: list[str], read: list[str]) -> None:
    """Write the picture to `path`, as PNG or whatever its suffix says. `images` are uint8."""
    with matplotlib.rc_context({"font.size": 9, "axes.titlesize": 9, "figure.titlesize": 11}):
        figure = Figure(figsize=(11, 6.5), layout="constrained", dpi=110)
        parts: Any = figure.subfigures(2, 1, height_ratios=[3, 3], hspace=0.05)
        loss, accuracy = parts[0].subplots(1, 2)
        for axes, name, values in (
            (loss, "loss", history["loss"]),
            (accuracy, "accuracy, %", [100 * value for value in history["accuracy"]]),
        ):
            steps = np.arange(1, len(values) + 1)
            axes.plot(steps, values, color=BLUE, alpha=0.25, linewidth=0.8)
            axes.plot(steps, _smooth(values), color=BLUE, label=f"training batches, mean of {SMOOTHING} steps")
            axes.set(xlabel="step", ylabel=name)
            axes.spines[["top", "right"]].set_visible(False)
        held_out = np.array(history["held_out"]).reshape(-1, 2)
        accuracy.plot(
            held_out[:, 0], 100 * held_out[:, 1], color=VERMILLION, marker="o", markersize=4, label="held-out images"
        )
        accuracy.set_ylim(0, 102)
        loss.set_ylim(bottom=0)
        accuracy.legend(loc="lower right", frameon=False)
        _images(parts[1], images, labels, read)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, pad_inches=0.15, bbox_inches="tight")


def _images(part: Any, images: list[np.ndarray], labels: list[str], read: list[str]) -> None:
    part.suptitle("Held-out images and what the network reads in them; wrong ones are framed")
    for axes in part.subplots(2, COLUMNS, squeeze=False).ravel():
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for axes, image, label, guess in zip(part.axes, images, labels, read, strict=False):
        axes.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255)
        if guess == label:
            axes.set_title(guess, pad=3)
        else:
            axes.set_title(f"{guess}, is {label}", pad=3, color=VERMILLION, fontweight="bold")
            axes.spines[:].set(visible=True, color=VERMILLION, linewidth=2.5)


def _smooth(values: list[float]) -> np.ndarray:
    """Mean of each value and those before it, as many as `SMOOTHING`."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - SMOOTHING)
    return (total[ends] - total[starts]) / (ends - starts)
