"""Data, training and timing of the digits demo."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

from examples import digits_network as network

HELD_OUT = 0.2
BATCH = 64
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.05
LABEL_SMOOTHING = 0.1


class Digits(NamedTuple):
    """Images `(N, 8, 8, 1)` from 0 to 1 and their labels, in two parts."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


class State(NamedTuple):
    """What a training step changes."""

    params: network.Params
    moments: Any
    key: Array


Step = Callable[[State, Any, Any], tuple[State, Array]]


def load(seed: int) -> Digits:
    """scikit-learn's 1,797 handwritten digits; a fifth of each class is held out."""
    data = load_digits()
    images = (data.images[..., None] / 16).astype(np.float32)
    parts = train_test_split(images, data.target, test_size=HELD_OUT, stratify=data.target, random_state=seed)
    return Digits(parts[0], parts[2], parts[1], parts[3])


def initial_state(optimizer: optax.GradientTransformation, seed: int) -> State:
    init_key, key = jax.random.split(jax.random.key(seed))
    params = network.init(init_key)
    return State(params, optimizer.init(params), key)


def make_optimizer(steps: int) -> optax.GradientTransformation:
    """AdamW with a warm-up over a tenth of the steps and a cosine decay."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, max(1, steps // 10), max(2, steps))
    return optax.adamw(schedule, weight_decay=WEIGHT_DECAY)


def make_step(optimizer: optax.GradientTransformation, algorithm: str) -> Step:
    """A compiled training step whose convolutions all run by `algorithm`."""

    def loss(params: network.Params, images: Array, labels: Array) -> Array:
        targets = optax.smooth_labels(jax.nn.one_hot(labels, network.CLASSES), LABEL_SMOOTHING)
        return jnp.mean(optax.softmax_cross_entropy(network.logits(params, images, algorithm), targets))

    @jax.jit
    def step(state: State, images: Array, labels: Array) -> tuple[State, Array]:
        key, now = jax.random.split(state.key)
        value, grads = jax.value_and_grad(loss)(state.params, disturb(now, images), labels)
        updates, moments = optimizer.update(grads, state.moments, state.params)
        return State(optax.apply_updates(state.params, updates), moments, key), value

    return step


def disturb(key: Array, images: Array) -> Array:
    """Each image turned by up to 12 degrees, scaled by up to 10 % and shifted by up to one pixel, at random."""
    angle, scale, shift = jax.random.split(key, 3)
    n, size = images.shape[0], images.shape[1]
    angles = jax.random.uniform(angle, (n,), minval=-np.pi / 15, maxval=np.pi / 15)
    scales = jax.random.uniform(scale, (n,), minval=0.9, maxval=1.1)
    shifts = jax.random.uniform(shift, (n, 2), minval=-1.0, maxval=1.0)
    centre = (size - 1) / 2
    grid = jnp.stack(jnp.meshgrid(jnp.arange(size), jnp.arange(size), indexing="ij")) - centre

    def one(image: Array, angle: Array, scale: Array, shift: Array) -> Array:
        turn = scale * jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]])
        where = jnp.tensordot(turn, grid, axes=1) + centre + shift[:, None, None]
        return jax.scipy.ndimage.map_coordinates(image[..., 0], list(where), order=1)[..., None]

    return jax.vmap(one)(images, angles, scales, shifts)


def batches(data: Digits, steps: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`steps` batches; every pass over the training part is in a new order."""
    rng = np.random.default_rng(seed)
    order = np.empty(0, int)
    for _ in range(steps):
        if len(order) < BATCH:
            order = rng.permutation(len(data.train_labels))
        now, order = order[:BATCH], order[BATCH:]
        yield data.train_images[now], data.train_labels[now]


def train(step: Step, state: State, data: Digits, steps: int, seed: int) -> State:
    """Run the steps under a progress bar that shows the loss."""
    with tqdm(total=steps, desc="training", unit="step", mininterval=0.5) as bar:
        for images, labels in batches(data, steps, seed):
            state, loss = step(state, images, labels)
            bar.set_postfix(loss=f"{float(loss):.3f}", refresh=False)
            bar.update()
    return state


def predict(params: network.Params, images: np.ndarray) -> np.ndarray:
    """The most likely class of each image."""
    return np.asarray(jnp.argmax(jax.jit(network.logits)(params, images), axis=-1))


def step_times(steps: dict[str, Step], state: State, data: Digits, repeats: int) -> dict[str, float]:
    """Median milliseconds of each training step, the steps taking turns so that all meet the same machine."""
    images, labels = data.train_images[:BATCH], data.train_labels[:BATCH]
    runs = {name: partial(step, state, images, labels) for name, step in steps.items()}
    for run in runs.values():
        jax.block_until_ready(run())  # compile
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}
