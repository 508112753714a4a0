"""The float64 oracle of deformable convolution: torchvision's definition, sample by sample, in numpy."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class DeformOracle:
    """A deformable convolution of float64 operands, one sample at a time; it shares no code with the package.

    Attributes:
      x: `(N, *space, C)`.
      offset: `(N, *out, offset_groups * K * ndim)`.
      w: `(*k, C // groups, O)`.
      mask: `(N, *out, offset_groups * K)`, or None for version 1.
      stride, dilation: one int for each axis.
      pads: a pair for each axis, not negative.
      groups, offset_groups: parts of the channels for the kernel, and for the offsets.

    Example:
      >>> import numpy as np
      >>> ramp = np.arange(5.0).reshape(1, 5, 1)
      >>> DeformOracle(ramp, np.full((1, 5, 1), 0.5), np.ones((1, 1, 1)), None, (1,), ((0, 0),), (1,)).value()[0, :, 0]
      array([0.5, 1.5, 2.5, 3.5, 2. ])
    """

    x: np.ndarray
    offset: np.ndarray
    w: np.ndarray
    mask: np.ndarray | None
    stride: Sequence[int]
    pads: Sequence[tuple[int, int]]
    dilation: Sequence[int]
    groups: int = 1
    offset_groups: int = 1

    def value(self) -> np.ndarray:
        """`(N, *out, O)`."""
        x, w, mask, _ = self._operands()
        y: Any = np.zeros((*self.offset.shape[:-1], w.shape[-1]))
        for at, tap, channels, position, m in self._samples():
            sample = sum(weight * x[at[0], *pixel] for pixel, weight, _ in self._corners(position))
            for c in channels:
                rows, features = self._connections(c)
                y[(*at, features)] += (
                    mask[(*at, m)] * np.broadcast_to(sample, x.shape[-1:])[c] * w[(*tap, rows, features)]
                )
        return y

    def gradients(self, cotangent: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Those of `sum(cotangent * value())` in x, offset, w and mask."""
        x, w, mask, offset = self._operands()
        gradients: tuple[Any, ...] = tuple(np.zeros_like(a) for a in (x, offset, w, mask))
        dx, doffset, dw, dmask = gradients
        for at, tap, channels, position, m in self._samples():
            for c in channels:
                rows, features = self._connections(c)
                toward = cotangent[(*at, features)] @ w[(*tap, rows, features)]
                for pixel, weight, slope in self._corners(position):
                    value = x[(at[0], *pixel, c)]
                    dx[(at[0], *pixel, c)] += mask[(*at, m)] * weight * toward
                    dw[(*tap, rows, features)] += mask[(*at, m)] * weight * value * cotangent[(*at, features)]
                    dmask[(*at, m)] += weight * value * toward
                    first = m * len(slope)
                    doffset[(*at, slice(first, first + len(slope)))] += mask[(*at, m)] * slope * value * toward
        return dx, doffset, dw, dmask

    def _operands(self) -> tuple[Any, Any, Any, Any]:
        """All in float64: x, w, mask, offset."""
        x, w, offset = (np.asarray(a, np.float64) for a in (self.x, self.w, self.offset))
        ndim = w.ndim - 2
        ones = np.ones((*offset.shape[:-1], offset.shape[-1] // ndim))
        return x, w, ones if self.mask is None else np.asarray(self.mask, np.float64), offset

    def _samples(self) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], range, np.ndarray, int]]:
        """Output, tap, the channels that are sampled there, the position, and the channel of the mask."""
        taps = list(np.ndindex(*self.w.shape[:-2]))
        _, _, _, offset = self._operands()
        ndim, each = len(self.stride), self.x.shape[-1] // self.offset_groups
        for at in np.ndindex(*offset.shape[:-1]):
            for g, (k, tap) in itertools.product(range(self.offset_groups), enumerate(taps)):
                m = g * len(taps) + k
                undisturbed = np.array(
                    [
                        o * s - lo + t * d
                        for o, s, (lo, _), t, d in zip(at[1:], self.stride, self.pads, tap, self.dilation, strict=True)
                    ]
                )
                position = undisturbed + offset[(*at, slice(m * ndim, (m + 1) * ndim))]
                yield at, tap, range(g * each, (g + 1) * each), position, m

    def _corners(self, position: np.ndarray) -> Iterator[tuple[tuple[int, ...], float, np.ndarray]]:
        """The pixels around a position that exist, their weights, and the weights' derivatives in the position."""
        lower = np.floor(position)
        t = position - lower
        for corner in itertools.product((0, 1), repeat=len(position)):
            pixel = tuple(int(i) for i in lower + corner)
            if all(0 <= i < size for i, size in zip(pixel, self.x.shape[1:-1], strict=True)):
                factors = np.where(corner, t, 1 - t)
                others = [np.prod(np.delete(factors, axis)) for axis in range(len(position))]
                yield pixel, float(np.prod(factors)), np.where(corner, 1.0, -1.0) * others

    def _connections(self, channel: int) -> tuple[int, slice]:
        """The row of the kernel for an input channel, and the output channels that it reaches."""
        group, row = divmod(channel, self.w.shape[-2])
        features = self.w.shape[-1] // self.groups
        return row, slice(group * features, (group + 1) * features)
