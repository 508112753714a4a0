"""A part of the full convolution of two arrays, as one convolution of the core.

Which part is wanted (a mode, a boundary) becomes padding, negative where it crops. Axes that are not convolved
broadcast: those of the longer operand alone become its batch, those of the shorter alone its output features, those of
both groups.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from convjax._core.algorithms import overlap_add
from convjax._core.primitive import convolve
from convjax._core.spec import ConvSpec, Shape, is_at_least, is_symbolic
from convjax._core.spectrum import fast_length

# What is named for a gradient is preferred; a gradient in the shorter operand has few outputs and no blocks.
WHOLE = ("fft", "fft?", "fft?")
BLOCKS = ("overlap_add", "overlap_add?", "fft?")


@dataclasses.dataclass(frozen=True)
class Part:
    """`size` outputs from `start` on, along each of `axes`; shapes of both operands on all axes."""

    shape1: Shape
    shape2: Shape
    axes: tuple[int, ...]
    starts: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def out_shape(self) -> Shape:
        """Sizes on `axes`, broadcast elsewhere."""
        shape = [n if m == 1 else m for m, n in zip(self.shape1, self.shape2, strict=True)]
        for axis, size in zip(self.axes, self.sizes, strict=True):
            shape[axis] = size
        return tuple(shape)

    @property
    def full(self) -> Shape:
        """Length of the full convolution along `axes`."""
        return tuple(self.shape1[a] + self.shape2[a] - 1 for a in self.axes)

    @property
    def has_length(self) -> bool:
        """Whether the sizes on `axes` are numbers, as a transform needs them."""
        return not is_symbolic(self.full)

    @property
    def taps(self) -> int:
        """Elements of the shorter operand on `axes`."""
        return min(math.prod(shape[a] for a in self.axes) for shape in (self.shape1, self.shape2))


def part(mode: str, shape1: Shape, shape2: Shape, axes: Sequence[int]) -> Part:
    """What SciPy's `mode` wants: 'same' is centred and as long as the first input."""
    pairs = [(shape1[a], shape2[a]) for a in axes]
    if mode == "full":
        starts, sizes = [0 for _ in pairs], [m + n - 1 for m, n in pairs]
    elif mode == "same":
        starts, sizes = [(n - 1) // 2 for _, n in pairs], [m for m, _ in pairs]
    else:
        ordered = [(m, n) if is_at_least(m, n) else (n, m) for m, n in pairs]
        starts, sizes = [n - 1 for _, n in ordered], [m - n + 1 for m, n in ordered]
    return Part(tuple(shape1), tuple(shape2), tuple(axes), tuple(starts), tuple(sizes))


@functools.partial(jax.jit, static_argnames=("wanted", "method"))
def convolve_part(in1: Array, in2: Array, wanted: Part, method: str) -> Array:
    """Compute what is `wanted`, by "direct" summation, "fft" (one transform) or "blocks" (of the longer operand).

    Both have one dtype, and so has the result.
    """
    if not wanted.axes:
        return in1 * in2
    if method != "direct" and is_symbolic((*in1.shape, *in2.shape)):
        return _by_spectra(in1, in2, wanted)
    lengths = [math.prod(a.shape[i] for i in wanted.axes) for a in (in1, in2)]
    if not wanted.has_length:  # the longer is the one that is not a number, in2 where it alone is none
        lengths = [1, 0] if is_symbolic(in1.shape[i] for i in wanted.axes) else [0, 1]
    x, k = (in1, in2) if lengths[0] >= lengths[1] else (in2, in1)
    pads = []
    for axis, start, size in zip(wanted.axes, wanted.starts, wanted.sizes, strict=True):
        pads.append((k.shape[axis] - 1 - start, start + size - x.shape[axis]))
    ones = (1,) * len(pads)
    precision = (lax.Precision.HIGHEST,) * 2
    spec = ConvSpec(ones, tuple(pads), ones, ones, precision=precision)
    return _arranged(x, jnp.flip(k, wanted.axes), wanted, spec, method)


def _arranged(x: Array, k: Array, wanted: Part, spec: ConvSpec, method: str) -> Array:
    others = [a for a in range(x.ndim) if a not in wanted.axes]
    both = [a for a in others if x.shape[a] == k.shape[a]]
    of_x = [a for a in others if k.shape[a] == 1 and a not in both]
    of_k = [a for a in others if x.shape[a] == 1 and a not in both]
    space = tuple(wanted.axes)
    groups = math.prod(x.shape[a] for a in both)
    lhs = x.transpose(*of_x, *of_k, *space, *both)
    lhs = lhs.reshape(math.prod(x.shape[a] for a in of_x), *(x.shape[a] for a in space), groups)
    rhs = k.transpose(*space, *of_x, *both, *of_k).reshape(*(k.shape[a] for a in space), 1, -1)
    spec = spec.replace(feature_groups=groups, algorithms=_algorithms(spec, lhs, rhs, method))
    y = convolve(lhs, rhs, spec)
    order = [*of_x, *space, *both, *of_k]
    y = y.reshape([wanted.out_shape[a] for a in order])
    return y.transpose([order.index(a) for a in range(x.ndim)])


def _by_spectra(in1: Array, in2: Array, wanted: Part) -> Array:
    """One transform of each, for any number of other axes: no algorithm of the core has symbolic sizes but XLA's."""
    is_complex = jnp.iscomplexobj(in1)
    forward, backward = (jnp.fft.fftn, jnp.fft.ifftn) if is_complex else (jnp.fft.rfftn, jnp.fft.irfftn)
    wide = jnp.promote_types(in1.dtype, jnp.float32)
    lengths = [fast_length(n) for n in wanted.full]
    a, b = (forward(x.astype(wide), lengths, wanted.axes) for x in (in1, in2))
    y = backward(a * b, lengths, wanted.axes)
    for axis, start, size in zip(wanted.axes, wanted.starts, wanted.sizes, strict=True):
        y = lax.slice_in_dim(y, start, start + size, axis=axis)
    return y.astype(in1.dtype)


def _algorithms(spec: ConvSpec, lhs: Array, rhs: Array, method: str) -> Any:
    if method == "direct":
        return ("auto",) * 3
    if method == "blocks" and overlap_add.supports(spec, lhs, rhs, "") is None:
        return BLOCKS
    return WHOLE
