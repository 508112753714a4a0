"""Time every algorithm on every problem of the suite, forward and both gradients each on its own.

    python -m benchmarks.sweep --json benchmarks/results/sweep-cpu-avx2.json [--filter TEXT]

What `benchmarks.fit` fits the cost model to. A sweep that is stopped goes on where it was. The parts of a rewrite are
served by what the model in force says: on a new platform sweep and fit once for the plain algorithms, and once more.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import jax
import jaxlib
from tqdm import tqdm

from benchmarks.cases import LAYERS
from benchmarks.layer import Layer
from benchmarks.peers import program
from convjax._core import cache, cost, tuning
from convjax._core.algorithms import ALGORITHMS, PLAIN
from convjax._core.collect import convolutions
from convjax._core.geometry import Geometry
from convjax._core.measure import measure
from convjax._core.primitive import convolve

MOST_MACS = 1e11  # beyond, the zeros of a dilated input included, a naive loop takes minutes
HOPELESS = 6.0  # estimates so many times the best one are not worth the time
REDUCED = ", reduced"  # ends the name of a small likeness
# What a problem costs that has next to nothing to compute.
SMALL = tuple(
    dataclasses.replace(small, case=dataclasses.replace(small.case, name=f"{small.name}{REDUCED}"))
    for small in (layer.reduced() for layer in LAYERS[::3])
)
HALVED = ", halved"  # ends the name of one of middling size, which are most of what a model has to generalise to
MIDDLING = tuple(
    dataclasses.replace(less, case=dataclasses.replace(less.case, name=f"{less.name}{HALVED}"))
    for less in (layer.halved() for i, layer in enumerate(LAYERS) if i % 3 and max(layer.case.lhs_shape) < 2**14)
)
# Integers, which have no gradients, take XLA's slow path on CPUs.
INTEGERS = tuple(
    dataclasses.replace(layer, dtype="int32", case=dataclasses.replace(layer.case, name=f"{layer.name} int32"))
    for layer in LAYERS
    if layer.name in ("3x3 64->64 @56 N1", "depthwise 3x3 128 @56 N1")
)
PROBLEMS = ("forward", "input_grad", "kernel_grad")


def problems(filter_text: str = "") -> Iterator[tuple[str, str, Geometry]]:
    """Name of the layer, name of the problem, and the problem."""
    for layer in (*LAYERS, *MIDDLING, *SMALL, *INTEGERS):
        if filter_text.lower() in layer.name.lower():
            for problem in PROBLEMS if layer.dtype != "int32" else PROBLEMS[:1]:
                yield layer.name, problem, geometry(layer, problem)


def geometry(layer: Layer, problem: str) -> Geometry:
    """The convolution that the chooser sees, examples of a `vmap` included."""
    fn = program(layer, problem, partial(convolve, spec=layer.spec))
    shapes = (layer.case.lhs_shape, layer.case.rhs_shape, layer.case.out_shape)
    lead = [() if axis is None else (layer.examples,) for axis in layer.axes]
    operands = [jax.ShapeDtypeStruct((*n, *shape), layer.dtype) for n, shape in zip(lead, shapes, strict=True)]
    ((found, _),) = convolutions(jax.make_jaxpr(fn)(*operands).jaxpr)
    return found


def candidates(g: Geometry, platform: str) -> list[str]:
    """What `auto` may take and may be the best: nothing that the model, where there is one, sees far behind."""
    model = cost.model(platform)
    loops = set(PLAIN) - {"fft", "dft", "overlap_add"} if g.macs > MOST_MACS else set()
    names = [name for name in cost.admissible(g, platform) if name not in loops]
    least = {}
    for name in names:
        estimate = model.estimate(name, g)
        least[name] = (model.of_parts(ALGORITHMS[name].work(g)) or 0.0) if estimate is None else estimate
    best = min(model.estimates(g).values(), default=math.inf)
    return [name for name in names if least[name] <= HOPELESS * best]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep", description=__doc__.split("\n")[0])
    parser.add_argument("--filter", default="", help="only layers whose name holds this text")
    parser.add_argument("--json", type=Path, required=True, help="where the times go")
    args = parser.parse_args(argv)
    sweep = json.loads(args.json.read_text()) if args.json.exists() else {"times": {}}
    device = cache.device_kind(jax.local_devices()[0])
    sweep |= {"platform": tuning.lowering_platform(), "device": device, "jaxlib": jaxlib.__version__}
    for layer, problem, found in tqdm(list(problems(args.filter)), disable=None, unit="problem"):
        done, names = sweep["times"].setdefault(layer, {}).setdefault(problem, {}), candidates(found, sweep["platform"])
        # All or none: times of different hours, on a machine that is now busy and now not, cannot be compared.
        times = measure(found, names if set(names) - set(done) else [])
        done |= {name: [float(f"{t.ms:.4g}"), round(t.compile_s, 3), t.temporary_bytes] for name, t in times.items()}
        if not times:
            continue
        tqdm.write(f"{layer}, {problem}: " + ", ".join(f"{name} {t.ms:.3g}" for name, t in times.items()))
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(sweep, indent=1) + "\n")


if __name__ == "__main__":
    main()
