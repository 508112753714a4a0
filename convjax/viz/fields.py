"""How much each input counts for one output: the effective receptive field."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Num
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from convjax._core import arguments
from convjax.viz._canvas import finish, new_axes, read
from convjax.viz.themes import ON_DARK, ink, palette


def effective_receptive_field(field: Num[Any, "*space"], *, receptive_field: Any = None, ax: Any = None) -> Figure:
    """Draw how strongly each input bears on one output, and the box that holds 95 % of it.

    Args:
      field: `(H, W)` or `(T,)`: size of the derivative of one output in each input, such as
        `convjax.analysis.effective_receptive_field` returns; its absolute values are drawn, largest 1.
      receptive_field: size of the theoretical receptive field (one int, or (height, width)), drawn as a second box
        about the centre of the first; None for none.
      ax: matplotlib axes to draw on; new ones if None.

    Returns:
      the figure.

    Raises:
      ValueError: `field` has another number of axes, is not finite or is zero everywhere. TypeError: it is complex.

    Example:
      >>> import jax.numpy as jnp
      >>> from convjax import viz
      >>> bell = jnp.exp(-jnp.linspace(-3, 3, 31) ** 2)
      >>> viz.effective_receptive_field(bell[:, None] * bell).axes[0].get_title()
      'box: 95 % of the effect, 17 x 17'

    Source: Luo et al., Understanding the effective receptive field, arXiv:1701.04128.
    """
    where = "effective_receptive_field"
    effect = np.abs(read(where, "field", field, one="T", two="H W"))
    if not np.isfinite(effect).all() or not effect.any():
        raise ValueError(f"{where}: field must be finite and not zero everywhere. Look at an output that sees inputs.")
    effect = effect / effect.max()
    boxes: list[Any] = [_box(effect, 0.95)]
    title = f"95 % of the effect, {' x '.join(str(hi - lo + 1) for lo, hi in boxes[0])}"
    if receptive_field is not None:
        sizes = arguments.per_axis(where, "receptive_field", receptive_field, effect.ndim, minimum=1)
        boxes.append(
            [((lo + hi - s + 1) / 2, (lo + hi + s - 1) / 2) for (lo, hi), s in zip(boxes[0], sizes, strict=True)]
        )
    ax = new_axes(where, ax, 3.2 if effect.ndim == 1 else 5.0, 8.0 if effect.ndim == 1 else 6.0)
    first, second = palette()[:2]
    if effect.ndim == 1:
        looks = [(second, "-", "95 %"), (ink(), "--", "theoretical")]
        ax.bar(range(effect.size), effect, width=1.0, color=first)
        for ((lo, hi),), (colour, dashes, label) in zip(boxes, looks, strict=False):
            ax.axvline(lo - 0.5, color=colour, linestyle=dashes, linewidth=2, label=label)
            ax.axvline(hi + 0.5, color=colour, linestyle=dashes, linewidth=2)
        ax.set(xlabel="input", ylabel="effect, largest 1", title=f"box: {title}")
    else:
        looks = [(ON_DARK[1], "-", "95 %"), (ON_DARK[0], "--", "theoretical")]  # the map is dark whatever the style
        image = ax.imshow(effect, cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
        ax.figure.colorbar(image, ax=ax, label="effect, largest 1")
        for ((top, bottom), (left, right)), (colour, dashes, label) in zip(boxes, looks, strict=False):
            ax.add_patch(
                Rectangle((left - 0.5, top - 0.5), right - left + 1, bottom - top + 1, fill=False, edgecolor=colour,
                          linestyle=dashes, linewidth=2, label=label)
            )  # fmt: skip
        ax.set(xlabel="column", ylabel="row", title=f"box: {title}")
    if len(boxes) > 1:
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15 if effect.ndim == 2 else -0.25), ncols=2)
    finish(ax.figure.axes)
    return ax.figure


def _box(effect: np.ndarray, share: float) -> list[tuple[int, int]]:
    """First and last index along each axis, with an equal part of what is beyond `share` left out at each end."""
    result = []
    for axis in range(effect.ndim):
        along = effect.sum(axis=tuple(a for a in range(effect.ndim) if a != axis))
        # each axis leaves out its part, so that the box as a whole holds `share`
        missing = (1 - share) / (2 * effect.ndim)
        total = np.cumsum(along) / along.sum()
        result.append((int(np.searchsorted(total, missing, side="right")), int(np.searchsorted(total, 1 - missing))))
    return result
