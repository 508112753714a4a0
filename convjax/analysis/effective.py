"""The effective receptive field: how much of what an output may see it is really moved by."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from convjax._core import arguments
from convjax.analysis.receptive import Traced, trace
from convjax.analysis.state import View

# Inputs count as inside where their share exceeds this part of the greatest: what a Gaussian has left at two and a half
# standard deviations (Luo et al., section 3: 1 - 95.45%).
INSIDE = 1 - 0.9545


@dataclasses.dataclass(frozen=True, eq=False)
class EffectiveField:
    """How much each input moves one output.

    Attributes:
      heat: `(*space)`, mean absolute gradient over batch and channels of the input, its greatest value 1 (0 where the
        gradient vanishes).
      position: of the output, along those spatial axes that it has.
    """

    heat: np.ndarray
    position: tuple[int, ...]

    @property
    def size(self) -> float:
        """Side of the square (cube, ...) with as many inputs as have more than 4.55% of the greatest heat."""
        return float(np.sum(self.heat > INSIDE * self.heat.max(initial=0.0))) ** (1 / self.heat.ndim)

    @property
    def centre(self) -> tuple[float, ...]:
        """Centre of mass of the heat, in inputs."""
        return tuple(float(np.sum(weight * np.arange(len(weight)))) for weight in self._profiles())

    @property
    def radius(self) -> tuple[float, ...]:
        """Standard deviation of the heat along each axis, in inputs."""
        places = [np.arange(n) - c for n, c in zip(self.heat.shape, self.centre, strict=True)]
        return tuple(float(np.sqrt(np.sum(w * d**2))) for w, d in zip(self._profiles(), places, strict=True))

    def _profiles(self) -> list[np.ndarray]:
        """The heat along each axis, of sum 1 unless it vanishes."""
        total = self.heat.sum() or 1.0
        axes = range(self.heat.ndim)
        return [self.heat.sum(tuple(a for a in axes if a != axis)) / total for axis in axes]


def effective_receptive_field(
    fn: Callable,
    *args: Any,
    position: Sequence[int] | None = None,
    axes: Sequence[int] | None = None,
    argnum: int = -1,
    **kwargs: Any,
) -> EffectiveField:
    """Gradient of one output, all its channels and examples added up, in the input: a heat map.

    One evaluation of `fn` and of its gradient. Random inputs, several in a batch, show what the network does in the
    mean.

    Args:
      fn: any differentiable function that returns one array; or a Flax module with parameters, nnx (in inference mode)
        or linen (bound to its variables).
      args, kwargs: its arguments.
      position: of the output, along those of the spatial axes that the output still has; the middle by default.
      axes, argnum: as `receptive_field`.

    Returns:
      an `EffectiveField`.

    Raises:
      ValueError: a module without parameters; several outputs; a position that there is not; else as
        `receptive_field`. TypeError: as `receptive_field`; the input is not floating-point.

    Example:
      >>> import jax.numpy as jnp, convjax
      >>> from convjax.analysis import effective_receptive_field
      >>> w = jnp.ones((3, 1, 1)) / 3
      >>> field = effective_receptive_field(lambda x: convjax.conv(convjax.conv(x, w), w), jnp.ones((1, 7, 1)))
      >>> field.heat.round(2)
      array([0.  , 0.33, 0.67, 1.  , 0.67, 0.33, 0.  ], dtype=float32)
      >>> field.size, round(field.radius[0], 3)
      (5.0, 1.155)

    Source: Luo, Li, Urtasun and Zemel, Understanding the effective receptive field in deep convolutional neural
      networks, arXiv:1701.04128, section 3.
    """
    where = "effective_receptive_field"
    traced = trace(where, fn, args, kwargs, axes, argnum)
    if len(traced.outputs) != 1 or traced.outputs[0] is None:
        raise ValueError(f"{where}: fn must return one array that depends on args[{argnum}]. Pass one that does.")
    state = traced.network.state
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(state)):
        raise ValueError(
            f"{where}: {traced.network.name} has no parameters, only their shapes. Pass a module that has (linen: "
            "model.bind(variables))."
        )
    x = jnp.asarray(args[argnum])
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        raise TypeError(f"{where}: the input is {x.dtype}, which has no gradient. Type x.astype(jnp.float32).")

    def run(x: Any) -> Any:
        return jax.tree.leaves(traced.network.fn(state, *_with(args, argnum, x)))[0]

    index, place = _index(where, traced, jax.eval_shape(run, x).shape, position)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(run(x)[index].real)))(x)
    others = tuple(axis for axis in range(x.ndim) if axis not in traced.axes)
    heat = np.abs(np.asarray(gradient)).mean(others).transpose(np.argsort(np.argsort(traced.axes)))
    return EffectiveField(heat / (heat.max(initial=0.0) or 1.0), place)


def _with(args: tuple[Any, ...], argnum: int, x: Any) -> list[Any]:
    result = list(args)
    result[argnum] = x
    return result


def _index(where: str, traced: Traced, shape: tuple[int, ...], position: Any) -> tuple[Any, tuple[int, ...]]:
    """Index of the output, everything along the axes that are not spatial, and its position."""
    entries = [(traced.outputs[0] or ())[axis] for axis in traced.axes]
    found = [e.axis for e in entries if isinstance(e, View)]
    middle = tuple(shape[axis] // 2 for axis in found)
    place = middle if position is None else arguments.per_axis(where, "position", position, len(found), 0)
    for i, (p, axis) in enumerate(zip(place, found, strict=True)):
        if p >= shape[axis]:
            raise ValueError(f"{where}: position[{i}]={p}, but there are {shape[axis]} outputs. Type {middle[i]}.")
    index: list[Any] = [slice(None)] * len(shape)
    for p, axis in zip(place, found, strict=True):
        index[axis] = p
    return tuple(index), place
