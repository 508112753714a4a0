"""Measured times of the benchmarks, from their JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from convjax._core import arguments
from convjax.viz._canvas import finish, new_axes
from convjax.viz.themes import MARKERS, ink, palette


def benchmark(
    measured: Mapping[str, Any] | str | os.PathLike[str], *, mode: str = "forward", limit: int = 40, ax: Any = None
) -> Figure:
    """Draw how many times as long as the first contender the others take, a row for each layer.

    Args:
      measured: what `python -m benchmarks.run --json PATH` wrote, as a path or as read by `json`.
      mode: one of those measured, such as "forward" or "train".
      limit: layers drawn at most, the first ones; the title says how many there are.
      ax: matplotlib axes to draw on; new ones if None.

    Returns:
      the figure.

    Raises:
      ValueError: the mode was not measured, no layer has two times, or it is no result of the benchmarks.

    Example:
      >>> from convjax import viz
      >>> times = {"auto": {"ms": 1.0}, "lax": {"ms": 4.0}}
      >>> measured = {
      ...     "settings": {"mode": ["forward"], "algorithms": ["auto"], "peers": ["lax"]},
      ...     "records": [{"layer": "depthwise 3x3", "mode": "forward", "contenders": times}],
      ... }
      >>> viz.benchmark(measured).axes[0].get_xlabel()
      'times as long as convjax'
    """
    where = "benchmark"
    result: Any = measured if isinstance(measured, Mapping) else json.loads(Path(measured).read_text())
    try:
        settings, records = result["settings"], result["records"]
        names, modes = [*settings["algorithms"], *settings["peers"]], settings["mode"]
    except (KeyError, TypeError):
        raise ValueError(
            f"{where}: measured is no result of the benchmarks. Type the path that python -m benchmarks.run --json got."
        ) from None
    base, others = names[0], names[1:]
    mode = arguments.choice(where, "mode", mode, modes)
    limit = arguments.integer(where, "limit", limit, minimum=1)
    ratios = {}
    for record in records:
        times = {name: entry["ms"] for name, entry in record.get("contenders", {}).items() if entry.get("ms")}
        if record["mode"] == mode and base in times and len(times) > 1:
            ratios[record["layer"]] = {name: times[name] / times[base] for name in others if name in times}
    if not ratios:
        raise ValueError(
            f"{where}: no layer has a time of {base!r} and of another in mode {mode!r}. Measure peers too."
        )
    rows, ours = list(ratios)[:limit], "convjax" if base == "auto" else base
    ax = new_axes(where, ax, 1.6 + 0.2 * len(rows))
    for i, name in enumerate(others):
        found = [(ratios[layer][name], row) for row, layer in enumerate(rows) if name in ratios[layer]]
        if found:
            look = dict(color=palette()[i % len(palette())], marker=MARKERS[i % len(MARKERS)])
            ax.scatter(*zip(*found, strict=True), s=30, label=name, zorder=3, **look)
    ax.axvline(1, color=ink(), linewidth=1)
    ax.set_xscale("log")
    ax.set_yticks(range(len(rows)), rows)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlabel(f"times as long as {ours}")
    ax.set_title(f"{mode}, {len(rows)} of {len(ratios)} layers; to the right of the line {ours} is faster")
    ax.grid(linewidth=0.6)
    ax.set_axisbelow(True)
    ax.legend(loc="best")
    finish([ax])
    return ax.figure
