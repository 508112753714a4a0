"""Packed groups: narrow groups as fewer, wider ones with a block-diagonal kernel.

A matrix product of 8 channels by 8 leaves most of a vector or matrix unit idle; 4 such groups as one of 32 by 32 cost
4 times the products and can still be faster. For batch groups (a grouped kernel gradient) the wider problem computes
every pair of a pack's members, and the pairs of a member with itself are kept.

Cost: `pack` times the products.
Error: that of the convolution that serves the packs; a NaN or infinity spreads to its pack by 0 * inf.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
from jax import Array

from convjax._core.geometry import Geometry, Work
from convjax._core.primitive import convolve
from convjax._core.spec import ConvSpec, Shape

# Measured in float32 on 2 cores with AVX-512: 256 channels 3x3 at 28x28, in 4, 8 and 16 channels a group.
PACKED_CHANNELS = 32


def supports(spec: ConvSpec, lhs: Any, rhs: Any, platform: str) -> str | None:
    """None where this algorithm can serve, else the reason why not, in words for a user."""
    if spec.groups == 1:
        return "one group: there is nothing to pack"
    if pack_size(spec, lhs.shape, rhs.shape) == 1:
        return f"packs of more than {PACKED_CHANNELS} channels do not pay, or the groups do not divide into packs"
    return None


def work(g: Geometry) -> Work:
    pack = pack_size(g.spec, g.lhs, g.rhs)
    if g.spec.feature_groups > 1:
        spec, rhs = g.spec.auto(feature_groups=g.spec.feature_groups // pack), (*g.kernel, pack * g.rhs[-2], g.rhs[-1])
        return Work("pack_groups", 0, 2 * math.prod(rhs), 1, ((1, Geometry(spec, g.lhs, rhs, g.dtype)),))
    spec = g.spec.auto(batch_groups=g.spec.batch_groups // pack)
    return Work("pack_groups, batch groups", 0, pack * g.elements[2], 1, ((1, Geometry(spec, g.lhs, g.rhs, g.dtype)),))


def run(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    pack = pack_size(spec, lhs.shape, rhs.shape)
    if spec.feature_groups > 1:
        return convolve(lhs, block_diagonal(spec, rhs, pack), spec.auto(feature_groups=spec.feature_groups // pack))
    return pack_batch_groups(spec, lhs, rhs, pack)


def pack_size(spec: ConvSpec, lhs: Shape, rhs: Shape) -> int:
    """Groups a pack: the most that divide the groups and keep a pack within `PACKED_CHANNELS` on its wider side."""
    width = lhs[0] if spec.batch_groups > 1 else lhs[-1]
    members = max(width, rhs[-1]) // spec.groups
    fitting = [p for p in range(1, spec.groups + 1) if spec.groups % p == 0 and p * members <= PACKED_CHANNELS]
    return max(fitting, default=1)


def block_diagonal(spec: ConvSpec, rhs: Array, pack: int) -> Array:
    """Kernel of the packed groups: each member's own features meet its outputs, the others' meet zeros."""
    n, groups = spec.ndim, spec.feature_groups
    *space, features, outputs = rhs.shape
    blocks = rhs.reshape(*space, 1, features, groups // pack, pack, outputs // groups)
    own = jnp.eye(pack, dtype=bool).reshape((1,) * n + (pack, 1, 1, pack, 1))
    return jnp.where(own, blocks, 0).reshape(*space, pack * features, outputs)


def pack_batch_groups(spec: ConvSpec, lhs: Array, rhs: Array, pack: int) -> Array:
    """Every member's batch meets every member's outputs; keep those that belong together."""
    groups = spec.batch_groups
    batch, outputs = lhs.shape[0] // groups, rhs.shape[-1] // groups
    packs = groups // pack
    if packs > 1:
        # batch group p of the wider problem must hold members p * pack, ..., in the batch and in the outputs: it does.
        every = convolve(lhs, rhs, spec.auto(batch_groups=packs))
    else:
        every = convolve(lhs, rhs, spec.auto(batch_groups=1))
    space = every.shape[1:-1]
    every = every.reshape(pack, batch, *space, packs, pack, outputs)
    own = jnp.stack([every[member, ..., member, :] for member in range(pack)], -2)
    return own.reshape(batch, *space, groups * outputs)
