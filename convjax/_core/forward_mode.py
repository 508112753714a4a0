"""Derivatives along some operands, for primitives whose derivative is that of a definition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
from jax.interpreters import ad


def along(function: Callable, primals: Sequence[Any], tangents: dict[int, Any]) -> tuple[Any, Any]:
    """Value and derivative along tangents of some operands: a zero tangent would become a convolution with zeros."""

    def of_moving(*some: Any) -> Any:
        moved = dict(zip(tangents, some, strict=True))
        return function(*(moved.get(i, primal) for i, primal in enumerate(primals)))

    return jax.jvp(of_moving, tuple(primals[i] for i in tangents), tuple(tangents.values()))


def jvp_of(function: Callable, primals: Any, tangents: Any, **params: Any) -> tuple[Any, Any]:
    """The rule of a primitive that computes what `function` does."""
    moving = {i: tangent for i, tangent in enumerate(tangents) if type(tangent) is not ad.Zero}
    return along(partial(function, **params), primals, moving)
