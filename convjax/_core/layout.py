"""Axis orders: from what people write for `layout` to the permutations into and out of channels-last."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any

from jax import Array, lax

from convjax._core import bridge


@dataclasses.dataclass(frozen=True)
class Layout:
    """Permutations that bring operands into canonical order; `batch_ndim` leading axes of `x` are merged into one.

    Attributes:
      lhs: axes of `x` in the order `(*batch, *space, C)`.
      rhs: axes of `w` in the order `(*k, I, O)`.
      out: axes of the result in the order `(*batch, *space, C)`.
    """

    lhs: tuple[int, ...]
    rhs: tuple[int, ...]
    out: tuple[int, ...]
    batch_ndim: int

    @property
    def is_channels_first(self) -> bool:
        return bridge.is_channels_first(self.lhs, self.out, self.batch_ndim)

    def with_canonical_kernel(self) -> Layout:
        """The same for `x` and the result, with a kernel that is in order already."""
        return dataclasses.replace(self, rhs=tuple(range(len(self.rhs))))

    def canonical_lhs(self, x: Array) -> Array:
        x = bridge.transpose(x, self.lhs)
        if self.batch_ndim == 1:
            return x
        return x.reshape(int_prod(x.shape[: self.batch_ndim]), *x.shape[self.batch_ndim :])

    def canonical_rhs(self, w: Array) -> Array:
        return bridge.transpose(w, self.rhs)

    def restore(self, y: Array, batch: Sequence[int]) -> Array:
        """Undo `canonical_lhs` on an output."""
        y = y if self.batch_ndim == 1 else y.reshape(*batch, *y.shape[1:])
        return bridge.transpose(y, bridge.inverse(self.out))

    def batch(self, x: Array) -> tuple[int, ...]:
        return tuple(x.shape[i] for i in self.lhs[: self.batch_ndim])


def int_prod(sizes: Sequence[int]) -> int:
    """Product that stays 1 for no sizes and works for symbolic ones."""
    total = 1
    for size in sizes:
        total = total * size
    return total


def parse(where: str, layout: Any, x_shape: Sequence[int], w_shape: Sequence[int], ndim: int) -> Layout:
    """Read `layout` for `x` and `w` with `ndim` spatial axes, and check both ranks against it."""
    if isinstance(layout, Layout):
        return layout
    rank = len(x_shape)
    kernel_last = tuple(range(len(w_shape)))
    if layout in ("channels_last", "channels_first"):
        if rank < ndim + 1:
            order = "(*batch, *space, C)" if layout == "channels_last" else "(*batch, C, *space)"
            raise ValueError(
                f"{where}: x of shape {tuple(x_shape)} has {rank} axes, but w of shape {tuple(w_shape)} has {ndim} "
                f"spatial axes, so that x {order} needs at least {ndim + 1}. Type x[..., None] if x lacks its "
                f"channels, or a kernel of {rank - 1} spatial axes."
            )
        batch_ndim = rank - ndim - 1
        if layout == "channels_last":
            perm = tuple(range(rank))
        else:
            perm = (*range(batch_ndim), *range(batch_ndim + 1, rank), batch_ndim)
        return Layout(perm, kernel_last, perm, batch_ndim)
    names = _names(where, layout, ndim)
    if rank != ndim + 2:
        raise ValueError(
            f"{where}: layout={layout!r} names {ndim + 2} axes, but x of shape {tuple(x_shape)} has {rank}. Add a "
            "batch "
            "axis with x[None], or type layout='channels_last' or 'channels_first', which take any number of them."
        )
    return Layout(*names, batch_ndim=1)


def _names(where: str, layout: Any, ndim: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Permutations from axis letters. Spatial axes follow the kernel's order, as in lax."""
    expected = (
        "Type 'channels_last', 'channels_first', a string of axis letters such as 'NCHW' (N batch, C channels, others "
        "space), or lax's dimension numbers, such as ('NCHW', 'OIHW', 'NCHW')."
    )
    if isinstance(layout, lax.ConvDimensionNumbers):
        orders = bridge.orders(layout)
        if any(len(o) != ndim + 2 for o in orders):
            raise ValueError(f"{where}: layout={layout} does not fit a kernel with {ndim} spatial axes. {expected}")
        return orders
    if isinstance(layout, str):
        letters = "".join(letter for letter in layout if letter not in "NC")
        if sorted(layout) != sorted({*"NC", *letters}) or len(letters) != ndim:
            raise ValueError(
                f"{where}: layout={layout!r} must hold N, C and, for this kernel, {ndim} spatial letters, each once. "
                f"{expected}{_did_you_mean(layout, ndim)}"
            )
        layout = (layout, f"{letters}IO", layout)
    if not (isinstance(layout, Sequence) and len(layout) == 3 and all(isinstance(part, str) for part in layout)):
        raise ValueError(f"{where}: layout={layout!r} is not known. {expected}")
    lhs, rhs, out = layout
    space = [letter for letter in rhs if letter not in "IO"]
    for part, needed in ((lhs, [*"NC", *space]), (rhs, [*"IO", *space]), (out, [*"NC", *space])):
        if sorted(part) != sorted(needed) or len(set(part)) != len(part) or len(space) != ndim:
            raise ValueError(
                f"{where}: layout={layout!r} does not fit a kernel with {ndim} spatial axes: {part!r} must hold each "
                f"of {''.join(needed)!r} once, {ndim} of them spatial. {expected}"
            )
    index = lambda part, letters: tuple(part.index(letter) for letter in letters)
    return index(lhs, ["N", *space, "C"]), index(rhs, [*space, "I", "O"]), index(out, ["N", *space, "C"])


def _did_you_mean(layout: str, ndim: int) -> str:
    names = ["channels_last", "channels_first"]
    if ndim <= len("DHW"):
        space = "DHW"[len("DHW") - ndim :]
        names += [f"N{space}C", f"NC{space}"]
    near = {name.lower(): name for name in names}
    found = difflib.get_close_matches(layout.lower(), near, n=1)
    return f" Did you mean {near[found[0]]!r}?" if found else ""
