"""A widget: choose an output cell of stacked layers, and see its receptive field."""

from __future__ import annotations

import dataclasses
from typing import Any

import traitlets

from convjax.viz import _page
from convjax.viz.cones import Cone, cone_of, read_layers


class ConeWidget(_page.Widget):
    """See what one output cell of a stack of layers is made of, and change the layers.

    Point at a cell of the last layer. Kernel size, stride and dilation of each layer can be typed in, layers added and
    removed. Every setting is a trait: assign it from Python, or `observe` it.

    Args:
      layers: as `receptive_cone` takes them; four of three taps, the second with stride 2, if None.
      cells: of the last layer, from 1 to 20.
      cell: the chosen one.
      theme: "light", "dark", or "auto", the colours around it.

    Raises:
      ValueError, TypeError: `layers` are not as `receptive_cone` takes them.
      traitlets.TraitError: another setting out of its range.

    Example:
      >>> from convjax import viz
      >>> widget = viz.ConeWidget([3, (3, 2), (3, 1, 2)], cell=0)
      >>> widget.cone().fields[-1], widget.cone().seen[0][-1]
      (13, 12)

    Source: Araujo, Norris and Sim, Computing receptive fields of convolutional neural networks, Distill, 2019.
    """

    _scripts = ("common.js", "cone.js")
    _esm: Any = _page.module(*_scripts)
    _title = "What an output cell sees"
    _state = ("layers", "cells", "cell")

    layers = traitlets.Any(help="(kernel, stride, dilation) of each layer").tag(sync=True)
    cells = traitlets.Int(5, min=1, max=20, help="cells of the last layer").tag(sync=True)
    cell = traitlets.Int(2, min=0, help="the chosen cell").tag(sync=True)

    def __init__(self, layers: Any = None, **settings: Any) -> None:
        super().__init__(layers=[3, (3, 2), 3, 3] if layers is None else layers, **settings)

    @traitlets.validate("layers")
    def _triples(self, proposal: Any) -> list[list[int]]:
        return [list(dataclasses.astuple(layer)) for layer in read_layers("ConeWidget", proposal["value"])]

    def cone(self) -> Cone:
        """Sizes, places and cells seen, row by row, of the present settings."""
        return cone_of("ConeWidget", self.layers, min(self.cell, self.cells - 1), self.cells)[1]
