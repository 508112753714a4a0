"""Grouped convolution on a TPU: groups side by side in tiles of the matrix unit, with block-diagonal weights.

Groups of 8 channels fill 8 of the 128 lanes of a tile; 16 such groups fill it, and the zeros beside their weights cost
nothing that was not idle. The weights are spread once, outside the kernel, and the rest is `implicit_gemm`, pack by
pack. A kernel gradient has every pair of a pack's members, and those of a member with itself are kept.

Cost: the products of packs of 128 channels.
Error: that of direct summation in float32; a NaN or infinity spreads to its pack by 0 * inf.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from convjax._core.algorithms.pack_groups import block_diagonal, own_pairs
from convjax._core.dtypes import output_dtype
from convjax._core.geometry import Geometry, Work
from convjax._core.kernels.tpu import gemm_problem, gemm_tiles, implicit_gemm_grad
from convjax._core.kernels.tpu.finish import FUSES as FUSES
from convjax._core.kernels.tpu.finish import finish
from convjax._core.kernels.tpu.implicit_gemm import convolve_packs
from convjax._core.kernels.tpu.tiles import LANES
from convjax._core.spec import ConvSpec, Shape

WIDEST = 2 * LANES  # channels of a pack that no multiple of 128 divides


def supports(spec: ConvSpec, lhs: Any, rhs: Any, platform: str) -> str | None:
    """None where this kernel can serve, else the reason why not, in words for a user."""
    if reason := gemm_problem.unfit(spec, lhs, rhs, platform):
        return reason
    if spec.groups == 1:
        return "one group: tpu_implicit_gemm serves it"
    pack, (features, outputs) = pack_size(spec, lhs.shape, rhs.shape), channels(spec, lhs.shape, rhs.shape)
    if pack is None:
        return (
            f"{spec.groups} groups of {features} to {outputs} channels divide into no packs of {LANES} lanes, and "
            f"together exceed {WIDEST}"
        )
    packs = spec.groups // pack
    if spec.batch_groups > 1:
        return gemm_tiles.too_large(gemm_tiles.of_gradient(spec, lhs, rhs, packs), gradient=True)
    packed = jax.ShapeDtypeStruct((*rhs.shape[:-2], pack * features, rhs.shape[-1]), rhs.dtype)
    return gemm_tiles.too_large(gemm_tiles.forward(spec, lhs, packed, packs))


def work(g: Geometry) -> Work:
    return Work("tpu_grouped", g.macs * (pack_size(g.spec, g.lhs, g.rhs) or 1), g.padded, 1)


def run(
    spec: ConvSpec,
    lhs: Array,
    rhs: Array,
    *,
    bias: Array | None = None,
    residual: Array | None = None,
    activation: str | None = None,
    interpret: Any = False,
) -> Array:
    pack = pack_size(spec, lhs.shape, rhs.shape)
    assert pack is not None  # else it does not serve
    packs = spec.groups // pack
    if spec.feature_groups > 1:
        wide = block_diagonal(spec, rhs, pack)
        return convolve_packs(spec, lhs, wide, packs, bias, residual, activation, interpret)
    every = implicit_gemm_grad.correlate(spec, lhs, rhs, packs, jnp.float32, interpret)
    every = jnp.moveaxis(every, 0, -2)  # (features of a pack, *k, packs, outputs of a pack)
    every = every.reshape(pack, -1, *every.shape[1:-2], rhs.shape[-1])
    return finish(own_pairs(every, spec.groups), bias, residual, activation, output_dtype(spec, lhs.dtype))


def channels(spec: ConvSpec, lhs: Shape, rhs: Shape) -> tuple[int, int]:
    """Input and output channels of a group, of the convolution itself where `spec` is its kernel gradient."""
    features = lhs[0] // spec.groups if spec.batch_groups > 1 else rhs[-2]
    return features, rhs[-1] // spec.groups


def pack_size(spec: ConvSpec, lhs: Shape, rhs: Shape) -> int | None:
    """Groups a pack: the fewest that fill whole tiles on both sides, else all if they are few enough."""
    features, outputs = channels(spec, lhs, rhs)
    for pack in range(1, spec.groups):
        if spec.groups % pack == 0 and pack * features % LANES == 0 == pack * outputs % LANES:
            return pack
    return spec.groups if spec.groups * max(features, outputs) <= WIDEST else None
