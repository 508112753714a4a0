"""Depthwise convolution on a TPU: shifted products summed in registers, one pass over input and output.

Each block of input rows is copied once to float32 VMEM with its border of zeros, so that no padded copy is made in HBM
and a shift by any number of columns is a plain load. From there every tap is one load, one product and one sum a
register; rows of outputs are computed together, as they share loads. Bias, residual and activation are applied before
the only store. The channel multiplier repeats the input's channels before the kernel starts.

Cost: taps x outputs multiply-adds on the vector unit (4 operations a cycle: 3x3 is about bound by HBM, 7x7 is not).
Error: that of direct summation in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from convjax._core.dtypes import output_dtype
from convjax._core.geometry import Geometry, Work
from convjax._core.kernels.tpu import depthwise_grad, plane, tiles
from convjax._core.kernels.tpu.blocks import Blocks, compiler_params, interpret_mode
from convjax._core.kernels.tpu.finish import FUSES as FUSES
from convjax._core.kernels.tpu.finish import finish
from convjax._core.spec import ConvSpec


def supports(spec: ConvSpec, lhs: Any, rhs: Any, platform: str) -> str | None:
    """None where this kernel can serve, else the reason why not, in words for a user."""
    if reason := plane.unfit(spec, lhs, rhs, platform):
        return reason
    if spec.batch_groups > 1:
        return depthwise_grad.supports(spec, lhs, rhs)
    if rhs.shape[-2] != 1:
        return f"{rhs.shape[-2]} channels a group: the kernel is for depthwise convolution, which has 1"
    return tiles.too_large(tiles.arranged(plane.forward(spec, lhs, rhs), addends=1), addends=1)


def work(g: Geometry) -> Work:
    return Work("tpu_depthwise", g.macs, g.padded, 1)


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
    if spec.batch_groups > 1:
        out = depthwise_grad.run(spec, lhs, rhs, interpret=interpret)
        return finish(out.astype(jnp.float32), bias, residual, activation, out.dtype)
    p = tiles.arranged(plane.forward(spec, lhs, rhs), addends=1)
    lhs = jnp.repeat(lhs, rhs.shape[-1] // lhs.shape[-1], axis=-1)
    x = plane.laid(p, lhs, p.space)
    w = rhs.reshape(*p.kernel, p.channels).astype(jnp.float32)
    if bias is not None:
        bias = bias.reshape(1, p.channels).astype(jnp.float32)
    if residual is not None:
        residual = plane.laid(p, residual, p.out)
    out = _call(p, x, w, bias, residual, activation, output_dtype(spec, lhs.dtype), interpret)
    return plane.images(p, out, spec.out_shape(lhs.shape, rhs.shape))


def _call(
    p: plane.Plane,
    x: Array,
    w: Array,
    bias: Array | None,
    residual: Array | None,
    activation: str | None,
    dtype: Any,
    interpret: Any,
) -> Array:
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    t = tiles.choose(p, addends=residual is not None)
    blocks = Blocks(p, t)
    operands, specs = [x, w], [blocks.input, blocks.kernel]
    if bias is not None:
        operands.append(bias)
        specs.append(pl.BlockSpec((1, t.channels), lambda n, c, h: (0, c)))
    if residual is not None:
        operands.append(residual)
        specs.append(blocks.output)

    def kernel(*refs: Any) -> None:
        x_ref, w_ref, *rest, o_ref, scratch = refs
        rest = list(rest)
        bias_ref = rest.pop(0) if bias is not None else None
        residual_ref = rest.pop(0) if residual is not None else None
        for lane in range(0, t.channels, tiles.LANES):
            lanes = min(tiles.LANES, t.channels - lane)
            here = pl.ds(lane, lanes)
            blocks.stage(x_ref, scratch, pl.program_id(2), lane, lanes)

            def store(row: Any, columns: Any, total: Array, here: Any = here) -> None:
                b = None if bias_ref is None else bias_ref[:, here]
                r = None if residual_ref is None else residual_ref[0, row, columns, here]
                o_ref[0, row, columns, here] = finish(total, b, r, activation, dtype)

            _sum_taps(p, t, scratch, w_ref, here, lanes, blocks.left, store)

    return pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((p.batch, *p.out, p.channels), dtype),
        grid=blocks.grid,
        in_specs=specs,
        out_specs=blocks.output,
        scratch_shapes=[pltpu.VMEM(blocks.scratch, jnp.float32)],
        compiler_params=compiler_params(t.vmem),
        interpret=interpret_mode(interpret),
        name="convjax_depthwise",
    )(*operands)


def _sum_taps(
    p: plane.Plane,
    t: tiles.Tiles,
    scratch: Any,
    w_ref: Any,
    here: Any,
    lanes: int,
    left: int,
    store: Callable[[Any, Any, Array], None],
) -> None:
    """Every group of rows and chunk of columns: the sums over all taps, handed to `store`."""
    from jax.experimental import pallas as pl

    (stride, step), (gap, tap_gap) = p.strides, p.dilation

    def tap(row: Any, column: Any, columns: int, j: int) -> Array:
        return scratch[row, pl.ds(column * step + left - p.low[1] + j * tap_gap, columns, step), :lanes]

    def kernel_row(total: list[Any], i: Any, row: Any, column: Any, columns: int) -> list[Any]:
        for j in range(p.kernel[1]):
            w = w_ref[i, j : j + 1, here]
            for r in range(t.group):
                product = tap((row + r) * stride + i * gap, column, columns, j) * w
                total[r] = product if total[r] is None else total[r] + product
        return total

    def sums(row: Any, column: Any, columns: int) -> None:
        if t.unrolled:
            total: list[Any] = [None] * t.group
            for i in range(p.kernel[0]):
                total = kernel_row(total, i, row, column, columns)
        else:
            zeros = [jnp.zeros((columns, lanes), jnp.float32)] * t.group
            total = jax.lax.fori_loop(
                0, p.kernel[0], lambda i, total: kernel_row(list(total), i, row, column, columns), zeros
            )
        for r in range(t.group):
            store(row + r, pl.ds(column, columns), total[r])

    def group(g: Array, _: None) -> None:
        chunks, rest = divmod(p.out[1], t.columns)

        def chunk(c: Array, _: None) -> None:
            sums(g * t.group, pl.multiple_of(c * t.columns, 16), t.columns)

        if chunks > 1:
            jax.lax.fori_loop(0, chunks, chunk, None)
        else:
            sums(g * t.group, 0, t.columns)
        if rest:
            sums(g * t.group, chunks * t.columns, rest)

    jax.lax.fori_loop(0, t.rows // t.group, group, None)
