"""The sizes of one problem: what the choice of an algorithm and the estimate of its time ask about."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from convjax._core.arrange import group_sizes
from convjax._core.spec import ConvSpec, Shape, dilate

VECTOR = 8  # elements of a vector register that a product keeps busy, at least: AVX2 has 8 of float32, AVX-512 16


@dataclasses.dataclass(frozen=True)
class Geometry:
    """A spec with the shapes and the dtype of its operands."""

    spec: ConvSpec
    lhs: Shape
    rhs: Shape
    dtype: np.dtype

    def __post_init__(self) -> None:
        if self.spec.channels_first or self.spec.part:  # one problem wherever it stands, to choose for and to measure
            object.__setattr__(self, "spec", self.spec.replace(channels_first=False, part=False))

    @classmethod
    def of(cls, spec: ConvSpec, lhs: Any, rhs: Any) -> Geometry:
        return cls(spec, tuple(lhs.shape), tuple(rhs.shape), np.dtype(lhs.dtype))

    @property
    def operands(self) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        return jax.ShapeDtypeStruct(self.lhs, self.dtype), jax.ShapeDtypeStruct(self.rhs, self.dtype)

    @property
    def is_static(self) -> bool:
        """Whether every size is a number, none a symbol of `jax.export`."""
        sizes = (*self.lhs, *self.rhs, *(p for pair in self.spec.padding for p in pair))
        return not any(jax.export.is_symbolic_dim(size) for size in sizes)

    @property
    def is_differentiable(self) -> bool:
        return jnp.issubdtype(self.dtype, jnp.inexact)

    # --- of one group ------------------------------------------------------------------------------------------------

    @property
    def batch(self) -> int:
        return group_sizes(self.spec, self.lhs, self.rhs)[0]

    @property
    def features(self) -> int:
        return self.rhs[-2]

    @property
    def outputs(self) -> int:
        return self.rhs[-1] // self.spec.groups

    # --- space -------------------------------------------------------------------------------------------------------

    @property
    def kernel(self) -> Shape:
        return self.rhs[:-2]

    @property
    def out(self) -> Shape:
        return self.spec.out_space(self.lhs, self.rhs)

    @property
    def taps(self) -> int:
        return math.prod(self.kernel)

    @property
    def positions(self) -> int:
        return math.prod(self.out)

    @property
    def padded(self) -> int:
        """Elements of the dilated and padded input."""
        return self.lhs[0] * self.lhs[-1] * math.prod(self.spec.padded_space(self.lhs))

    # --- work of direct summation ------------------------------------------------------------------------------------

    @property
    def macs(self) -> int:
        """Multiply-adds, zeros counted as data."""
        return math.prod(self.out_shape) * math.prod(self.rhs[:-1])

    @property
    def vector_macs(self) -> int:
        """The same with the outputs of a group filled up to whole vectors, as matrix products do."""
        return self.macs // self.outputs * -(-self.outputs // VECTOR) * VECTOR

    @property
    def out_shape(self) -> Shape:
        return self.spec.out_shape(self.lhs, self.rhs)

    @property
    def elements(self) -> tuple[int, int, int]:
        """Of input, kernel and output."""
        return math.prod(self.lhs), math.prod(self.rhs), math.prod(self.out_shape)

    @property
    def is_empty(self) -> bool:
        return 0 in self.elements

    @property
    def patches(self) -> int:
        """Elements of all patches, side by side."""
        return self.spec.groups * self.batch * self.positions * self.taps * self.features

    # --- kinds -------------------------------------------------------------------------------------------------------

    @property
    def is_kernel_gradient(self) -> bool:
        """A kernel about as large as the input and few outputs: so look gradients in a kernel.

        A large kernel on a small map has few outputs too, but is longer than the map.
        """
        lengths = map(dilate, self.lhs[1:-1], self.spec.lhs_dilation)
        fits = all(window <= length for window, length in zip(self.spec.window(self.rhs), lengths, strict=True))
        return self.taps > self.positions and (fits or self.spec.batch_groups > 1)

    @property
    def is_dense(self) -> bool:
        return self.spec.groups == 1

    @property
    def may_mix(self) -> bool:
        """Whether an error relative to the largest output, instead of each one, is allowed."""
        return lax.Precision.HIGHEST not in (self.spec.precision or ())


@dataclasses.dataclass(frozen=True)
class Work:
    """What an algorithm does with a problem, for `convjax._core.cost` to turn into time.

    Attributes:
      kind: the constants that apply; an algorithm has one kind, or a few that differ in how the machine takes them.
      macs: multiply-adds, those with zeros that it does not avoid included.
      moved: elements written and read again, patches and transforms, beyond what the products themselves read.
      steps: rounds of a loop, or operations of the program, each with a cost of its own.
      parts: for a rewrite, the problems that it hands back to the chooser, and how often each.
    """

    kind: str
    macs: float = 0
    moved: float = 0
    steps: float = 1
    parts: tuple[tuple[int, Geometry], ...] = ()
