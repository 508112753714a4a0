"""The float64 oracle, tolerances and cases that convjax is tested with; for other people's convolutions as well.

The oracle sums explicitly, tap by tap, in numpy, with float64 (complex128, int64) operands, and shares no code with the
package: not the padding rules, not the gradients' algebra.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from convjax._core.choose import why_not
from convjax._core.collect import gradients
from convjax._core.geometry import Geometry
from convjax._core.spec import ConvSpec
from convjax._testing_deformable import DeformOracle as DeformOracle

# --- the oracle -------------------------------------------------------------------------------------------------------


def direct_conv(lhs: Any, rhs: Any, spec: ConvSpec) -> np.ndarray:
    """Sum of `lhs (N, *space, C)` against `rhs (*k, C / groups, O)` over every tap, in the widest dtype of its kind.

    Example:
      >>> import numpy as np
      >>> spec = ConvSpec(strides=(1,), padding=((1, 0),), lhs_dilation=(1,), rhs_dilation=(1,))
      >>> direct_conv(np.arange(4.0).reshape(1, 4, 1), np.array([1.0, 10.0]).reshape(2, 1, 1), spec)[0, :, 0]
      array([ 0., 10., 21., 32.])
    """
    lhs, rhs = widest(lhs), widest(rhs)
    padded, out = _dilate_and_pad(lhs, spec), spec.out_shape(lhs.shape, rhs.shape)
    result = np.zeros(out, np.result_type(lhs, rhs))
    for tap in np.ndindex(*rhs.shape[:-2]):
        window = padded[_window(tap, out[1:-1], spec)]
        for x, w, y in _groups(window, rhs[tap], result, spec):
            y += x @ w
    return result


def direct_grads(lhs: Any, rhs: Any, cotangent: Any, spec: ConvSpec) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of `sum(cotangent * direct_conv(lhs, rhs))`, tap by tap, without conjugation."""
    lhs, rhs, cotangent = widest(lhs), widest(rhs), widest(cotangent)
    padded = _dilate_and_pad(lhs, spec)
    padded_grad = np.zeros(padded.shape, np.result_type(lhs, rhs))
    rhs_grad = np.zeros(rhs.shape, padded_grad.dtype)
    for tap in np.ndindex(*rhs.shape[:-2]):
        where = _window(tap, cotangent.shape[1:-1], spec)
        for x, w, y in _groups(padded[where], rhs_grad[tap], cotangent, spec):
            w += np.tensordot(x, y, axes=(list(range(x.ndim - 1)),) * 2)
        for x, w, y in _groups(padded_grad[where], rhs[tap], cotangent, spec):
            x += y @ w.T
    return _undo_dilate_and_pad(padded_grad, lhs.shape, spec), rhs_grad


def widest(array: Any) -> np.ndarray:
    """float64, complex128 or int64, whichever holds `array` exactly."""
    array = np.asarray(array)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        return array.astype(np.complex128)
    return array.astype(np.int64 if jnp.issubdtype(array.dtype, jnp.integer) else np.float64)


def _window(tap: Sequence[int], out: Sequence[int], spec: ConvSpec) -> tuple[slice, ...]:
    """Where `tap` meets the padded input, once for each output."""
    starts = [t * d for t, d in zip(tap, spec.rhs_dilation, strict=True)]
    space = [slice(a, a + (n - 1) * s + 1 if n else a, s) for a, n, s in zip(starts, out, spec.strides, strict=True)]
    return (slice(None), *space, slice(None))


def _groups(x: np.ndarray, w: np.ndarray, y: np.ndarray, spec: ConvSpec) -> Iterator[tuple[np.ndarray, ...]]:
    """Views of the groups' parts of input, kernel and output."""
    for g in range(spec.groups):
        features = _part(w.shape[-1], spec.groups, g)
        batch = _part(x.shape[0], spec.batch_groups, g) if spec.batch_groups > 1 else slice(None)
        channels = _part(x.shape[-1], spec.feature_groups, g) if spec.feature_groups > 1 else slice(None)
        yield x[batch, ..., channels], w[:, features], y[..., features]


