"""One algorithm a file. Each exports three functions and trusts the spec:

    supports(spec, lhs, rhs, platform) -> None, or the reason why it cannot serve, in words for a user
    work(geometry) -> what it will do, for the cost model
    run(spec, lhs, rhs) -> the output

`lhs` and `rhs` are channels-last (see `convjax._core.spec`), and not empty. A rewrite turns a problem into simpler ones
and binds the primitive again, so that each of them is chosen anew. `ALGORITHMS` is the registry: to add an algorithm,
write the file, name it here, and fit the constants of its work with `python -m benchmarks.fit`.
"""

from __future__ import annotations

from typing import Any, Protocol

from jax import Array

from convjax._core.algorithms import (
    batch_to_feature,
    by_feature,
    depth_to_space,
    dft,
    fft,
    frames,
    gemm,
    indirect,
    kn2row,
    offsets,
    overlap_add,
    pack_groups,
    phase,
    planar,
    slices,
    space_to_depth,
    split_groups,
    subpixel,
    taps,
    windows,
    xla,
)
from convjax._core.algorithms.winograd import Winograd
from convjax._core.geometry import Geometry, Work
from convjax._core.kernels import KERNELS
from convjax._core.spec import ConvSpec

# Part of every key under which times are remembered: raise it when an algorithm becomes faster or slower.
REVISION = 3


class Algorithm(Protocol):
    """What a file in this folder exports."""

    def supports(self, spec: ConvSpec, lhs: Any, rhs: Any, platform: str) -> str | None: ...

    def work(self, g: Geometry) -> Work: ...

    def run(self, spec: ConvSpec, lhs: Array, rhs: Array) -> Array: ...


PLAIN: dict[str, Algorithm] = {
    "xla": xla,
    "taps": taps,
    "planar": planar,
    "gemm": gemm,
    "indirect": indirect,
    "kn2row": kn2row,
    "winograd": Winograd(outputs=4),
    "winograd_f2": Winograd(outputs=2),  # as accurate as direct summation
    "fft": fft,
    "dft": dft,
    "overlap_add": overlap_add,
    # for the shape of a kernel gradient: a kernel as large as the input, few outputs
    "windows": windows,
    "offsets": offsets,
}

REWRITES: dict[str, Algorithm] = {
    "phase": phase,
    "subpixel": subpixel,
    "depth_to_space": depth_to_space,
    "space_to_depth": space_to_depth,
    "slices": slices,
    "frames": frames,
    "pack_groups": pack_groups,
    "split_groups": split_groups,
    "by_feature": by_feature,
    "batch_to_feature": batch_to_feature,
}

# Those that run anywhere; the others are for one platform each.
PORTABLE: dict[str, Algorithm] = {**PLAIN, **REWRITES}

ALGORITHMS: dict[str, Algorithm] = {
    **PORTABLE,
    "pack_groups_128": pack_groups.PackGroups(pack_groups.MATRIX_CHANNELS, platform="tpu"),
    **KERNELS,
}


def names() -> tuple[str, ...]:
    """Names that `algorithm=` takes, beside "auto".

    Example:
      >>> import convjax
      >>> "fft" in convjax.algorithms()
      True
    """
    return tuple(ALGORITHMS)
