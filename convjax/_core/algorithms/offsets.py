"""One running sum per output position: the kernel gradient of depthwise and narrow-group convolutions.

The kernel gradient is a convolution whose kernel is as large as its input (the cotangent) and whose output is a few
positions wide (the kernel). Each of these offsets is the sum of a product of two arrays that are as large as the
problem. A scan takes an image a step, padded only there, where it stays in cache. Its rows are folded: one reduction of
several operands sums the products of `fold` parts for a few offsets at once, so that XLA reads the image once for all
of them; its loops over `fold` and offsets are short enough for LLVM to unroll, which makes vectors of the channels.
Cost: offsets x input elements multiply-adds; the sums, a `fold`-th of an image for each offset, read and written.
Error: below that of direct summation in the accumulation dtype, as each element of a sum has its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from convjax._core.arrange import block_counts, block_shape, exchanged, group_sizes, pad_space, split_axis, unravel
from convjax._core.dtypes import accumulator, output_dtype
from convjax._core.geometry import Geometry, Work
from convjax._core.spec import ConvSpec, Shape

MAX_CHANNELS_PER_GROUP = 8  # of the convolution whose gradient this is; more were not measured
UNROLLED_OFFSETS = 64  # sums carried by a scan; more are mapped over, each pass reading the operands anew
MAX_FOLD = 16
# Products in one reduction. Of 72, LLVM unrolled some (3x3 32 @112 N8: 2.6 ms, 10 where it did not); of 64, all.
FUSED_PRODUCTS = 64
MAX_FUSED_OFFSETS = 9  # their sums stay in registers
SUM_ELEMENTS = 2**21  # carried by the scan at most
# Where images are so small that sums as large as them have fewer elements, images are folded in place of rows.
SMALL_SUM_ELEMENTS = 2**18
THIN = 16  # channels that leave vectors mostly empty: the last spatial axis is merged with them


def supports(spec: ConvSpec, lhs: Any, rhs: Any, platform: str) -> str | None:
    """None where this algorithm can serve, else the reason why not, in words for a user."""
    if spec.ndim == 0:
        return "no spatial axis: there is one offset, a matrix product"
    batch, *_ = group_sizes(spec, lhs.shape, rhs.shape)
    if batch > MAX_CHANNELS_PER_GROUP:
        return f"{batch} rows of output a group: a matrix product is cheaper above {MAX_CHANNELS_PER_GROUP}"
    return None


def work(g: Geometry) -> Work:
    block = block_shape(g.out, max(1, UNROLLED_OFFSETS // g.batch))
    passes = math.prod(block_counts(g.out, block))
    shape = (g.features, *g.kernel)
    tile, *_ = tiling(shape, g.rhs[-1], math.prod(block) * g.batch)
    kind = "offsets" if g.is_kernel_gradient else "offsets, forward"
    kind += ", thin" if g.rhs[-1] < THIN else "" if g.batch == 1 else ", grouped"
    steps = passes * math.prod(block_counts(shape, tile))
    return Work(kind, g.macs, g.padded + passes * (g.padded + g.elements[1]), steps)


def run(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    dtype = accumulator(spec, lhs.dtype)
    out_shape, result = spec.out_shape(lhs.shape, rhs.shape), output_dtype(spec, lhs.dtype)
    batch, _, outputs = group_sizes(spec, lhs.shape, rhs.shape)
    stored = lhs.dtype
    lhs, rhs = (bits(a) for a in exchanged(spec, lhs, rhs))

    # From here on the axis summed over is one more in front of the spatial ones, of images, with the only offset 0.
    offsets, strides, dilation = (1, *out_shape[1:-1]), (1, *spec.strides), (1, *spec.rhs_dilation)
    lhs_dilation, lanes = (1, *spec.lhs_dilation), rhs.shape[-1]
    block = block_shape(offsets, max(1, UNROLLED_OFFSETS // batch))
    passes = block_counts(offsets, block)
    count = math.prod(block) * batch
    tile, axis, fold = tiling(rhs.shape[:-1], lanes, count)
    tiles = block_counts(rhs.shape[:-1], tile)
    whole = math.prod(tiles[1:]) * math.prod(passes) == 1  # a step takes whole images, and all offsets

    space = [n * t for n, t in zip(tiles, tile, strict=True)]
    rhs = pad_space(rhs, [(0, n - m) for n, m in zip(space, rhs.shape, strict=False)], (1,) * len(space), first=0)
    reach = _reach([n * b for n, b in zip(passes, block, strict=True)], strides, space, dilation)
    low = (0, *(lo for lo, _ in spec.padding))
    size = [lo + (n - 1) * d + 1 for lo, n, d in zip(low, lhs.shape, lhs_dilation, strict=False)]
    padding = [(lo, r - n) for lo, r, n in zip(low, reach, size, strict=True)]
    # One zero more at the end makes a step copy its part where nothing else is to be padded.
    later, later_dilation = [(0, 0)] * spec.ndim, (1,) * spec.ndim
    if whole:
        later, later_dilation = padding[1:], lhs_dilation[1:]
        padding, lhs_dilation = [padding[0], *((0, 0) for _ in later)], (1,) * len(padding)
    later[0] = (later[0][0], later[0][1] + 1)
    lhs = pad_space(lhs, padding, lhs_dilation, first=0)
    reach = [tile[0], *lhs.shape[1:-1]] if whole else _reach(block, strides, tile, dilation)
    merged = lanes < THIN and dilation[-1] == 1

    def operands(first: Sequence[Any], index: Array) -> tuple[list[Array], Array]:
        """Of one step: the input for each member of a group, in the lanes of the cotangent, and the cotangent."""
        start = [i * t for i, t in zip(unravel(index, tiles), tile, strict=True)]
        shift = [f + i * d for f, i, d in zip(first, start, dilation, strict=True)]
        if whole:
            x = lax.dynamic_slice_in_dim(lhs, start[0], tile[0])
            ct = lax.dynamic_slice_in_dim(rhs, start[0], tile[0])
        else:
            x = lax.dynamic_slice(lhs, (*shift, 0), (*reach, lhs.shape[-1]))
            ct = lax.dynamic_slice(rhs, (*start, 0), (*tile, lanes))
        x, ct = (values(a, stored, dtype) for a in (x, ct))
        x = pad_space(x, later, later_dilation)
        parts = [lax.optimization_barrier(part) for part in members(x, spec.groups, batch, outputs)]
        return [joined(part, merged) for part in parts], joined(ct, merged)

    def window(x: Array, offset: Sequence[int]) -> Array:
        start = [o * s for o, s in zip(offset, strides, strict=True)]
        size, steps = list(tile), list(dilation)
        if merged:
            start[-1], size[-1] = start[-1] * lanes, size[-1] * lanes
        else:
            start, size, steps = [*start, 0], [*size, lanes], [*steps, 1]
        return lax.slice(x, start, [i + (n - 1) * d + 1 for i, n, d in zip(start, size, steps, strict=True)], steps)

    def one_pass(index: Any) -> Array:
        first = [i * b * s for i, b, s in zip(unravel(index, passes), block, strides, strict=True)]

        def step(sums: tuple[Array, ...], index: Array) -> tuple[tuple[Array, ...], None]:
            xs, ct = operands(first, index)
            terms = [split_axis(lax.mul(window(x, o), ct), axis, fold) for o in np.ndindex(*block) for x in xs]
            return tuple(map(lax.add, sums, folded(terms, axis))), None

        shape = [n // fold if i == axis else n for i, n in enumerate(tile)]
        empty = joined(jnp.zeros((*shape, lanes), dtype), merged)
        sums, _ = lax.scan(step, (empty,) * count, jnp.arange(math.prod(tiles)))
        every = lax.concatenate([total.reshape(1, -1, lanes) for total in sums], 0)
        return every.sum(1, dtype=dtype).reshape(*block, batch, lanes)

    grads = lax.map(one_pass, jnp.arange(math.prod(passes))) if math.prod(passes) > 1 else one_pass(0)[None]
    grads = grads.reshape(*passes, *grads.shape[1:])
    n = len(offsets)
    grads = grads.transpose(2 * n, *(axis for i in range(n) for axis in (i, n + i)), 2 * n + 1)
    grads = grads.reshape(batch, *(p * b for p, b in zip(passes, block, strict=True)), lanes)
    return grads[(slice(None), 0, *(slice(o) for o in offsets[1:]))].reshape(out_shape).astype(result)


def tiling(shape: Shape, lanes: int, sums: int) -> tuple[Shape, int, int]:
    """Images and space that a step takes, the axis that it folds, and into how many parts."""
    image = math.prod(shape[1:]) * lanes
    axis = 0 if image * sums <= SMALL_SUM_ELEMENTS and shape[0] > shape[1] else 1
    length = shape[axis]
    fold = -(-length // -(-length // MAX_FOLD))  # as even as possible
    part = -(-length // fold)
    room = max(1, (SUM_ELEMENTS if axis else SMALL_SUM_ELEMENTS) // (sums * math.prod(shape[axis + 1 :]) * lanes))
    part = -(-part // -(-part // room))
    return (*(1,) * axis, fold * part, *shape[axis + 1 :]), axis, fold


def folded(terms: Sequence[Array], axis: int) -> list[Array]:
    """Sums over `axis`, of so many terms at once as one loop takes."""
    together = max(1, min(MAX_FUSED_OFFSETS, FUSED_PRODUCTS // terms[0].shape[axis]))
    zero = np.zeros((), terms[0].dtype)
    sums: list[Array] = []
    for i in range(0, len(terms), together):
        some = tuple(terms[i : i + together])
        sums += lax.reduce(some, (zero,) * len(some), lambda a, b: tuple(map(lax.add, a, b)), (axis,))
    return sums


def members(x: Array, groups: int, batch: int, outputs: int) -> list[Array]:
    """For each of the `batch` members of a group, its channel once for every one of the group's `outputs`."""
    if batch == outputs == 1:
        return [x]
    split = split_axis(x, x.ndim - 1, groups)
    return [jnp.repeat(split[..., n], outputs, axis=-1) for n in range(batch)]


def bits(x: Array) -> Array:
    """16-bit floats as integers: XLA on CPU would convert the whole of an array that a loop takes slices of."""
    narrow = jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize < 4
    return lax.bitcast_convert_type(x, np.dtype(f"uint{8 * x.dtype.itemsize}")) if narrow else x


def values(x: Array, stored: Any, dtype: Any) -> Array:
    """What `bits` was given, in another dtype."""
    return (x if x.dtype == stored else lax.bitcast_convert_type(x, stored)).astype(dtype)


def joined(x: Array, merged: bool) -> Array:
    """With the last spatial axis merged into the channels."""
    return x.reshape(*x.shape[:-2], -1) if merged else x


def _reach(offsets: Sequence[int], strides: Sequence[int], space: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """Inputs that meet `space` kernel positions at so many offsets."""
    return [(o - 1) * s + (k - 1) * d + 1 for o, s, k, d in zip(offsets, strides, space, dilation, strict=True)]
