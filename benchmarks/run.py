"""Time convjax against lax (and PyTorch) on real layers, side by side in one process.

    python -m benchmarks.run                         the table of the README
    python -m benchmarks.run --filter depthwise --peers lax,torch --json out/bench.json

Rounds are interleaved, so that a machine that slows down slows every peer down; medians are printed. A peer whose first
call is slow is measured less often. Every result is compared with lax's before its time counts.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from tqdm import tqdm

import convjax
from benchmarks.cases import LAYERS, Layer
from convjax._core.bridge import lax_params
from convjax._core.primitive import convolve

MODES = ("forward", "train")
Peer = Callable[[], Any]


def with_gradients(conv: Callable, mode: str) -> Callable:
    """The forward pass, or output and both gradients."""
    if mode == "forward":
        return lambda x, w, ct: conv(x, w)

    def train(x: Array, w: Array, ct: Array) -> Any:
        out, pullback = jax.vjp(conv, x, w)
        return out, *pullback(ct)

    return train


def jax_peer(conv: Callable, mode: str, operands: Sequence[np.ndarray]) -> Peer:
    arrays = [jnp.asarray(a) for a in operands]
    compiled = jax.jit(with_gradients(conv, mode)).lower(*arrays).compile()
    return lambda: jax.block_until_ready(compiled(*arrays))


def torch_peer(layer: Layer, mode: str, operands: Sequence[np.ndarray]) -> Peer:
    """oneDNN through PyTorch, channels-last where it has that layout, all threads."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # or its idle threads spin into the next peer's time
    import torch

    case, spec = layer.case, layer.case.spec
    n = spec.ndim
    memory = {2: torch.channels_last, 3: torch.channels_last_3d}.get(n, torch.contiguous_format)
    x, w, ct = (torch.from_numpy(np.ascontiguousarray(a)) for a in operands)
    last_to_first = (0, n + 1, *range(1, n + 1))
    x, ct = (a.permute(last_to_first).contiguous(memory_format=memory) for a in (x, ct))
    lo = tuple(p for p, _ in spec.padding)
    if any(d > 1 for d in spec.lhs_dilation):
        weight = w.flip(tuple(range(n))).permute(n, n + 1, *range(n))
        crop = tuple(k - 1 - p for k, p in zip(case.rhs_shape, lo, strict=False))
        function = getattr(torch.nn.functional, f"conv_transpose{n}d")
        options: dict[str, Any] = dict(stride=spec.lhs_dilation, padding=crop)
    else:
        weight = w.permute(n + 1, n, *range(n))
        function = getattr(torch.nn.functional, f"conv{n}d")
        options = dict(stride=spec.strides, padding=lo, dilation=spec.rhs_dilation, groups=spec.feature_groups)
    weight = weight.contiguous(memory_format=memory)
    length = ct.shape[2:]

    def forward() -> Any:
        out = function(x, weight, **options)
        return out[(slice(None), slice(None), *(slice(0, size) for size in length))]  # a causal pad is two-sided here

    def train() -> Any:
        x.requires_grad_(), weight.requires_grad_()
        x.grad = weight.grad = None
        out = forward()
        out.backward(ct)
        return out, x.grad, weight.grad

    def no_grad() -> Any:
        with torch.no_grad():
            return forward()

    return train if mode == "train" else no_grad


def peers(layer: Layer, mode: str, names: Sequence[str], algorithm: str) -> dict[str, Peer]:
    case = layer.case
    operands = (*case.operands(), case.cotangent())
    spec = (
        case.spec
        if algorithm == "auto"
        else case.spec.replace(algorithms=(algorithm, f"{algorithm}?", f"{algorithm}?"))
    )
    made: dict[str, Peer] = {"convjax": jax_peer(lambda x, w: convolve(x, w, spec), mode, operands)}
    if "lax" in names:
        made["lax"] = jax_peer(lambda x, w: lax.conv_general_dilated(x, w, **lax_params(case.spec)), mode, operands)
    if "torch" in names:
        made["torch"] = torch_peer(layer, mode, operands)
    return made


