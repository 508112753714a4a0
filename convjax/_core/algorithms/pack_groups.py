"""Packed groups: narrow groups as fewer, wider ones with a block-diagonal kernel.

A matrix product of 8 channels by 8 leaves most of a vector or matrix unit idle; 4 such groups as one of 32 by 32 cost
4 times the products and can still be faster. For batch groups (a grouped kernel gradient) the wider problem computes
every pair of a pack's members, and the pairs of a member with itself are kept.

Cost: `pack` times the products.
Error: that of the convolution that serves the packs; a NaN or infinity spreads to its pack by 0 * inf.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
from jax import Array

from convjax._core.geometry import Geometry, Work
from convjax._core.primitive import convolve
from convjax._core.spec import ConvSpec, Shape

# Measured in float32 on 2 cores with AVX-512: 256 channels 3x3 at 28x28, in 4, 8 and 16 channels a group.
VECTOR_CHANNELS = 32
# The lanes of a TPU: `python -m benchmarks.aot_tpu --filter pack_groups` has the compiler's cycles.
MATRIX_CHANNELS = 128


@dataclasses.dataclass(frozen=True)
class PackGroups:
    """Packs of at most so many `channels`, on their wider side; for one `platform`, or for any."""

    channels: int
    platform: str | None = None

    @property
    def kind(self) -> str:
        """Of work: the name in the registry."""
        return "pack_groups" if self.channels == VECTOR_CHANNELS else f"pack_groups_{self.channels}"

    def supports(self, spec: ConvSpec, lhs: Any, rhs: Any, platform: str) -> str | None:
        """None where this algorithm can serve, else the reason why not, in words for a user."""
        if self.platform not in (None, platform):
            return f"its packs are for a {self.platform}, this is a {platform}; pack_groups is for vector units"
        if spec.groups == 1:
            return "one group: there is nothing to pack"
        if self.pack_size(spec, lhs.shape, rhs.shape) == 1:
            return f"packs of more than {self.channels} channels do not pay, or the groups do not divide into packs"
        return None

    def work(self, g: Geometry) -> Work:
        pack = self.pack_size(g.spec, g.lhs, g.rhs)
        if g.spec.feature_groups > 1:
            spec = g.spec.auto(feature_groups=g.spec.feature_groups // pack)
            rhs = (*g.kernel, pack * g.rhs[-2], g.rhs[-1])
            return Work(self.kind, 0, 2 * math.prod(rhs), 1, ((1, Geometry(spec, g.lhs, rhs, g.dtype)),))
        spec = g.spec.auto(batch_groups=g.spec.batch_groups // pack)
        parts = ((1, Geometry(spec, g.lhs, g.rhs, g.dtype)),)
        return Work(f"{self.kind}, batch groups", 0, pack * g.elements[2], 1, parts)

    def run(self, spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
        pack = self.pack_size(spec, lhs.shape, rhs.shape)
        if spec.feature_groups > 1:
            return convolve(lhs, block_diagonal(spec, rhs, pack), spec.auto(feature_groups=spec.feature_groups // pack))
        return pack_batch_groups(spec, lhs, rhs, pack)

    def pack_size(self, spec: ConvSpec, lhs: Shape, rhs: Shape) -> int:
        """Groups a pack: the most that divide the groups and keep a pack within `channels` on its wider side."""
        width = lhs[0] if spec.batch_groups > 1 else lhs[-1]
        members = max(width, rhs[-1]) // spec.groups
        fitting = [p for p in range(1, spec.groups + 1) if spec.groups % p == 0 and p * members <= self.channels]
        return max(fitting, default=1)


# The module itself is the algorithm for vector units.
_vector = PackGroups(VECTOR_CHANNELS)
supports, work, run = _vector.supports, _vector.work, _vector.run


def block_diagonal(spec: ConvSpec, rhs: Array, pack: int) -> Array:
    """Kernel of the packed groups: each member's own features meet its outputs, the others' meet zeros."""
    features, outputs = rhs.shape[-2:]
    member = jnp.arange(outputs) // (outputs // spec.feature_groups) % pack
    own = jnp.arange(pack * features)[:, None] // features == member
    return jnp.where(own, jnp.tile(rhs, (pack, 1)), 0)


def pack_batch_groups(spec: ConvSpec, lhs: Array, rhs: Array, pack: int) -> Array:
    """Every member's batch meets every member's outputs; keep those that belong together."""
    groups = spec.batch_groups
    # Batch group p of the wider problem must hold members p * pack, ..., in the batch and in the outputs: it does.
    every = convolve(lhs, rhs, spec.auto(batch_groups=groups // pack))
    return own_pairs(every.reshape(pack, -1, *every.shape[1:]), groups)


def own_pairs(every: Array, groups: int) -> Array:
    """Of `every (pack, batch, *space, outputs)`, the outputs of all groups in order: each member's own."""
    pack, outputs = every.shape[0], every.shape[-1]
    member = jnp.arange(outputs) // (outputs // groups) % pack
    own = every[0]
    for i in range(1, pack):  # slices side by side would leave most lanes of a TPU idle: 208 k cycles for these 82 k
        own = jnp.where(member == i, every[i], own)
    return own
