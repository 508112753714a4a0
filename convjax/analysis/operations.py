"""The operations of a jaxpr that cost something or see a window: convolutions, matrix products, poolings."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from convjax._core import compat
from convjax._core.bridge import Order, orders, spec_from_lax
from convjax._core.geometry import Geometry
from convjax._core.primitive import conv_p

CONVOLUTIONS = (conv_p.name, compat.LAX_CONV.name)
POOLS = {
    "reduce_window": "pool",
    "reduce_window_sum": "sum pool",
    "reduce_window_max": "max pool",
    "reduce_window_min": "min pool",
}


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation, run once.

    Attributes:
      kind: "conv", "depthwise conv", "conv transpose" (zeros between its inputs), "dot", or one of `POOLS`.
      out_shape: as the program has it.
      dtype: name of the dtype of the operands.
      macs: multiply-adds; those with padding are counted, but for transposed convolutions, whose products with inputs
        alone are.
      bytes: operands and output, each moved once.
      weights: elements of the kernel or the right-hand matrix; 0 for a pooling.
      slides: axes of the output along which a window slides.
      geometry: of a convolution.
    """

    kind: str
    out_shape: tuple[int, ...]
    dtype: str
    macs: int
    bytes: int
    weights: int
    slides: tuple[int, ...] = ()
    geometry: Geometry | None = None


def operation(equation: Any) -> Operation | None:
    """What an equation of a jaxpr computes, None where that is none of these."""
    name = equation.primitive.name
    if name in CONVOLUTIONS:
        g, _, to_out = convolution(equation)
        macs = g.out_shape[0] * math.prod(g.rhs[-2:]) * math.prod(map(_products, *_axes(g)))
        return Operation(_kind(g), *_outline(equation), macs, _bytes(equation), math.prod(g.rhs), to_out[1:-1], g)
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        lhs, rhs = (tuple(v.aval.shape) for v in equation.invars)
        macs = math.prod(equation.outvars[0].aval.shape) * math.prod(lhs[i] for i in contracted)
        return Operation("dot", *_outline(equation), macs, _bytes(equation), math.prod(rhs))
    if name in POOLS:
        slides = tuple(i for i, size in enumerate(equation.params["window_dimensions"]) if size > 1)
        return Operation(POOLS[name], *_outline(equation), 0, _bytes(equation), 0, slides)
    return None


def convolution(equation: Any) -> tuple[Geometry, Order, Order]:
    """A convolution, channels last, and the orders of the axes of its input and output."""
    lhs, rhs = (v.aval for v in equation.invars)
    if equation.primitive is conv_p:
        same = tuple(range(lhs.ndim))
        return Geometry.of(equation.params["spec"], lhs, rhs), same, same
    to_lhs, to_rhs, to_out = orders(equation.params["dimension_numbers"])
    shapes = tuple(lhs.shape[i] for i in to_lhs), tuple(rhs.shape[i] for i in to_rhs)
    return Geometry(spec_from_lax(equation.params), *shapes, np.dtype(lhs.dtype)), to_lhs, to_out


def _kind(g: Geometry) -> str:
    if any(d > 1 for d in g.spec.lhs_dilation):
        return "conv transpose"
    return "depthwise conv" if g.spec.feature_groups > 1 and g.rhs[-2] == 1 else "conv"


def _axes(g: Geometry) -> tuple[Any, ...]:
    lows = [low for low, _ in g.spec.padding]
    return g.out, g.kernel, g.spec.strides, lows, g.spec.rhs_dilation, g.spec.lhs_dilation, g.lhs[1:-1]


def _products(out: int, kernel: int, stride: int, low: int, dilation: int, input_dilation: int, size: int) -> int:
    """Pairs of an output and a tap; where zeros stand between the inputs, those that meet an input."""
    if input_dilation == 1:
        return out * kernel
    places = np.arange(out)[:, None] * stride - low + np.arange(kernel) * dilation
    return int(np.sum((places % input_dilation == 0) & (places >= 0) & (places < size * input_dilation)))


def _outline(equation: Any) -> tuple[tuple[int, ...], str]:
    return tuple(equation.outvars[0].aval.shape), equation.invars[0].aval.dtype.name


def _bytes(equation: Any) -> int:
    arrays = [v.aval for v in (*equation.invars, *equation.outvars)]
    return sum(math.prod(a.shape) * a.dtype.itemsize for a in arrays)
