"""Reading plain Python arguments, with errors that say what came in and what to type instead."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax


def integer(where: str, name: str, value: Any, minimum: int | None = None) -> int:
    """One static integer, at least `minimum`."""
    static(where, name, value)
    try:
        number: Any = value if jax.export.is_symbolic_dim(value) else operator.index(value)
    except TypeError:
        raise TypeError(
            f"{where}: {name} must be an integer, got {value!r} of type {type(value).__name__}. "
            f"{_type_instead(name, _suggest_integer(value, minimum))}."
        ) from None
    if isinstance(value, bool):
        raise TypeError(f"{where}: {name} must be an integer, got the bool {value}. {_type_instead(name, int(value))}.")
    if minimum is not None and not jax.export.is_symbolic_dim(number) and number < minimum:
        raise ValueError(
            f"{where}: {name} must be at least {minimum}, got {number}. {_type_instead(name, minimum)} or more."
        )
    return number


def static(where: str, name: str, value: Any) -> None:
    """Refuse what is known only when the program runs."""
    if isinstance(value, jax.core.Tracer):
        argument = name.partition("[")[0]
        raise TypeError(
            f"{where}: {name} must be static, but is traced ({value.aval.str_short()}): it shapes the computation. "
            f"Under jit name it in static_argnames=({argument!r},), or close over a Python value."
        )


def flag(where: str, name: str, value: Any) -> bool:
    """True or False, nothing that merely is true."""
    static(where, name, value)
    if not isinstance(value, bool | np.bool):
        raise TypeError(f"{where}: {name} must be a bool, got {value!r}. Type {name}=True or {name}=False.")
    return bool(value)


def _type_instead(name: str, value: int) -> str:
    """An entry of a sequence cannot be typed by its name."""
    return f"Type {value} there" if "[" in name else f"Type {name}={value}"


def _suggest_integer(value: Any, minimum: int | None) -> int:
    try:
        return max(int(value), minimum if minimum is not None else int(value))
    except (TypeError, ValueError, OverflowError):
        return minimum or 0


def per_axis(where: str, name: str, value: Any, ndim: int, minimum: int | None = None) -> tuple[int, ...]:
    """One integer for all spatial axes, or one each."""
    if isinstance(value, jax.core.Tracer) or not isinstance(value, Iterable) or isinstance(value, str):
        return (integer(where, name, value, minimum),) * ndim
    values = tuple(integer(where, f"{name}[{i}]", v, minimum) for i, v in enumerate(value))
    if len(values) != ndim:
        raise ValueError(
            f"{where}: {name}={values} has {len(values)} entries, but the kernel has {ndim} spatial axes. "
            f"Type one int for all axes, or {ndim} of them."
        )
    return values


def choice(where: str, name: str, value: Any, options: Sequence[str]) -> str:
    """One of `options`, whatever its case."""
    if isinstance(value, str):
        for option in options:
            if option.lower() == value.lower():
                return option
        near = difflib.get_close_matches(value.lower(), [o.lower() for o in options], n=1)
        hint = f" Did you mean {next(o for o in options if o.lower() == near[0])!r}?" if near else ""
    else:
        hint = ""
    raise ValueError(f"{where}: {name}={value!r} is not known. Type one of {', '.join(map(repr, options))}.{hint}")


def array(where: str, name: str, value: Any) -> Array:
    """An array of numbers."""
    if value is None or isinstance(value, str):
        raise TypeError(f"{where}: {name} must be an array, got {value!r}. Type a jax or numpy array of numbers.")
    try:
        result = value if isinstance(value, Array) else jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{where}: {name} must be an array, got {type(value).__name__}: {error}") from None
    if not jnp.issubdtype(result.dtype, jnp.number):
        raise TypeError(
            f"{where}: {name} must hold numbers, got dtype {result.dtype}. Type {name}.astype(jnp.float32)."
        )
    return result


def operands(where: str, **arrays: Any) -> tuple[Array, ...]:
    """Arrays of one numeric dtype."""
    result = [array(where, name, value) for name, value in arrays.items()]
    (first, a), *rest = zip(arrays, result, strict=True)
    for name, b in rest:
        if a.dtype != b.dtype:
            raise TypeError(
                f"{where}: {first} is {a.dtype} but {name} is {b.dtype}; a convolution has one dtype. "
                f"Type {name}.astype({first}.dtype), or {first}.astype({name}.dtype)."
            )
    return tuple(result)


def precision(where: str, value: Any) -> tuple[lax.Precision, lax.Precision] | None:
    """`jax.lax`'s precision: None (the configured default), a name, a `lax.Precision`, or a pair of either."""
    if value is None:
        try:
            configured = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
            return None if configured is None else (lax.Precision(configured),) * 2
        except ValueError:  # a dot algorithm such as "BF16_BF16_F32", which says nothing about convolutions
            return None
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    try:
        if len(pair) == 2:
            return lax.Precision(pair[0]), lax.Precision(pair[1])
    except ValueError:
        pass
    raise ValueError(
        f"{where}: precision={value!r} is not known. Type None, 'default', 'high', 'highest', a jax.lax.Precision, "
        "or a pair of them."
    )


def preferred_element_type(where: str, value: Any, dtype: Any) -> Any:
    """Output dtype: None, or one at least as wide and of the same kind as the operands'."""
    if value is None:
        return None
    try:
        preferred = jnp.dtype(value)
    except TypeError:
        raise TypeError(f"{where}: preferred_element_type={value!r} is not a dtype. Type e.g. jnp.float32.") from None
    kinds = (jnp.integer, jnp.floating, jnp.complexfloating)
    kind = next(kind for kind in kinds if jnp.issubdtype(dtype, kind))
    if not jnp.issubdtype(preferred, kind) or preferred.itemsize < jnp.dtype(dtype).itemsize:
        raise ValueError(
            f"{where}: preferred_element_type={preferred} cannot hold what {dtype} operands give: it must be of the "
            f"same kind and at least as wide. Leave it out, and type .astype(jnp.{preferred}) after the result."
        )
    if jax.dtypes.canonicalize_dtype(preferred) != preferred:
        raise ValueError(
            f"{where}: preferred_element_type={preferred} needs 64-bit types. "
            "Type jax.config.update('jax_enable_x64', True)."
        )
    return preferred


PROBLEMS = ("forward", "input_grad", "kernel_grad")


def algorithms(where: str, value: Any, known: Sequence[str]) -> tuple[str, str, str]:
    """Names for forward, input_grad and kernel_grad.

    A single name binds the forward problem and is preferred for the gradients where it serves (`"fft?"`); a mapping
    binds each problem that it names.
    """
    options = ("auto", *known)
    if isinstance(value, Mapping):
        for key in value:
            choice(where, "algorithm key", key, PROBLEMS)
        forward, input_grad, kernel_grad = (
            choice(where, f"algorithm[{p!r}]", value.get(p, "auto"), options) for p in PROBLEMS
        )
        return forward, input_grad, kernel_grad
    name = choice(where, "algorithm", value, options)
    return (name, name, name) if name == "auto" else (name, f"{name}?", f"{name}?")
