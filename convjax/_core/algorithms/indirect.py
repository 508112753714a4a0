"""Indirect convolution: patches gathered through a buffer of indices, then one matrix product.

Strides, paddings and both dilations are nothing but indices: which input pixel each tap of each output meets, or the
one zero pixel after the last. The buffer is computed from the geometry when the program is traced.

Cost: the products of direct summation, and a gather of every patch. Inserted zeros cost as much as data.
Error: that of direct summation in the accumulation dtype.
Source: Dukhan, The indirect convolution algorithm, arXiv:1907.02129.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from convjax._core.arrange import groups_first, groups_last
from convjax._core.dtypes import accumulator, as_bits, as_floats, output_dtype
from convjax._core.geometry import Geometry, Work
from convjax._core.spec import ConvSpec

# 1 MiB of patches a block, as in `gemm`; the buffer of indices is a constant of the program.
BLOCK_BYTES = 2**20
MAX_INDICES = 2**22


def supports(spec: ConvSpec, lhs: Any, rhs: Any, platform: str) -> str | None:
    """None where this algorithm can serve, else the reason why not, in words for a user."""
    indices = math.prod(spec.out_space(lhs.shape, rhs.shape)) * math.prod(rhs.shape[:-2])
    if indices > MAX_INDICES:
        return f"{indices} indices would be a constant of {4 * indices} bytes: at most {MAX_INDICES}"
    return None


def work(g: Geometry) -> Work:
    kind = "indirect, gradient" if g.is_kernel_gradient else "indirect"
    kind += "" if g.is_dense else ", grouped"
    kind += ", 16 bits" if g.dtype == jnp.bfloat16 else ""
    blocks = 1 + g.patches * g.dtype.itemsize // BLOCK_BYTES
    return Work(kind, g.vector_macs, g.patches, blocks)


def run(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    out = spec.out_space(lhs.shape, rhs.shape)
    buffer = indices(spec, lhs.shape[1:-1], rhs.shape[:-2], out)
    x, w = groups_first(spec, lhs, rhs)  # (groups, batch, *space, features)
    groups, batch, features = x.shape[0], x.shape[1], x.shape[-1]
    pixels = jnp.pad(as_bits(x).reshape(groups, batch, -1, features), ((0, 0), (0, 0), (0, 1), (0, 0)))
    matrices = w.reshape(groups, -1, w.shape[-1])
    dtype = accumulator(spec, lhs.dtype)
    # Blocks of outputs, the last one filled with zero pixels.
    rows = max(1, min(len(buffer), BLOCK_BYTES // (groups * buffer.shape[1] * features * lhs.dtype.itemsize)))
    filled = np.pad(buffer, ((0, -len(buffer) % rows), (0, 0)), constant_values=pixels.shape[2] - 1)
    blocks = jnp.asarray(filled.reshape(-1, rows, buffer.shape[1]))

    def product(image: Array, block: Array) -> Array:
        patches = as_floats(jnp.take(image, block, axis=1, mode="clip"), lhs.dtype).reshape(groups, rows, -1)
        return jnp.matmul(patches, matrices, precision=spec.precision, preferred_element_type=dtype)

    def of_image(image: Array) -> Array:
        done = lax.map(lambda block: product(image, block), blocks)  # (blocks, groups, rows, outputs)
        done = jnp.moveaxis(done, 1, 0).reshape(groups, -1, matrices.shape[-1])
        return done[:, : len(buffer)].reshape(groups, *out, -1)

    done = jnp.moveaxis(lax.map(of_image, jnp.moveaxis(pixels, 1, 0)), 1, 0)
    return groups_last(done).astype(output_dtype(spec, lhs.dtype))


def indices(spec: ConvSpec, space: tuple[int, ...], taps: tuple[int, ...], out: tuple[int, ...]) -> np.ndarray:
    """`(outputs, taps)`: the input pixel that each tap of each output meets, or the number of pixels for a zero."""
    pixel, inside = np.zeros((1, 1), np.int32), np.ones((1, 1), bool)
    for i, size in enumerate(space):
        at = np.arange(out[i])[:, None] * spec.strides[i] + np.arange(taps[i]) * spec.rhs_dilation[i]
        at -= spec.padding[i][0]
        meets = (at % spec.lhs_dilation[i] == 0) & (at >= 0) & (at < size * spec.lhs_dilation[i])
        outer = lambda a, b, join: join(a[:, None, :, None], b[None, :, None, :]).reshape(len(a) * len(b), -1)
        pixel = outer(pixel * size, at // spec.lhs_dilation[i], np.add)
        inside = outer(inside, meets, np.logical_and)
    return np.where(inside, pixel, math.prod(space)).astype(np.int32)
