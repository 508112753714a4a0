"""Asking which method is faster, without or with a stopwatch."""

from __future__ import annotations

import time
from typing import Any

import jax
from jax import Array
from jaxtyping import Shaped

from convjax._core import arguments
from convjax.signal.convolution import convolve
from convjax.signal.method import by_size
from convjax.signal.operands import MODES, check_valid, named, read
from convjax.signal.part import part


def choose_conv_method(
    in1: Shaped[Array, ...], in2: Shaped[Array, ...], mode: str = "full", measure: bool = False
) -> Any:
    """Say whether `convolve` is faster by "direct" summation or by "fft".

    Shapes and dtype decide, so that traced arrays will do, and constants of our own algorithms: the answer can differ
    from SciPy's. Integers and bools have transforms only where these are proved exact.

    Args:
      in1: first input.
      in2: second input, with as many axes.
      mode: as in `convolve`.
      measure: time both on the arrays given, a compilation and three runs each.

    Returns:
      "direct" or "fft"; with `measure` also a dict of the seconds that each took.

    Raises:
      ValueError: as `convolve`.
      TypeError: `measure` of traced arrays.

    Example:
      >>> import jax.numpy as jnp
      >>> from convjax.signal import choose_conv_method
      >>> choose_conv_method(jnp.ones(480_000), jnp.ones(48_000))
      'fft'

    Source: `scipy.signal.choose_conv_method`, which compares estimates of both as well.
    """
    where = "choose_conv_method"
    a, b = read(where, in1, in2)
    mode = named(where, "mode", mode, MODES)
    if arguments.flag(where, "measure", measure):
        return _measured(where, a, b, mode)
    if a.ndim == 0 or 0 in (a.size, b.size):
        return "direct"
    axes = tuple(range(a.ndim))
    if mode == "valid":
        check_valid(where, a.shape, b.shape, axes)
    return "direct" if by_size(part(mode, a.shape, b.shape, axes), a.dtype) == "direct" else "fft"


def _measured(where: str, a: Array, b: Array, mode: str) -> tuple[str, dict[str, float]]:
    times = {}
    for name, value in (("in1", a), ("in2", b)):
        arguments.static(where, name, value)
    for method in ("fft", "direct"):
        jax.block_until_ready(convolve(a, b, mode, method))
        runs = []
        for _ in range(3):
            start = time.perf_counter()
            jax.block_until_ready(convolve(a, b, mode, method))
            runs.append(time.perf_counter() - start)
        times[method] = min(runs)
    return min(times, key=times.__getitem__), times
