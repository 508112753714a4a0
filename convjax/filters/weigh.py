"""What all filters do: continue the array beyond its border, then take weighted sums."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from convjax._core import arguments
from convjax.signal.border import extend
from convjax.signal.method import apply, by_size
from convjax.signal.part import Part

NUMPY_MODES = {
    "reflect": "symmetric",
    "grid-mirror": "symmetric",
    "mirror": "reflect",
    "nearest": "edge",
    "wrap": "wrap",
    "grid-wrap": "wrap",
    "constant": "constant",
    "grid-constant": "constant",
}


def read(where: str, x: Any, axes: Any, count: int | None = None) -> tuple[Array, tuple[int, ...]]:
    """The array, and which axes are filtered: `count` of them, or any number."""
    x = arguments.array(where, "x", x)
    given = range(x.ndim) if axes is None else axes if isinstance(axes, Iterable) else (axes,)
    numbers = [arguments.integer(where, f"axes[{i}]", a) for i, a in enumerate(given)]
    if any(not -x.ndim <= a < x.ndim for a in numbers) or len({a % x.ndim for a in numbers}) < len(numbers):
        raise ValueError(
            f"{where}: axes={axes!r} must name axes of x, of shape {x.shape}, each once. Type e.g. axes=(-2, -1)."
        )
    if count is not None and len(numbers) != count:
        raise ValueError(
            f"{where}: the filter has {count} axes, but x of shape {x.shape} is filtered along {len(numbers)}. "
            f"Type axes=... with {count} of them, such as axes={tuple(range(-count, 0))}."
        )
    return x, tuple(a % x.ndim for a in numbers)


def per_axis(where: str, name: str, value: Any, axes: Sequence[int]) -> tuple[Any, ...]:
    """One value for all filtered axes, or one each."""
    if isinstance(value, str) or np.ndim(value) == 0:
        return (value,) * len(axes)
    if len(value) != len(axes):
        raise ValueError(
            f"{where}: {name}={value!r} has {len(value)} entries for {len(axes)} axes. Type one for all, or one each."
        )
    return tuple(value)


def modes(where: str, mode: Any, axes: Sequence[int]) -> tuple[str, ...]:
    """numpy's names for the modes of the filtered axes."""
    given = per_axis(where, "mode", mode, axes)
    return tuple(NUMPY_MODES[arguments.choice(where, "mode", m, tuple(NUMPY_MODES))] for m in given)


def to_float(x: Array) -> Array:
    """Integers as the default float: weights are none."""
    return x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(jnp.result_type(float))


def before(where: str, sizes: Sequence[int], origin: Any, axes: Sequence[int]) -> tuple[int, ...]:
    """How many weights stand before the middle one, moved by `origin`."""
    result = []
    for size, o in zip(sizes, per_axis(where, "origin", origin, axes), strict=True):
        o = arguments.integer(where, "origin", o)
        if not 0 <= size // 2 + o < size:
            raise ValueError(
                f"{where}: origin={o} leaves the {size} weights. Type {-(size // 2)} to {(size - 1) // 2}."
            )
        result.append(size // 2 + o)
    return tuple(result)


def weigh(
    x: Array, weights: Any, axes: Sequence[int], low: Sequence[int], modes: Sequence[str], cval: Any = 0.0
) -> Array:
    """Correlate `x` along `axes` with `weights`, `low[i]` of which stand before the middle on `axes[i]`.

    The result has the shape of `x`, and its dtype unless the weights are complex or `x` is of narrow integers.
    """
    if not axes or x.size == 0:
        return x
    dtype = x.dtype
    if jnp.issubdtype(dtype, jnp.integer):
        dtype = wide = np.dtype(np.int32) if jnp.iinfo(dtype).bits < 32 else dtype
    else:
        dtype = jnp.promote_types(dtype, jnp.complex64) if jnp.iscomplexobj(weights) else dtype
        wide = jnp.promote_types(dtype, jnp.float32)
    shape = [1] * x.ndim
    for axis, size in zip(axes, np.shape(weights), strict=True):
        shape[axis] = size
    order = [list(axes).index(a) for a in sorted(axes)]
    kernel = jnp.transpose(jnp.asarray(weights), order).reshape(shape).astype(wide)
    plain = isinstance(cval, int | float) and cval == 0 and set(modes) == {"constant"}
    value = jnp.asarray(0 if plain else cval).astype(wide)
    return _weigh(x.astype(wide), kernel, value, tuple(axes), tuple(low), tuple(modes), plain).astype(dtype)


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _weigh(
    x: Array,
    kernel: Array,
    cval: Array,
    axes: tuple[int, ...],
    low: tuple[int, ...],
    modes: tuple[str, ...],
    zeros: bool,
) -> Array:
    sizes = [kernel.shape[a] for a in axes]
    starts = [size - 1 - lo if zeros else size - 1 for size, lo in zip(sizes, low, strict=True)]
    space = tuple(x.shape[a] for a in axes)
    if not zeros:
        x = extended(x, axes, [(lo, size - 1 - lo) for size, lo in zip(sizes, low, strict=True)], modes, cval)
    wanted = Part(x.shape, kernel.shape, axes, tuple(starts), space)
    return apply(x, jnp.flip(kernel, axes), wanted, by_size(wanted, x.dtype))


def extended(
    x: Array, axes: Sequence[int], pads: Sequence[tuple[int, int]], modes: Sequence[str], cval: Array
) -> Array:
    """`x` with what lies beyond its border along `axes`."""
    for axis, (lo, hi), mode in zip(axes, pads, modes, strict=True):
        x = extend(x, axis, lo, hi, mode, cval)
    return x


def number(where: str, name: str, value: Any, *, above: float | None = None) -> float:
    """One static real number."""
    arguments.static(where, name, value)
    try:
        result = float(value)
    except (TypeError, ValueError):
        result = math.nan
    if math.isnan(result) or isinstance(value, str):
        raise TypeError(f"{where}: {name} must be a number, got {value!r}. Type {name}=1.0.")
    if above is not None and not result > above:
        raise ValueError(f"{where}: {name} must be more than {above}, got {value!r}. Type {name}=1.0.")
    return result
