"""Train a deformable and rigid networks of equal size on turned and scaled digits, and see where they look.

Run as `python -m examples.deformable_digits`. scikit-learn's handwritten digits are turned by up to 45 degrees either
way and drawn 8 to 20 pixels high, at random, to train on as well as to test on held-out ones. Every network has a
strided convolution and two more, all 3x3; those two are `convjax.nnx.DeformConv` of dilation 2 in one network and
`convjax.nnx.Conv`, of dilation 1 or 2, in the rigid ones, which are wider, so that all have as many parameters, but for
one or two in a hundred. All take the same steps on the same digits; a step of the deformable one takes longer. Prints
the accuracies, and draws them, by the size of the digits too, and the points of the input that an output is computed
from into out/deformable_digits.png. Takes about three minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from jax.scipy.ndimage import map_coordinates
from matplotlib.figure import Figure
from scipy import ndimage
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

from convjax.models import parameter_count
from convjax.nnx import Conv, DeformConv
from examples.command_line import leave_at_ctrl_c, positive

SIDE = 24  # pixels of an input
ANGLE = 45.0  # degrees, either way
HEIGHTS = 8.0, 20.0  # pixels of a digit, evenly in the logarithm
SHIFT = 1.5  # pixels, either way
HELD_OUT, TURNS = 0.25, 4  # the share of digits, and how often each of them is tested, turned and scaled anew
STRIDE = 2  # of the first convolution
BATCH = 32
LEARNING_RATE = 1e-2
OF_OFFSETS = 0.2  # of the learning rate: at the full rate the taps wander before there are features worth seeking
BLUE, VERMILLION, ORANGE, GREY = "#0072B2", "#D55E00", "#E69F00", "#707070"  # Okabe and Ito's


class Setting(NamedTuple):
    """A network: channels of each convolution, whether the last two deform, and their dilation."""

    width: int
    deformable: bool
    dilation: int
    colour: str


RIGID, RIGID_DILATED, DEFORMABLE = "rigid, dilation 1", "rigid, dilation 2", "deformable"
NETWORKS = {
    RIGID: Setting(23, False, 1, GREY),
    RIGID_DILATED: Setting(23, False, 2, ORANGE),
    DEFORMABLE: Setting(16, True, 2, BLUE),
}


class Digits(NamedTuple):
    """Digits `(N, SIDE, SIDE)` from 0 to 1 as high as the picture, and their labels."""

    images: np.ndarray
    labels: np.ndarray


class Result(NamedTuple):
    """Networks of one kind, one a seed: shares of test digits told right, and what training took."""

    models: list[Network]
    parameters: int
    right: np.ndarray  # (seeds, digits): whether each was
    curve: np.ndarray  # (seeds, steps): the loss
    step_ms: float


class Network(nnx.Module):
    """Three convolutions with batch norm, the mean over space, and a linear layer."""

    def __init__(self, setting: Setting, *, rngs: nnx.Rngs):
        width = setting.width
        taps: dict[str, Any] = dict(kernel_dilation=setting.dilation)
        self.convs: Any = nnx.List([Conv(1, width, (3, 3), strides=STRIDE, rngs=rngs)])
        for _ in range(2):
            if setting.deformable:
                self.convs.append(DeformConv(width, width, (3, 3), modulated=False, **taps, rngs=rngs))
            else:
                self.convs.append(Conv(width, width, (3, 3), **taps, rngs=rngs))
        self.norms = nnx.List([nnx.BatchNorm(width, momentum=0.9, rngs=rngs) for _ in self.convs])
        self.head = nnx.Linear(width, 10, rngs=rngs)

    def features(self, x: Array) -> list[Array]:
        """What each convolution is given, and the last one's output."""
        found = [x]
        for conv, norm in zip(self.convs, self.norms, strict=True):
            found.append(jax.nn.relu(norm(conv(found[-1]))))
        return found

    def __call__(self, x: Array) -> Array:
        return self.head(self.features(x)[-1].mean((-3, -2)))


class Report(NamedTuple):
    """What a run found, by network."""

    results: dict[str, Result]
    picture: Path


# --- data -------------------------------------------------------------------------------------------------------------


