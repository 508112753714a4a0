"""From what people write for padding to one `(lo, hi)` pair an axis, and padding with other things than zeros."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Number
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from convjax._core import arguments
from convjax._core.arguments import choice, integer
from convjax._core.spec import is_at_least

Pairs = tuple[tuple[int, int], ...]
NAMES = ("SAME", "SAME_LOWER", "VALID", "FULL", "CAUSAL")
MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap", "symmetric": "symmetric"}


def pads(where: str, padding: Any, sizes: Sequence[int], windows: Sequence[int], strides: Sequence[int]) -> Pairs:
    """Pads for an input of `sizes`, a dilated kernel of `windows`, and `strides`.

    SAME gives `ceil(size / stride)` outputs, the odd zero at the end (SAME_LOWER: at the start); FULL every position
    at which kernel and input overlap; CAUSAL puts all of `window - 1` in front, so that output t sees inputs up to
    `stride * t`. Numbers: one for all axes, one an axis (both sides alike), or a pair an axis; negative crops.
    """
    if isinstance(padding, str):
        name = choice(where, "padding", padding, NAMES)
        if name == "FULL":
            return tuple((w - 1, w - 1) for w in windows)
        if name == "CAUSAL":
            return tuple((w - 1, 0) for w in windows)
        return tuple((lo, hi) for lo, hi in lax.padtype_to_pads(sizes, windows, strides, name))
    return explicit(where, padding, len(sizes))


def explicit(where: str, padding: Any, ndim: int) -> Pairs:
    """Pads given as numbers."""
    if isinstance(padding, jax.core.Tracer) or not isinstance(padding, Iterable):
        return ((integer(where, "padding", padding),) * 2,) * ndim
    entries = tuple(padding)
    nested = [isinstance(e, Iterable) and not isinstance(e, str | jax.core.Tracer) for e in entries]
    if ndim == 1 and len(entries) == 2 and not any(nested):
        raise ValueError(
            f"{where}: padding={padding!r} is ambiguous for one spatial axis. "
            f"Type a pair for the axis, padding=(({entries[0]}, {entries[1]}),), or one int for both sides."
        )
    if len(entries) != ndim:
        raise ValueError(
            f"{where}: padding={padding!r} has {len(entries)} entries, but the kernel has {ndim} spatial axes. "
            f"Type one int, {ndim} ints, {ndim} (lo, hi) pairs, or one of {', '.join(map(repr, NAMES))}."
        )
    result = []
    for i, (entry, is_pair) in enumerate(zip(entries, nested, strict=True)):
        name = f"padding[{i}]"
        if not is_pair:
            result.append((integer(where, name, entry),) * 2)
            continue
        pair = tuple(entry)
        if len(pair) != 2:
            raise ValueError(f"{where}: {name}={entry!r} must be an int or a pair. Type (lo, hi).")
        result.append((integer(where, f"{name}[0]", pair[0]), integer(where, f"{name}[1]", pair[1])))
    return tuple(result)


def modes(where: str, padding_mode: Any, ndim: int) -> tuple[str | float, ...]:
    """One mode for all axes or one each; each a name of `MODES` or the constant to pad with."""
    several = isinstance(padding_mode, Sequence) and not isinstance(padding_mode, str)
    given = tuple(padding_mode) if several else (padding_mode,) * ndim
    if len(given) != ndim:
        raise ValueError(
            f"{where}: padding_mode={padding_mode!r} has {len(given)} entries, but the kernel has {ndim} spatial axes. "
            f"Type one mode for all axes, or {ndim} of them."
        )
    result: list[Any] = []
    for mode in given:
        arguments.static(where, "padding_mode", mode)
        if isinstance(mode, Number) and not isinstance(mode, bool):
            result.append(mode if mode != 0 else "zeros")
        else:
            result.append(choice(where, "padding_mode", mode, tuple(MODES)))
    return tuple(result)


def pad_by_mode(where: str, x: Array, padding: Pairs, modes: Sequence[str | float], first_axis: int = 1) -> Array:
    """Pad (or, where negative, crop) the spatial axes of `x`, each in its own mode."""
    for axis, ((lo, hi), mode) in enumerate(zip(padding, modes, strict=True), start=first_axis):
        size = x.shape[axis]
        if (lo > 0 or hi > 0) and mode in MODES and mode != "zeros":
            _check_room(where, mode, size, max(lo, hi), axis - first_axis)
        widths = [(0, 0)] * x.ndim
        widths[axis] = (max(lo, 0), max(hi, 0))
        if max(lo, hi) > 0:
            if mode == "circular":  # jnp.pad cannot where the size is symbolic
                ends = ((size - widths[axis][0], size), (0, widths[axis][1]))
                before, after = (lax.slice_in_dim(x, start, stop, axis=axis) for start, stop in ends)
                x = jnp.concatenate([before, x, after], axis)
            elif mode in MODES:
                x = jnp.pad(x, widths, mode=MODES[mode])
            else:
                x = jnp.pad(x, widths, constant_values=_constant(where, mode, x.dtype))
        x = lax.slice_in_dim(x, max(-lo, 0), x.shape[axis] - max(-hi, 0), axis=axis)
    return x


def _constant(where: str, value: Any, dtype: Any) -> Array:
    """`value` in the dtype of the input, which must hold it."""
    if jnp.issubdtype(dtype, jnp.integer):
        limits = jnp.iinfo(dtype)
        held = not np.iscomplexobj(value) and value == value // 1 and limits.min <= value <= limits.max
    else:
        held = not np.iscomplexobj(value) or jnp.issubdtype(dtype, jnp.complexfloating)
    if not held:
        raise ValueError(
            f"{where}: padding_mode={value!r} cannot be written into x, which is {dtype}. "
            f"Type a constant that {dtype} holds, or convert x and w."
        )
    return jnp.asarray(value, dtype)


def _check_room(where: str, mode: str, size: int, width: int, axis: int) -> None:
    """A mirror cannot show more than there is (numpy would bounce back and forth silently)."""
    room = size - 1 if mode == "reflect" else size
    if mode != "replicate" and jax.export.is_symbolic_dim(size) and not is_at_least(room, width):
        raise ValueError(
            f"{where}: padding_mode={mode!r} pads spatial axis {axis} by {width}, and its size is {size}, of which it "
            f"is not known whether that is enough. Type jax.export.symbolic_shape('n', constraints=('n >= "
            f"{width + size - room}',)), or padding_mode='zeros'."
        )
    if size == 0 or (mode != "replicate" and width > room):
        raise ValueError(
            f"{where}: padding_mode={mode!r} cannot pad spatial axis {axis} by {width}, as it has only {size} values. "
            f"Pad by at most {max(room, 0)}, or type padding_mode='zeros'."
        )


def written(modes: Sequence[str | float]) -> list[bool]:
    """Axes padded in the input itself: all but zeros, and those where a constant follows, which takes the corner."""
    return [mode != "zeros" or any(not isinstance(m, str) for m in modes[i:]) for i, mode in enumerate(modes)]
