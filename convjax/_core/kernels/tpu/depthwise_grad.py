"""The kernel gradient of a depthwise convolution on a TPU, deterministic in two stages.

First each block of input rows and its block of the cotangent: every tap has a register of sums, in which 8 columns stay
apart, carried over the block's rows; one partial gradient for each block goes to HBM. Then XLA adds these up, in an
order that is that of the program. Nothing is added atomically, so equal inputs give equal bits.

Cost: taps x outputs multiply-adds on the vector unit; the cotangent is read once.
Error: below that of direct summation in float32, as each block has its own sum.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from convjax._core.arrange import exchanged, largest_divisor
from convjax._core.dtypes import output_dtype
from convjax._core.kernels.tpu import plane, tiles
from convjax._core.kernels.tpu.blocks import Blocks, compiler_params, interpret_mode
from convjax._core.kernels.tpu.stage import stage
from convjax._core.spec import ConvSpec

SUMS = 64  # registers of sums carried at once: those of some rows of the kernel, or of one


def supports(spec: ConvSpec, lhs: Any, rhs: Any) -> str | None:
    """None where this kernel can serve a problem that `plane.unfit` lets pass, else the reason why not."""
    if lhs.shape[0] != spec.batch_groups:
        return "several channels a group: the kernel gradient is for depthwise convolution, which has 1"
    return tiles.too_large(tiles.arranged(plane.of_gradient(spec, lhs, rhs), gradient=True), gradient=True)


def run(spec: ConvSpec, lhs: Array, rhs: Array, *, interpret: Any = False) -> Array:
    p = tiles.arranged(plane.of_gradient(spec, lhs, rhs), gradient=True)
    x, g = exchanged(spec, lhs, rhs)
    x = jnp.repeat(x, rhs.shape[-1] // lhs.shape[0], axis=-1)
    parts = _call(p, plane.laid(p, x, p.space), plane.laid(p, g, p.out), interpret)
    total = parts.sum((0, 1)).astype(output_dtype(spec, lhs.dtype))
    return total.reshape(spec.out_shape(lhs.shape, rhs.shape))


def _call(p: plane.Plane, x: Array, g: Array, interpret: Any) -> Array:
    """Partial gradients, `(batch, tiles of rows, *kernel, channels)`."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    t = tiles.choose(p, gradient=True)
    blocks = Blocks(p, t)
    columns = tiles.up(p.out[1], tiles.up(t.columns, tiles.SUBLANES))

    def kernel(x_ref: Any, g_ref: Any, o_ref: Any, scratch: Any, cotangent: Any) -> None:
        h = pl.program_id(2)
        for lane in range(0, t.channels, tiles.LANES):
            lanes = min(tiles.LANES, t.channels - lane)
            blocks.stage(x_ref, scratch, h, lane, lanes)
            if columns > p.out[1]:
                cotangent[:, p.out[1] :, :lanes] = jnp.zeros((t.rows, columns - p.out[1], lanes), jnp.float32)
            stage(g_ref, cotangent, 0, 0, p.out[0] - h * t.rows, lane, lanes, largest_divisor(t.rows, 8))
            _sum_products(p, t, scratch, cotangent, o_ref, lane, lanes, blocks.left)

    return pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((p.batch, blocks.grid[2], *p.kernel, p.channels), jnp.float32),
        grid=blocks.grid,
        in_specs=[blocks.input, blocks.output],
        out_specs=pl.BlockSpec((1, 1, *p.kernel, t.channels), lambda n, c, h: (n, h, 0, 0, c)),
        scratch_shapes=[
            pltpu.VMEM(blocks.scratch, jnp.float32),
            pltpu.VMEM((t.rows, columns, tiles.LANES), jnp.float32),
        ],
        compiler_params=compiler_params(t.vmem),
        interpret=interpret_mode(interpret),
        name="convjax_depthwise_kernel_gradient",
    )(x, g)


def _sum_products(
    p: plane.Plane, t: tiles.Tiles, scratch: Any, cotangent: Any, o_ref: Any, lane: int, lanes: int, left: int
) -> None:
    """For every tap the sum over this block of cotangent times input, to `o_ref (1, 1, *kernel, channels)`."""
    from jax.experimental import pallas as pl

    (stride, step), (gap, tap_gap) = p.strides, p.dilation
    at_once = largest_divisor(p.kernel[0], max(1, SUMS // p.kernel[1]))
    columns = tiles.up(t.columns, tiles.SUBLANES)
    chunks = cotangent.shape[1] // columns
    taps = [(i, j) for i in range(at_once) for j in range(p.kernel[1])]

    def kernel_rows(first: Any) -> None:
        def block(index: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
            r: Any = index
            column: Any = 0
            if chunks > 1:
                r, column = (
                    jax.lax.div(index, chunks),
                    pl.multiple_of(jax.lax.rem(index, chunks) * columns, tiles.SUBLANES),
                )
            g = cotangent[r, pl.ds(column, columns), :lanes]
            added = []
            for total, (i, j) in zip(sums, taps, strict=True):
                seen = pl.ds(column * step + left - p.low[1] + j * tap_gap, columns, step)
                product = scratch[r * stride + (first + i) * gap, seen, :lanes] * g
                added.append(total + _fold(product))
            return tuple(added)

        zeros = (jnp.zeros((tiles.SUBLANES, lanes), jnp.float32),) * len(taps)
        sums = jax.lax.fori_loop(0, t.rows * chunks, block, zeros)
        for total, (i, j) in zip(sums, taps, strict=True):
            o_ref[0, 0, first + i, j : j + 1, pl.ds(lane, lanes)] = total.sum(0, keepdims=True)

    if at_once == p.kernel[0]:
        kernel_rows(0)
    else:
        jax.lax.fori_loop(0, p.kernel[0] // at_once, lambda n, _: kernel_rows(n * at_once), None)


def _fold(product: Array) -> Array:
    """`(columns, lanes)` to the sum of its registers, `(8, lanes)`."""
    return product.reshape(-1, tiles.SUBLANES, product.shape[-1]).sum(0)
