"""accelerate(): hand every `lax.conv_general_dilated` of a process to our chooser, models and gradients included.

JAX derives gradients and batching of its convolution itself; each of them is lowered as a convolution again, which is
where this steps in. Where the chooser says `xla`, the original lowering runs untouched.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any

import jax
from jax.interpreters import mlir

from convjax._core import compat, tuning
from convjax._core.bridge import orders, spec_from_lax
from convjax._core.choose import choose
from convjax._core.primitive import convolve_ordered


class Acceleration:
    """Handle of `accelerate()`: `restore()` it, or use it in a `with` statement."""

    _installed = ExitStack()  # holds lax's original rules while `_count` handles are in force
    _count = 0

    def __init__(self, tune: bool = False) -> None:
        if Acceleration._count == 0:
            rules = {p: partial(_lower, p, compat.lowering_rule(compat.LAX_CONV, p)) for p in compat.PLATFORMS}
            Acceleration._installed.enter_context(compat.lax_lowering(rules))
        Acceleration._count += 1
        self._in_force = True
        self._tuning = ExitStack()
        if tune:
            self._tuning.enter_context(tuning.using("measure"))
            jax.clear_caches()

    @property
    def in_force(self) -> bool:
        return self._in_force

    def restore(self) -> None:
        """Give lax its own lowering back, once every handle is restored. A second call does nothing."""
        if not self._in_force:
            return
        self._in_force = False
        self._tuning.close()
        Acceleration._count -= 1
        if Acceleration._count == 0:
            Acceleration._installed.close()

    def __enter__(self) -> Acceleration:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()

    def __repr__(self) -> str:
        return f"<convjax.accelerate: {'in force' if self._in_force else 'restored'}>"


def accelerate(*, tune: bool = False) -> Acceleration:
    """Make every convolution of this process faster: those of lax, Flax, Equinox, Haiku, Keras on JAX, untouched.

    From here on, each `jax.lax.conv_general_dilated` that is compiled, gradients and vmapped ones included, gets the
    algorithm that `convjax.conv` would take. Values agree within the rounding of direct summation, or of an FFT where
    kernels are large (see `convjax.explain`; `precision="highest"` keeps direct summation). JAX's caches are cleared,
    so that functions compiled before are compiled again at their next call; nothing is retraced after that.

    Args:
      tune: measure each convolution when it is first compiled while this handle is in force, and remember which
        algorithm was fastest (see `convjax.tune`); compilation takes longer by seconds for each distinct layer.

    Returns:
      a handle with `restore()`, which is also a context manager. Handles may be nested.

    Example:
      >>> import jax, jax.numpy as jnp, convjax
      >>> x, w = jnp.ones((1, 8, 8, 16)), jnp.ones((3, 3, 1, 16))
      >>> with convjax.accelerate():
      ...     y = jax.lax.conv_general_dilated(
      ...         x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=16)
      >>> float(y[0, 4, 4, 0])
      9.0
    """
    return Acceleration(tune)


def _lower(platform: str, original: Callable, ctx: Any, lhs: Any, rhs: Any, **params: Any) -> Any:
    if compat.in_own_lowering() or params["out_sharding"] is not None or compat.partitioned(ctx):
        return original(ctx, lhs, rhs, **params)
    spec, numbers = spec_from_lax(params), params["dimension_numbers"]
    lhs_shape, rhs_shape = (
        jax.ShapeDtypeStruct(tuple(aval.shape[i] for i in order), aval.dtype)
        for aval, order in zip(ctx.avals_in, orders(numbers), strict=False)
    )
    if choose(spec, lhs_shape, rhs_shape, platform) == "xla":
        return original(ctx, lhs, rhs, **params)
    run = partial(convolve_ordered, numbers=numbers, spec=spec)
    return mlir.lower_fun(run, multiple_results=False)(compat.without_axes(ctx), lhs, rhs)
