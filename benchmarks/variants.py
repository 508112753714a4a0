"""Time what the suite of layers does not show, against what one would write in JAX instead, side by side.

    python -m benchmarks.variants --json benchmarks/results/variants-cpu.json

Four families: deformable convolution against samples by `jax.scipy.ndimage.map_coordinates`, mapped over examples and
channels, and against four gathers of all channels at once; gradients of each example, `vmap(grad)`, against the same of
lax; layers in a row, whose outputs XLA would compute anew at every tap that reads them; and a long response applied
block by block in `lax.scan` against lax's convolution of each block. Rounds are interleaved, and medians count; how far
the results differ stands beside the times.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.scipy.ndimage import map_coordinates
from tqdm import tqdm

import convjax
from benchmarks import report
from benchmarks.run import describe, versions, write
from benchmarks.timing import interleaved, machine, timed
from convjax.deformable import deform_conv
from convjax.streaming import stream_conv
from convjax.unshared import local_conv

OURS = "convjax"
NHWC = ("NHWC", "HWIO", "NHWC")
NWC = ("NWC", "WIO", "NWC")


class Contender(NamedTuple):
    """A program, its operands, and how its result is brought into the form of convjax's."""

    run: Callable[..., Any]
    operands: tuple[Any, ...]
    read: Callable[[Any], Any] = lambda result: result


class Case(Protocol):
    """What is timed: `contenders(mode)` by name, convjax first."""

    @property
    def name(self) -> str: ...

    @property
    def modes(self) -> tuple[str, ...]: ...

    def contenders(self, mode: str) -> dict[str, Contender]: ...


def normal(seed: int, *shape: int) -> Array:
    return jnp.asarray(np.random.default_rng((seed, *shape)).standard_normal(shape), jnp.float32)


def squares(y: Array) -> Array:
    """A loss whose gradient needs the output."""
    return jnp.mean(jnp.square(y))


# --- deformable convolution -------------------------------------------------------------------------------------------


def displaced(offset: Array, k: int) -> Array:
    """Where the taps of a `k` x `k` kernel look, SAME and without stride: `(N, H, W, k * k, 2)`."""
    batch, height, width, _ = offset.shape
    taps = jnp.stack(jnp.meshgrid(jnp.arange(k), jnp.arange(k), indexing="ij"), -1).reshape(-1, 2) - (k - 1) // 2
    cells = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"), -1)
    return cells[:, :, None] + taps + offset.reshape(batch, height, width, k * k, 2)


def contract(samples: Array, mask: Array | None, w: Array) -> Array:
    samples = samples if mask is None else samples * mask[..., None]
    return jnp.tensordot(samples, w.reshape(-1, *w.shape[2:]), 2)


def by_map_coordinates(x: Array, offset: Array, w: Array, mask: Array | None = None) -> Array:
    """Each channel of each example is an image to be sampled."""
    channel = lambda image, at: map_coordinates(image, [at[..., 0], at[..., 1]], order=1)
    example = jax.vmap(channel, in_axes=(-1, None), out_axes=-1)
    return contract(jax.vmap(example)(x, displaced(offset, w.shape[0])), mask, w)


def by_gathers(x: Array, offset: Array, w: Array, mask: Array | None = None) -> Array:
    """Pixels are rows of channels, and each sample a sum of four of them."""
    height, width = x.shape[1:3]

    def example(image: Array, at: Array) -> Array:
        lower = jnp.floor(at)
        above, below = at - lower, 1 - (at - lower)
        total: Any = 0
        for dy, fy in ((0, below[..., 0]), (1, above[..., 0])):
            for dx, fx in ((0, below[..., 1]), (1, above[..., 1])):
                row, column = lower[..., 0].astype(int) + dy, lower[..., 1].astype(int) + dx
                inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
                pixel = image[row.clip(0, height - 1), column.clip(0, width - 1)]
                total += (jnp.where(inside, fy * fx, 0))[..., None] * pixel
        return total

    return contract(jax.vmap(example)(x, displaced(offset, w.shape[0])), mask, w)


DEFORMABLE: dict[str, Callable[..., Array]] = {
    OURS: lambda x, offset, w, mask=None: deform_conv(x, offset, w, mask=mask),
    "map_coordinates": by_map_coordinates,
    "gathers": by_gathers,
}


