"""Implicit matrix product on Hopper: a dense convolution by wgmma, with no patches in memory.

A forward pass is `product`; a kernel gradient, which sums over pixels, is `implicit_gemm_grad`. The gradient in the
input of a convolution without stride is a forward pass again.

Source: Chetlur et al., cuDNN, arXiv:1410.0759, section 3.
Error: that of direct summation in float32.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from convjax._core.geometry import Geometry, Work
from convjax._core.kernels.mosaic_gpu import hopper, implicit_gemm_grad, windows
from convjax._core.kernels.mosaic_gpu.panels import WIDTH
from convjax._core.kernels.mosaic_gpu.product import Product
from convjax._core.kernels.mosaic_gpu.registers import ACTIVATIONS
from convjax._core.kernels.mosaic_gpu.registers import FUSES as FUSES
from convjax._core.kernels.mosaic_gpu.tiles import MOST_BLOCKS
from convjax._core.spec import ConvSpec, Shape

DTYPES = (np.dtype(jnp.bfloat16), np.dtype(np.float16))


def supports(spec: ConvSpec, lhs: Any, rhs: Any, platform: str) -> str | None:
    """None where this kernel can serve, else the reason why not, in words for a user."""
    if (reason := refusal(spec, lhs, rhs, platform)) is not None:
        return reason
    if spec.groups > 1:
        return f"{spec.groups} groups: gpu_grouped packs narrow groups into dense ones"
    if sums_over_pixels(spec, lhs.shape, rhs.shape):
        reason = implicit_gemm_grad.refusal(*as_images(spec, lhs.shape, rhs.shape))
        return None if reason is None else f"with more taps than outputs it is taken as a kernel gradient; {reason}"
    spec, lhs_shape, rhs_shape = as_images(spec, lhs.shape, rhs.shape)
    return forward_refusal(spec, lhs_shape, rhs_shape)


def refusal(spec: ConvSpec, lhs: Any, rhs: Any, platform: str) -> str | None:
    """What keeps either pass from the tensor cores' kernels, whatever the groups."""
    if (reason := hopper.unavailable(platform)) is not None:
        return reason
    if spec.ndim not in (1, 2):
        return f"{spec.ndim} spatial axes: it has tiles for one or two"
    if np.dtype(lhs.dtype) not in DTYPES or lhs.dtype != rhs.dtype:
        return f"wgmma multiplies bfloat16 or float16 in float32 sums, here are {lhs.dtype} and {rhs.dtype}"
    if spec.preferred_element_type not in (None, lhs.dtype):
        return f"it stores the operands' {lhs.dtype}, not {spec.preferred_element_type}"
    if any(dilation > 1 for dilation in spec.lhs_dilation):
        return "the input is dilated: algorithm='subpixel' makes convolutions of it that this kernel serves"
    return None


def forward_refusal(spec: ConvSpec, lhs: Shape, rhs: Shape) -> str | None:
    """What boxes and tiles of a forward pass cannot be; its spec has two spatial axes."""
    if (reason := windows.refusal(spec, lhs[1:-1], lhs[-1])) is not None:
        return reason
    if rhs[-1] % 8:
        return f"TMA moves rows of 16 bytes: {rhs[-1]} output channels of 2 bytes are no multiple of 8"
    if max(*spec.window(rhs), *(abs(p) for pads in spec.padding for p in pads)) >= windows.POSITIVE:
        return f"a kernel or padding of {windows.POSITIVE} and more"
    if (blocks := Product(spec, lhs, rhs, 1, 1).blocks) > MOST_BLOCKS:
        return f"{blocks} blocks are more than a grid may have"
    return None


def work(g: Geometry) -> Work:
    return Work("gpu_implicit_gemm", g.macs, 0, 1)


def run(
    spec: ConvSpec,
    lhs: Array,
    rhs: Array,
    *,
    bias: Array | None = None,
    residual: Array | None = None,
    activation: str | None = None,
    interpret: bool = False,
) -> Array:
    if sums_over_pixels(spec, lhs.shape, rhs.shape):
        return finish(implicit_gemm_grad.run(spec, lhs, rhs, interpret), bias, residual, activation)
    out = spec.out_shape(lhs.shape, rhs.shape)
    spec, lhs_shape, rhs_shape = as_images(spec, lhs.shape, rhs.shape)
    images = spec.out_shape(lhs_shape, rhs_shape)
    addend = None if residual is None else residual.reshape(images)
    product = Product(spec, lhs_shape, rhs_shape, -(-rhs_shape[-2] // WIDTH))
    kernel = rhs.reshape(-1, *rhs_shape[-2:])
    return product(lhs.reshape(lhs_shape), kernel, bias, addend, activation, interpret).reshape(out)


def sums_over_pixels(spec: ConvSpec, lhs: Shape, rhs: Shape) -> bool:
    """Whether this is the shape of a kernel gradient: many taps, few outputs, so that blocks must share the taps."""
    return math.prod(rhs[:-2]) > math.prod(spec.out_space(lhs, rhs))


def finish(y: Array, bias: Array | None, residual: Array | None, activation: str | None) -> Array:
    """What follows, where the sums do not stay in registers to the end."""
    total = y.astype(jnp.float32)
    total = total if bias is None else total + bias.astype(jnp.float32)
    total = total if residual is None else total + residual.astype(jnp.float32)
    return (total if activation is None else ACTIVATIONS[activation](total)).astype(y.dtype)


def as_images(spec: ConvSpec, lhs: Shape, rhs: Shape) -> tuple[ConvSpec, Shape, Shape]:
    """The same problem with two spatial axes; a matrix product of pixels is that of one long row."""
    if spec.ndim == 1:
        ones = (1, *spec.strides), ((0, 0), *spec.padding), (1, *spec.lhs_dilation), (1, *spec.rhs_dilation)
        spec = spec.replace(strides=ones[0], padding=ones[1], lhs_dilation=ones[2], rhs_dilation=ones[3])
        lhs, rhs = (lhs[0], 1, *lhs[1:]), (1, *rhs)
    if rhs[:2] == (1, 1) and spec.strides == (1, 1) and spec.padding == ((0, 0), (0, 0)):
        lhs = (1, 1, math.prod(lhs[:-1]), lhs[-1])
    return spec, tuple(lhs), tuple(rhs)
