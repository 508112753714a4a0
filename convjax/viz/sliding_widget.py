"""A widget: a kernel slides over an input, with the products and the sum of the cell that is pointed at."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import traitlets
from jax import Array

from convjax.functional import conv, conv_transpose
from convjax.viz import _page
from convjax.viz._canvas import read

# Two squares and a slope: edges of every direction.
EXAMPLE = [
    [0, 0, 0, 0, 0, 0, 0, 0, 0],
    [0, 9, 9, 9, 0, 0, 0, 1, 2],
    [0, 9, 9, 9, 0, 0, 1, 2, 3],
    [0, 9, 9, 9, 0, 1, 2, 3, 4],
    [0, 0, 0, 0, 0, 2, 3, 4, 5],
    [0, 0, 5, 5, 5, 5, 4, 5, 6],
    [0, 0, 5, 5, 5, 5, 5, 6, 7],
    [0, 0, 5, 5, 5, 5, 6, 7, 8],
    [0, 0, 0, 0, 0, 6, 7, 8, 9],
]
SOBEL = [[1, 0, -1], [2, 0, -2], [1, 0, -1]]
MAX_SIDE = 16  # of the input: with the largest stride and padding its cells can still be told apart
MAX_TAPS = 5


class SlidingWidget(_page.Widget):
    """Slide a kernel over an input cell by cell, with sliders for stride, padding and dilation.

    Point at a cell of the output to see which inputs it is made of, their products and the sum; all numbers are those
    of `convjax.conv`, or of `convjax.conv_transpose` if transposed. Weights can be typed in. Every setting is a trait:
    assign it from Python, or `observe` it.

    Args:
      x: input `(H, W)`, at most 16 x 16; a 9 x 9 picture of squares and a slope if None.
      w: kernel `(k_h, k_w)`, at most 5 x 5; a Sobel kernel if None.
      stride: from 1 to 3. padding: zeros on each side, from 0 to 4. dilation: from 1 to 3.
      transposed: whether the convolution is the transposed one.
      step: number of the output cell that is filled last, row by row from 0.
      theme: "light", "dark", or "auto", the colours around it.

    Raises:
      ValueError: `x` or `w` is not of the shape above, or not finite. TypeError: complex numbers.
      traitlets.TraitError: a setting out of its range.

    Example:
      >>> from convjax import viz
      >>> widget = viz.SlidingWidget(stride=2, padding=1)
      >>> widget.output().shape
      (5, 5)
      >>> "<script" in widget.to_html()  # a page of its own, also by widget.save_html(path)
      True

    Source: Dumoulin and Visin, A guide to convolution arithmetic for deep learning, arXiv:1603.07285.
    """

    _scripts = ("common.js", "convolve.js", "sliding.js")
    _esm: Any = _page.module(*_scripts)
    _title = "A kernel slides over an input"
    _state = ("x", "w", "stride", "padding", "dilation", "transposed", "step")

    x = traitlets.Any(help="input, row by row").tag(sync=True)
    w = traitlets.Any(help="kernel, row by row").tag(sync=True)
    stride = traitlets.Int(1, min=1, max=3, help="step of the kernel").tag(sync=True)
    padding = traitlets.Int(0, min=0, max=4, help="zeros on each side").tag(sync=True)
    dilation = traitlets.Int(1, min=1, max=3, help="distance of neighbouring taps").tag(sync=True)
    transposed = traitlets.Bool(False, help="the transposed convolution").tag(sync=True)
    step = traitlets.Int(0, min=0, help="output cell that is filled last").tag(sync=True)

    def __init__(self, x: Any = None, w: Any = None, **settings: Any) -> None:
        super().__init__(x=EXAMPLE if x is None else x, w=SOBEL if w is None else w, **settings)

    @traitlets.validate("x", "w")
    def _rows(self, proposal: Any) -> list[list[float]]:
        name = proposal["trait"].name
        return rows("SlidingWidget", name, proposal["value"], MAX_SIDE if name == "x" else MAX_TAPS)

    def output(self) -> Array:
        """What `convjax` computes for the present settings, `(out_h, out_w)`."""
        x, w = jnp.array(self.x, jnp.float32)[..., None], jnp.array(self.w, jnp.float32)[..., None, None]
        function: Any = conv_transpose if self.transposed else conv
        settings: dict[str, Any] = dict(stride=self.stride, padding=self.padding, dilation=self.dilation)
        return function(x, w, **settings, precision="highest")[..., 0]


def rows(where: str, name: str, value: Any, at_most: int) -> list[list[float]]:
    """A small matrix as lists, which is what goes to the browser."""
    values = read(where, name, value, matrix="rows columns")
    if max(values.shape) > at_most or not jnp.isfinite(values).all():
        raise ValueError(
            f"{where}: {name} must be finite and at most {at_most} x {at_most}, got shape {values.shape}. "
            f"Type a smaller one."
        )
    return [[int(v) if v == round(v) else v for v in line] for line in values.tolist()]
