"""One algorithm a file. Each exports two functions and trusts the spec:

    supports(spec, lhs, rhs, platform) -> None, or the reason why it cannot serve, in words for a user
    run(spec, lhs, rhs) -> the output

`lhs` and `rhs` are channels-last (see `convjax._core.spec`). `ALGORITHMS` is the registry: to add an algorithm, write
the file, name it here, and give it a line in the decision list of `convjax._core.choose`.
"""

from __future__ import annotations

from typing import Any, Protocol

from jax import Array

from convjax._core.algorithms import xla
from convjax._core.spec import ConvSpec


class Algorithm(Protocol):
    """What a file in this folder exports."""

    def supports(self, spec: ConvSpec, lhs: Any, rhs: Any, platform: str) -> str | None: ...

    def run(self, spec: ConvSpec, lhs: Array, rhs: Array) -> Array: ...


ALGORITHMS: dict[str, Algorithm] = {
    "xla": xla,
}


def names() -> tuple[str, ...]:
    """Names that `algorithm=` takes, beside "auto".

    Example:
      >>> import convjax
      >>> "fft" in convjax.algorithms()
      True
    """
    return tuple(ALGORITHMS)