@dataclasses.dataclass(frozen=True)
class Deformable:
    """A 3x3 deformable layer; offsets have a deviation of two pixels. Train is the gradient in all operands."""

    name: str
    shape: tuple[int, ...]
    features: int
    modulated: bool
    modes: tuple[str, ...] = ("forward", "train")

    def operands(self) -> tuple[Array, ...]:
        *outer, channels = self.shape
        given = normal(0, *self.shape), 2 * normal(1, *outer, 18), normal(2, 3, 3, channels, self.features)
        return (*given, jax.nn.sigmoid(normal(3, *outer, 9))) if self.modulated else given

    def contenders(self, mode: str) -> dict[str, Contender]:
        operands = self.operands()

        def run(conv: Callable[..., Array]) -> Callable[..., Any]:
            if mode == "forward":
                return conv
            return jax.grad(lambda *operands: squares(conv(*operands)), argnums=tuple(range(len(operands))))

        return {name: Contender(run(conv), operands) for name, conv in DEFORMABLE.items()}


# --- gradients of each example ----------------------------------------------------------------------------------------


Layer = Callable[[Array, Array], Array]  # from `x` and `w` of one example to its output


class Pair(NamedTuple):
    """A layer in convjax and elsewhere, by the name that stands for it; there the kernel may be in another order."""

    ours: Layer
    theirs: dict[str, Layer]
    order: Callable[[Array], Array] = lambda w: w
    read: Callable[[Array], Array] = lambda grads: grads


def convolution(ours: Layer, padding: Any, numbers: Any, groups: int = 1) -> Pair:
    """A layer and lax's convolution of one example."""

    def theirs(x: Array, w: Array) -> Array:
        options: dict[str, Any] = dict(dimension_numbers=numbers, feature_group_count=groups)
        return lax.conv_general_dilated(x[None], w, (1,) * (x.ndim - 1), padding, **options)[0]

    return Pair(ours, {"lax": theirs})


def unshared(out: tuple[int, int], k: int, channels: int) -> Pair:
    """`local_conv` and lax's, whose patches have the channel before the taps."""

    def theirs(x: Array, w: Array) -> Array:
        return lax.conv_general_dilated_local(x[None], w, (1, 1), "SAME", (k, k), dimension_numbers=NHWC)[0]

    return Pair(
        local_conv,
        {"lax": theirs},
        order=lambda w: jnp.moveaxis(w, 4, 2).reshape(*out, channels * k * k, -1),
        read=lambda grads: jnp.moveaxis(grads.reshape(-1, *out, channels, k, k, grads.shape[-1]), 3, 5),
    )


def deformed(channels: int) -> Pair:
    """Deformable layers of an input whose last channels are its offsets."""

    def layer(conv: Callable[..., Array]) -> Layer:
        return lambda x, w: conv(x[None, ..., :channels], x[None, ..., channels:], w)[0]

    layers = {name: layer(conv) for name, conv in DEFORMABLE.items()}
    return Pair(layers.pop(OURS), layers)


@dataclasses.dataclass(frozen=True)
class PerExample:
    """`vmap(grad)` in the kernel of one layer; the loss needs the output, so the forward pass is part of it."""

    name: str
    batch: int
    shape: tuple[int, ...]
    kernel: tuple[int, ...]
    pair: Pair
    modes: tuple[str, ...] = ("vmap(grad)",)

    def contenders(self, mode: str) -> dict[str, Contender]:
        x, w = normal(0, self.batch, *self.shape), normal(1, *self.kernel)

        def run(layer: Layer) -> Callable[..., Array]:
            return jax.vmap(jax.grad(lambda w, x: squares(layer(x, w))), in_axes=(None, 0))

        ordered = self.pair.order(w)
        theirs = {n: Contender(run(layer), (ordered, x), self.pair.read) for n, layer in self.pair.theirs.items()}
        return {OURS: Contender(run(self.pair.ours), (w, x)), **theirs}


