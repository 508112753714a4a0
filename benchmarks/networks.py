"""Time a training step of each network on convjax's layers against the same network on Flax's own, side by side.

    python -m benchmarks.networks --json benchmarks/results/networks-cpu.json

Both start from the same weights and take the same steps of gradient descent in training mode; how far apart their first
loss and the norms of its gradients are stands beside the times. Rounds are interleaved, and medians count.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

import convjax.nnx
from benchmarks import report
from benchmarks.run import describe, versions, write
from benchmarks.timing import interleaved, machine, timed
from convjax.models import create

LAYERS = {"convjax": convjax.nnx, "flax": nnx}
RATE = 1e-3  # of gradient descent


@dataclasses.dataclass(frozen=True)
class Example:
    """A network with a batch that two cores train on in well under a minute, on Flax's layers too.

    Attributes:
      shape: of the batch; integers below `vocabulary`, where there is one, else normal numbers.
    """

    name: str
    shape: tuple[int, ...]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    vocabulary: int | None = None

    def batch(self, seed: int = 0) -> jax.Array:
        rng = np.random.default_rng(seed)
        if self.vocabulary:
            return jnp.asarray(rng.integers(0, self.vocabulary, self.shape), jnp.int32)
        return jnp.asarray(rng.standard_normal(self.shape), jnp.float32)


EXAMPLES = (
    Example("lenet5", (64, 28, 28, 1)),
    Example("vgg11_bn", (4, 64, 64, 3), dict(num_classes=10)),
    Example("resnet18", (8, 64, 64, 3), dict(num_classes=10)),
    Example("resnet50", (4, 64, 64, 3), dict(num_classes=10)),
    Example("resnext50_32x4d", (4, 64, 64, 3), dict(num_classes=10)),
    Example("mobilenet_v2", (4, 96, 96, 3), dict(num_classes=10)),
    Example("convnext_tiny", (2, 128, 128, 3), dict(num_classes=10)),
    Example("unet", (2, 64, 64, 1)),
    Example("textcnn", (32, 40), vocabulary=20_000),
    Example("dcgan_generator", (16, 100)),
    Example("dcgan_discriminator", (16, 64, 64, 3)),
    Example("wavenet", (2, 2048), vocabulary=256),
)


def training_step(example: Example, layers: Any) -> tuple[Callable[..., Any], Any]:
    """A compiled step, and the first state: from state and batch to the next state, and the loss and the norms of all
    gradients before it."""
    model = create(example.name, layers=layers, rngs=nnx.Rngs(params=0, dropout=1), **example.options)
    parts: Any = nnx.split(model, nnx.Param, ...)
    graph, params, rest = parts

    def loss(params: Any, rest: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        model = nnx.merge(graph, params, rest, copy=True)  # its batch statistics will change
        value = jnp.mean(jnp.square(model(x)))
        return value, nnx.state(model, nnx.Not(nnx.Param))

    def step(state: Any, x: jax.Array) -> Any:
        params, rest = state
        (value, rest), grads = jax.value_and_grad(loss, has_aux=True)(params, rest, x)
        figures = jnp.stack([value, *map(jnp.linalg.norm, map(jnp.ravel, jax.tree.leaves(grads)))])
        return (jax.tree.map(lambda p, g: p - RATE * g, params, grads), rest), figures

    return jax.jit(step, donate_argnums=0), (params, rest)


class Training:
    """Steps of one network, each from where the last one ended."""

    def __init__(self, example: Example, layers: Any) -> None:
        self.step, self.state = training_step(example, layers)
        self.x = example.batch()

    def __call__(self) -> jax.Array:
        self.state, figures = jax.block_until_ready(self.step(self.state, self.x))
        return figures


def record(example: Example, rounds: int, patience_s: float) -> dict[str, Any]:
    """Milliseconds of a step on either kind of layers, and how far apart their first losses and gradients are."""
    result: dict[str, Any] = {"network": example.name, "shape": list(example.shape), "options": dict(example.options)}
    runs = {name: Training(example, layers) for name, layers in LAYERS.items()}
    first_s, figures = {}, {}
    for name, run in runs.items():
        figures[name], first_call_s = timed(run)
        _, first_s[name] = timed(run)
        result[name] = {"first_call_s": round(first_call_s, 2)}
    for name, seconds in interleaved(runs, first_s, rounds, patience_s).items():
        result[name] |= {"ms": round(1e3 * float(np.median(seconds)), 3), "calls": len(seconds)}
    apart = jnp.linalg.norm(figures["convjax"] - figures["flax"]) / jnp.linalg.norm(figures["flax"])
    return result | {"difference": float(f"{apart:.2g}")}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args = parse(argv)
    measured: dict[str, Any] = {"machine": machine(), "versions": versions(["flax"]), "records": []}
    for example in tqdm([e for e in EXAMPLES if args.filter in e.name], disable=None, unit="network"):
        try:
            found = record(example, args.rounds, args.patience)
        except Exception as error:  # the others go on
            found = {"network": example.name, "failed": describe(error)}
        measured["records"].append(found)
        if args.json:
            write(args.json, json.dumps(measured, indent=1) + "\n")
    print(table(measured))
    return measured


def table(measured: Mapping[str, Any]) -> str:
    """Networks down; milliseconds of a step on either kind of layers, and their ratio."""
    head = ["network", "batch", "convjax, ms", "Flax, ms", "Flax / convjax", "gradients differ by"]
    rows = []
    for found in measured["records"]:
        if "failed" in found:
            rows.append([found["network"], f"failed: {found['failed']}", "", "", "", ""])
            continue
        ours, theirs = found["convjax"]["ms"], found["flax"]["ms"]
        shape = " x ".join(map(str, found["shape"]))
        cells = [f"{ours:.3g}", f"{theirs:.3g}", f"{theirs / ours:.3g}", f"{found['difference']:.0e}"]
        rows.append([found["network"], shape, *cells])
    return report.table(head, rows)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.networks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="where the measurements go")
    parser.add_argument("--filter", default="", metavar="TEXT", help="only networks whose name holds this text")
    parser.add_argument("--rounds", type=int, default=15, help="timed steps of each at most (default: %(default)s)")
    parser.add_argument(
        "--patience", type=float, default=10.0, metavar="S", help="seconds for the steps of one (default: %(default)s)"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