def _part(size: int, parts: int, index: int) -> slice:
    return slice(index * size // parts, (index + 1) * size // parts)


def _dilate_and_pad(lhs: np.ndarray, spec: ConvSpec) -> np.ndarray:
    padded = np.zeros((lhs.shape[0], *spec.padded_space(lhs.shape), lhs.shape[-1]), lhs.dtype)
    target, source = _placement(lhs.shape, spec)
    padded[target] = lhs[source]
    return padded


def _undo_dilate_and_pad(padded: np.ndarray, shape: Sequence[int], spec: ConvSpec) -> np.ndarray:
    lhs = np.zeros(shape, padded.dtype)
    target, source = _placement(shape, spec)
    lhs[source] = padded[target]
    return lhs


def _placement(shape: Sequence[int], spec: ConvSpec) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where the inputs that survive negative padding stand in the padded array, and which they are."""
    target, source = [slice(None)], [slice(None)]
    for size, dilation, (lo, _), room in zip(
        shape[1:-1], spec.lhs_dilation, spec.padding, spec.padded_space(shape), strict=True
    ):
        inside = [i for i in range(size) if 0 <= lo + i * dilation < room]
        first, count = (inside[0], len(inside)) if inside else (0, 0)
        at = lo + first * dilation
        target.append(slice(at, at + (count - 1) * dilation + 1, dilation) if count else slice(0, 0))
        source.append(slice(first, first + count))
    return (*target, slice(None)), (*source, slice(None))


# --- tolerances -------------------------------------------------------------------------------------------------------

# How far an algorithm may be from the oracle, in units of the accumulation dtype's rounding, beside the rounding of the
# result. Directly: relative to the same sum of absolute values at each element. In the norm: relative to the largest of
# those sums, as transforms mix elements, by these factors. "auto" may choose a transform below the highest precision.
ERROR_CLASS = {"winograd": "norm", "winograd_f2": "norm", "fft": "norm", "dft": "norm", "overlap_add": "norm"}
NORM_FACTOR = {"winograd": 600.0, "winograd_f2": 60.0, "fft": 60.0, "dft": 60.0, "overlap_add": 60.0, "auto": 60.0}


def tolerance(
    algorithm: str, dtype: Any, magnitude: np.ndarray, terms: int, out_dtype: Any = None, product: float = 0.0
) -> np.ndarray:
    """Largest error allowed at each element.

    Args:
      algorithm: a name of the registry; one not listed in `NORM_FACTOR` sums directly.
      dtype: dtype of the operands.
      magnitude: the oracle on absolute values.
      terms: products in each sum.
      out_dtype: dtype of the result, that of the operands if None.
      product: largest product of two entries of the operands. A transform rounds even where no product falls on any
        output, and the magnitude is nought.
    """
    out_dtype = np.dtype(out_dtype or dtype)
    if jnp.issubdtype(dtype, jnp.integer):
        return np.zeros(magnitude.shape)
    rounding = float(jnp.finfo(out_dtype).eps)
    accumulated = min(rounding, float(np.finfo(np.float32).eps)) if rounding > 1e-7 else rounding
    magnitude = np.abs(magnitude)
    if algorithm in NORM_FACTOR:
        spread = NORM_FACTOR[algorithm] * accumulated * np.max(magnitude, initial=product)
    else:
        spread = (8 + 2 * math.sqrt(terms)) * accumulated * magnitude
    tiny = float(jnp.finfo(out_dtype).tiny)
    return spread + rounding * magnitude + tiny


def assert_close(actual: Any, expected: np.ndarray, allowed: np.ndarray, what: str = "") -> None:
    """Fail with the relative norm of the error and its worst element."""
    actual = widest(actual)
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
    error = np.abs(actual - expected)
    beyond = ~(error <= allowed)
    if beyond.any():
        with np.errstate(divide="ignore"):
            worst = np.unravel_index(np.argmax(np.where(np.isnan(error), np.inf, error / allowed)), error.shape)
        scale = np.linalg.norm(expected)
        norm = np.linalg.norm(error) / scale if scale else np.inf
        raise AssertionError(
            f"{what}: {int(beyond.sum())} of {error.size} elements beyond tolerance; relative norm {norm:.2e}; worst "
            f"at {tuple(int(i) for i in worst)}: {actual[worst]} for {expected[worst]}, error {error[worst]:.2e}, "
            f"allowed {allowed[worst]:.2e}"
        )


# --- cases ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    """A problem in canonical form: channels-last shapes and a spec."""

    name: str
    lhs_shape: tuple[int, ...]
    rhs_shape: tuple[int, ...]
    spec: ConvSpec

    def __str__(self) -> str:
        return self.name

    def operands(self, dtype: Any = np.float32, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Input and kernel, standard normal (small integers for integer dtypes), the same for equal seeds."""
        rng = np.random.default_rng(seed)
        return draw(rng, self.lhs_shape, dtype), draw(rng, self.rhs_shape, dtype)

    def cotangent(self, dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
        return draw(np.random.default_rng((seed, 1)), self.out_shape, dtype)

    @property
    def out_shape(self) -> tuple[int, ...]:
        return self.spec.out_shape(self.lhs_shape, self.rhs_shape)

    @property
    def terms(self) -> int:
        """Products in each output."""
        return math.prod(self.rhs_shape[:-1])

    @property
    def options(self) -> dict[str, Any]:
        """The same problem as keyword arguments of `convjax.conv`, which has no batch groups."""
        if self.spec.batch_groups > 1:
            raise ValueError(f"{self}: convjax.conv has no batch groups.")
        return dict(
            stride=self.spec.strides,
            padding=self.spec.padding,
            dilation=self.spec.rhs_dilation,
            input_dilation=self.spec.lhs_dilation,
            groups=self.spec.feature_groups,
        )

    @property
    def lhs_grad(self) -> Case:
        """The problem that the gradient in the input is, a convolution of the cotangent."""
        problem, _ = gradients(self._geometry)
        return Case(f"{self}, input gradient", problem.lhs, problem.rhs, problem.spec)

    @property
    def rhs_grad(self) -> Case:
        """The problem that the gradient in the kernel is, a convolution of input and cotangent."""
        _, problem = gradients(self._geometry)
        return Case(f"{self}, kernel gradient", problem.lhs, problem.rhs, problem.spec)

    @property
    def _geometry(self) -> Geometry:
        return Geometry(self.spec, self.lhs_shape, self.rhs_shape, np.dtype(np.float32))

    def refusal(self, algorithm: str, dtype: Any = np.float32, platform: str = "cpu") -> str | None:
        """None where `algorithm` can serve, else its reason."""
        if algorithm == "auto":
            return None
        spec = self.spec.replace(algorithms=(algorithm, "auto", "auto"))
        lhs, rhs = (jax.ShapeDtypeStruct(shape, dtype) for shape in (self.lhs_shape, self.rhs_shape))
        return why_not(algorithm, spec, lhs, rhs, platform)

    def using(self, algorithm: str, *, gradients: bool = False) -> ConvSpec:
        """The spec that binds `algorithm`, or prefers it for the value and both gradients, wherever it can serve.

        Unless `algorithm` is of the norm-wise class, at the highest precision: what stands in for it, or serves the
        parts of a rewrite, is then of the direct class too, so that `tolerance(algorithm, ...)` holds.
        """
        name = f"{algorithm}?" if gradients and algorithm != "auto" else algorithm
        algorithms = (name, name, name) if gradients else (name, "auto", "auto")
        precision = None if algorithm in NORM_FACTOR else (jax.lax.Precision.HIGHEST,) * 2
        return self.spec.replace(algorithms=algorithms, precision=precision)


def draw(rng: np.random.Generator, shape: Sequence[int], dtype: Any) -> np.ndarray:
    """Random numbers that `dtype` holds."""
    dtype = np.dtype(dtype)
    if jnp.issubdtype(dtype, jnp.integer):
        low = 0 if jnp.issubdtype(dtype, jnp.unsignedinteger) else -9
        return rng.integers(low, 10, shape).astype(dtype)
    values = rng.standard_normal(shape)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        values = values + 1j * rng.standard_normal(shape)
    return values.astype(dtype)


def case(
    name: str,
    lhs_shape: Sequence[int],
    rhs_shape: Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    pads: int | Sequence[tuple[int, int]] = 0,
    lhs_dilation: int | Sequence[int] = 1,
    rhs_dilation: int | Sequence[int] = 1,
    groups: int = 1,
    batch_groups: int = 1,
) -> Case:
    """A case from short arguments; `rhs_shape` is `(*k, C / groups, O)`."""
    n = len(rhs_shape) - 2
    each = lambda v: (v,) * n if isinstance(v, int) else tuple(v)
    padding = ((pads, pads),) * n if isinstance(pads, int) else tuple(pads)
    spec = ConvSpec(each(stride), padding, each(lhs_dilation), each(rhs_dilation), groups, batch_groups)
    return Case(name, tuple(lhs_shape), tuple(rhs_shape), spec)


CASES: tuple[Case, ...] = (
    case("dense 3x3", (2, 7, 6, 3), (3, 3, 3, 5), pads=1),
    case("dense 3x3 valid", (1, 13, 11, 4), (3, 3, 4, 8)),
    case("1x1", (2, 5, 7, 3), (1, 1, 3, 4)),
    case("1x1 stride 2 grouped", (2, 5, 7, 6), (1, 1, 3, 4), stride=2, groups=2),
    case("matrix product", (3, 5), (5, 4)),
    case("one of everything", (1, 1, 1, 1), (1, 1, 1, 1)),
    case("stem 7x7/2", (1, 17, 15, 3), (7, 7, 3, 8), stride=2, pads=((3, 3), (2, 3))),
    case("strides 2 and 3", (2, 11, 13, 3), (3, 2, 3, 4), stride=(2, 3), pads=((0, 1), (2, 0))),
    case("stride beyond kernel", (1, 11, 11, 2), (2, 1, 2, 3), stride=3),
    case("rows and columns 1x7", (1, 6, 11, 4), (1, 7, 4, 3), pads=((0, 0), (3, 3))),
    case("kernel larger than input", (2, 3, 2, 3), (5, 7, 3, 4), pads=((3, 3), (4, 4))),
    case("negative pads", (1, 9, 8, 3), (3, 3, 3, 2), pads=((-1, 2), (1, -2))),
    case("negative pads, dilated input", (1, 7, 5, 2), (3, 2, 2, 3), pads=((-2, 3), (2, -3)), lhs_dilation=(2, 3)),
    case("dilation 4, mostly padding", (1, 7, 6, 8), (3, 3, 8, 9), pads=4, rhs_dilation=4),
    case("dilation 2 and 3", (1, 13, 17, 3), (3, 3, 3, 4), pads=((2, 2), (3, 3)), rhs_dilation=(2, 3)),
    case("dilated and strided", (2, 13, 11, 3), (3, 2, 3, 4), stride=(2, 3), pads=2, rhs_dilation=(3, 2)),
    case("transposed 4x4/2", (2, 4, 5, 6), (4, 4, 6, 3), pads=2, lhs_dilation=2),
    case("transposed 3x2/3 dilated", (1, 4, 3, 3), (3, 2, 3, 2), pads=((3, 4), (1, 2)), lhs_dilation=3, rhs_dilation=2),
    case(
        "both dilated, strided", (1, 6, 5, 2), (3, 3, 2, 3), stride=(3, 2), pads=2, lhs_dilation=(2, 3), rhs_dilation=2
    ),
    case("grouped 4", (2, 6, 5, 8), (3, 3, 2, 12), pads=1, groups=4),
    case("grouped transposed", (1, 4, 5, 6), (3, 3, 2, 9), pads=2, lhs_dilation=2, groups=3),
    case("depthwise 3x3", (2, 8, 7, 5), (3, 3, 1, 5), pads=1, groups=5),
    case("depthwise 3x3/2 x2", (2, 8, 7, 3), (3, 3, 1, 6), stride=2, pads=((0, 1), (1, 1)), groups=3),
    case("depthwise 5x5 dilated", (1, 11, 13, 4), (5, 5, 1, 4), pads=4, rhs_dilation=2, groups=4),
    case("depthwise 13x13", (1, 17, 16, 3), (13, 13, 1, 3), pads=6, groups=3),
    case("depthwise one channel", (3, 7, 7, 1), (3, 3, 1, 1), pads=1, groups=1),
    case("depthwise causal k4", (2, 37, 6), (4, 1, 6), pads=((3, 0),), groups=6),
    case("depthwise causal k4 dilated", (1, 29, 3), (4, 1, 3), pads=((9, 0),), rhs_dilation=3, groups=3),
    case("depthwise long", (1, 331, 2), (129, 1, 2), pads=((128, 0),), groups=2),
    case("wavenet k2", (1, 67, 4), (2, 4, 6), pads=((16, 0),), rhs_dilation=16),
    case("1-D dense", (2, 31, 3), (5, 3, 4), stride=2, pads=((2, 1),)),
    case("long signal, short response", (1, 1031, 1), (33, 1, 1), pads=32),
    case("3-D 3x3x3", (1, 5, 6, 7, 3), (3, 3, 3, 3, 4), pads=1),
    case("3-D transposed", (1, 3, 2, 4, 2), (2, 3, 2, 2, 3), pads=((1, 1), (2, 1), (1, 0)), lhs_dilation=2),
    case("3-D depthwise", (1, 5, 4, 6, 3), (3, 3, 3, 1, 3), pads=1, groups=3),
    case("4-D", (1, 3, 4, 3, 4, 2), (2, 3, 2, 2, 2, 2), pads=1),
    case("batch groups", (6, 7, 8, 2), (3, 3, 2, 9), pads=1, batch_groups=3),
    case("kernel gradient", (3, 9, 8, 4), (9, 8, 4, 5), pads=1),
    case("kernel gradient, strided", (3, 9, 8, 4), (5, 4, 4, 5), pads=((1, 1), (1, 0)), rhs_dilation=2),
    case("kernel gradient, grouped", (6, 9, 8, 2), (9, 8, 2, 9), pads=1, batch_groups=3),
    case("kernel gradient, depthwise", (6, 9, 8, 2), (9, 8, 2, 6), pads=1, batch_groups=6),
    case("megabytes of patches", (1, 90, 90, 3), (7, 7, 3, 1)),
    case("per-example kernels", (2, 7, 6, 12), (3, 3, 3, 8), pads=1, groups=4),
    case("per-example kernel gradients", (3, 9, 8, 4), (9, 8, 1, 20), pads=1, groups=4),
)

EMPTY_CASES: tuple[Case, ...] = (
    case("no batch", (0, 5, 5, 3), (3, 3, 3, 4), pads=1),
    case("no length", (2, 0, 3), (3, 3, 4), pads=1),
    case("no output", (2, 3, 3), (5, 3, 4)),
    case("no input channels", (2, 5, 0), (3, 0, 4), pads=1),
    case("no output channels", (2, 5, 3), (3, 3, 0), pads=1),
)


def random_case(rng: np.random.Generator, name: str = "random") -> Case:
    """A small problem of any kind: 0 to 4 spatial axes, both dilations, pads of either sign, either kind of groups.

    Plain values are frequent, so that the algorithms that want them get their share. One in fifty has an empty output.
    """
    n = int(rng.choice(5, p=(0.04, 0.32, 0.4, 0.16, 0.08)))
    size, taps = ((1, 1), (24, 7), (7, 4), (4, 3), (3, 2))[n]
    plain = lambda high: 1 if rng.random() < 0.6 else int(rng.integers(1, high + 1))
    uniform = rng.random() < 0.4  # the same on every axis
    axes: list[tuple[Any, ...]] = []
    for _ in range(n):
        if axes and uniform:
            axes.append(axes[0])
            continue
        k, x = int(rng.integers(1, taps + 1)), int(rng.integers(1, size + 1))
        stride, gap, tap_gap = plain(3), plain(3), plain(3)
        window, length = (k - 1) * tap_gap + 1, (x - 1) * gap + 1
        pads = (window // 2, (window - 1) // 2) if rng.random() < 0.3 else tuple(rng.integers(-2, window + 1, 2))
        lo, hi = (int(p) for p in pads)
        short = window - (lo + length + hi)
        if short > 0 and rng.random() > 0.02:
            hi += short
        elif lo + length + hi < 0:
            hi -= lo + length + hi
        axes.append((k, x, stride, (lo, hi), gap, tap_gap))
    by_axis: list[tuple[Any, ...]] = list(zip(*axes, strict=True)) if axes else [()] * 6
    kernel, space, strides, padding, lhs_dilation, rhs_dilation = by_axis
    kind = rng.choice(("dense", "depthwise", "grouped", "batch"), p=(0.4, 0.25, 0.2, 0.15))
    groups = 1 if kind == "dense" else int(rng.integers(1, 7))
    per_group = 1 if kind == "depthwise" else int(rng.integers(1, 5))
    features = groups * int(rng.integers(1, 3 if kind == "depthwise" else 5))
    batch = int(rng.integers(1, 4)) * (groups if kind == "batch" else 1)
    channels = per_group if kind == "batch" else per_group * groups
    feature_groups, batch_groups = (1, groups) if kind == "batch" else (groups, 1)
    spec = ConvSpec(strides, padding, lhs_dilation, rhs_dilation, feature_groups, batch_groups)
    return Case(name, (batch, *space, channels), (*kernel, per_group, features), spec)
