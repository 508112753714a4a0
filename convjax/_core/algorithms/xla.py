"""XLA's own convolution: serves every problem, and is the right choice for most dense ones.

Error: direct summation, in float32 for 16-bit operands (XLA widens them on the CPU, matrix units accumulate so).
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from convjax._core import compat
from convjax._core.arrange import pad_space
from convjax._core.bridge import lax_params
from convjax._core.dtypes import output_dtype
from convjax._core.geometry import VECTOR, Geometry, Work
from convjax._core.spec import ConvSpec, is_symbolic, is_zero


def supports(spec: ConvSpec, lhs: Any, rhs: Any, platform: str) -> str | None:
    return None


def work(g: Geometry) -> Work:
    """On CPUs Eigen takes what is dense enough, in patches; the rest is a naive loop, batch groups with all the zeros
    of a kernel that holds every pair of groups."""
    if g.dtype not in (np.float32, np.float16, jnp.bfloat16) or g.spec.ndim > 3:
        return Work("naive xla", g.macs * g.spec.batch_groups)
    if g.spec.batch_groups > 1:
        # With more than one row they take so long that no sweep measures them: a kind without constants.
        kind = "xla, batch groups, depthwise" if g.batch == 1 else "batch groups of xla"
        kind += ", thin" if g.rhs[-1] < VECTOR else ""
        return Work(kind, g.macs * g.spec.batch_groups)
    if g.is_dense and g.taps > math.prod(g.lhs[1:-1]):
        # XLA exchanges the operands, and loops naively, 10 to 100 times as slow: 3x3 512->512 @2 N8 takes 207 ms.
        return Work("exchanged by xla", g.macs)
    kind = "xla" if g.spec.ndim < 3 else "xla, 3-D"
    if g.spec.feature_groups > 1:
        kind += ", depthwise" if g.features == 1 else ", grouped"
    elif g.is_kernel_gradient:
        kind += ", gradient" if g.positions > 1 else ", gradient of one tap"
    elif g.outputs == 1:
        kind += ", one output"  # a product of a matrix with a vector
    if max(g.spec.lhs_dilation, default=1) > 1:
        kind += ", dilated"
    if g.dtype.itemsize == 2:
        kind += ", 16 bits"  # widened first
    return Work(kind, g.vector_macs, g.patches + g.elements[2], g.spec.groups * g.lhs[0])


def run(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    if any(is_zero(size) for size in (*lhs.shape, *rhs.shape)):
        return jnp.zeros(spec.out_shape(lhs.shape, rhs.shape), output_dtype(spec, lhs.dtype))  # XLA refuses no taps
    lhs, spec = cropped(spec, lhs)
    if is_symbolic(size for pair in spec.padding for size in pair):  # lax's function wants numbers, its primitive not
        return compat.LAX_CONV.bind(lhs, rhs, out_sharding=None, **lax_params(spec))
    return lax.conv_general_dilated(lhs, rhs, **lax_params(spec))


def cropped(spec: ConvSpec, lhs: Array) -> tuple[Array, ConvSpec]:
    """The same problem with each axis that is cropped written out: XLA on CPU reads beyond it (jaxlib 0.10.1)."""
    written = [any(not jax.export.is_symbolic_dim(p) and p < 0 for p in pair) for pair in spec.padding]
    if not any(written):
        return lhs, spec
    now = [pair if w else (0, 0) for pair, w in zip(spec.padding, written, strict=True)]
    spread = [dilation if w else 1 for dilation, w in zip(spec.lhs_dilation, written, strict=True)]
    later = tuple((0, 0) if w else pair for pair, w in zip(spec.padding, written, strict=True))
    dilation = tuple(1 if w else dilation for dilation, w in zip(spec.lhs_dilation, written, strict=True))
    return pad_space(lhs, now, spread), spec.replace(padding=later, lhs_dilation=dilation)