# --- layers in a row --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Chained:
    """Depthwise layers with their biases and a relu behind each. Train is the gradient in input, kernels and biases."""

    name: str
    shape: tuple[int, ...]
    k: int
    layers: int
    modes: tuple[str, ...] = ("forward", "train")

    def contenders(self, mode: str) -> dict[str, Contender]:
        channels = self.shape[-1]
        ws = [normal(i, self.k, self.k, 1, channels) / self.k for i in range(self.layers)]
        operands = normal(0, *self.shape), ws, [normal(i, channels) for i in range(self.layers)]
        options: dict[str, Any] = dict(dimension_numbers=NHWC, feature_group_count=channels)
        convs: dict[str, Layer] = {
            OURS: partial(convjax.conv, padding="SAME", groups=channels),
            "lax": lambda x, w: lax.conv_general_dilated(x, w, (1, 1), "SAME", **options),
        }

        def run(conv: Layer) -> Callable[..., Any]:
            def network(x: Array, ws: Sequence[Array], biases: Sequence[Array]) -> Array:
                for w, bias in zip(ws, biases, strict=True):
                    x = jax.nn.relu(conv(x, w) + bias)
                return x

            if mode == "forward":
                return network
            return jax.grad(lambda *operands: squares(network(*operands)), argnums=(0, 1, 2))

        return {name: Contender(run(conv), operands) for name, conv in convs.items()}


# --- streams ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Streaming:
    """A response for each channel, or for each pair of channels, applied to blocks as they come, in one `lax.scan`."""

    name: str
    taps: int
    channels: int
    block: int
    blocks: int
    mixed: bool = False
    modes: tuple[str, ...] = ("forward",)

    def contenders(self, mode: str) -> dict[str, Contender]:
        responses, groups = (self.channels, 1) if self.mixed else (1, self.channels)
        w = normal(0, self.taps, responses, self.channels) / math.sqrt(self.taps * responses)
        x = normal(1, self.blocks, self.block, self.channels)
        stream = stream_conv(w, block=self.block, groups=groups)

        def direct(w: Array, x: Array) -> Array:
            def step(before: Array, chunk: Array) -> tuple[Array, Array]:
                seen = jnp.concatenate([before, chunk])
                options: dict[str, Any] = dict(dimension_numbers=NWC, feature_group_count=groups)
                y = lax.conv_general_dilated(seen[None], w, (1,), "VALID", **options)[0]
                return seen[self.block :], y

            return lax.scan(step, jnp.zeros((self.taps - 1, self.channels)), x)[1]

        ours = lambda stream, x: lax.scan(stream.step, stream.init(), x)[1]
        return {OURS: Contender(ours, (stream, x)), "lax": Contender(direct, (w, x))}


CASES: tuple[Case, ...] = (
    Deformable("DCNv1 3x3 64->64 @28 N8", (8, 28, 28, 64), 64, modulated=False),
    Deformable("DCNv2 3x3 64->64 @28 N8", (8, 28, 28, 64), 64, modulated=True),
    Deformable("DCNv2 3x3 64->64 @56 N2", (2, 56, 56, 64), 64, modulated=True),
    Deformable("DCNv2 3x3 256->256 @100x168 N1", (1, 100, 168, 256), 256, modulated=True),
    PerExample("3x3 64->64 @28 B32", 32, (28, 28, 64), (3, 3, 64, 64), convolution(convjax.conv, "SAME", NHWC)),
    PerExample(
        "3x3 groups 8, 64 @28 B32",
        32,
        (28, 28, 64),
        (3, 3, 8, 64),
        convolution(partial(convjax.conv, groups=8), "SAME", NHWC, groups=8),
    ),
    PerExample(
        "depthwise 3x3 64 @28 B32",
        32,
        (28, 28, 64),
        (3, 3, 1, 64),
        convolution(partial(convjax.conv, groups=64), "SAME", NHWC, groups=64),
    ),
    PerExample(
        "causal k3 64->64 L784 B32", 32, (784, 64), (3, 64, 64), convolution(convjax.causal_conv, [(2, 0)], NWC)
    ),
    PerExample("local 3x3 8->8 @16 B32", 32, (16, 16, 8), (16, 16, 3, 3, 8, 8), unshared((16, 16), 3, 8)),
    PerExample("DCNv1 3x3 32->32 @14 B32", 32, (14, 14, 32 + 18), (3, 3, 32, 32), deformed(32)),
    Chained("2 depthwise 3x3 128 @56 N8", (8, 56, 56, 128), 3, 2),
    Chained("2 depthwise 7x7 192 @28 N8", (8, 28, 28, 192), 7, 2),
    Chained("4 depthwise 5x5 672 @14 N8", (8, 14, 14, 672), 5, 4),
    Streaming("2881 taps, 1 channel, 100 blocks of 36", 2881, 1, 36, 100),
    Streaming("4096 taps, 8 channels, 32 blocks of 256", 4096, 8, 256, 32),
    Streaming("48000 taps, 2 channels, 16 blocks of 256", 48000, 2, 256, 16),
    Streaming("4096 taps, 8 channels mixed, 32 blocks of 256", 4096, 8, 256, 32, mixed=True),
    Streaming("512 taps, 64 channels mixed, 32 blocks of 64", 512, 64, 64, 32, mixed=True),
)


