"""Windows: one contraction for each output position, over the whole kernel.

The dual of patches, for a kernel as large as the input and few outputs: a gradient in a kernel is such a convolution,
of the input (features for batch) with the cotangent for kernel. Each output position is then a matrix product of the
input's window with the cotangent, long in the contraction. The input is put back into its natural order first, which
meets the caller's opposite transposition in one program and costs nothing.

Cost: the products of direct summation, those with padding left out where they are many; a read of both operands for
each output position.
Error: that of direct summation in the accumulation dtype.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from convjax._core.arrange import groups_first, groups_last, inside, met_by, pad_space
from convjax._core.dtypes import accumulator, output_dtype
from convjax._core.geometry import Geometry, Work
from convjax._core.spec import ConvSpec, dilate

# Each output position is a product in the program, and XLA takes minutes to compile a hundred of them.
MAX_OUTPUTS = 32
# Above this share of products with padding the operands are cropped to what meets, which copies the kernel as well.
MUCH_PADDING = 0.25
# Images have products of their own, for a kernel of one tap, where both operands are so many times larger than these.
SMALL = 8


def supports(spec: ConvSpec, lhs: Any, rhs: Any, platform: str) -> str | None:
    """None where this algorithm can serve, else the reason why not, in words for a user."""
    if (outputs := math.prod(spec.out_space(lhs.shape, rhs.shape))) > MAX_OUTPUTS:
        return f"{outputs} output positions would be as many products: at most {MAX_OUTPUTS} are unrolled"
    return None


def work(g: Geometry) -> Work:
    share = share_met(g.spec, g.lhs, g.rhs)
    share = share if share < 1 - MUCH_PADDING else 1
    operands = g.positions * (g.patches // g.positions + g.elements[1])
    kind = "windows" if g.is_dense else "windows, grouped"
    kind += ", 16 bits" if g.dtype == jnp.bfloat16 else ""
    return Work(kind, share * g.macs, share * operands, g.positions * g.spec.groups)


def share_met(spec: ConvSpec, lhs: Sequence[int], rhs: Sequence[int]) -> float:
    """Share of the products that meet no padding."""
    out = spec.out_space(lhs, rhs)
    met = [[taps_met(spec, i, o, lhs, rhs) for o in range(n)] for i, n in enumerate(out)]
    return math.prod(
        sum(stop - first for first, stop in axis) / (n * k) for axis, n, k in zip(met, out, rhs, strict=False)
    )


def taps_met(spec: ConvSpec, axis: int, output: int, lhs: Sequence[int], rhs: Sequence[int]) -> tuple[int, int]:
    """First and stop of the taps that fall on the dilated input for one output."""
    start = output * spec.strides[axis] - spec.padding[axis][0]
    return inside(start, spec.rhs_dilation[axis], rhs[axis], dilate(lhs[1 + axis], spec.lhs_dilation[axis]))


def run(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    out = spec.out_space(lhs.shape, rhs.shape)
    if spec.groups == 1:
        product = one_group(spec, out, lhs, rhs)
    else:
        product = groups_last(jax.vmap(lambda x, w: one_group(spec, out, x, w))(*groups_first(spec, lhs, rhs)))
    return product.astype(output_dtype(spec, lhs.dtype))


def one_group(spec: ConvSpec, out: tuple[int, ...], lhs: Array, rhs: Array) -> Array:
    """`(batch, *out, outputs)`, in the accumulation dtype."""
    n, cropped = spec.ndim, share_met(spec, lhs.shape, rhs.shape) < 1 - MUCH_PADDING
    padding = ((0, 0),) * n if cropped else spec.padding
    natural = pad_space(jnp.moveaxis(lhs, (0, -1), (-1, 0)), padding, spec.lhs_dilation)
    kernel, dtype = jnp.moveaxis(rhs, n, 0), accumulator(spec, lhs.dtype)
    products = []
    for position in np.ndindex(*out):
        starts = [o * stride for o, stride in zip(position, spec.strides, strict=True)]
        part = kernel
        if cropped:
            spans = [taps_met(spec, i, o, lhs.shape, rhs.shape) for i, o in enumerate(position)]
            if any(first == stop for first, stop in spans):
                products.append(jnp.zeros((natural.shape[-1], rhs.shape[-1]), dtype))
                continue
            part = kernel[(slice(None), *(slice(*span) for span in spans))]
            shifts = ((a * d - lo) for (a, _), d, (lo, _) in zip(spans, spec.rhs_dilation, spec.padding, strict=True))
            starts = [start + shift for start, shift in zip(starts, shifts, strict=True)]
        window = met_by(natural, starts, part.shape[1:-1], spec.rhs_dilation)
        by_image = math.prod(out) == 1 and pays_by_image(window.shape, rhs.shape[-1])
        multiply = all_axes if window.dtype == jnp.bfloat16 else each_image if by_image else flat
        products.append(multiply(spec, window, part, dtype))
    return jnp.moveaxis(jnp.stack(products).reshape(*out, *products[0].shape), n, 0)


def pays_by_image(window: Sequence[int], outputs: int) -> bool:
    """Whether the images' products, not yet summed, are small beside what they are made of."""
    pixels, features = math.prod(window[1:-1]), window[-1]
    return window[0] > 1 and features * outputs * SMALL <= pixels * (features + outputs)


def flat(spec: ConvSpec, window: Array, part: Array, dtype: Any) -> Array:
    """`(features, outputs)`, contracted over images and pixels."""
    left, right = (a.reshape(-1, a.shape[-1]) for a in (window, part))
    return jnp.dot(left.T, right, precision=spec.precision, preferred_element_type=dtype)


def each_image(spec: ConvSpec, window: Array, part: Array, dtype: Any) -> Array:
    """A product for each image, and their sum: in a layout with channels first XLA need not transpose the operands."""
    left, right = (a.reshape(a.shape[0], -1, a.shape[-1]) for a in (window, part))
    numbers = (((1,), (1,)), ((0,), (0,)))
    return jnp.sum(lax.dot_general(left, right, numbers, spec.precision, dtype), 0)


def all_axes(spec: ConvSpec, window: Array, part: Array, dtype: Any) -> Array:
    """XLA widens a bfloat16 matrix that is to be transposed for a product; so written, it transposes it first."""
    axes = tuple(range(window.ndim - 1))
    return lax.dot_general(window, part, ((axes, axes), ((), ())), spec.precision, dtype)