def load() -> tuple[Digits, Digits]:
    """Digits to train on and held-out ones, enlarged to the whole picture."""
    data = load_digits()
    zoom = SIDE / data.images.shape[1]
    images = [ndimage.zoom(image / 16, zoom, order=3, mode="grid-constant", grid_mode=True) for image in data.images]
    parts = train_test_split(
        np.stack(images).clip(0, 1).astype(np.float32),
        data.target,
        test_size=HELD_OUT,
        stratify=data.target,
        random_state=0,
    )
    return Digits(parts[0], parts[2]), Digits(parts[1], parts[3])


@jax.jit
def place(images: Array, angles: Array, heights: Array, shifts: Array) -> Array:
    """Each digit turned by an angle in degrees, of a height in pixels, away from the middle: `(N, SIDE, SIDE, 1)`."""
    cells = jnp.stack(jnp.mgrid[:SIDE, :SIDE], -1) - (SIDE - 1) / 2

    def one(image: Array, angle: Array, height: Array, shift: Array) -> Array:
        cos, sin = jnp.cos(jnp.deg2rad(angle)), jnp.sin(jnp.deg2rad(angle))
        at = (cells - shift) @ jnp.array([[cos, -sin], [sin, cos]]) * (SIDE / height) + (SIDE - 1) / 2
        return map_coordinates(image, [at[..., 0], at[..., 1]], order=1)

    return jax.vmap(one)(images, angles, heights, shifts)[..., None]


@jax.jit
def disturb(images: Array, key: Array) -> tuple[Array, Array]:
    """Digits placed at random, and their heights."""
    keys, count = jax.random.split(key, 3), len(images)
    angles = jax.random.uniform(keys[0], (count,), minval=-ANGLE, maxval=ANGLE)
    heights = jnp.exp(jax.random.uniform(keys[1], (count,), minval=np.log(HEIGHTS[0]), maxval=np.log(HEIGHTS[1])))
    shifts = jax.random.uniform(keys[2], (count, 2), minval=-SHIFT, maxval=SHIFT)
    return place(images, angles, heights, shifts), heights


# --- training ---------------------------------------------------------------------------------------------------------


