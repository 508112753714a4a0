"""The receptive field of a function or a network, read from its jaxpr."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from convjax._core import arguments
from convjax.analysis.fields import ReceptiveField, from_reaches
from convjax.analysis.modules import Network, network
from convjax.analysis.reach import IDENTITY
from convjax.analysis.state import State, View
from convjax.analysis.walk import Mark, Step, Walk


def receptive_field(
    fn: Callable, *args: Any, axes: Sequence[int] | None = None, argnum: int = -1, **kwargs: Any
) -> ReceptiveField:
    """Receptive field of a function's outputs on one of its arguments, along each spatial axis.

    It is read from the jaxpr; nothing is computed. Convolutions (ours and those of `jax.lax`), poolings, slices, pads,
    concatenations, sums of branches, sub-pixel shuffles, jit, remat, scan and custom derivatives are followed; the
    window is that of all channels. What lies beyond the border, in whatever padding mode, counts as the input going on.
    Where an operation mixes a whole axis (a mean or a dense layer over space, attention, an interpolation, batch norm
    in training), or is not known, the axis is global, and `reasons` has the operation.

    Args:
      fn: any function that JAX can trace and that returns one array; or a Flax module, nnx (in inference mode, abstract
        ones too) or linen (unbound or bound; in training or not as its arguments say).
      args, kwargs: its arguments: arrays, or `jax.ShapeDtypeStruct`s in their place.
      axes: spatial axes of the input. By default those that the first convolution or pooling slides along, or all
        between the first and the last axis where there is none.
      argnum: which of `args` is the input.

    Returns:
      a `ReceptiveField`; `layers` has one for each convolution and pooling, in order.

    Raises:
      TypeError: `fn` is not callable, or the argument no array. ValueError: `fn` returns several arrays, or one that
        does not depend on the input; axes or argnum that it does not have. What `fn` raises when traced.

    Example:
      >>> import jax.numpy as jnp, convjax
      >>> from convjax.analysis import receptive_field
      >>> w = jnp.ones((3, 3, 4, 4))
      >>> field = receptive_field(lambda x: x + convjax.conv(convjax.conv(x, w), w, dilation=2), jnp.ones((1, 8, 8, 4)))
      >>> field.size, field.stride, field.start, [layer.size for layer in field.layers]
      ((7, 7), (1, 1), (-3, -3), [(3, 3), (7, 7)])

    Source: Araujo, Norris and Sim, Computing receptive fields of convolutional neural networks, Distill 2019, for
      chains; elsewhere by composition of exact bounds, `convjax.analysis.reach`.
    """
    where = "receptive_field"
    traced = trace(where, fn, args, kwargs, axes, argnum)
    if len(traced.outputs) != 1:
        raise ValueError(
            f"{where}: fn returns {len(traced.outputs)} arrays, each with a field of its own. Pass a function that "
            "returns one of them, e.g. lambda *args: fn(*args)[0]."
        )
    if not traced.axes:
        raise ValueError(f"{where}: no window slides along an axis of args[{argnum}]. Type axes=, e.g. axes=(0,).")
    (out,) = traced.outputs
    if out is None:
        raise ValueError(f"{where}: what fn returns does not depend on args[{argnum}]. Type another argnum=.")
    return dataclasses.replace(field_of(out, traced.axes), layers=tuple(_layers(traced)))


def field_of(state: State, axes: Sequence[int], name: str = "") -> ReceptiveField:
    """The record of what an array depends on, along some axes of the input."""
    assert state is not None
    entries = [state[axis] for axis in axes]
    return from_reaches([e if isinstance(e, str) else e.reach for e in entries], name)


@dataclasses.dataclass(frozen=True)
class Traced:
    """A network that has been walked through.

    Attributes:
      events: of the walk, in order.
      outputs: what each output depends on.
      axes: the spatial axes of the input.
    """

    network: Network
    events: tuple[Mark | Step, ...]
    outputs: tuple[State, ...]
    axes: tuple[int, ...]


def trace(
    where: str, fn: Callable, args: tuple[Any, ...], kwargs: Any, axes: Sequence[int] | None = None, argnum: int = -1
) -> Traced:
    """Walk through `fn`, and find the spatial axes of its input."""
    if not -len(args) <= arguments.integer(where, "argnum", argnum) < len(args):
        raise ValueError(
            f"{where}: argnum={argnum}, but {len(args)} arguments follow fn. Type fn, then what it takes, the input "
            "among it."
        )
    shape = getattr(args[argnum], "shape", None)
    if shape is None:
        raise TypeError(
            f"{where}: the input is args[{argnum}], a {type(args[argnum]).__name__}. Pass an array there, or type "
            "argnum= the number of the argument that is one."
        )
    subject = network(where, fn, args, kwargs)
    jaxpr = subject.jaxpr().jaxpr
    states: list[State] = [None] * len(jaxpr.invars)
    first = len(jax.tree.leaves((subject.state, *args[: argnum % len(args)])))
    states[first] = tuple(View(axis, IDENTITY) for axis in range(len(shape)))
    walk = Walk()
    outputs = walk.through(jaxpr, states)
    spatial = _slid_along(walk.events, len(shape)) if axes is None else _chosen(where, axes, len(shape))
    return Traced(subject, tuple(walk.events), tuple(outputs), spatial)


def _chosen(where: str, axes: Sequence[int], ndim: int) -> tuple[int, ...]:
    numbers = arguments.per_axis(where, "axes", tuple(axes), len(tuple(axes)))
    if not numbers or any(not -ndim <= axis < ndim for axis in numbers):
        raise ValueError(f"{where}: axes={numbers}, but the input has {ndim} axes. Type some of {tuple(range(ndim))}.")
    return tuple(axis % ndim for axis in numbers)


def _slid_along(events: Sequence[Mark | Step], ndim: int) -> tuple[int, ...]:
    """Axes of the input that the first window slides along."""
    for event in events:
        if isinstance(event, Step) and event.state is not None:
            slides = event.operation.slides
            views = [(axis, e) for axis, e in enumerate(event.state) if isinstance(e, View)]
            if found := tuple(axis for axis, view in views if view.axis in slides):
                return found
    return tuple(range(1, ndim - 1))


def _layers(traced: Traced) -> Iterator[ReceptiveField]:
    """Fields of all convolutions and poolings, by the path of the layer that they run in, else by their number."""
    path: list[str] = []
    count = 0
    for event in traced.events:
        if isinstance(event, Mark):
            path.append(".".join(event.path)) if event.enters else path.pop()
        elif event.operation.slides and event.state is not None:
            count += 1
            name = path[-1] if path and path[-1] else f"{event.operation.kind} {count}"
            yield field_of(event.state, traced.axes, name)
