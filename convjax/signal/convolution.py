"""Convolution and correlation in any number of dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array
from jaxtyping import Inexact, Shaped

from convjax.signal.method import apply, by_size
from convjax.signal.operands import METHODS, MODES, check_broadcast, check_length, check_valid, named, read, read_axes
from convjax.signal.part import convolve_part, part


def convolve(
    in1: Shaped[Array, "*shape1"], in2: Shaped[Array, "*shape2"], mode: str = "full", method: str = "auto"
) -> Shaped[Array, "*out"]:
    """Convolve two arrays over all their axes: `out[n] = sum_m in1[m] in2[n - m]`.

    Args:
      in1: first input.
      in2: second input, with as many axes; none for two numbers.
      mode: "full" (size `n1 + n2 - 1` on each axis), "same" (the centre of it, of the size of `in1`) or "valid"
        (without any zero from outside: `abs(n1 - n2) + 1`).
      method: "direct" sums, "fft" multiplies spectra (of blocks where one input is much longer), with an error relative
        to the largest output; "auto" takes what `choose_conv_method` says.

    Returns:
      the convolution in the common dtype of the inputs. Integers wrap around, for bools it is any of all.

    Raises:
      ValueError: a mode or method that is not known, inputs of different numbers of axes, an empty input (but for an
        empty `in1` with "same"), in mode "valid" inputs of which none contains the other.
      TypeError: inputs that are no numbers.

    Example:
      >>> import jax.numpy as jnp
      >>> from convjax.signal import convolve
      >>> convolve(jnp.array([1, 2, 3, 4]), jnp.array([1, 10]), mode="same")
      Array([ 1, 12, 23, 34], dtype=int32)

    Source: Oppenheim and Schafer, Discrete-time signal processing, 3rd edition, equation 2.49 and section 8.7.
    """
    a, b = read("convolve", in1, in2)
    return _convolve("convolve", a, b, mode, method)


def correlate(
    in1: Shaped[Array, "*shape1"], in2: Shaped[Array, "*shape2"], mode: str = "full", method: str = "auto"
) -> Shaped[Array, "*out"]:
    """Correlate two arrays over all their axes: `out[n] = sum_m in1[m] conj(in2[m - n + shape2 - 1])`.

    Which lag an output of 1-D inputs belongs to is told by `correlation_lags`.

    Args:
      in1: first input.
      in2: second input, with as many axes; its conjugate is taken.
      mode: as in `convolve`.
      method: as in `convolve`.

    Returns:
      the correlation in the common dtype of the inputs.

    Raises:
      ValueError: as `convolve`.
      TypeError: as `convolve`.

    Example:
      >>> import jax.numpy as jnp
      >>> from convjax.signal import correlate
      >>> correlate(jnp.array([1.0, 2.0, 3.0]), jnp.array([0.0, 1.0, 0.5]))
      Array([0.5, 2. , 3.5, 3. , 0. ], dtype=float32)

    Source: Oppenheim and Schafer, Discrete-time signal processing, 3rd edition, section 2.9.
    """
    a, b = read("correlate", in1, in2)
    return _convolve("correlate", a, jnp.flip(b).conj() if b.dtype != bool else jnp.flip(b), mode, method)


def fftconvolve(
    in1: Shaped[Array, "*shape1"],
    in2: Shaped[Array, "*shape2"],
    mode: str = "full",
    axes: int | Sequence[int] | None = None,
) -> Inexact[Array, "*out"]:
    """Convolve two arrays by one Fourier transform of each.

    Args:
      in1: first input.
      in2: second input, with as many axes.
      mode: as in `convolve`, on the axes that are convolved.
      axes: which to convolve, all by default. On the others, and wherever a size is 1, the inputs are multiplied as
        they broadcast ("same" then keeps the size of `in1`).

    Returns:
      the convolution in the common dtype of the inputs, of integers and bools in the default float; of an empty input
      an array of shape `(0,)`.

    Raises:
      ValueError: a mode that is not known, inputs of different numbers of axes, or of sizes that do not broadcast
        outside `axes`; axes that are none, double or do not exist; in mode "valid" as `convolve`.
      TypeError: inputs that are no numbers.

    Example:
      >>> import jax.numpy as jnp
      >>> from convjax.signal import fftconvolve
      >>> fftconvolve(jnp.ones((2, 1000)), jnp.ones((1, 300)), mode="valid", axes=-1).shape
      (2, 701)

    Source: Stockham, High-speed convolution and correlation, 1966.
    """
    return _transformed("fftconvolve", in1, in2, mode, axes, "fft")


def oaconvolve(
    in1: Shaped[Array, "*shape1"],
    in2: Shaped[Array, "*shape2"],
    mode: str = "full",
    axes: int | Sequence[int] | None = None,
) -> Inexact[Array, "*out"]:
    """Convolve two arrays of which one is much longer, by Fourier transforms of blocks of it.

    Faster than `fftconvolve` there, and otherwise the same: where blocks would not pay, one transform is taken.

    Args:
      in1: first input.
      in2: second input, with as many axes.
      mode: as in `fftconvolve`.
      axes: as in `fftconvolve`.

    Returns:
      as `fftconvolve`.

    Raises:
      ValueError: as `fftconvolve`.
      TypeError: as `fftconvolve`.

    Example:
      >>> import jax.numpy as jnp
      >>> from convjax.signal import oaconvolve
      >>> oaconvolve(jnp.ones(100_000), jnp.ones(100), mode="same").shape
      (100000,)

    Source: Stockham, High-speed convolution and correlation, 1966; Oppenheim and Schafer, Discrete-time signal
    processing, 3rd edition, section 8.7.3.
    """
    return _transformed("oaconvolve", in1, in2, mode, axes, "blocks")


def _convolve(where: str, a: Array, b: Array, mode: Any, method: Any) -> Array:
    if a.ndim == 0:
        return a * b
    mode, method = named(where, "mode", mode, MODES), named(where, "method", method, METHODS)
    if 0 in (a.size, b.size):
        if mode == "same" and b.size:
            return jnp.zeros(a.shape, a.dtype)
        name, empty = ("in2", b) if b.size == 0 else ("in1", a)
        raise ValueError(f"{where}: {name} of shape {empty.shape} is empty. Type an array with elements.")
    if mode == "valid":
        check_valid(where, a.shape, b.shape, range(a.ndim))
    a, b, axes = _long_axes(a, b, mode, range(a.ndim))
    if method == "fft" and jnp.issubdtype(a.dtype, jnp.inexact):
        check_length(where, a.shape, b.shape, axes)
    wanted = part(mode, a.shape, b.shape, axes)
    return apply(a, b, wanted, {"auto": by_size(wanted, a.dtype), "fft": "blocks", "direct": "direct"}[method])


def _long_axes(a: Array, b: Array, mode: str, axes: Sequence[int]) -> tuple[Array, Array, list[int]]:
    """Axes on which both have more than one element. Of the others "same" wants the middle of `b` where `a` has one."""
    long = [i for i in axes if a.shape[i] != 1 and b.shape[i] != 1]
    if mode == "same":
        middle = [(n - 1) // 2 if i not in long and a.shape[i] == 1 else None for i, n in enumerate(b.shape)]
        b = b[tuple(slice(None) if m is None else slice(m, m + 1) for m in middle)]
    return a, b, long


def _transformed(where: str, in1: Any, in2: Any, mode: Any, axes: Any, method: str) -> Array:
    a, b = read(where, in1, in2)
    if a.ndim == 0:
        return a * b
    dtype = jnp.result_type(a, float) if not jnp.issubdtype(a.dtype, jnp.inexact) else a.dtype
    if 0 in (a.size, b.size):
        return jnp.zeros(0, dtype)
    mode = named(where, "mode", mode, MODES)
    a, b, long = _long_axes(a.astype(dtype), b.astype(dtype), mode, read_axes(where, axes, a.ndim))
    check_broadcast(where, a.shape, b.shape, long)
    check_length(where, a.shape, b.shape, long)
    if mode == "valid":
        check_valid(where, a.shape, b.shape, long)
    return convolve_part(a, b, part(mode, a.shape, b.shape, long), method)