# --- the runner -------------------------------------------------------------------------------------------------------


def difference(found: Any, other: Any) -> float:
    """The largest over the results, each relative to its largest element."""
    parts = zip(jax.tree.leaves(found), jax.tree.leaves(other), strict=True)
    return float(f"{max(float(jnp.abs(a - b).max() / jnp.abs(a).max()) for a, b in parts):.2g}")


def record(case: Case, mode: str, rounds: int, patience_s: float) -> dict[str, Any]:
    """Milliseconds of every contender, and how far its first result is from convjax's."""
    result: dict[str, Any] = {"case": case.name, "mode": mode, "contenders": {}}
    entries, runs, first_s, first = result["contenders"], {}, {}, None
    for name, (program, operands, read) in case.contenders(mode).items():
        compiled, compile_s = timed(jax.jit(program).lower(*operands).compile)
        runs[name] = lambda compiled=compiled, operands=operands: jax.block_until_ready(compiled(*operands))
        values, first_s[name] = timed(runs[name])
        entries[name] = {"compile_s": round(compile_s, 2)}
        if name == OURS:
            first = values
        else:
            entries[name]["difference"] = difference(first, read(values))
        del values
    del first
    for name, seconds in interleaved(runs, first_s, rounds, patience_s).items():
        entries[name] |= {"ms": round(1e3 * float(np.median(seconds)), 3), "calls": len(seconds)}
    return result


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args = parse(argv)
    measured: dict[str, Any] = {"machine": machine(), "versions": versions(), "records": []}
    todo = [(case, mode) for case in CASES for mode in case.modes if args.filter in f"{case.name}, {mode}"]
    for case, mode in tqdm(todo, disable=None, unit="case"):
        try:
            found = record(case, mode, args.rounds, args.patience)
        except Exception as error:  # the others go on
            found = {"case": case.name, "mode": mode, "failed": describe(error)}
        measured["records"].append(found)
        if args.json:
            write(args.json, json.dumps(measured, indent=1) + "\n")
    text = table(measured)
    if args.markdown:
        write(args.markdown, text + "\n")
    print(text)
    return measured


def table(measured: Mapping[str, Any]) -> str:
    """A line for each contender but convjax: its milliseconds, and how many times convjax's they are."""
    head = ["case", "what", "convjax, ms", "instead of it", "ms", "ratio", "results differ by"]
    rows = []
    for found in measured["records"]:
        if "failed" in found:
            rows.append([found["case"], found["mode"], f"failed: {found['failed']}", "", "", "", ""])
            continue
        ours = found["contenders"][OURS]["ms"]
        for name, entry in found["contenders"].items():
            if name != OURS:
                cells = [f"{entry['ms']:.3g}", f"{entry['ms'] / ours:.3g}", f"{entry['difference']:.0e}"]
                rows.append([found["case"], found["mode"], f"{ours:.3g}", name, *cells])
    return report.table(head, rows)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.variants", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--json", type=Path, metavar="PATH", help="where the measurements go")
    add("--markdown", type=Path, metavar="PATH", help="where the table goes")
    add("--filter", default="", metavar="TEXT", help="only cases whose name, or what is timed, holds this text")
    add("--rounds", type=int, default=7, help="timed calls of each contender at most (default: %(default)s)")
    add("--patience", type=float, default=3.0, metavar="S", help="seconds for the calls of one (default: %(default)s)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
