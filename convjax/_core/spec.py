"""ConvSpec: one value that describes every convolution of the family.

Operands are channels-last: input `(N, *space, C)`, kernel `(*k, C / feature_groups, O)`, output
`(N / batch_groups, *out, O)`. Transposed, dilated, grouped, depthwise, causal and 1x1 are values of the spec, and so
are the gradients: the family is closed under differentiation, which is why nothing else in the package knows how.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

Shape = tuple[int, ...]


def dilate(size: int, dilation: int) -> int:
    """Length of an axis after `dilation - 1` gaps between neighbours; an empty axis stays empty."""
    return 0 if is_zero(size) else (size - 1) * dilation + 1


def is_zero(size: Any) -> bool:
    """Whether an axis is empty; a symbolic one never is."""
    return isinstance(size, int | np.integer) and size == 0


def is_symbolic(sizes: Iterable[Any]) -> bool:
    """Whether any size is a symbol of `jax.export`."""
    return any(jax.export.is_symbolic_dim(size) for size in sizes)


def is_at_least(m: int, n: int) -> bool:
    """Whether `m >= n` is known: symbols and their constraints can leave it open."""
    try:
        return bool(m >= n)
    except Exception:  # InconclusiveDimensionOperation, which has no public name in jax 0.10
        return False


@dataclasses.dataclass(frozen=True)
class ConvSpec:
    """A convolution without its operands.

    Attributes:
      strides: step along each spatial axis, at least 1.
      padding: `(lo, hi)` zeros around each axis of the dilated input; a negative number crops.
      lhs_dilation: 1 + zeros between neighbouring inputs (a transposed convolution has more than 1).
      rhs_dilation: 1 + zeros between neighbouring taps.
      feature_groups: input and output features are split into so many independent convolutions.
      batch_groups: the batch and the output features are split so (the kernel gradient of a grouped convolution).
      precision: as `jax.lax` takes it, canonical (None or a pair of `jax.lax.Precision`).
      preferred_element_type: dtype of the output; None means that of the input.
      algorithms: names for this problem, its gradient in the input, its gradient in the kernel.
      channels_first: whether input and output lie in the caller's memory with channels before space.
      part: whether this is what a rewrite makes of another problem, meant to be fused with the rest of it.
    """

    strides: Shape
    padding: tuple[tuple[int, int], ...]
    lhs_dilation: Shape
    rhs_dilation: Shape
    feature_groups: int = 1
    batch_groups: int = 1
    precision: Any = None
    preferred_element_type: np.dtype | None = None
    algorithms: tuple[str, str, str] = ("auto", "auto", "auto")
    channels_first: bool = False
    part: bool = False

    @property
    def ndim(self) -> int:
        """Number of spatial axes."""
        return len(self.strides)

    @property
    def groups(self) -> int:
        """Independent convolutions, by feature or by batch (at most one of the two exceeds 1)."""
        return self.feature_groups * self.batch_groups

    def replace(self, **changes: Any) -> ConvSpec:
        return dataclasses.replace(self, **changes)

    def auto(self, **changes: Any) -> ConvSpec:
        """The spec of a part of this problem: what a rewrite hands back to the chooser."""
        return self.replace(algorithms=("auto", "auto", "auto"), channels_first=False, part=True, **changes)

    # --- sizes -------------------------------------------------------------------------------------------------------

    def padded_space(self, lhs_shape: Sequence[int]) -> Shape:
        """Spatial extent of the input after dilation and padding."""
        return tuple(
            lo + dilate(size, dilation) + hi
            for size, dilation, (lo, hi) in zip(lhs_shape[1:-1], self.lhs_dilation, self.padding, strict=True)
        )

    def window(self, rhs_shape: Sequence[int]) -> Shape:
        """Spatial extent of the dilated kernel."""
        return tuple(dilate(size, dilation) for size, dilation in zip(rhs_shape[:-2], self.rhs_dilation, strict=True))

    def out_space(self, lhs_shape: Sequence[int], rhs_shape: Sequence[int]) -> Shape:
        """Spatial extent of the output; an axis on which the kernel does not fit gives 0."""
        return tuple(
            _strided(padded - window, stride)
            for padded, window, stride in zip(
                self.padded_space(lhs_shape), self.window(rhs_shape), self.strides, strict=True
            )
        )

    def out_shape(self, lhs_shape: Sequence[int], rhs_shape: Sequence[int]) -> Shape:
        return (lhs_shape[0] // self.batch_groups, *self.out_space(lhs_shape, rhs_shape), rhs_shape[-1])

    def taps(self, rhs_shape: Sequence[int]) -> Iterator[Shape]:
        """Indices of the kernel's taps, the last axis fastest."""
        return np.ndindex(*rhs_shape[:-2])

    # --- gradients: convolutions again -------------------------------------------------------------------------------

    def lhs_grad(self, lhs_shape: Sequence[int], rhs_shape: Sequence[int]) -> ConvSpec:
        """Spec of the gradient in the input: correlate the cotangent with the flipped, transposed kernel.

        Strides and input dilation change places. A batch-grouped problem becomes a feature-grouped one.
        """
        out = self.out_space(lhs_shape, rhs_shape)
        padding = []
        for i, window in enumerate(self.window(rhs_shape)):
            lo = window - 1 - self.padding[i][0]
            hi = dilate(lhs_shape[1 + i], self.lhs_dilation[i]) + window - 1 - dilate(out[i], self.strides[i]) - lo
            padding.append((lo, hi))
        this, lhs, rhs = self.algorithms
        return self.replace(
            strides=self.lhs_dilation,
            padding=tuple(padding),
            lhs_dilation=self.strides,
            feature_groups=self.groups,
            batch_groups=1,
            algorithms=(lhs, this, rhs),
        )

    def rhs_grad(self, lhs_shape: Sequence[int], rhs_shape: Sequence[int]) -> ConvSpec:
        """Spec of the gradient in the kernel: correlate the input with the cotangent, batch and features exchanged.

        Strides and kernel dilation change places. A feature-grouped problem becomes a batch-grouped one, and back.
        """
        out = self.out_space(lhs_shape, rhs_shape)
        padding = []
        for i, window in enumerate(self.window(rhs_shape)):
            lo = self.padding[i][0]
            hi = dilate(out[i], self.strides[i]) - dilate(lhs_shape[1 + i], self.lhs_dilation[i]) + window - lo - 1
            padding.append((lo, hi))
        this, lhs, rhs = self.algorithms
        return self.replace(
            strides=self.rhs_dilation,
            padding=tuple(padding),
            rhs_dilation=self.strides,
            feature_groups=self.batch_groups,
            batch_groups=self.feature_groups,
            algorithms=(rhs, lhs, this),
            channels_first=False,
        )

    # --- cost --------------------------------------------------------------------------------------------------------

    def flops(self, lhs_shape: Sequence[int], rhs_shape: Sequence[int]) -> int:
        """Floating-point operations of direct summation, 2 per multiply-add, padding counted as data."""
        return 2 * math.prod(self.out_shape(lhs_shape, rhs_shape)) * math.prod(rhs_shape[:-1])

    def bytes(self, lhs_shape: Sequence[int], rhs_shape: Sequence[int], itemsize: int = 4) -> int:
        """Bytes that must move at least once: both operands and the output, `itemsize` bytes an element."""
        return itemsize * sum(math.prod(s) for s in (lhs_shape, rhs_shape, self.out_shape(lhs_shape, rhs_shape)))


def _strided(room: Any, stride: int) -> Any:
    """How many steps of `stride` fit in `room`, the zeroth included; 0 where `room` is negative."""
    if isinstance(room, int | np.integer):
        return max(0, room // stride + 1)
    return room // stride + 1