def adam(steps: int) -> optax.GradientTransformation:
    """Adam, with a lower learning rate for whatever predicts offsets."""

    def part(path: Any, _: Any) -> str:
        return "offsets" if any(getattr(key, "key", None) == "offset" for key in path) else "others"

    def at(peak: float) -> optax.GradientTransformation:
        return optax.adam(optax.warmup_cosine_decay_schedule(0.0, peak, max(1, steps // 10), max(2, steps)))

    rates = {"others": at(LEARNING_RATE), "offsets": at(OF_OFFSETS * LEARNING_RATE)}
    by_part = optax.multi_transform(rates, partial(jax.tree.map_with_path, part))
    return optax.chain(optax.clip_by_global_norm(1.0), by_part)


@nnx.jit
def train_step(model: Network, optimizer: nnx.Optimizer, images: Array, labels: Array) -> Array:
    def loss(model: Network) -> Array:
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(model(images), labels))

    value, grads = nnx.value_and_grad(loss)(model)
    optimizer.update(model, grads)
    return value


@nnx.jit
def predict(model: Network, images: Array) -> Array:
    return jnp.argmax(model(images), -1)


def train(
    setting: Setting, digits: Digits, steps: int, seed: int, rule: optax.GradientTransformation, bar: Any
) -> tuple[Network, list[float], float]:
    """A trained network, its losses, and the milliseconds of a step without compilation."""
    model = Network(setting, rngs=nnx.Rngs(seed))
    optimizer = nnx.Optimizer(model, rule, wrt=nnx.Param)
    rng, key, losses, taken = np.random.default_rng(seed), jax.random.key(seed), [], []
    for step in range(steps):
        now = rng.integers(0, len(digits.labels), BATCH)
        images, _ = disturb(digits.images[now], jax.random.fold_in(key, step))
        start = time.perf_counter()
        losses.append(float(train_step(model, optimizer, images, jnp.asarray(digits.labels[now]))))
        taken.append(time.perf_counter() - start)
        bar.set_postfix(loss=f"{np.mean(losses[-50:]):.2f}", refresh=False)
        bar.update()
    model.eval()
    return model, losses, 1e3 * float(np.median(taken))


def compare(digits: Digits, images: Array, labels: np.ndarray, steps: int, seeds: int) -> dict[str, Result]:
    """Every network, trained from every seed and tested."""
    results, rule = {}, adam(steps)  # the same object, so that networks of one kind share what is compiled
    with tqdm(total=len(NETWORKS) * seeds * steps, unit="step", mininterval=0.5) as bar:
        for name, setting in NETWORKS.items():
            runs = []
            for seed in range(seeds):
                bar.set_description(f"{name}, seed {seed}")
                runs.append(train(setting, digits, steps, seed, rule, bar))
            models, curves, ms = zip(*runs, strict=True)
            right = np.stack([np.asarray(predict(model, images)) == labels for model in models])
            parameters = parameter_count(models[0])
            results[name] = Result(list(models), parameters, right, np.array(curves), float(np.median(ms)))
    return results


# --- where a network looks --------------------------------------------------------------------------------------------


def taps(conv: Any, inputs: Array) -> np.ndarray:
    """Which of its inputs each output is computed from, before interpolation: `(N, H, W, 9, 2)`."""
    rows, columns = inputs.shape[1:3]
    around = np.moveaxis(np.mgrid[-1:2, -1:2], 0, -1).reshape(9, 2) * conv.kernel_dilation
    rigid = np.moveaxis(np.mgrid[:rows, :columns], 0, -1)[:, :, None] + around
    if not isinstance(conv, DeformConv):
        return np.broadcast_to(rigid, (len(inputs), *rigid.shape))
    return rigid + np.asarray(conv.offset(inputs)).reshape(-1, *rigid.shape)


def sampling_points(model: Network, images: Array) -> np.ndarray:
    """The 9 x 9 pixels that the middle output of each image is computed from: `(N, 81, 2)`.

    Those of the last convolution, and around each of them those of the one before it, which are displaced as at the
    nearest of its outputs; of the first convolution the middle tap. The 41st is the middle itself where taps are rigid.
    """
    inputs = model.features(images)
    before, last = (taps(conv, x) for conv, x in zip(list(model.convs)[1:], inputs[1:3], strict=True))
    side = last.shape[1]
    at = last[:, side // 2, side // 2]  # (N, 9, 2)
    nearest = np.clip(np.rint(at), 0, side - 1).astype(int)
    example = np.arange(len(images))[:, None]
    around = before[example, nearest[..., 0], nearest[..., 1]] + (at - nearest)[:, :, None]  # (N, 9, 9, 2)
    return STRIDE * around.reshape(len(images), 81, 2) + 1  # SAME pads an even size at the end only


def reach_of(models: Sequence[Network], digits: Digits, height: float, count: int = 50) -> float:
    """How far the sampling points lie from their mean, root mean square in pixels, over upright digits and networks."""
    upright = place(digits.images[:count], np.zeros(count), np.full(count, height), np.zeros((count, 2)))
    points = np.stack([sampling_points(model, upright) for model in models])
    return float(np.sqrt(((points - points.mean(-2, keepdims=True)) ** 2).sum(-1).mean()))


# --- picture ----------------------------------------------------------------------------------------------------------


def draw(path: Path, results: dict[str, Result], heights: np.ndarray, digits: Digits) -> None:
    """Write the picture; `heights` are those of the test digits."""
    figure = Figure(figsize=(12, 10), layout="constrained", dpi=110)
    figure.suptitle("Digits turned and scaled at random: deformable and rigid networks of equal size", fontsize=14)
    halves: Any = figure.subfigures(2, 1, height_ratios=[1.2, 1])
    above, below = halves

    shown = np.geomspace(*HEIGHTS, 5)
    one = digits.images[np.flatnonzero(digits.labels == 2)[0]]
    images = place(
        np.repeat(one[None], len(shown), 0), np.linspace(-ANGLE, ANGLE, len(shown)), shown, np.zeros((len(shown), 2))
    )
    names = [RIGID_DILATED, DEFORMABLE]
    middle = sampling_points(results[RIGID].models[0], images)[0, 40]  # the middle tap of the middle tap
    axes: Any = above.subplots(2, len(shown), sharex=True, sharey=True)
    above.suptitle("A held-out digit, and the 9 x 9 places that the output in the middle is computed from (seed 0)")
    for row, name in zip(axes, names, strict=True):
        points = sampling_points(results[name].models[0], images)
        for a, image, places, height in zip(row, images, points, shown, strict=True):
            a.imshow(image[..., 0], cmap="gray", vmin=0, vmax=1.4)
            a.plot(places[:, 1], places[:, 0], ".", color=ORANGE, markersize=5, markeredgewidth=0)
            a.plot(middle[1], middle[0], "+", color="#56B4E9", markersize=11, markeredgewidth=2)
            a.set(xticks=[], yticks=[], xlim=(-4, SIDE + 3), ylim=(SIDE + 3, -4), facecolor="black")
            if name == names[0]:
                a.set_title(f"{height:.0f} pixels high")
        row[0].set_ylabel(name, fontsize=12)

    accuracy, by_height, reach = below.subplots(1, 3)
    for i, (name, result) in enumerate(results.items()):
        each, colour = 100 * result.right.mean(1), NETWORKS[name].colour
        accuracy.bar(i, each.mean(), color=colour, width=0.6)
        accuracy.plot(i + np.linspace(-0.1, 0.1, len(each)), each, "o", color="black", markersize=4)
        accuracy.text(i, each.max() + 2.5, f"{each.mean():.1f}", ha="center")
    accuracy.set_xticks(range(len(results)), [name.replace(", ", ",\n") for name in results])
    accuracy.set(ylim=(0, 100), ylabel="held-out digits told right, %", title="Accuracy (dots: seeds)")

    edges = np.geomspace(*HEIGHTS, 6)
    middles = np.sqrt(edges[1:] * edges[:-1])
    bins = np.digitize(heights, edges[1:-1])
    for name, result in results.items():
        shares = [100 * result.right[:, bins == b].mean() for b in range(len(middles))]
        by_height.plot(middles, shares, "o-", color=NETWORKS[name].colour, label=name)
    by_height.set(xlabel="height of the digit, pixels", ylabel="told right, %", title="By size")
    by_height.legend(loc="lower right", fontsize=9)

    for name, result in results.items():
        reach.plot(middles, [reach_of(result.models, digits, h) for h in middles], "o-", color=NETWORKS[name].colour)
    reach.set(xlabel="height of the digit, pixels", title="How far apart the places lie")
    reach.set_ylabel("distance from their mean, root mean square, pixels")
    reach.set_ylim(bottom=0)
    for a in (accuracy, by_height, reach):
        a.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def run(steps: int, seeds: int, out: Path) -> Report:
    """Train, test, draw."""
    training, held_out = load()
    device = jax.devices()[0]
    print(
        f"{len(training.labels)} digits to train on, {len(held_out.labels)} held out, each tested {TURNS} times; "
        f"device: {device.platform} ({device.device_kind}), jax {jax.__version__}",
        flush=True,
    )
    labels = np.tile(held_out.labels, TURNS)
    images, heights = disturb(np.tile(held_out.images, (TURNS, 1, 1)), jax.random.key(12_345))
    start = time.perf_counter()
    results = compare(training, images, labels, steps, seeds)
    print(f"{len(results)} networks, {seeds} seeds, {steps} steps of {BATCH} in {time.perf_counter() - start:.0f} s")
    print(f"{'':20}{'parameters':>12}{'ms a step':>12}{'told right, mean and spread over seeds':>42}")
    for name, result in results.items():
        each = 100 * result.right.mean(1)
        told = f"{each.mean():.1f} +- {each.std(ddof=min(1, seeds - 1)):.1f} %  ({', '.join(f'{a:.1f}' for a in each)})"
        print(f"{name:20}{result.parameters:12,}{result.step_ms:12.1f}{told:>42}")
    accuracy = {name: float(result.right.mean()) for name, result in results.items()}
    rigid = max((RIGID, RIGID_DILATED), key=accuracy.__getitem__)
    lead = 100 * (accuracy[DEFORMABLE] - accuracy[rigid])
    print(f"the deformable network leads the better rigid one ({rigid}) by {lead:.1f} points")
    draw(out, results, np.asarray(heights), held_out)
    print(f"wrote {out}")
    return Report(results, out)


def parse(argv: Sequence[str] | None) -> dict[str, Any]:
    """The command line as arguments of `run`."""
    opening, details = (__doc__ or "").split("\n\n", 1)
    parser = argparse.ArgumentParser(prog="python -m examples.deformable_digits", description=opening, epilog=details)
    add = parser.add_argument
    add("--steps", type=positive, default=800, help="training steps of each network (default: %(default)s)")
    add("--seeds", type=positive, default=3, help="networks of each kind (default: %(default)s)")
    add("--out", type=Path, default=Path("out/deformable_digits.png"), help="the picture (default: %(default)s)")
    return vars(parser.parse_args(argv))


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    run(**parse(argv))


if __name__ == "__main__":
    leave_at_ctrl_c("stopped by Ctrl-C")
    main()
