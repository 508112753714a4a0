"""Network, optimiser and data-parallel step of the image-folder training script.

The batch is split over a mesh of one axis, everything else lies on every device; the compiler adds the sums between
devices. Batch norm sees the whole batch, so that the number of devices changes nothing but the rounding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from convjax.models import create, list_models
from examples.image_folder import CannotTrain

SMALL = "small"  # for small images and few cores: a residual network of 78 thousand parameters
SMALL_OPTIONS: dict[str, Any] = dict(
    block="basic", depths=(1, 1, 1), widths=(16, 32, 64), strides=(1, 2, 2), stem="cifar", stem_width=16
)
FAMILIES = ("convnext", "lenet", "mobilenet", "resnet", "vgg")
MOMENTUM = 0.9


class Recipe(NamedTuple):
    """How the loss is minimised: `rate` rises over `warmup` steps, then falls along a cosine to 0 after `steps`."""

    optimizer: str
    rate: float
    weight_decay: float
    warmup: int
    steps: int
    label_smoothing: float


class State(NamedTuple):
    """What a training step changes: weights; batch statistics and random keys; the optimiser's moments."""

    params: Any
    others: Any
    moments: Any


def model_names() -> list[str]:
    return [SMALL, *(name for family in FAMILIES for name in list_models(family))]


def build(name: str, options: dict[str, Any], classes: int, size: int, channels: int, dtype: str, seed: int) -> Any:
    """A network with new weights in float32, computing in `dtype`.

    Raises:
      CannotTrain: an unknown name or option, or images of this size do not fit the network.
    """
    options = dict(num_classes=classes, in_channels=channels, dtype=jnp.dtype(dtype)) | options
    if name == SMALL:
        name, options = "resnet18", SMALL_OPTIONS | options
    elif name not in model_names():
        raise CannotTrain(f"--model {name} is not known. Type one of: {' '.join(model_names())}.")
    elif name.startswith("lenet"):
        options = dict(image_size=size) | options
    try:
        model = create(name, rngs=nnx.Rngs(seed), **options)
        graph, state = nnx.split(model)
        images = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
        jax.eval_shape(lambda state, images: nnx.merge(graph, state)(images), state, images)
    except (TypeError, ValueError) as error:
        raise CannotTrain(f"--model {name} with --size {size}: {error}") from error
    return model


def make_optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """SGD with Nesterov momentum or AdamW; biases and norms do not decay."""
    schedule = learning_rate(recipe)
    decayed = lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)
    if recipe.optimizer == "adamw":
        return optax.adamw(schedule, weight_decay=recipe.weight_decay, mask=decayed)
    return optax.chain(
        optax.add_decayed_weights(recipe.weight_decay, decayed), optax.sgd(schedule, MOMENTUM, nesterov=True)
    )


def learning_rate(recipe: Recipe) -> optax.Schedule:
    warmup = min(recipe.warmup, recipe.steps - 1)
    return optax.warmup_cosine_decay_schedule(0.0 if warmup else recipe.rate, recipe.rate, warmup, recipe.steps)


@dataclasses.dataclass
class Trainer:
    """The compiled steps of one network, and where its arrays lie.

    Args:
      model: any `nnx` module from images to logits.
      recipe: how it is trained.
      devices: all local ones unless given.
    """

    model: Any
    recipe: Recipe
    devices: Sequence[jax.Device] | None = None

    def __post_init__(self) -> None:
        mesh = Mesh(np.array(self.devices or jax.local_devices()), ("batch",))
        self.replicated = NamedSharding(mesh, PartitionSpec())
        self.split = NamedSharding(mesh, PartitionSpec("batch"))
        parts: Any = nnx.split(self.model, nnx.Param, ...)
        self.graph, params, others = parts
        self.optimizer = make_optimizer(self.recipe)
        # A copy, as the step gives the memory of its state to the next one, and the model keeps its own.
        state = jax.tree.map(jnp.copy, State(params, others, self.optimizer.init(params)))
        self.initial: State | None = jax.device_put(state, self.replicated)
        self.step = jax.jit(self._step, donate_argnums=0, out_shardings=(self.replicated, self.replicated))
        self.right = jax.jit(self._right, out_shardings=self.replicated)

    def start(self) -> State:
        """The state before the first step; once, as the step that takes it uses its memory up."""
        state, self.initial = self.initial, None
        if state is None:
            raise RuntimeError("Trainer.start: the state was handed out already. Build another Trainer.")
        return state

    def put(self, batch: Iterable[np.ndarray]) -> tuple[Array, ...]:
        """A batch onto the devices, a part on each."""
        return tuple(jax.device_put(part, self.split) for part in batch)

    def _step(self, state: State, images: Array, labels: Array) -> tuple[State, Array]:
        """The next state, and the loss and accuracy on this batch before it."""

        def loss(params: Any) -> tuple[Array, tuple[Any, Array]]:
            model = nnx.merge(self.graph, params, state.others, copy=True)  # its batch statistics will change
            model.train()
            logits = model(images).astype(jnp.float32)
            targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), self.recipe.label_smoothing)
            value = jnp.mean(optax.softmax_cross_entropy(logits, targets))
            right = jnp.mean(jnp.argmax(logits, axis=-1) == labels)
            return value, (nnx.state(model, nnx.Not(nnx.Param)), jnp.stack([value, right]))

        grads, (others, figures) = jax.grad(loss, has_aux=True)(state.params)
        updates, moments = self.optimizer.update(grads, state.moments, state.params)
        return State(optax.apply_updates(state.params, updates), others, moments), figures

    def _right(self, state: State, images: Array, labels: Array, weights: Array) -> tuple[Array, Array]:
        """How many of a held-out batch are right, and what was read in each."""
        model = nnx.merge(self.graph, state.params, state.others)
        model.eval()
        read = jnp.argmax(model(images), axis=-1)
        return jnp.sum((read == labels) * weights), read


def check_batch(batch: int, images: int, devices: int) -> None:
    """Refuse a batch that the folder cannot fill or the devices cannot share."""
    if batch > images:
        raise CannotTrain(f"--batch {batch} is more than the {images} images to train on. Type --batch {images}.")
    if batch % devices:
        fitting = max(devices, batch // devices * devices)
        raise CannotTrain(f"--batch {batch} is not a multiple of the {devices} devices. Type --batch {fitting}.")
