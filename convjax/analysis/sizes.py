"""Convolution arithmetic: the size of an output, and which padding, kernel or stride gives a size that is wanted.

Sizes are computed by the code that serves `convjax.conv` and `convjax.conv_transpose`, so that they, the language of
paddings and the errors are the same. Each function takes ints for a single axis and gives an int (or one pair); with a
sequence among its arguments it gives a tuple with an entry for each spatial axis.

Source: Dumoulin and Visin, A guide to convolution arithmetic for deep learning, arXiv:1603.07285.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from convjax._core import arguments, canonical, transposed
from convjax._core import padding as pad
from convjax._core.spec import ConvSpec, Shape, dilate

Ints = int | Sequence[int]
Padding = str | int | Sequence[int] | Sequence[tuple[int, int]]
Pair = tuple[int, int]


def effective_kernel(kernel: Ints, dilation: Ints = 1) -> Any:
    """Inputs that a dilated kernel spans: `dilation * (kernel - 1) + 1`.

    Args:
      kernel: taps, at least 1.
      dilation: distance between neighbouring taps, at least 1.

    Returns:
      an int, or one for each axis.

    Raises:
      TypeError: something is not an integer. ValueError: one is below 1, or lengths differ.

    Example:
      >>> from convjax.analysis import effective_kernel
      >>> effective_kernel(3, dilation=2), effective_kernel((3, 5), dilation=(3, 1))
      (5, (7, 5))
    """
    read = _Axes("effective_kernel", kernel, dilation)
    kernels, dilations = read("kernel", kernel, 1), read("dilation", dilation, 1)
    return read.as_given(dilate(k, d) for k, d in zip(kernels, dilations, strict=True))


def output_size(
    size: Ints,
    kernel: Ints,
    stride: Ints = 1,
    padding: Padding = "SAME",
    dilation: Ints = 1,
    *,
    input_dilation: Ints = 1,
) -> Any:
    """Size of what `convjax.conv` returns.

    Args:
      size: of the input.
      kernel: taps.
      stride, padding, dilation, input_dilation: as `convjax.conv`.

    Returns:
      an int, or one for each axis.

    Raises:
      ValueError, TypeError: as `convjax.conv`: above all, the kernel is larger than the padded input.

    Example:
      >>> from convjax.analysis import output_size
      >>> output_size(224, 7, 2, 3), output_size((28, 28), (5, 3), padding="VALID")
      (112, (24, 26))
    """
    read = _Axes("output_size", size, kernel, stride, dilation, input_dilation, padding)
    sizes, kernels = read("size", size, 0), read("kernel", kernel, 1)
    given = dict(stride=stride, padding=padding, dilation=dilation, input_dilation=input_dilation)
    return read.as_given(forward("output_size", sizes, kernels, **given).out_space((1, *sizes, 1), (*kernels, 1, 1)))


def output_size_transposed(
    size: Ints,
    kernel: Ints,
    stride: Ints = 1,
    padding: Padding = "SAME",
    dilation: Ints = 1,
    *,
    output_padding: Ints = 0,
) -> Any:
    """Size of what `convjax.conv_transpose` returns.

    Args:
      size: of the input.
      kernel: taps.
      stride, padding, dilation, output_padding: as `convjax.conv_transpose`.

    Returns:
      an int, or one for each axis.

    Raises:
      ValueError, TypeError: as `convjax.conv_transpose`.

    Example:
      >>> from convjax.analysis import output_size_transposed
      >>> output_size_transposed(7, 4, 2, 1), output_size_transposed((7, 5), 3, 2)
      (14, (14, 10))
    """
    where = "output_size_transposed"
    read = _Axes(where, size, kernel, stride, dilation, output_padding, padding)
    sizes, kernels = read("size", size, 0), read("kernel", kernel, 1)
    given = dict(stride=stride, padding=padding, dilation=dilation, output_padding=output_padding)
    return read.as_given(backward(where, sizes, kernels, **given).out_space((1, *sizes, 1), (*kernels, 1, 1)))


def find_padding(size: Ints, out: Ints, kernel: Ints, stride: Ints = 1, dilation: Ints = 1) -> Any:
    """The least padding with which a convolution of inputs of `size` gives outputs of size `out`.

    Args:
      size: of the input.
      out: wanted, at least 1.
      kernel, stride, dilation: of the convolution.

    Returns:
      `(lo, hi)`, or a pair for each axis: as much at both ends, the odd one at the end as in SAME; negative (so that
      it crops) only where nothing else gives `out`.

    Raises:
      TypeError: something is not an integer. ValueError: one is too small, or lengths differ.

    Example:
      >>> from convjax.analysis import find_padding, output_size
      >>> find_padding(224, 112, 7, stride=2)
      (2, 3)
      >>> find_padding((28, 28), (24, 28), (5, 3))
      ((0, 0), (1, 1))
    """
    read = _Axes("find_padding", size, out, kernel, stride, dilation)
    each = (read("size", size, 0), read("out", out, 1), read("kernel", kernel, 1))
    pairs = []
    for n, o, k, s, d in zip(*each, read("stride", stride, 1), read("dilation", dilation, 1), strict=True):
        least = (o - 1) * s + dilate(k, d) - n
        total = min(max(0, least), least + s - 1)  # with up to s - 1 more the output stays
        pairs.append((total // 2, total - total // 2))
    return read.as_given(pairs)


def find_kernel(size: Ints, out: Ints, stride: Ints = 1, padding: Padding = "VALID", dilation: Ints = 1) -> Any:
    """The largest kernel with which a convolution of inputs of `size` gives outputs of size `out`.

    Args:
      size: of the input.
      out: wanted, at least 1.
      stride, dilation: of the convolution.
      padding: "VALID", ints or pairs; with the other names it depends on the kernel.

    Returns:
      taps: an int, or one for each axis.

    Raises:
      ValueError: no kernel gives `out`; a padding that depends on the kernel; a number is too small.
      TypeError: something is not an integer.

    Example:
      >>> from convjax.analysis import find_kernel
      >>> find_kernel(28, 24), find_kernel(224, 112, stride=2, padding=3)
      (5, 8)
    """
    where = "find_kernel"
    read = _Axes(where, size, out, stride, dilation, padding)
    each = (read("size", size, 0), read("out", out, 1), read("stride", stride, 1), read("dilation", dilation, 1))
    kernels = []
    for i, (n, o, s, d, (lo, hi)) in enumerate(zip(*each, _numbers(where, padding, read.ndim), strict=True)):
        longest = n + lo + hi - (o - 1) * s  # span of the taps, up to s - 1 less give as many outputs
        k = (longest - 1) // d + 1
        if k < 1 or longest - dilate(k, d) >= s:
            reachable = (n + lo + hi - dilate(max(1, k), d)) // s + 1
            raise ValueError(
                f"{where}: no kernel gives out={o} on spatial axis {i}: of an input of {n} padded by {(lo, hi)} it "
                f"would span from {max(1, longest - s + 1)} to {longest} inputs with stride {s}, and its taps are {d} "
                f"apart. Type out={max(1, reachable)}, or another stride, padding or dilation."
            )
        kernels.append(k)
    return read.as_given(kernels)


def find_stride(size: Ints, out: Ints, kernel: Ints, padding: Padding = "VALID", dilation: Ints = 1) -> Any:
    """The least stride with which a convolution of inputs of `size` gives outputs of size `out`.

    Args:
      size: of the input.
      out: wanted, at least 1.
      kernel, dilation: of the convolution.
      padding: "VALID", "FULL", "CAUSAL", ints or pairs; SAME depends on the stride.

    Returns:
      an int, or one for each axis.

    Raises:
      ValueError: no stride gives `out`; a padding that depends on the stride; a number is too small.
      TypeError: something is not an integer.

    Example:
      >>> from convjax.analysis import find_stride
      >>> find_stride(224, 112, 7, padding=3), find_stride(32, 8, 4)
      (2, 4)
    """
    where = "find_stride"
    read = _Axes(where, size, out, kernel, dilation, padding)
    each = (read("size", size, 0), read("out", out, 1), read("kernel", kernel, 1), read("dilation", dilation, 1))
    spans = tuple(dilate(k, d) for k, d in zip(each[2], each[3], strict=True))
    strides = []
    for i, (n, o, w, (lo, hi)) in enumerate(
        zip(each[0], each[1], spans, _numbers(where, padding, read.ndim, spans), strict=True)
    ):
        places = max(0, n + lo + hi - w + 1)  # that the kernel can take; every s-th of them is an output
        s = max(1, -(-places // o))
        if -(-places // s) != o:
            raise ValueError(
                f"{where}: no stride gives out={o} on spatial axis {i}: a kernel that spans {w} has {places} places on "
                f"an input of {n} padded by {(lo, hi)}. Type out={max(1, -(-places // s))}, or another padding."
            )
        strides.append(s)
    return read.as_given(strides)


# --- reading ----------------------------------------------------------------------------------------------------------


def axes(*given: Any) -> int:
    """How many axes the longest sequence among them tells of, 0 where there is none."""
    return max((len(tuple(v)) for v in given if isinstance(v, Iterable) and not isinstance(v, str)), default=0)


class _Axes:
    """Reads arguments as one integer an axis; the longest sequence among them tells how many axes there are."""

    def __init__(self, where: str, *given: Any):
        count = axes(*given)
        self.where, self.is_single, self.ndim = where, count == 0, count or 1

    def __call__(self, name: str, value: Any, minimum: int) -> Shape:
        return arguments.per_axis(self.where, name, value, self.ndim, minimum)

    def as_given(self, values: Iterable[Any]) -> Any:
        result = tuple(values)
        return result[0] if self.is_single else result


def _numbers(where: str, padding: Any, ndim: int, spans: Sequence[int] | None = None) -> pad.Pairs:
    """Pads that are known without the size of the output; FULL and CAUSAL only where the kernel's span is."""
    if not isinstance(padding, str):
        return pad.explicit(where, padding, ndim)
    name = arguments.choice(where, "padding", padding, ("VALID",) if spans is None else ("VALID", "FULL", "CAUSAL"))
    return ((0, 0),) * ndim if name == "VALID" else pad.pads(where, name, (0,) * ndim, spans or (), (1,) * ndim)


def forward(where: str, sizes: Shape, kernels: Shape, **options: Any) -> ConvSpec:
    """The spec of `convjax.conv` of one channel with these sizes."""
    options = dict(stride=1, padding="SAME", dilation=1, input_dilation=1) | options
    return _spec(where, canonical.conv, sizes, kernels, options)


def backward(where: str, sizes: Shape, kernels: Shape, **options: Any) -> ConvSpec:
    """The spec of `convjax.conv_transpose` of one channel with these sizes."""
    options = dict(stride=1, padding="SAME", dilation=1, output_padding=0, output_shape=None) | options
    return _spec(where, transposed.conv_transpose, sizes, kernels, options)


def _spec(where: str, read: Callable, sizes: Shape, kernels: Shape, options: dict[str, Any]) -> ConvSpec:
    common = dict(groups=1, padding_mode="zeros", flip_kernel=False, layout="channels_last", algorithm="auto")
    common |= dict(precision=None, preferred_element_type=None)
    found = []

    def trace(x: Any, w: Any) -> None:
        found.append(read(where, x, w, **options, **common).spec)

    x, w = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, *sizes, 1), (*kernels, 1, 1)))
    jax.eval_shape(trace, x, w)
    return found[0]
