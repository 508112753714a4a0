"""Pictures of convolutions, as matplotlib figures, and two widgets to try them with the mouse.

Each function returns the figure it drew: a new one, or that of the `ax` or `figure` it was given, so that pictures can
be put side by side. Colours are told apart by any colour vision, and follow the background: wrap the calls in
`style("light")` or `style("dark")`, or leave matplotlib's own settings. Widgets show in Jupyter, and as pages of their
own that need no network (`save_html`).

Nothing of matplotlib or Jupyter is imported before it is used: both come with `pip install 'convjax[notebooks]'`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convjax.viz.cam import grad_cam, grad_cam_map
    from convjax.viz.cone_widget import ConeWidget
    from convjax.viz.cones import receptive_cone
    from convjax.viz.enlarging import checkerboard
    from convjax.viz.fields import effective_receptive_field
    from convjax.viz.grids import feature_maps, kernels
    from convjax.viz.ledger import costs
    from convjax.viz.rooflines import roofline
    from convjax.viz.sampling import deformable_points
    from convjax.viz.slides import sliding, sliding_gif
    from convjax.viz.sliding_widget import SlidingWidget
    from convjax.viz.spectra import frequency_response
    from convjax.viz.speeds import benchmark
    from convjax.viz.steps import fft_steps, im2col_steps, winograd_steps
    from convjax.viz.themes import style

__all__ = [
    "ConeWidget",
    "SlidingWidget",
    "benchmark",
    "checkerboard",
    "costs",
    "deformable_points",
    "effective_receptive_field",
    "feature_maps",
    "fft_steps",
    "frequency_response",
    "grad_cam",
    "grad_cam_map",
    "im2col_steps",
    "kernels",
    "receptive_cone",
    "roofline",
    "sliding",
    "sliding_gif",
    "style",
    "winograd_steps",
]

_MODULES = {
    "ConeWidget": "cone_widget",
    "SlidingWidget": "sliding_widget",
    "benchmark": "speeds",
    "checkerboard": "enlarging",
    "costs": "ledger",
    "deformable_points": "sampling",
    "effective_receptive_field": "fields",
    "feature_maps": "grids",
    "fft_steps": "steps",
    "frequency_response": "spectra",
    "grad_cam": "cam",
    "grad_cam_map": "cam",
    "im2col_steps": "steps",
    "kernels": "grids",
    "receptive_cone": "cones",
    "roofline": "rooflines",
    "sliding": "slides",
    "sliding_gif": "slides",
    "style": "themes",
    "winograd_steps": "steps",
}
_PACKAGES = {"anywidget", "ipywidgets", "matplotlib", "PIL", "traitlets"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{_MODULES[name]}")
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _PACKAGES:
            raise
        raise ImportError(
            f"convjax.viz.{name} needs {missing}, which is not installed. Type pip install 'convjax[notebooks]'.",
            name=missing,
        ) from None
    return getattr(module, name)


def __dir__() -> list[str]:
    return __all__
