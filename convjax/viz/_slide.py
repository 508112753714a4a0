"""Where a kernel lies on its input at each output cell, as `convjax` reads the arguments."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from convjax._core import arguments, canonical
from convjax._core import transposed as transpose
from convjax.viz._canvas import read


@dataclasses.dataclass(frozen=True)
class Slide:
    """What a sliding kernel meets: the input among its zeros, and where each output cell looks.

    A transposed convolution is seen as the plain one that it equals: zeros between the inputs, the kernel flipped.

    Attributes:
      field: the dilated and padded (or cropped) input.
      inside: where `field` holds an entry of the input, not a zero put in.
      kernel: as it lies on the field.
      stride, dilation: along the two axes.
      y: the output, by `convjax`.
    """

    field: np.ndarray
    inside: np.ndarray
    kernel: np.ndarray
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    y: np.ndarray

    def window(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns of the field under the taps at output cell number `step`."""
        at = np.unravel_index(step, self.y.shape)
        rows, columns = (
            a * s + d * np.arange(k)
            for a, s, d, k in zip(at, self.stride, self.dilation, self.kernel.shape, strict=True)
        )
        return rows, columns


def read_slide(where: str, x: Any, w: Any, *, stride: Any, padding: Any, dilation: Any, transposed: Any) -> Slide:
    """The problem as `convjax` reads it; a 1-D one is a 2-D one of one row."""
    x, w = read(where, "x", x, one="T", two="H W"), read(where, "w", w, one="k", two="k_h k_w")
    if x.ndim != w.ndim:
        raise ValueError(f"{where}: x has {x.ndim} axes but w has {w.ndim}. Type both with one axis, or with two.")
    common = dict(
        stride=stride, padding=padding, dilation=dilation, groups=1, padding_mode="zeros", flip_kernel=False,
        layout="channels_last", algorithm="xla", precision="highest", preferred_element_type=None,
    )  # fmt: skip
    if arguments.flag(where, "transposed", transposed):
        problem = transpose.conv_transpose(
            where, x[..., None], w[..., None, None], output_padding=0, output_shape=None, **common
        )
    else:
        problem = canonical.conv(where, x[..., None], w[..., None, None], input_dilation=1, **common)
    spec = problem.spec
    if math.prod(problem.out_shape) == 0:
        raise ValueError(f"{where}: the output is empty, of shape {problem.out_shape[:-1]}. Type less padding to crop.")
    field, inside = (_spread(a, spec.padding, spec.lhs_dilation) for a in (x, np.ones(x.shape)))
    y = np.asarray(problem.run(), np.float64)[..., 0]
    kernel = np.asarray(problem.rhs, np.float64)[..., 0, 0]
    stride, dilation = spec.strides, spec.rhs_dilation
    if x.ndim == 1:
        field, inside, kernel, y = (a[None] for a in (field, inside, kernel, y))
        stride, dilation = (1, *stride), (1, *dilation)
    return Slide(field, inside > 0, kernel, stride, dilation, y)


def _spread(values: np.ndarray, padding: Any, dilation: Any) -> np.ndarray:
    spread = np.zeros([(size - 1) * d + 1 for size, d in zip(values.shape, dilation, strict=True)])
    spread[tuple(slice(None, None, d) for d in dilation)] = values
    for axis, (lo, hi) in enumerate(padding):
        kept = [slice(None)] * spread.ndim
        kept[axis] = slice(max(-lo, 0), spread.shape[axis] - max(-hi, 0))
        spread = np.pad(
            spread[tuple(kept)], [(max(lo, 0), max(hi, 0)) if a == axis else (0, 0) for a in range(spread.ndim)]
        )
    return spread
