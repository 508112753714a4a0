"""Train a U-Net to take Gaussian noise out of photographs, beside total variation and non-local means.

Run as `python -m examples.denoise`. The photographs come with scikit-image and scikit-learn; coffee, chelsea and rocket
are held out as a whole. The network predicts the noise, from patches that get new noise at every step; the strengths of
both baselines are tuned on the pictures that it trains on. Prints the PSNR on the held-out pictures and draws
out/denoise.png. Takes about two minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from examples.command_line import leave_at_ctrl_c, positive, whole

Denoiser = Callable[[np.ndarray], np.ndarray]

CROPS = {"coffee": (215, 300), "chelsea": (85, 140), "rocket": (210, 260)}  # held out; top and left of what is drawn
CROP = 120
TUNING = 192  # pixels: strengths are tuned on the middle of each training picture, this high and wide
STRENGTHS = (0.4, 0.6, 0.8, 1.0, 1.3)  # of the baselines, in deviations of the noise
PATCH, BATCH = 48, 8
DEPTH = 2  # an output pixel then sees some 40 pixels across
LEARNING_RATE = 5e-3
COLOURS = {"noisy": "#8c8c8c", "total variation": "#E69F00", "non-local means": "#56B4E9", "U-Net": "#0072B2"}


class Report(NamedTuple):
    """What a run found: the mean PSNR in dB on the held-out pictures, by method, and the drawn picture."""

    psnr: dict[str, float]
    picture: Path


def load() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Pictures to train on and held-out ones, (height, width, 3) from 0 to 1."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    left, right, _ = data.stereo_motorcycle()  # one scene, so both on one side
    china, flower = load_sample_images().images
    train = dict(
        astronaut=data.astronaut(),
        motorcycle_left=left,
        motorcycle_right=right,
        retina=data.retina(),
        tissue=data.immunohistochemistry(),
        galaxies=data.hubble_deep_field(),
        china=china,
        flower=flower,
    )
    test = {name: getattr(data, name)() for name in CROPS}
    to_float = lambda pictures: {name: (p / 255).astype(np.float32) for name, p in pictures.items()}
    return to_float(train), to_float(test)


def patches(pictures: Sequence[np.ndarray], size: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Random patches, (count, size, size, 3), turned and mirrored at random; each picture is as likely."""
    found: list[np.ndarray] = []
    for _ in range(count):
        picture = pictures[int(rng.integers(len(pictures)))]
        top, left = (int(rng.integers(n - size + 1)) for n in picture.shape[:2])
        patch = np.rot90(picture[top : top + size, left : left + size], int(rng.integers(4)))
        found.append(patch[:, ::-1] if rng.integers(2) else patch)
    return np.stack(found)


def add_noise(picture: np.ndarray, sigma: float, seed: int) -> np.ndarray:
    """White Gaussian noise of deviation `sigma`; values may leave 0 to 1."""
    return picture + np.random.default_rng(seed).normal(0, sigma, picture.shape).astype(np.float32)


