"""Batch groups as feature groups: each group's part of the batch becomes its features.

Cost: a transposition of the input.
Error: that of the convolution that serves the rewritten problem.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array

from convjax._core.geometry import Geometry, Work
from convjax._core.primitive import convolve
from convjax._core.spec import ConvSpec


def supports(spec: ConvSpec, lhs: Any, rhs: Any, platform: str) -> str | None:
    """None where this algorithm can serve, else the reason why not, in words for a user."""
    return None if spec.batch_groups > 1 else "no batch groups to rewrite"


def work(g: Geometry) -> Work:
    groups = g.spec.batch_groups
    spec = g.spec.auto(feature_groups=groups, batch_groups=1)
    lhs = (g.batch, *g.lhs[1:-1], groups * g.lhs[-1])
    return Work("batch_to_feature", 0, g.elements[0], 1, ((1, Geometry(spec, lhs, g.rhs, g.dtype)),))


def run(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    groups = spec.batch_groups
    split = lhs.reshape(groups, -1, *lhs.shape[1:])
    features = jnp.moveaxis(split, 0, -2)  # (batch, *space, groups, features)
    features = features.reshape(*features.shape[:-2], -1)
    return convolve(features, rhs, spec.auto(feature_groups=groups, batch_groups=1))
