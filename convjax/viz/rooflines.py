"""The roofline: what a machine can reach at each arithmetic intensity, and what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from convjax.viz._canvas import finish, new_axes
from convjax.viz.themes import MARKERS, ink, palette


def roofline(points: Mapping[str, Any], *, peak_gflops: float, peak_gbs: float, ax: Any = None) -> Figure:
    """Draw measured speeds below the two ceilings of a machine: its memory and its arithmetic.

    Args:
      points: by name (FLOPs per byte, GFLOP/s).
      peak_gflops: what the machine computes at most, GFLOP/s.
      peak_gbs: what its memory moves at most, GB/s.
      ax: matplotlib axes to draw on; new ones if None.

    Returns:
      the figure.

    Raises:
      ValueError: no points, or a number that is not finite and above zero. TypeError: a point is not a pair of numbers.

    Example:
      >>> from convjax import viz
      >>> points = {"3x3 64->64": (142.0, 181.0), "depthwise 3x3": (2.2, 12.0)}
      >>> viz.roofline(points, peak_gflops=185.0, peak_gbs=49.7).axes[0].get_ylabel()
      'GFLOP/s'

    Source: Williams, Waterman and Patterson, Roofline, Communications of the ACM, 2009.
    """
    where = "roofline"
    if not isinstance(points, Mapping) or not points:
        raise ValueError(
            f"{where}: points must be a mapping of at least one. Type {{'name': (flops_per_byte, gflops)}}."
        )
    peak_gflops, peak_gbs = _positive(where, "peak_gflops", peak_gflops), _positive(where, "peak_gbs", peak_gbs)
    read = {}
    for name, point in points.items():
        try:
            intensity, speed = point
        except (TypeError, ValueError):
            raise TypeError(
                f"{where}: points[{name!r}]={point!r} must be a pair. Type (flops_per_byte, gflops)."
            ) from None
        read[name] = tuple(_positive(where, f"points[{name!r}][{i}]", v) for i, v in enumerate((intensity, speed)))
    ridge = peak_gflops / peak_gbs
    ax = new_axes(where, ax, 4.6, 8.0)
    low = min(ridge / 8, *(p[0] / 2 for p in read.values()))
    high = max(ridge * 8, *(p[0] * 2 for p in read.values()))
    intensities = np.array([low, ridge, high])
    ax.plot(intensities, np.minimum(peak_gflops, peak_gbs * intensities), color=ink(), linewidth=2)
    ax.annotate(f"{peak_gflops:.3g} GFLOP/s", (high, peak_gflops), (0, 4), textcoords="offset points", ha="right")
    ax.annotate(f"{peak_gbs:.3g} GB/s", (low, peak_gbs * low), (14, 4), textcoords="offset points", va="top")
    for i, (name, (intensity, speed)) in enumerate(read.items()):
        share = speed / min(peak_gflops, peak_gbs * intensity)
        ax.scatter(
            intensity, speed, s=50, color=palette()[i % len(palette())], marker=MARKERS[i % len(MARKERS)], zorder=3,
            label=f"{name}: {share:.0%}",
        )  # fmt: skip
    ax.set(xscale="log", yscale="log", xlabel="FLOPs per byte moved", ylabel="GFLOP/s", xlim=(low, high))
    slowest = min(peak_gbs * low, *(speed for _, speed in read.values()))
    ax.set_ylim(slowest / 2, peak_gflops * 2)
    ax.set_title("Roofline; in per cent of what the machine can do there")
    ax.grid(which="major", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.legend(loc="lower right", ncols=1 + len(read) // 9, fontsize=8)
    finish([ax])
    return ax.figure


def _positive(where: str, name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{where}: {name} must be a number, got {value!r}.") from None
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{where}: {name} must be finite and above 0, got {number}. Type what was measured.")
    return number