def psnr(clean: np.ndarray, other: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB, of values clipped to 0 to 1."""
    return float(-10 * np.log10(np.mean((clean - np.clip(other, 0, 1)) ** 2)))


def total_variation(noisy: np.ndarray, sigma: float, strength: float) -> np.ndarray:
    from skimage.restoration import denoise_tv_chambolle

    return denoise_tv_chambolle(noisy, weight=strength * sigma, channel_axis=-1)


def non_local_means(noisy: np.ndarray, sigma: float, strength: float) -> np.ndarray:
    from skimage.restoration import denoise_nl_means

    options = dict(patch_size=5, patch_distance=6, fast_mode=True, channel_axis=-1)
    return denoise_nl_means(noisy, h=strength * sigma, sigma=sigma, **options)


def tune(baseline: Callable[..., np.ndarray], pictures: Sequence[np.ndarray], sigma: float, seed: int) -> Denoiser:
    """The baseline at the strength of the highest mean PSNR on the middles of `pictures`."""
    corners = [[(n - TUNING) // 2 for n in picture.shape[:2]] for picture in pictures]
    middles = [p[i : i + TUNING, j : j + TUNING] for p, (i, j) in zip(pictures, corners, strict=True)]
    noisy = [add_noise(middle, sigma, seed) for middle in middles]
    tried = [partial(baseline, sigma=sigma, strength=strength) for strength in STRENGTHS]
    score = lambda run: np.mean([psnr(clean, run(z)) for clean, z in zip(middles, noisy, strict=True)])
    return max(tried, key=score)


def train_unet(
    pictures: Sequence[np.ndarray], sigma: float, width: int, steps: int, seed: int
) -> tuple[Denoiser, list[float]]:
    """A trained network as a function of a noisy picture, and the PSNR in dB of its batch at every step."""
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx
    from tqdm.auto import tqdm

    from convjax.models import create, parameter_count

    # It predicts the noise, with batch norm, as Zhang et al. have it (Beyond a Gaussian denoiser, arXiv:1608.03981);
    # from a last layer of zeros, so that training starts with the noisy picture itself.
    options: dict[str, Any] = dict(in_channels=3, num_classes=3, depth=DEPTH, width=width, batch_norm=True)
    model: Any = create("unet", **options, rngs=nnx.Rngs(seed))
    model.head.kernel[...] = jnp.zeros_like(model.head.kernel[...])
    schedule = optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, steps // 20, steps)
    optimizer = nnx.Optimizer(model, optax.adam(schedule), wrt=nnx.Param)

    @nnx.jit
    def step(model: Any, optimizer: Any, clean: Any, key: Any) -> Any:
        noisy = clean + sigma * jax.random.normal(key, clean.shape)

        def loss(model: Any) -> Any:
            return jnp.mean((noisy - model(noisy) - clean) ** 2)

        value, grads = nnx.value_and_grad(loss)(model)
        optimizer.update(model, grads)
        return value

    rng, key, curve = np.random.default_rng(seed), jax.random.key(seed), []
    with tqdm(total=steps, desc=f"training {parameter_count(model):,} weights", unit="step", mininterval=0.5) as bar:
        for number in range(steps):
            loss = step(model, optimizer, patches(pictures, PATCH, BATCH, rng), jax.random.fold_in(key, number))
            curve.append(-10 * np.log10(float(loss)))
            bar.set_postfix(PSNR=f"{np.mean(curve[-50:]):.2f} dB", refresh=False)
            bar.update()
    model.eval()
    predict = nnx.jit(lambda model, noisy: noisy - model(noisy))  # pictures of any size
    return lambda noisy: np.asarray(predict(model, noisy)), curve


def draw(path: Path, clean: Mapping[str, np.ndarray], shown: Mapping[str, Mapping[str, np.ndarray]], curve: list[float],
         sigma: float) -> None:  # fmt: skip
    """Write the picture; `shown` holds the held-out pictures by method, then name."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    figure = Figure(figsize=(13, 11), layout="constrained", dpi=110)
    parts: Any = figure.subfigures(2, 1, height_ratios=[2.5, 1])
    parts[0].suptitle(
        f"Held-out photographs, Gaussian noise of deviation {255 * sigma:.0f}/255: framed crops, PSNR of the whole\n"
    )
    axes = parts[0].subplots(len(clean), 2 + len(shown), width_ratios=[1.5] + [1] * (1 + len(shown)))
    for row, (name, picture) in zip(axes, clean.items(), strict=True):
        top, left = CROPS[name]
        crop = lambda p, top=top, left=left: np.clip(p[top : top + CROP, left : left + CROP], 0, 1)
        row[0].imshow(picture)
        for colour, linewidth in (("white", 3), ("black", 1)):
            row[0].add_patch(Rectangle((left, top), CROP, CROP, fill=False, edgecolor=colour, linewidth=linewidth))
        row[0].set_title(name)
        row[1].imshow(crop(picture))
        row[1].set_title("clean")
        levels = {method: psnr(picture, pictures[name]) for method, pictures in shown.items()}
        for a, (method, level) in zip(row[2:], levels.items(), strict=True):
            a.imshow(crop(shown[method][name]))
            best = level == max(levels.values())
            a.set_title(f"{method}\n{level:.2f} dB", fontweight="bold" if best else "normal")
    for a in axes.flat:
        a.set(xticks=[], yticks=[])

    left_axes, right_axes = parts[1].subplots(1, 2)
    window = max(1, len(curve) // 30)
    mean = np.convolve(curve, np.ones(window) / window, "valid")
    left_axes.plot(np.arange(1, len(curve) + 1), curve, color="#d0d0d0", linewidth=0.8, label="each batch")
    left_axes.plot(np.arange(window, len(curve) + 1), mean, color="#0072B2", label=f"mean of {window}")
    left_axes.axhline(-20 * np.log10(sigma), color="black", linestyle=":", label="before denoising")
    left_axes.set(xlabel="training steps", ylabel="PSNR, dB", title="U-Net on training patches")
    left_axes.legend(loc="center right")
    for i, (method, pictures) in enumerate(shown.items()):
        places = np.arange(len(clean)) + (i - (len(shown) - 1) / 2) * 0.2
        heights = [psnr(picture, pictures[name]) for name, picture in clean.items()]
        bars = right_axes.bar(places, heights, 0.19, color=COLOURS[method], label=method)
        right_axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
    right_axes.set_xticks(range(len(clean)), clean)
    right_axes.set(ylabel="PSNR, dB", title="Held-out pictures; higher is better")
    right_axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=len(shown), frameon=False)
    for a in (left_axes, right_axes):
        a.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def run(steps: int, width: int, sigma: int, seed: int, out: Path) -> Report:
    """Tune the baselines, train, test, draw."""
    import jax  # here, so that --help is quick

    train, test = load()
    device, deviation, pictures = jax.devices()[0], sigma / 255, list(train.values())
    print(
        f"{len(train)} pictures of {sum(p.size // 3 for p in pictures) / 1e6:.1f} million pixels to train on, "
        f"held out: {', '.join(test)}; device: {device.platform} ({device.device_kind}), jax {jax.__version__}",
        flush=True,
    )
    methods: dict[str, Denoiser] = {
        "noisy": lambda noisy: noisy,
        "total variation": tune(total_variation, pictures, deviation, seed),
        "non-local means": tune(non_local_means, pictures, deviation, seed),
    }
    start = time.perf_counter()
    methods["U-Net"], curve = train_unet(pictures, deviation, width, steps, seed)
    print(f"{steps} steps in {time.perf_counter() - start:.0f} s, compilation included", flush=True)

    noisy = {name: add_noise(picture, deviation, seed) for name, picture in test.items()}
    shown = {method: {name: denoise(z) for name, z in noisy.items()} for method, denoise in methods.items()}
    print(f"{'PSNR, dB':16}{''.join(f'{name:>10}' for name in test)}{'mean':>10}")
    means = {}
    for method, results in shown.items():
        levels = [psnr(test[name], result) for name, result in results.items()]
        means[method] = float(np.mean(levels))
        print(f"{method:16}{''.join(f'{level:10.2f}' for level in [*levels, means[method]])}")
    draw(out, test, shown, curve, deviation)
    print(f"wrote {out}")
    return Report(means, out)


def parse(argv: Sequence[str] | None) -> dict[str, Any]:
    """The command line as arguments of `run`."""
    opening, details = (__doc__ or "").split("\n\n", 1)
    parser = argparse.ArgumentParser(prog="python -m examples.denoise", description=opening, epilog=details)
    parser.add_argument("--steps", type=positive, default=1200, help="training steps (default: %(default)s)")
    parser.add_argument("--width", type=positive, default=16, help="channels at full resolution (default: %(default)s)")
    parser.add_argument("--sigma", type=positive, default=25, help="of the noise, in 1/255 (default: %(default)s)")
    parser.add_argument("--seed", type=whole, default=0, help="of weights, patches, noise (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("out/denoise.png"), help="the picture (default: %(default)s)")
    return vars(parser.parse_args(argv))


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    run(**parse(argv))


if __name__ == "__main__":
    leave_at_ctrl_c("stopped by Ctrl-C")
    main()
