"""Pallas kernels: algorithms of one platform each, in the form of those in `convjax._core.algorithms`.

    run(spec, lhs, rhs, *, bias, residual, activation, interpret) -> the output

A kernel adds and activates before it writes (`convjax._core.fused`); `FUSES` names the activations that it knows.
"""

from __future__ import annotations

from typing import Any

KERNELS: dict[str, Any] = {}
