"""Dense convolution on a TPU as matrix products of shifted tiles: no patches, no padded copy in HBM.

Each block of input rows is copied once to float32 VMEM with its border of zeros. From there the inputs that a tap
meets are plain loads, whatever the shift and the stride, and one matrix product with that tap's weights is added to a
sum in float32. Bias, residual and activation are applied before the only store. Blocks are fetched and stored while
others are computed, by Pallas' own pipeline.

Cost: the products of direct summation, columns filled up to a multiple of 8, channels to multiples of 128.
Error: that of direct summation in float32; float32 operands are multiplied at the precision that the spec names.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from convjax._core.dtypes import output_dtype
from convjax._core.geometry import Geometry, Work
from convjax._core.kernels.tpu import gemm_problem, gemm_tiles, implicit_gemm_grad
from convjax._core.kernels.tpu.blocks import interpret_mode
from convjax._core.kernels.tpu.finish import FUSES as FUSES
from convjax._core.kernels.tpu.finish import finish
from convjax._core.kernels.tpu.gemm_blocks import (
    compiler_params,
    depth,
    each,
    each_product,
    fold,
    images,
    input_block,
    laid,
    laid_shape,
    met,
    output_block,
    place,
    precision,
    stage_input,
    taps,
)
from convjax._core.spec import ConvSpec


def supports(spec: ConvSpec, lhs: Any, rhs: Any, platform: str) -> str | None:
    """None where this kernel can serve, else the reason why not, in words for a user."""
    if reason := gemm_problem.unfit(spec, lhs, rhs, platform):
        return reason
    if spec.groups > 1:
        return f"{spec.groups} groups: the kernel is for dense convolution, tpu_grouped for these"
    if Geometry.of(spec, lhs, rhs).is_kernel_gradient:
        return gemm_tiles.too_large(gemm_tiles.of_gradient(spec, lhs, rhs, 1), gradient=True)
    return gemm_tiles.too_large(gemm_tiles.forward(spec, lhs, rhs, 1))


def work(g: Geometry) -> Work:
    return Work("tpu_implicit_gemm", g.macs, g.padded, 1)


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
    if Geometry.of(spec, lhs, rhs).is_kernel_gradient:
        dtype = output_dtype(spec, lhs.dtype)
        follows = bias is not None or residual is not None or activation is not None
        out = implicit_gemm_grad.correlate(spec, lhs, rhs, 1, jnp.float32 if follows else dtype, interpret)[0]
        return finish(out, bias, residual, activation, dtype) if follows else out
    return convolve_packs(spec, lhs, rhs, 1, bias, residual, activation, interpret)


def convolve_packs(
    spec: ConvSpec,
    lhs: Array,
    rhs: Array,
    packs: int,
    bias: Array | None,
    residual: Array | None,
    activation: str | None,
    interpret: Any,
) -> Array:
    """Convolution in so many groups, `rhs (*k, features of a pack, O)`."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    p = gemm_tiles.forward(spec, lhs, rhs, packs)
    t = gemm_tiles.choose(p, residual=residual is not None)
    dtype = output_dtype(spec, lhs.dtype)
    tiles_a_pack = p.outputs // t.outputs
    operands = [laid(p, lhs, p.space), fold(p, rhs)]
    specs = [
        input_block(p, t, lambda o: jax.lax.div(o, tiles_a_pack)),
        pl.BlockSpec((*p.folded[:-1], t.outputs), lambda o, n, h: (0, 0, 0, o)),
    ]
    if bias is not None:
        operands.append(bias.reshape(1, -1).astype(jnp.float32))
        specs.append(pl.BlockSpec((1, t.outputs), lambda o, n, h: (0, o)))
    if residual is not None:
        operands.append(laid(p, residual, p.out))
        specs.append(output_block(p, t))

    def kernel(*refs: Any) -> None:
        x_ref, w_ref, *rest, o_ref, scratch = refs
        bias_ref = rest.pop(0) if bias is not None else None
        residual_ref = rest.pop(0) if residual is not None else None
        if not p.is_direct:
            stage_input(p, t, x_ref, scratch, pl.program_id(2))

        def product(row: Any, column: Any, columns: int) -> None:
            def lanes(at: Any) -> None:
                parts = (
                    jnp.dot(
                        met(p, t, x_ref, scratch, row, column, tap, lhs.dtype),
                        w_ref[*tap, : depth(p, tap), pl.ds(at, t.lanes)],
                        precision=precision(spec, lhs.dtype),
                        preferred_element_type=jnp.float32,
                    )
                    for tap in taps(p)
                )
                total = functools.reduce(jnp.add, parts)
                total = total.reshape(t.group, t.columns, t.lanes)[:, :columns]
                total = total if p.beside == 1 else total.reshape(t.group, -1, p.beside, t.lanes)
                here = place(p, pl.ds(row, t.group), column, columns, pl.ds(at, t.lanes))
                b = None if bias_ref is None else bias_ref[:, pl.ds(at, t.lanes)]
                r = None if residual_ref is None else residual_ref[here]
                o_ref[here] = finish(total, b, r, activation, dtype)

            each(t.outputs // t.lanes, t.lanes, lanes)

        each_product(p, t, product)

    out = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct(laid_shape(p, p.out, rhs.shape[-1]), dtype),
        grid=(packs * tiles_a_pack, p.batch, -(-p.out[0] // t.rows)),
        in_specs=specs,
        out_specs=output_block(p, t),
        scratch_shapes=[pltpu.VMEM(t.scratch, jnp.float32)],
        compiler_params=compiler_params(t.vmem, ("parallel", "parallel", "parallel")),
        interpret=interpret_mode(interpret),
        name="convjax_implicit_gemm",
    )(*operands)
    return images(p, out, spec.out_shape(lhs.shape, rhs.shape))
