"""Train a DCGAN that draws handwritten digits out of noise, and measure how good its digits are.

Run as `python -m examples.generate_digits`. A generator learns to draw what a discriminator cannot tell from four
fifths of scikit-learn's digits. A classifier trained on the same four fifths then judges the digits held out, those
generated and two kinds of spoilt ones: Fréchet distance from the training digits, how surely each is read, how evenly
the classes come, and how near the nearest training digit is. Draws all that into out/generate_digits.png. Takes about
two minutes on two CPU cores.
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
from flax import nnx
from jax import Array
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tqdm import trange

from convjax.models import DCGANDiscriminator, DCGANGenerator, LeNet5, parameter_count
from examples.command_line import leave_at_ctrl_c, positive, whole
from examples.digits_training import load

SIZE = 16  # pixels; scikit-learn's 8 are scaled to it, so that the generator doubles twice from 4
LATENT = 32  # length of the noise vectors
WIDTHS = 48, 32  # channels of the generator before its last layer, of the discriminator after its first
BATCH = 64
RATE, MOMENTUM = 1e-3, 0.5  # of Adam; the low momentum is the paper's, arXiv:1511.06434, section 4
REAL = 0.9  # target for real digits, below 1 so that the discriminator stays unsure: arXiv:1606.03498, section 3.4
AVERAGE = 0.995  # what the running mean of the generator keeps of itself at a step: arXiv:1806.04498
CLASSIFIER_STEPS = 600
SETS = HELD_OUT, GENERATED, OVERLAID, NOISE = "held-out digits", "generated digits", "two digits overlaid", "noise"
BLUE, VERMILLION, GREY = "#0072B2", "#D55E00", "#707070"  # Okabe and Ito's, told apart by colour-blind eyes


Images = Array | np.ndarray  # (N, height, width, 1), from -1 to 1


class Gan(NamedTuple):
    """Both networks, their optimisers, and a running mean of the generator, which draws better than its last state."""

    generator: DCGANGenerator
    discriminator: DCGANDiscriminator
    to_generate: nnx.Optimizer[Any]
    to_discriminate: nnx.Optimizer[Any]
    average: DCGANGenerator


class Quality(NamedTuple):
    """What the classifier makes of a set of images."""

    distance: float  # Fréchet's, of its features from those of the training digits
    surely_read: float  # share of images of which it finds one class likelier than 0.9
    classes: np.ndarray  # share of each class
    nearest: float  # median Euclidean distance of an image to the nearest training digit


class Report(NamedTuple):
    """What a run found: quality by the names in `SETS`, and the Fréchet distance of generated digits by step."""

    quality: dict[str, Quality]
    distances: dict[int, float]
    picture: Path


def scale(images: np.ndarray) -> np.ndarray:
    """Images of 8x8 pixels from 0 to 1, as the networks take them: larger, from -1 to 1."""
    larger = jax.image.resize(images, (len(images), SIZE, SIZE, 1), "cubic")
    return np.asarray(2 * larger.clip(0, 1) - 1)


def build(seed: int) -> Gan:
    rngs = nnx.Rngs(seed)
    generator = DCGANGenerator(latent=LATENT, width=WIDTHS[0], image_size=SIZE, out_channels=1, rngs=rngs)
    discriminator = DCGANDiscriminator(width=WIDTHS[1], image_size=SIZE, in_channels=1, rngs=rngs)
    to_generate, to_discriminate = (
        nnx.Optimizer(network, optax.adam(RATE, MOMENTUM), wrt=nnx.Param) for network in (generator, discriminator)
    )
    average = nnx.clone(generator)
    average.eval()  # batch norm by running statistics: what is drawn does not depend on the rest of the batch
    return Gan(generator, discriminator, to_generate, to_discriminate, average)


def shifted(key: Array, images: Images) -> Array:
    """Each image moved by up to a pixel, so that a network cannot learn so few by heart.

    The discriminator sees generated ones so too, or the generator would learn to move them (arXiv:2006.10738).
    """
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-1.0)
    corners = jax.random.randint(key, (len(images), 2), 0, 3)
    cut = lambda image, corner: jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (SIZE, SIZE, 1))
    return jax.vmap(cut)(padded, corners)


@nnx.jit
def train_step(gan: Gan, real: Images, key: Array) -> Array:
    """One step of the discriminator, then one of the generator; their losses."""
    noise_key, *shift_keys = jax.random.split(key, 4)
    noise = jax.random.normal(noise_key, (len(real), LATENT))

    def judged(discriminator: DCGANDiscriminator, images: Images, shift_key: Array, target: float) -> Array:
        logits = discriminator(shifted(shift_key, images))
        return optax.sigmoid_binary_cross_entropy(logits, jnp.full_like(logits, target)).mean()

    def discriminator_loss(discriminator: DCGANDiscriminator, generator: DCGANGenerator) -> Array:
        # Real and generated ones in batches of their own, as batch norm would mix them.
        real_loss = judged(discriminator, real, shift_keys[0], REAL)
        return real_loss + judged(discriminator, generator(noise), shift_keys[1], 0.0)

    def generator_loss(generator: DCGANGenerator, discriminator: DCGANDiscriminator) -> Array:
        return judged(discriminator, generator(noise), shift_keys[2], 1.0)

    d_loss, grads = nnx.value_and_grad(discriminator_loss)(gan.discriminator, gan.generator)
    gan.to_discriminate.update(gan.discriminator, grads)
    g_loss, grads = nnx.value_and_grad(generator_loss)(gan.generator, gan.discriminator)
    gan.to_generate.update(gan.generator, grads)
    step = gan.to_generate.step[...]
    keep = jnp.minimum(AVERAGE, step / (10 + step))  # the first states are soon forgotten
    nnx.update(gan.average, optax.incremental_update(nnx.state(gan.generator), nnx.state(gan.average), 1 - keep))
    return jnp.stack([d_loss, g_loss])


@nnx.jit
def features(network: Any, x: Images) -> dict[str, Array]:
    """Outputs of all stages of a network."""
    return network.features(x)


def draw(gan: Gan, noise: Array) -> np.ndarray:
    return np.asarray(features(gan.average, noise)["image"])


def train_classifier(images: np.ndarray, labels: np.ndarray, seed: int) -> LeNet5:
    """LeNet-5, by Adam with a rate that falls along a cosine."""
    classifier = LeNet5(image_size=SIZE, rngs=nnx.Rngs(seed))
    rate = optax.cosine_decay_schedule(2e-3, CLASSIFIER_STEPS)
    optimizer = nnx.Optimizer(classifier, optax.adam(rate), wrt=nnx.Param)

    @nnx.jit
    def step(classifier: LeNet5, optimizer: nnx.Optimizer, images: Images, labels: np.ndarray, key: Array) -> None:
        images = shifted(key, images)
        loss = lambda model: optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()
        optimizer.update(classifier, nnx.grad(loss)(classifier))

    rng = np.random.default_rng(seed)
    for key in jax.random.split(jax.random.key(seed), CLASSIFIER_STEPS):
        batch = rng.choice(len(images), BATCH, replace=False)
        step(classifier, optimizer, images[batch], labels[batch], key)
    return classifier


def quality(classifier: LeNet5, images: np.ndarray, training: np.ndarray) -> Quality:
    """Judge images beside the training digits."""
    seen = features(classifier, images)
    sure = np.asarray(jax.nn.softmax(seen["logits"]))
    a = np.asarray(features(classifier, training)["hidden2"], np.float64)
    b = np.asarray(seen["hidden2"], np.float64)
    covariances = np.cov(a.T), np.cov(b.T)
    # Heusel et al., arXiv:1706.08500, equation 6; only rounding makes eigenvalues of the product negative.
    root = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).real.clip(0)).sum()
    distance = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(covariances[0] + covariances[1]) - 2 * root
    classes = np.bincount(sure.argmax(1), minlength=10) / len(images)
    nearest = np.linalg.norm((images - training[nearest_to(images, training)]).reshape(len(images), -1), axis=1)
    return Quality(float(distance), float((sure.max(1) > 0.9).mean()), classes, float(np.median(nearest)))


def nearest_to(images: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Index of the training digit nearest to each image."""
    x, y = images.reshape(len(images), -1), training.reshape(len(training), -1)
    return np.argmin((y**2).sum(1) - 2 * x @ y.T, axis=1)


