"""How the shapes inside a function grow with its input, from tracing alone.

Where every shape inside a function grows by whole steps with its input, the grids of all its layers, and their padding,
lie as they did after a shift by as many pixels. The least such number is the period: the stride of a classifier, but
2**depth for a U-Net, whose outputs have a stride of 1.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import jax
from jax.extend.core import Literal, jaxprs_in_params

FAR = 2**8 * 3**2 * 5 * 7  # a multiple of the periods that are looked for

Space = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Growth:
    """Along one axis, `outputs` more for `period` more inputs."""

    period: int
    outputs: int

    @property
    def stride(self) -> Fraction:
        return Fraction(self.period, self.outputs)


@dataclasses.dataclass(frozen=True)
class Step:
    """An operation inside a function: its name, the shapes of its results, and the sizes that it reduces."""

    name: str
    shapes: tuple[Space, ...]
    reduced: Space


@dataclasses.dataclass(frozen=True)
class Trace:
    """What a function does to an image of some size, and what comes out, a tree of shapes and dtypes."""

    steps: tuple[Step, ...]
    out: Any

    @classmethod
    def of(cls, fn: Callable[..., Any], x: jax.ShapeDtypeStruct) -> Trace:
        jaxpr, out = jax.make_jaxpr(fn, return_shape=True)(x)
        return cls(tuple(_steps(jaxpr.jaxpr)), out)

    def sizes(self) -> list[int]:
        """All sizes inside, in order."""
        return [size for step in self.steps for shape in step.shapes for size in shape]

    def matches(self, other: Trace) -> bool:
        """Whether the same is done, to arrays of the same ranks."""
        return _outline(self) == _outline(other)


def along(where: str, axis: int, align: int | None, base: Trace, trace: Callable[[int], Trace], rank: int) -> Growth:
    """Growth along `axis` of the image.

    Args:
      align: the period, or a multiple of it; None to find it.
      base: of the image as it is.
      trace: of an image with so many pixels more along `axis`.
      rank: which axis of the output that is.
    """
    more = FAR * (align or 1)
    far = trace(more)
    hint = (
        f"Type align= the product of the strides that follow one another along axis {axis}"
        if align is None
        else f"Type a multiple of the product of all strides along axis {axis} (2**depth for a U-Net), or align=None"
    )
    if not far.matches(base):
        raise ValueError(f"{where}: fn does other things to a longer image (spatial axis {axis}). {hint}.")
    for step, longer in zip(base.steps, far.steps, strict=True):
        if step.reduced != longer.reduced:
            raise ValueError(
                f"{where}: fn reduces the image along spatial axis {axis} ({step.name} over {step.reduced} values), so "
                "that every output sees all of it. Tiles cannot; apply fn to the whole image, or leave that out (a "
                "batch norm in training mode: call model.eval())."
            )
    differences = [b - a for a, b in zip(base.sizes(), far.sizes(), strict=True)]
    period = align or math.lcm(*(Fraction(more, d).numerator for d in differences if d > 0))
    near = trace(period) if more % period == 0 else None
    grown = [] if near is None or not near.matches(base) else near.sizes()
    expected = [a + Fraction(d * period, more) for a, d in zip(base.sizes(), differences, strict=True)]
    outputs = Fraction((far.out.shape[rank] - base.out.shape[rank]) * period, more)
    if grown != expected:
        raise ValueError(f"{where}: not all shapes inside fn grow by whole steps with {period} pixels more. {hint}.")
    if outputs <= 0:
        raise ValueError(
            f"{where}: the output of fn, of shape {base.out.shape}, does not grow with spatial axis {axis} of the "
            "image. Tiles give an output as large as the image, or in proportion to it."
        )
    return Growth(period, int(outputs))


def _outline(trace: Trace) -> list[tuple[str, list[int]]]:
    return [(step.name, [len(shape) for shape in step.shapes]) for step in trace.steps]


def _steps(jaxpr: Any) -> Iterator[Step]:
    """Those that the outputs depend on."""
    live = _variables(jaxpr.outvars)
    kept = []
    for equation in reversed(jaxpr.eqns):
        if live.intersection(equation.outvars):
            live |= _variables(equation.invars)
            kept.append(equation)
    for equation in reversed(kept):
        name, shapes = equation.primitive.name, tuple(tuple(v.aval.shape) for v in equation.outvars)
        axes = equation.params.get("axes", ()) if name.startswith(("reduce_", "arg")) else ()
        yield Step(name, shapes, tuple(equation.invars[0].aval.shape[a] for a in axes))
        for inner in jaxprs_in_params(equation.params):
            yield from _steps(inner)


def _variables(atoms: Sequence[Any]) -> set[Any]:
    return {atom for atom in atoms if not isinstance(atom, Literal)}
