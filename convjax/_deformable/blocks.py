"""Samples of a deformable convolution, a block of output positions at a time, so that they never all exist.

A block holds at most as many bytes as one example, or `BLOCK_BYTES` if that is more; gradients sample anew
(`jax.checkpoint`). A block is a few small examples or a part of the positions of a large one: the gradient in `x` is
one array an example, to which each of its blocks adds, and so there should not be many.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from convjax._deformable.interpolate import AFTER, BEFORE, corners, interpolate

# 2x256x100x168, 3x3, forward and backward on 2 cores: 8 to 64 MiB take the same time within the noise.
BLOCK_BYTES = 16 << 20


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Where the taps of each output lie before offsets are added, in pixels of `x`.

    Attributes:
      out: spatial shape of the output.
      start: position of the first output, for each axis.
      stride: step between outputs, for each axis.
      taps: position of each tap relative to its output.
      groups: parts of the channels with offsets of their own.
      scale: factor of the offsets.
    """

    out: tuple[int, ...]
    start: tuple[int, ...]
    stride: tuple[int, ...]
    taps: tuple[tuple[float, ...], ...]
    groups: int
    scale: float = 1.0


def in_blocks(
    x: Array,
    offset: Array,
    mask: Array | None,
    sampling: Sampling,
    dtype: Any,
    result: Any,
    contract: Callable[..., Array],
    *operands: Array,
) -> Array:
    """`contract` of the samples of all positions.

    Args:
      x: `(N, *space, C)`.
      offset: `(N, *out, groups * K * ndim)`, ordered so, the axes of space in order.
      mask: `(N, *out, groups * K)`, factors of the samples, or None.
      sampling: where to sample.
      dtype: that samples are computed and their gradients summed in.
      result: dtype of what is returned.
      contract: from samples `(P, K, C)` and the operands to `(P, O)`.
      operands: what else `contract` takes; not closed over, as gradients pass through.

    Returns:
      `(N, *out, O)`.
    """
    batch, *space, channels = x.shape
    ndim, taps, positions = len(space), len(sampling.taps), math.prod(sampling.out)
    example_bytes = math.prod(x.shape[1:]) * np.dtype(dtype).itemsize
    sample_bytes = positions * taps * channels * np.dtype(dtype).itemsize
    examples, length = _block(batch, positions, sample_bytes, max(BLOCK_BYTES, example_bytes))
    groups, count = -(-batch // examples), -(-positions // length)

    filled = [(0, groups * examples - batch), *[(BEFORE, AFTER)] * ndim, (0, 0)]
    rows = jnp.pad(x.astype(dtype), filled).reshape(groups, -1, channels // sampling.groups)

    def split(a: Array, *shape: int) -> Array:
        a = a.reshape(batch, positions, -1)
        a = jnp.pad(a, [(0, groups * examples - batch), (0, count * length - positions), (0, 0)])
        return jnp.swapaxes(a.reshape(groups, examples, count, length, sampling.groups, taps, *shape), 1, 2)

    inputs = (split(offset, ndim), None if mask is None else split(mask))

    def block(rows: Array, offset: Array, mask: Array | None, index: Array, operands: Sequence[Array]) -> Array:
        samples = _samples(rows, offset, mask, index * length, space, sampling)
        return contract(samples.reshape(examples * length, taps, channels), *operands).astype(result)

    again = jax.checkpoint(block, prevent_cse=False)  # the loops stand between already

    def group(entry: tuple[Array, tuple[Array, Array | None]]) -> Array:
        rows, (offset, mask) = entry
        return lax.map(lambda part: again(rows, *part, operands), (offset, mask, jnp.arange(count)))

    y = lax.map(group, (rows, inputs)).reshape(groups, count, examples, length, -1)
    y = jnp.swapaxes(y, 1, 2).reshape(groups * examples, count * length, y.shape[-1])
    return y[:batch, :positions].reshape(batch, *sampling.out, y.shape[-1])


def _block(batch: Any, positions: int, sample_bytes: int, limit: int) -> tuple[int, int]:
    """How many examples, and how many positions of each, are sampled at once; even shares."""
    blocks = max(1, -(-sample_bytes // limit))
    if blocks > 1 or jax.export.is_symbolic_dim(batch):
        return 1, -(-positions // blocks)
    at_most = max(1, min(batch, limit // sample_bytes))
    return -(-batch // -(-batch // at_most)), positions


def _samples(
    rows: Array, offset: Array, mask: Array | None, first: Array, space: Sequence[int], sampling: Sampling
) -> Array:
    """Samples `(examples, P, K, groups, C // groups)` at offsets `(examples, P, groups, K, ndim)`.

    Outputs beyond the last, which fill the last block, are sampled as well, wherever they are.
    """
    examples, length = offset.shape[:2]
    offset = jnp.swapaxes(offset, 2, 3).astype(jnp.promote_types(offset.dtype, jnp.float32))
    output = jnp.stack(jnp.unravel_index(first + jnp.arange(length), sampling.out), -1)
    origin = output * np.asarray(sampling.stride) + np.asarray(sampling.start)
    taps = np.asarray(sampling.taps, offset.dtype)[:, None]
    if sampling.scale != 1:
        offset = offset * sampling.scale
    position = origin.astype(offset.dtype)[:, None, None] + taps + offset
    mask = None if mask is None else jnp.swapaxes(mask, 2, 3)
    index, weights = corners(position, mask, space, sampling.groups)
    example = jnp.arange(examples, dtype=index.dtype) * (rows.shape[0] // examples)
    index = index + example[:, None, None, None] if examples > 1 else index
    return interpolate(rows, index, weights.astype(jnp.finfo(rows.dtype).dtype))