def run(steps: int, seed: int, out: Path) -> Report:
    """Train, judge, draw."""
    data = load(seed)
    training, held_out = scale(data.train_images), scale(data.test_images)
    device = jax.devices()[0]
    sizes = f"{len(training)} digits to train on, {len(held_out)} held out"
    print(f"{sizes}; device: {device.platform} ({device.device_kind})", flush=True)
    classifier = train_classifier(training, data.train_labels, seed)
    right = np.mean(np.asarray(features(classifier, held_out)["logits"]).argmax(1) == data.test_labels)
    print(f"the judge, a LeNet-5, reads {100 * right:.1f} % of the held-out digits right", flush=True)

    gan, rng = build(seed), np.random.default_rng(seed)
    noise = jax.random.normal(jax.random.key(seed + 1), (*held_out.shape[:1], LATENT))
    marks = [0, *sorted({max(1, steps >> halved) for halved in range(7)})]  # steps at which it is judged
    losses, history = [], {0: draw(gan, noise)}
    start = time.perf_counter()
    bar = trange(1, steps + 1, desc="training", unit="step", mininterval=0.5)
    for step, key in zip(bar, jax.random.split(jax.random.key(seed), steps), strict=True):
        real = training[rng.choice(len(training), BATCH, replace=False)]
        losses.append(np.asarray(train_step(gan, real, key)))
        bar.set_postfix(discriminator=f"{losses[-1][0]:.2f}", generator=f"{losses[-1][1]:.2f}", refresh=False)
        if step in marks:
            history[step] = draw(gan, noise)
    counts = " and ".join(f"{parameter_count(network):,}" for network in gan[:2])
    print(f"generator and discriminator of {counts} parameters: {steps} steps in {time.perf_counter() - start:.0f} s")

    pairs = rng.permutation(len(training))[: 2 * len(held_out)].reshape(2, -1)
    spoilt = training[pairs].max(0), rng.uniform(-1, 1, held_out.shape).astype(np.float32)
    images = dict(zip(SETS, (held_out, history[steps], *spoilt), strict=True))
    judged = {name: quality(classifier, x, training) for name, x in images.items()}
    distances = {step: quality(classifier, x, training).distance for step, x in history.items()}
    print(f"{'':20} {'Fréchet distance':>17} {'read surely':>12} {'rarest class':>13} {'nearest training digit':>23}")
    for name, q in judged.items():
        rarest = f"{100 * q.classes.min():.1f} %"
        print(f"{name:20} {q.distance:17.1f} {100 * q.surely_read:10.0f} % {rarest:>13} {q.nearest:23.2f}")
    picture(out, images, training, history, np.array(losses), judged, distances)
    print(f"wrote {out}")
    return Report(judged, distances, out)


