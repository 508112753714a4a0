"""Windows: one contraction for each output position, over the whole kernel.

The dual of patches, for a kernel as large as the input and few outputs: a gradient in a kernel is such a convolution,
of the input (features for batch) with the cotangent for kernel. Each output position is then a matrix product of the
input's window with the cotangent, long in the contraction. The input is put back into its natural order first, which
meets the caller's opposite transposition in one program and costs nothing.

Cost: the products of direct summation; a read of both operands for each output position.
Error: that of direct summation in the accumulation dtype.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from convjax._core.arrange import groups_first, groups_last, met_by, pad_space
from convjax._core.dtypes import accumulator, output_dtype
from convjax._core.geometry import Geometry, Work
from convjax._core.spec import ConvSpec

# Each output position is a product in the program, and XLA takes minutes to compile a hundred of them.
MAX_OUTPUTS = 32


def supports(spec: ConvSpec, lhs: Any, rhs: Any, platform: str) -> str | None:
    """None where this algorithm can serve, else the reason why not, in words for a user."""
    if (outputs := math.prod(spec.out_space(lhs.shape, rhs.shape))) > MAX_OUTPUTS:
        return f"{outputs} output positions would be as many products: at most {MAX_OUTPUTS} are unrolled"
    return None


def work(g: Geometry) -> Work:
    operands = g.positions * (g.patches // g.positions + g.elements[1])
    return Work("windows" if g.is_dense else "windows, grouped", g.macs, operands, g.positions * g.spec.groups)


def run(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    out = spec.out_space(lhs.shape, rhs.shape)
    if spec.groups == 1:
        product = one_group(spec, out, lhs, rhs)
    else:
        product = groups_last(jax.vmap(lambda x, w: one_group(spec, out, x, w))(*groups_first(spec, lhs, rhs)))
    return product.astype(output_dtype(spec, lhs.dtype))


def one_group(spec: ConvSpec, out: tuple[int, ...], lhs: Array, rhs: Array) -> Array:
    """`(batch, *out, outputs)`, in the accumulation dtype."""
    n = spec.ndim
    natural = pad_space(jnp.moveaxis(lhs, (0, -1), (-1, 0)), spec.padding, spec.lhs_dilation)
    matrix = jnp.moveaxis(rhs, n, 0).reshape(-1, rhs.shape[-1])  # (features * window, outputs)
    dtype = accumulator(spec, lhs.dtype)
    products = []
    for position in np.ndindex(*out):
        starts = tuple(o * stride for o, stride in zip(position, spec.strides, strict=True))
        window = met_by(natural, starts, rhs.shape[:n], spec.rhs_dilation).reshape(len(matrix), -1)
        products.append(jnp.dot(window.T, matrix, precision=spec.precision, preferred_element_type=dtype))
    return jnp.moveaxis(jnp.stack(products).reshape(*out, *products[0].shape), n, 0)
