"""Which algorithm serves a problem: a documented decision list, read from the top, that can be asked for its reasons.

Order of authority: the caller's `algorithm=`, then the first rule of `RULES` that applies and whose algorithm can
serve, then `xla`. A rule names the platforms it was measured on; what no measurement backs stays with `xla` there.
Rules keep the accuracy of direct summation. Those on `fft` and `winograd_f2` keep it relative to the largest output
instead of each one, and do not apply at `precision="highest"`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from convjax._core.algorithms import ALGORITHMS
from convjax._core.arrange import group_sizes
from convjax._core.spec import ConvSpec, dilate


@dataclasses.dataclass(frozen=True)
class Geometry:
    """What the rules ask about a problem."""

    spec: ConvSpec
    fits: bool  # whether the dilated kernel is no longer than the dilated input, padding left aside
    kernel: tuple[int, ...]  # taps along each spatial axis
    out: tuple[int, ...]  # outputs along each spatial axis
    batch: int  # of one group, as are the next two
    features: int
    outputs: int

    @classmethod
    def of(cls, spec: ConvSpec, lhs: Any, rhs: Any) -> Geometry:
        sizes = group_sizes(spec, lhs.shape, rhs.shape)
        lengths = map(dilate, lhs.shape[1:-1], spec.lhs_dilation)
        fits = all(window <= length for window, length in zip(spec.window(rhs.shape), lengths, strict=True))
        return cls(spec, fits, tuple(rhs.shape[:-2]), spec.out_space(lhs.shape, rhs.shape), *sizes)

    @property
    def taps(self) -> int:
        return math.prod(self.kernel)

    @property
    def positions(self) -> int:
        return math.prod(self.out)

    @property
    def is_kernel_gradient(self) -> bool:
        """A kernel about as large as the input and few outputs: so look gradients in a kernel.

        A large kernel on a small map has few outputs too, but is longer than the map.
        """
        return self.taps > self.positions and (self.fits or self.spec.batch_groups > 1)

    @property
    def short_sides(self) -> tuple[int, ...]:
        """Taps of the kernel, of a gradient's kernel too."""
        return self.out if self.is_kernel_gradient else self.kernel

    @property
    def width(self) -> int:
        """The narrower side of the matrix products that this is made of, beside the long one over positions."""
        return min(self.batch if self.is_kernel_gradient else self.features, self.outputs)

    @property
    def is_dense(self) -> bool:
        return self.spec.groups == 1

    @property
    def is_plain(self) -> bool:
        """No stride and no dilation."""
        return all(step == 1 for step in (*self.spec.strides, *self.spec.lhs_dilation, *self.spec.rhs_dilation))

    @property
    def may_mix(self) -> bool:
        """Whether an error relative to the largest output, instead of each one, is allowed."""
        return lax.Precision.HIGHEST not in (self.spec.precision or ())


@dataclasses.dataclass(frozen=True)
class Rule:
    """If `when(geometry)` on one of `platforms`, take `algorithm`, because of `why`."""

    algorithm: str
    platforms: tuple[str, ...]
    when: Callable[[Geometry], bool]
    why: str


CPU = ("cpu",)

# Constants measured with `python -m benchmarks.run --algorithm NAME`, on 2 cores with AVX-512, float32, jax 0.10.1.
NARROW = 4  # features a group up to which shifted products beat matrix products
LONG = 128  # taps from which transforms beat shifted products
WIDE = 128  # features from which Winograd's products are wide enough

