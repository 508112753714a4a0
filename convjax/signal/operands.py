"""Reading the arguments of `convjax.signal`. As in SciPy, whatever is wrong with them is a ValueError."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from convjax._core import arguments
from convjax._core.spec import Shape, is_at_least, is_symbolic

MODES = ("full", "same", "valid")
METHODS = ("auto", "direct", "fft")


def read(where: str, in1: Any, in2: Any) -> tuple[Array, Array]:
    """Two arrays of numbers or bools, with as many axes, in their common dtype."""
    a, b = _array(where, "in1", in1), _array(where, "in2", in2)
    if a.ndim != b.ndim:
        raise ValueError(
            f"{where}: in1 of shape {a.shape} has {a.ndim} axes, in2 of shape {b.shape} has {b.ndim}; they must have "
            f"as many. Type {'in1' if a.ndim < b.ndim else 'in2'}[..., None] or a reshape that adds the missing axes."
        )
    dtype = jnp.result_type(a, b)
    return a.astype(dtype), b.astype(dtype)


def _array(where: str, name: str, value: Any) -> Array:
    """`arguments.array`, but bools are welcome."""
    if not isinstance(value, jax.Array):
        value = np.asarray(value)
    return jnp.asarray(value) if value.dtype == np.bool_ else arguments.array(where, name, value)


def named(where: str, name: str, value: Any, options: Sequence[str]) -> str:
    """One of `options`, in just this spelling."""
    if isinstance(value, str) and value in options:
        return value
    raise ValueError(f"{where}: {name}={value!r} is not known. Type one of {', '.join(map(repr, options))}.")


def read_axes(where: str, axes: Any, ndim: int) -> tuple[int, ...]:
    """All axes for None, else one or several, each once."""
    if axes is None:
        return tuple(range(ndim))
    try:
        numbers = [operator.index(a) for a in (axes if isinstance(axes, Iterable) else (axes,))]
    except TypeError:
        raise ValueError(f"{where}: axes={axes!r} must be integers. Type axes=-1, or axes=(0, 1).") from None
    if not numbers:
        raise ValueError(f"{where}: axes={axes!r} is empty. Type axes=None for all of them.")
    if any(not -ndim <= a < ndim for a in numbers):
        raise ValueError(f"{where}: axes={axes!r} are not in an array of {ndim} axes. Type {-ndim} to {ndim - 1}.")
    if len({a % ndim for a in numbers}) < len(numbers):
        raise ValueError(f"{where}: axes={axes!r} names an axis twice. Type each once.")
    return tuple(sorted(a % ndim for a in numbers))


def check_length(where: str, shape1: Shape, shape2: Shape, axes: Sequence[int]) -> None:
    """A transform needs to know how long it is."""
    for name, shape in (("in1", shape1), ("in2", shape2)):
        if is_symbolic(shape[a] for a in axes):
            raise ValueError(
                f"{where}: {name} has shape {shape}, but a Fourier transform needs numbers on axes {tuple(axes)}. Type "
                "convolve(in1, in2, method='direct') for a symbolic length, or export with numbers there."
            )


def check_valid(where: str, shape1: Shape, shape2: Shape, axes: Sequence[int]) -> None:
    """In mode 'valid' one input must contain the other."""
    pairs = [(shape1[a], shape2[a]) for a in axes]
    if all(is_at_least(m, n) for m, n in pairs) or all(is_at_least(n, m) for m, n in pairs):
        return
    known = ""
    if is_symbolic(size for pair in pairs for size in pair):
        known = "\n  Of symbolic sizes say what holds: type jax.export.symbolic_shape('n', constraints=('n >= 5',))."
    raise ValueError(
        f"{where}: mode='valid' needs one input at least as large as the other on every axis, but in1 is {shape1} "
        f"and in2 is {shape2}. Type mode='same' or mode='full', or crop one of them.{known}"
    )


def check_broadcast(where: str, shape1: Shape, shape2: Shape, axes: Sequence[int]) -> None:
    """Axes that are not convolved are equal or of size 1."""
    for a, (m, n) in enumerate(zip(shape1, shape2, strict=True)):
        if a not in axes and m != n and 1 not in (m, n):
            raise ValueError(
                f"{where}: in1 of shape {shape1} and in2 of shape {shape2} differ on axis {a}, which is not in axes. "
                "Type axes=... with it, or give it size 1 in one of them."
            )