def picture(
    out: Path,
    images: dict[str, np.ndarray],
    training: np.ndarray,
    history: dict[int, np.ndarray],
    losses: np.ndarray,
    judged: dict[str, Quality],
    distances: dict[int, float],
) -> None:
    """Write the picture to `out`, as PNG or whatever its suffix says."""
    with matplotlib.rc_context({"font.size": 9, "axes.titlesize": 10}):
        figure = Figure(figsize=(12, 10.5), layout="constrained", dpi=110)
        rows: Any = figure.subfigures(3, 1, height_ratios=[3.9, 3.9, 2.7], hspace=0.03)
        for axes, name, title in zip(
            rows[0].subplots(1, 2),
            SETS,
            ("Real: digits held out from training", "Generated: as they come, none picked"),
            strict=False,
        ):
            montage(axes, images[name][:84].reshape(7, 12, SIZE, SIZE), title)

        progress, copies = rows[1].subplots(1, 2)
        montage(progress, np.stack([x[:6, ..., 0] for x in history.values()], 1), "What six noise vectors become")
        progress.set_xticks((np.arange(len(history)) + 0.5) * (SIZE + 2), history)
        progress.set_xlabel("step")
        generated = images[GENERATED][84:108]
        pairs = np.stack([generated, training[nearest_to(generated, training)]], 1)[..., 0]
        pairs = pairs.reshape(3, 8, 2, SIZE, SIZE).swapaxes(1, 2).reshape(6, 8, SIZE, SIZE)
        montage(copies, pairs, "Is it a copy? Generated digits, each above the training digit nearest to it")
        copies.set_yticks((np.arange(6) + 0.5) * (SIZE + 2), ["generated", "training"] * 3)

        loss, distance, classes = rows[2].subplots(1, 3)
        window = min(50, len(losses))
        for values, label, colour in zip(losses.T, ("discriminator", "generator"), (BLUE, VERMILLION), strict=True):
            loss.plot(np.arange(1, len(losses) + 1), values, color=colour, alpha=0.2, linewidth=0.6)
            mean = np.convolve(values, np.ones(window) / window, "valid")
            loss.plot(np.arange(window, len(losses) + 1), mean, color=colour, label=label)
        loss.set(title=f"Losses, and their mean over {window} steps", xlabel="step", ylim=(0, 3.5))
        loss.legend(frameon=False, loc="upper right", ncols=2)

        distance.plot(list(distances), list(distances.values()), color=VERMILLION, marker="o", markersize=4)
        for name, colour in zip(SETS, (GREY, VERMILLION, GREY, GREY), strict=True):
            if name != GENERATED:
                distance.axhline(judged[name].distance, color=GREY, linestyle="--", linewidth=1)
            place = dict(xycoords=("axes fraction", "data"), textcoords="offset points", ha="right")
            distance.annotate(
                name, (1, judged[name].distance), (-4, -15 if name == GENERATED else 5), color=colour, **place
            )
        distance.set(title="Fréchet distance from the training digits", xlabel="step", yscale="log")

        for name, shift, colour in ((HELD_OUT, -0.2, BLUE), (GENERATED, 0.2, VERMILLION)):
            classes.bar(np.arange(10) + shift, 100 * judged[name].classes, 0.4, color=colour, label=name)
        classes.set(title="Classes read in them, % of the set", xlabel="class", xticks=range(10))
        classes.set_ylim(0, 1.3 * classes.get_ylim()[1])
        classes.legend(frameon=False, loc="upper right", ncols=2)
        for axes in (loss, distance, classes):
            axes.spines[["top", "right"]].set_visible(False)
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, pad_inches=0.15, bbox_inches="tight")


def montage(axes: Axes, tiles: np.ndarray, title: str) -> None:
    """Images of shape (rows, columns, height, width), with gaps between them."""
    tiles = np.pad(tiles, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-1)
    axes.imshow(np.block([list(row) for row in tiles]), cmap="gray_r", vmin=-1, vmax=1)
    axes.set(title=title, xticks=[], yticks=[])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def parse(argv: Sequence[str] | None) -> dict[str, Any]:
    """The command line as arguments of `run`."""
    opening, details = (__doc__ or "").split("\n\n", 1)
    parser = argparse.ArgumentParser(prog="python -m examples.generate_digits", description=opening, epilog=details)
    parser.add_argument("--steps", type=positive, default=2400, help="training steps (default: %(default)s)")
    parser.add_argument("--seed", type=whole, default=0, help="of split, weights and noise (default: %(default)s)")
    default = Path("out/generate_digits.png")
    parser.add_argument("--out", type=Path, default=default, help="the picture (default: %(default)s)")
    return vars(parser.parse_args(argv))


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    run(**parse(argv))


if __name__ == "__main__":
    leave_at_ctrl_c("stopped by Ctrl-C")
    main()
