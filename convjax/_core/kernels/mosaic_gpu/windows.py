"""Windows: what one tap of a kernel sees of an image, as boxes that TMA can bring.

A box has a start, a shape, and no steps. So an axis of stride `s` is split, `W` into `(W / s, s)`, and since channels
are next to the columns, the second factor of the columns joins them: `(N, H / s, s, W / s, s * C)`, at most five axes,
and a reshape of nothing. Output `w` meets column `s * w + tap * dilation - low`, which is position `w + q` of phase `p`
where `tap * dilation - low = s * q + p`. What lies outside of the image comes as zeros: no padded copy is made.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jax import Array, lax

from convjax._core.kernels.mosaic_gpu.panels import WIDTH, pallas
from convjax._core.spec import ConvSpec, Shape

# Added before a division that rounds towards zero, so that it rounds down: no kernel may reach farther.
POSITIVE = 2**16


@dataclasses.dataclass(frozen=True)
class Windows:
    """Of a two-dimensional convolution.

    Attributes:
      spec: strides, padding and dilation.
      kernel: its rows and columns.
      image: `(N, H, W, C)`.
    """

    spec: ConvSpec
    kernel: Shape
    image: Shape

    @property
    def fewest_rows(self) -> int:
        """That a tile must have. Pallas drops an axis on which array and box have length 1, and where the box starts.

        So with one row in the image a box of one row would never leave it: each of two warpgroups gets two. Columns are
        always 8 or more, and images are never left.
        """
        leaves = self.kernel[0] > 1 or any(self.spec.padding[0])
        return 4 if leaves and self.image[1] == self.spec.strides[0] else 1

    def view(self, x: Array) -> Array:
        """`(N, H, W, C)` with the phases of a stride on axes that a box can index."""
        n, h, w, c = x.shape
        rows, columns = self.spec.strides
        split = (h // rows, rows) if rows > 1 else (h,)
        return x.reshape(n, *split, w // columns, columns * c)

    def at(self, view: Any, tap: Any, origin: tuple[Any, Any, Any], shape: Shape, panel: Any) -> Any:
        """The box that outputs from `origin` on, `shape` of them, meet at `tap`: 64 channels from `64 * panel` on."""
        pl, _ = pallas()
        image, row, column = origin
        taps = lax.div(tap, self.kernel[1]), lax.rem(tap, self.kernel[1])
        (down, row_phase), (right, column_phase) = (self._shift(axis, t) for axis, t in enumerate(taps))
        phases = (row_phase,) if self.spec.strides[0] > 1 else ()
        channel = column_phase * self.image[-1] + panel * WIDTH
        return view.at[
            (
                pl.ds(image, shape[0]),
                pl.ds(row + down, shape[1]),
                *phases,
                pl.ds(column + right, shape[2]),
                pl.ds(channel, WIDTH),
            )
        ]

    def _shift(self, axis: int, tap: Any) -> tuple[Any, Any]:
        """Of a tap along one axis: positions from its output, and phase."""
        stride = self.spec.strides[axis]
        offset = tap * self.spec.rhs_dilation[axis] - self.spec.padding[axis][0]
        if stride == 1:
            return offset, 0
        position = lax.div(offset + stride * POSITIVE, stride) - POSITIVE
        return position, offset - position * stride


def refusal(spec: ConvSpec, space: Shape, channels: int) -> str | None:
    """Why boxes cannot bring the windows of this convolution; None where they can."""
    for size, stride in zip(space, spec.strides, strict=True):
        if stride > 1 and size % stride:
            return f"stride {stride} splits an axis into phases, and {size} is not a multiple of it"
    if max(spec.strides) > 1 and channels % WIDTH:
        return f"with a stride the phases share an axis with the channels: {channels} are no multiple of {WIDTH}"
    if channels % 8:
        return f"TMA moves rows of 16 bytes: {channels} channels of 2 bytes are no multiple of 8"
    return None
