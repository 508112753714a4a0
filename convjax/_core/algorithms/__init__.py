"""One algorithm a file. Each exports two functions and trusts the spec:

    supports(spec, lhs, rhs, platform) -> None, or the reason why it cannot serve, in words for a user
    run(spec, lhs, rhs) -> the output

`lhs` and `rhs` are channels-last (see `convjax._core.spec`), and not empty. A rewrite turns a problem into simpler ones
and binds the primitive again, so that each of them is chosen anew. `ALGORITHMS` is the registry: to add an algorithm,
write the file, name it here, and give it a line in the decision list of `convjax._core.choose`.
"""

from __future__ import annotations

from typing import Any, Protocol

from jax import Array

from convjax._core.algorithms import (
    batch_to_feature,
    by_feature,
    fft,
    gemm,
    indirect,
    offsets,
    overlap_add,
    pack_groups,
    phase,
    slices,
    space_to_depth,
    split_groups,
    subpixel,
    taps,
    windows,
    xla,
)
from convjax._core.algorithms.winograd import Winograd
from convjax._core.spec import ConvSpec


class Algorithm(Protocol):
    """What a file in this folder exports."""

    def supports(self, spec: ConvSpec, lhs: Any, rhs: Any, platform: str) -> str | None: ...

    def run(self, spec: ConvSpec, lhs: Array, rhs: Array) -> Array: ...


ALGORITHMS: dict[str, Algorithm] = {
    # plain
    "xla": xla,
    "taps": taps,
    "gemm": gemm,
    "indirect": indirect,
    "winograd": Winograd(outputs=4),
    "winograd_f2": Winograd(outputs=2),  # as accurate as direct summation
    "fft": fft,
    "overlap_add": overlap_add,
    # plain, for the shape of a kernel gradient: a kernel as large as the input, few outputs
    "windows": windows,
    "offsets": offsets,
    # rewrites
    "phase": phase,
    "subpixel": subpixel,
    "space_to_depth": space_to_depth,
    "slices": slices,
    "pack_groups": pack_groups,
    "split_groups": split_groups,
    "by_feature": by_feature,
    "batch_to_feature": batch_to_feature,
}


def names() -> tuple[str, ...]:
    """Names that `algorithm=` takes, beside "auto".

    Example:
      >>> import convjax
      >>> "fft" in convjax.algorithms()
      True
    """
    return tuple(ALGORITHMS)
