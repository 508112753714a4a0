"""What each convolution of a network costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from convjax.viz._canvas import finish, new_figure
from convjax.viz.themes import palette

HATCHES = ("", "///", "...", "xxx", "ooo", "---")  # tell algorithms apart without colour
MOST = 60  # bars that still have a name


def costs(records: Sequence[Any], *, figure: Any = None) -> Figure:
    """Draw the floating-point operations and the memory traffic of each convolution, in the order they run.

    Args:
      records: what `convjax.analysis.collect` returns, at most 60; one that runs several times counts as often.
      figure: a matplotlib figure or subfigure to draw on; a new one if None.

    Returns:
      the figure.

    Raises:
      ValueError: `records` is empty or has more than 60. TypeError: an entry is not such a record.

    Example:
      >>> import jax.numpy as jnp, convjax
      >>> from convjax import viz
      >>> x, w = jnp.ones((1, 8, 8, 3)), jnp.ones((3, 3, 3, 4))
      >>> [ax.get_xlabel() for ax in viz.costs(convjax.analysis.collect(convjax.conv, x, w)).axes]
      ['MFLOP, direct sums', 'MB, operands and output']
    """
    from convjax.analysis import Convolution

    where = "costs"
    records = list(records)
    if not 0 < len(records) <= MOST:
        raise ValueError(
            f"{where}: records has {len(records)} convolutions; from 1 to {MOST} can be drawn. Type a slice of it."
        )
    for record in records:
        if not isinstance(record, Convolution):
            raise TypeError(
                f"{where}: records must be what convjax.analysis.collect(fn, *args) returns, "
                f"got {type(record).__name__}. Type costs(convjax.analysis.collect(fn, *args))."
            )
    names = [f"{i}: {_name(record)}" for i, record in enumerate(records)]
    looks: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(record.algorithm for record in records):
        looks[name] = dict(color=palette()[len(looks) % len(palette())], hatch=HATCHES[len(looks) % len(HATCHES)])
    figure = new_figure(where, figure, 1.6 + 0.28 * len(records))
    axes = figure.subplots(1, 2, sharey=True)
    amounts = [[r.flops * r.times / 1e6 for r in records], [r.bytes * r.times / 1e6 for r in records]]
    for ax, values, label in zip(axes, amounts, ("MFLOP, direct sums", "MB, operands and output"), strict=True):
        for place, (value, record) in enumerate(zip(values, records, strict=True)):
            ax.barh(place, value, height=0.7, edgecolor=ax.get_facecolor(), linewidth=0, **looks[record.algorithm])
            ax.annotate(f"{value:.3g}", (value, place), (3, 0), textcoords="offset points", va="center", fontsize=8)
        ax.set_xlabel(label)
        ax.set_xlim(0, 1.18 * (max(values) or 1))
    axes[0].set_yticks(np.arange(len(names)), names)
    axes[0].set_ylim(len(names) - 0.4, -0.6)
    handles = [Patch(label=name, **look) for name, look in looks.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(5, len(handles)), title="algorithm")
    finish(axes)
    return figure


def _name(record: Any) -> str:
    """`3x3 3->4 @8x8`, with what is unusual."""
    *kernel, per_group, features = record.rhs_shape
    groups = record.spec.feature_groups
    if not kernel:
        return f"matrix {per_group}→{features} @{record.lhs_shape[0]}"
    name = f"{'x'.join(map(str, kernel))} {per_group * groups}→{features} @{'x'.join(map(str, record.lhs_shape[1:-1]))}"
    if any(s > 1 for s in record.spec.strides):
        name += f" /{'x'.join(map(str, record.spec.strides))}"
    if groups > 1:
        name += f" g{groups}"
    return name + (f", {record.times} times" if record.times > 1 else "")
