"""A layer: a problem of the canonical family with what a network adds to it, and its small likeness for tests."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jax import lax

from convjax._core.bridge import inverse, lax_params, orders
from convjax._core.spec import ConvSpec
from convjax.testing import Case, draw

MODES = ("forward", "input_grad", "kernel_grad", "train")  # train: the forward pass and both gradients
ROLES = {  # what each mode computes
    "forward": ("out",),
    "input_grad": ("lhs",),
    "kernel_grad": ("rhs",),
    "train": ("out", "lhs", "rhs"),
}


@dataclasses.dataclass(frozen=True)
class Layer:
    """A convolution as a network has it.

    Attributes:
      case: the problem (under `vmap`, that of one example) in canonical form.
      source: the paper, with section or table, or the issue that it comes from.
      family: the network or the use.
      tags: more words to select by; "anchor" marks the layers of the README's table.
      dtype: of operands and results.
      layout: "channels_last", or "channels_first" for `x (N, C, *space)` with `w (O, C / groups, *k)`.
      vmap: None; "gradients" for examples that share a kernel, each with gradients of its own; or "kernels" for
        examples that each have a kernel.
      examples: length of the axis that `vmap` maps over.
    """

    case: Case
    source: str
    family: str
    tags: tuple[str, ...] = ()
    dtype: str = "float32"
    layout: Literal["channels_last", "channels_first"] = "channels_last"
    vmap: Literal["gradients", "kernels"] | None = None
    examples: int = 1

    def __str__(self) -> str:
        return self.name

    @property
    def name(self) -> str:
        return self.case.name

    @property
    def spec(self) -> ConvSpec:
        return self.case.spec

    # --- operands ----------------------------------------------------------------------------------------------------

    @property
    def axes(self) -> tuple[int | None, int | None, int | None]:
        """Axes of input, kernel and cotangent that examples lie along."""
        return (0, 0 if self.vmap == "kernels" else None, 0) if self.vmap else (None, None, None)

    @property
    def numbers(self) -> lax.ConvDimensionNumbers:
        """The order of axes in the words of lax."""
        order = tuple(range(self.spec.ndim + 2))
        if self.layout == "channels_first":
            return lax.ConvDimensionNumbers(order, order, order)
        return lax_params(self.spec)["dimension_numbers"]

    def operands(self, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Input, kernel and cotangent, standard normal, in the layer's own layout."""
        rng = np.random.default_rng(seed)
        shapes = (self.case.lhs_shape, self.case.rhs_shape, self.case.out_shape)
        arrays = []
        for shape, order, axis in zip(shapes, orders(self.numbers), self.axes, strict=True):
            back = inverse(order)
            shape = tuple(shape[i] for i in back)
            arrays.append(draw(rng, shape if axis is None else (self.examples, *shape), jnp.dtype(self.dtype)))
        return arrays[0], arrays[1], arrays[2]

    def channels_last(self, array: np.ndarray, role: str) -> np.ndarray:
        """An operand or a result (`role` is lhs, rhs or out) with its axes in canonical order, examples first."""
        order = dict(zip(("lhs", "rhs", "out"), orders(self.numbers), strict=True))[role]
        lead = array.ndim - len(order)
        return array.transpose(*range(lead), *(lead + i for i in order))

    # --- cost --------------------------------------------------------------------------------------------------------

    def products(self, mode: str, *, inserted_zeros: bool = False) -> int:
        """Multiply-adds of direct summation: those with padding count, those with zeros inserted by a dilation may."""
        forward = math.prod(self.case.out_shape) * self.case.terms * self.examples
        if not inserted_zeros:
            forward //= math.prod(self.spec.lhs_dilation)
        return forward * len(ROLES[mode])

    def flops(self, mode: str) -> int:
        return 2 * self.products(mode)

    def bytes(self, mode: str) -> int:
        """Bytes of the operands that a mode reads and of the results that it writes."""
        kernels = self.examples if self.vmap == "kernels" else 1
        kernel_grads = self.examples if self.vmap else 1
        lhs, out = (math.prod(s) * self.examples for s in (self.case.lhs_shape, self.case.out_shape))
        rhs = math.prod(self.case.rhs_shape)
        elements = {
            "forward": lhs + rhs * kernels + out,
            "input_grad": lhs + rhs * kernels + out,
            "kernel_grad": lhs + rhs * kernel_grads + out,
            "train": 2 * lhs + rhs * (kernels + kernel_grads) + 2 * out,
        }
        return elements[mode] * jnp.dtype(self.dtype).itemsize

    # --- likenesses --------------------------------------------------------------------------------------------------

    def reduced(self) -> Layer:
        """The same kind of problem, of a size that a direct sum in numpy takes milliseconds for."""
        return dataclasses.replace(self, case=reduce_case(self.case), examples=min(self.examples, 3))

    def halved(self) -> Layer:
        """A smaller problem of the same kind: half the size, half the channels or groups, a quarter of the batch."""
        return dataclasses.replace(self, case=halve_case(self.case), examples=max(1, self.examples // 2))

    def at(self, *, batch: int, dtype: str) -> Layer:
        """The same layer with another batch and dtype, both in its name."""
        case = self.case
        base = case.name.rsplit(" N", 1)[0]
        case = dataclasses.replace(case, name=f"{base} N{batch} {dtype}", lhs_shape=(batch, *case.lhs_shape[1:]))
        return dataclasses.replace(self, case=case, dtype=dtype)


# --- reduction --------------------------------------------------------------------------------------------------------

LENGTH = {1: 160, 2: 14, 3: 7}  # longest axis that is kept, by the number of axes; longer than 128, where FFTs set in
FEW = 16  # channels or groups from which half of them is a problem of the same kind
SHORT = 7  # longest kernel that is kept as it is


def reduce_case(case: Case) -> Case:
    """Fewer examples, channels and groups, smaller axes; what is more than one, or odd, remains so."""
    spec, (*kernel, per_group, features) = case.spec, case.rhs_shape
    groups = min(spec.feature_groups, 4)
    multiplier = features // spec.feature_groups
    axes = [
        _reduce_axis(LENGTH[spec.ndim], *axis)
        for axis in zip(case.lhs_shape[1:-1], kernel, spec.padding, spec.lhs_dilation, spec.rhs_dilation, strict=True)
    ]
    space, taps, padding, lhs_dilation, rhs_dilation = zip(*axes, strict=True)
    per_group = min(per_group, 4)
    lhs_shape = (min(case.lhs_shape[0], 2), *space, per_group * groups)
    rhs_shape = (*taps, per_group, min(multiplier, 5 if groups == 1 else 4) * groups)
    spec = spec.replace(padding=padding, lhs_dilation=lhs_dilation, rhs_dilation=rhs_dilation, feature_groups=groups)
    return Case(case.name, lhs_shape, rhs_shape, spec)


def halve_case(case: Case) -> Case:
    """Taps, strides and padding stay; so do axes that the kernel would not fit into, halved, and a few channels."""
    half = lambda channels: channels if channels < FEW else channels // 2
    spec, (*kernel, per_group, features) = case.spec, case.rhs_shape
    groups, outputs = spec.feature_groups, features // spec.feature_groups
    if groups > 1:
        groups = half(groups)
    else:
        per_group, outputs = half(per_group), half(outputs)
    window = spec.window(case.rhs_shape)
    space = [n if n // 2 < reach else -(-n // 2) for n, reach in zip(case.lhs_shape[1:-1], window, strict=True)]
    lhs_shape = (max(1, case.lhs_shape[0] // 4), *space, per_group * groups)
    return Case(case.name, lhs_shape, (*kernel, per_group, outputs * groups), spec.replace(feature_groups=groups))


def _reduce_axis(
    longest: int, size: int, taps: int, pads: Sequence[int], lhs_dilation: int, rhs_dilation: int
) -> tuple[Any, ...]:
    """One axis, shortened: the ratios of kernel, dilations and padding to each other stay about what they were."""
    window = (taps - 1) * rhs_dilation + 1
    if lhs_dilation > 4:  # the kernel of a transposed convolution goes with its step
        taps, lhs_dilation = max(1, taps * 4 // lhs_dilation), 4
    shorter = min(size, longest if lhs_dilation == 1 else 5)
    if taps > SHORT:
        scaled = round(taps * shorter / size) if lhs_dilation == 1 else taps
        taps = max(SHORT + 1 - taps % 2, scaled - (scaled - taps) % 2)
    if rhs_dilation > 1:
        rhs_dilation = min(rhs_dilation, max(2, round(rhs_dilation * shorter / size)))
    narrowed = (taps - 1) * rhs_dilation
    lo, hi = (round(pad * narrowed / (window - 1)) if window > 1 else pad for pad in pads)
    return shorter, taps, (lo, hi), lhs_dilation, rhs_dilation