RULES: tuple[Rule, ...] = (
    Rule(
        "gemm",
        CPU,
        lambda g: g.taps == 1 and g.is_dense and all(d == 1 for d in g.spec.lhs_dilation),
        "one tap: the input is the matrix of a plain product",
    ),
    Rule(
        "windows",
        CPU,
        lambda g: g.is_kernel_gradient and g.positions == 1 and g.is_dense,
        "one output position: a plain product over the whole window",
    ),
    Rule(
        "subpixel",
        CPU,
        lambda g: max(g.spec.lhs_dilation, default=1) > 1,
        "a dilated input: skip the products with inserted zeros",
    ),
    Rule(
        "fft",
        CPU,
        lambda g: g.may_mix and g.is_kernel_gradient and g.batch <= NARROW and g.positions >= LONG,
        "narrow groups and many outputs under a long kernel: spectra",
    ),
    Rule(
        "offsets",
        CPU,
        lambda g: g.is_kernel_gradient and g.spec.groups > 1 and g.batch <= NARROW,
        "narrow groups: sums over rows, for all kernel offsets at once, beat many tiny matrix products",
    ),
    Rule(
        "fft",
        CPU,
        lambda g: g.may_mix and not g.is_kernel_gradient and g.features <= NARROW and g.taps >= LONG,
        "narrow groups and a large kernel: spectra",
    ),
    Rule(
        "taps",
        CPU,
        lambda g: not g.is_kernel_gradient and g.spec.groups > 1 and g.features <= NARROW,
        "narrow groups: fused sums of shifted inputs beat many tiny matrix products",
    ),
    Rule("pack_groups", CPU, lambda g: g.spec.groups > 1, "narrow groups: fewer, wider matrix products"),
    Rule(
        "split_groups", CPU, lambda g: g.spec.groups > 1, "XLA copies for each group: let each be a problem of its own"
    ),
    Rule(
        "winograd_f2",
        CPU,
        lambda g: g.may_mix and g.is_plain and g.spec.ndim == 2 and g.short_sides == (3, 3) and g.width >= WIDE,
        "3x3: fewer products, at the accuracy of direct summation",
    ),
    Rule(
        "slices",
        CPU,
        lambda g: g.spec.ndim >= 3,
        "XLA has no fast path for three spatial axes: sum over convolutions in two",
    ),
    Rule(
        "by_feature",
        CPU,
        lambda g: g.is_kernel_gradient and g.batch <= 16,
        "a gradient in a large kernel of few input channels: patches stay in cache image by image",
    ),
)


def choose(spec: ConvSpec, lhs: Any, rhs: Any, platform: str, *, partitioned: bool = False) -> str:
    """Name of the algorithm for this problem.

    Raises:
      ValueError: the caller named an algorithm that cannot serve; the message gives the reason.
    """
    return decide(spec, lhs, rhs, platform, partitioned=partitioned)[0]


def decide(spec: ConvSpec, lhs: Any, rhs: Any, platform: str, *, partitioned: bool = False) -> tuple[str, str]:
    """Name of the algorithm and the reason for it."""
    wanted = spec.algorithms[0]
    if wanted != "auto":
        name = wanted.rstrip("?")
        reason = why_not(name, spec, lhs, rhs, platform)
        if reason is None:
            return name, "the caller's algorithm="
        if not wanted.endswith("?"):
            raise ValueError(
                f"algorithm={name!r} cannot serve this convolution (input {tuple(lhs.shape)}, kernel "
                f"{tuple(rhs.shape)}, {lhs.dtype}): {reason}. Pass algorithm='auto', or another; "
                "convjax.explain(...) lists what serves."
            )
    if partitioned:
        return (
            "xla",
            "the compiler partitions this program over devices, and knows how to partition its own convolution",
        )
    if not _static(lhs.shape, rhs.shape, spec):
        return "xla", "sizes are symbolic"
    if not math.prod(spec.out_shape(lhs.shape, rhs.shape)) or not math.prod(lhs.shape) or not math.prod(rhs.shape):
        return "xla", "empty operands"
    geometry = Geometry.of(spec, lhs, rhs)
    for rule in RULES:
        applies = platform in rule.platforms and rule.when(geometry)
        if applies and ALGORITHMS[rule.algorithm].supports(spec, lhs, rhs, platform) is None:
            return rule.algorithm, rule.why
    return "xla", "no rule of the decision list applies"


def why_not(name: str, spec: ConvSpec, lhs: Any, rhs: Any, platform: str) -> str | None:
    """None where the algorithm can serve, else the reason."""
    if name == "xla":
        return None
    if not _static(lhs.shape, rhs.shape, spec):
        return "a size is symbolic, and only xla serves those"
    if not math.prod(lhs.shape) or not math.prod(rhs.shape) or not math.prod(spec.out_shape(lhs.shape, rhs.shape)):
        return "an operand or the output is empty"
    return ALGORITHMS[name].supports(spec, lhs, rhs, platform)


def _static(lhs_shape: Any, rhs_shape: Any, spec: ConvSpec) -> bool:
    sizes = (*lhs_shape, *rhs_shape, *(p for pair in spec.padding for p in pair))
    return not any(jax.export.is_symbolic_dim(size) for size in sizes)
