"""Colours: a light and a dark style, and maps and palettes that follow the background that is set."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import matplotlib
from matplotlib.colors import Colormap, LinearSegmentedColormap, to_rgb

from convjax._core import arguments

# Okabe and Ito, Color universal design, 2008, in orders that stand out from a light and from a dark ground.
ON_LIGHT = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
ON_DARK = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#D55E00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")  # tell as much without colour

# Black or nearly so in the middle, as a weight of zero should not shine on a dark ground.
SIGNED_ON_DARK = LinearSegmentedColormap.from_list(
    "convjax_signed_on_dark", ["#A6DBFF", "#56B4E9", "#0B4F7A", "#16191D", "#8A3A00", "#E69F00", "#FFE0A0"]
)
GROUNDS = {"light": ("#FFFFFF", "#1A1A1A", "#D0D0D0"), "dark": ("#16191D", "#E8E8E8", "#3A4048")}


@contextlib.contextmanager
def style(name: str = "light") -> Iterator[None]:
    """Settings of matplotlib for the pictures that are drawn inside of a `with`; the former ones come back after it.

    Args:
      name: "light" or "dark", the ground.

    Raises:
      ValueError: another name.

    Example:
      >>> import jax.numpy as jnp
      >>> from convjax import viz
      >>> with viz.style("dark"):
      ...     figure = viz.kernels(jnp.ones((3, 3, 1, 4)))
      >>> figure.get_facecolor()[0] < 0.1
      True
    """
    ground, ink, faint = GROUNDS[arguments.choice("style", "name", name, tuple(GROUNDS))]
    settings: dict[str, Any] = {
        "axes.edgecolor": ink,
        "axes.facecolor": ground,
        "axes.labelcolor": ink,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlesize": 10,
        "figure.dpi": 100,
        "figure.facecolor": ground,
        "figure.titlesize": 11,
        "font.size": 10,
        "grid.color": faint,
        "legend.frameon": False,
        "savefig.facecolor": "auto",
        "text.color": ink,
        "xtick.color": ink,
        "xtick.labelsize": 9,
        "ytick.color": ink,
        "ytick.labelsize": 9,
    }
    with matplotlib.rc_context(settings):
        yield


def luminance(colour: Any) -> float:
    """From 0, black, to 1, white."""
    red, green, blue = to_rgb(colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def is_dark() -> bool:
    ground = matplotlib.rcParams["axes.facecolor"]
    return ground != "none" and luminance(ground) < 0.4


def palette() -> tuple[str, ...]:
    return ON_DARK if is_dark() else ON_LIGHT


def signed() -> Colormap:
    """For numbers of either sign: zero is of the colour of the ground."""
    return SIGNED_ON_DARK if is_dark() else matplotlib.colormaps["PuOr_r"]


def ink() -> Any:
    return matplotlib.rcParams["text.color"]


def faint() -> str:
    """For what stands back: frames of empty cells, grids."""
    return GROUNDS["dark" if is_dark() else "light"][2]
