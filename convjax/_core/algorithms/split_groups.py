"""Split groups: a grouped convolution as that many ungrouped ones.

XLA on CPU runs feature groups one by one with a copy each, and batch groups by spreading them over a mostly empty
kernel: the gradient in a kernel of 32 groups then costs 32 times the products. Here each group is a convolution of
its own: unrolled where few, one loop where many.

Cost: the same products as the groups have; a pass over input and output to separate and to join.
Error: that of the convolution that serves a group.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from convjax._core.arrange import groups_first, groups_last
from convjax._core.geometry import Geometry, Work
from convjax._core.primitive import convolve
from convjax._core.spec import ConvSpec

# Up to here the groups are separate convolutions in the program, which XLA fuses with what is around them.
MAX_UNROLLED = 32


def supports(spec: ConvSpec, lhs: Any, rhs: Any, platform: str) -> str | None:
    """None where this algorithm can serve, else the reason why not, in words for a user."""
    return None if spec.groups > 1 else "one group: there is nothing to split"


def work(g: Geometry) -> Work:
    groups, one = g.spec.groups, g.spec.auto(feature_groups=1, batch_groups=1)
    lhs, rhs = (g.batch, *g.lhs[1:-1], g.features), (*g.rhs[:-1], g.outputs)
    moved = g.elements[0] + g.elements[2]
    return Work("split_groups", 0, moved, groups, ((groups, Geometry(one, lhs, rhs, g.dtype)),))


def run(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    one = spec.auto(feature_groups=1, batch_groups=1)
    lhs, rhs = groups_first(spec, lhs, rhs)
    if spec.groups <= MAX_UNROLLED:
        return jnp.concatenate([convolve(lhs[g], rhs[g], one) for g in range(spec.groups)], -1)
    return groups_last(lax.map(lambda pair: convolve(pair[0], pair[1], one), (lhs, rhs)))