def measure(made: dict[str, Peer], rounds: int, patience_s: float) -> tuple[dict[str, list[float]], float]:
    """Milliseconds of each peer, interleaved; and how far convjax is from lax, relative to the largest element."""
    times: dict[str, list[float]] = {}
    first: dict[str, Any] = {}
    for name, run in made.items():
        start = time.perf_counter()
        first[name] = run()
        seconds = time.perf_counter() - start
        times[name] = [seconds * 1e3] if seconds > patience_s else []  # a warm-up, but where it is all there will be
    order = list(made.items())
    for _ in range(rounds):
        order.append(order.pop(0))  # whoever comes after whom changes, as caches and idle threads are inherited
        for name, run in order:
            if sum(times[name]) < patience_s * 1e3:
                start = time.perf_counter()
                run()
                times[name].append((time.perf_counter() - start) * 1e3)
    error = math.nan
    if "lax" in first:
        pairs = zip(jax.tree.leaves(first["convjax"]), jax.tree.leaves(first["lax"]), strict=True)
        error = max(float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b))) for a, b in pairs)
    return times, error


def record(layer: Layer, mode: str, names: Sequence[str], algorithm: str, rounds: int, patience_s: float) -> dict:
    times, error = measure(peers(layer, mode, names, algorithm), rounds, patience_s)
    medians = {name: float(np.median(t)) for name, t in times.items()}
    return dict(
        layer=layer.name,
        mode=mode,
        ms=medians,
        spread={name: [min(t), max(t), len(t)] for name, t in times.items()},
        error=error,
        gflops=layer.case.spec.flops(layer.case.lhs_shape, layer.case.rhs_shape) / medians["convjax"] / 1e6,
    )


def markdown(records: Sequence[dict], names: Sequence[str]) -> str:
    """Layers down, for each mode convjax's milliseconds and how many times longer each peer takes."""
    heads = [head for mode in MODES for head in (f"{mode}, ms", *(f"{p} / convjax" for p in names))]
    lines = ["| layer | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    by_layer: dict[str, dict[str, dict]] = {}
    for r in records:
        by_layer.setdefault(r["layer"], {})[r["mode"]] = r
    for name, modes in by_layer.items():
        cells = []
        for mode in MODES:
            ms = modes.get(mode, {}).get("ms")
            cells += (
                ["", *("" for _ in names)]
                if ms is None
                else [f"{ms['convjax']:.3g}", *(f"{ms[p] / ms['convjax']:.3g}" for p in names)]
            )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for p in names:
        for mode in MODES:
            ratios = [r["ms"][p] / r["ms"]["convjax"] for r in records if r["mode"] == mode]
            if ratios:
                mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
                lines.append(f"\nGeometric mean of {p} / convjax, {mode}: {mean:.3g}; least: {min(ratios):.3g}.")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.split("\n")[0])
    parser.add_argument("--filter", default="", help="only layers whose name holds this text")
    parser.add_argument("--mode", choices=(*MODES, "both"), default="both")
    parser.add_argument("--peers", default="lax", help="comma-separated: lax, torch")
    parser.add_argument("--algorithm", default="auto", help="one algorithm instead of the chooser's")
    parser.add_argument("--rounds", type=int, default=9, help="measurements of each peer at most")
    parser.add_argument(
        "--patience", type=float, default=6.0, help="seconds for one peer of one layer, at least one call"
    )
    parser.add_argument("--json", type=Path, help="write every number here")
    args = parser.parse_args(argv)
    names = [n for n in args.peers.split(",") if n]
    jobs = [
        (layer, mode)
        for layer in LAYERS
        if args.filter.lower() in layer.name.lower()
        for mode in (MODES if args.mode == "both" else (args.mode,))
    ]
    records = []
    for layer, mode in tqdm(jobs, disable=None, unit="case"):
        try:
            records.append(record(layer, mode, names, args.algorithm, args.rounds, args.patience))
        except Exception as error:  # one case that fails is reported, the rest goes on
            tqdm.write(f"{layer.name}, {mode}: {type(error).__name__}: {error}")
            continue
        r = records[-1]
        tqdm.write(
            f"{layer.name:40} {mode:8} {'  '.join(f'{n} {t:.3g} ms' for n, t in r['ms'].items())}"
            f"  error {r['error']:.1e}"
        )
    device = jax.devices()[0].device_kind
    print(f"\n{device}, {platform.machine()}, jax {jax.__version__}, convjax {convjax.__version__}\n")
    print(markdown(records, names))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
