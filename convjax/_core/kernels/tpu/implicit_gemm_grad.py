"""Kernel gradient of a dense convolution on a TPU: for each tap, shifted inputs against the cotangent.

As in `implicit_gemm` a block of inputs and one of the cotangent are copied to VMEM with zeros around. The gradient
stays in VMEM while the grid walks over the rows of all images, one after the other, so that the order of the sums, and
with it the result, is always the same.

Cost: the products of direct summation, columns filled up to a multiple of 8, channels to multiples of 128.
Error: that of direct summation in float32; float32 operands are multiplied at the precision that the spec names.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from convjax._core.kernels.tpu import gemm_tiles
from convjax._core.kernels.tpu.blocks import interpret_mode
from convjax._core.kernels.tpu.gemm_blocks import (
    compiler_params,
    each,
    each_product,
    input_block,
    laid,
    met,
    output_block,
    precision,
    readable,
    stage_input,
    taps,
)
from convjax._core.kernels.tpu.gemm_tiles import STAGED_ROWS
from convjax._core.kernels.tpu.stage import border, stage
from convjax._core.kernels.tpu.tiles import up
from convjax._core.spec import ConvSpec


def correlate(spec: ConvSpec, lhs: Array, rhs: Array, packs: int, interpret: Any) -> Array:
    """Of `lhs (C, *space, N)` and `rhs (*out, N, O)`, of all packs: `(packs, features, *k, outputs)`, float32."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    p = gemm_tiles.of_gradient(spec, lhs, rhs, packs)
    t = gemm_tiles.choose(p, gradient=True)
    tiles_a_pack = p.outputs // t.outputs
    x, y = laid(p, jnp.swapaxes(lhs, 0, -1), p.space), laid(p, jnp.moveaxis(rhs, -2, 0), p.out)
    pack, tile = (lambda o: jax.lax.div(o, tiles_a_pack)), (lambda o: jax.lax.rem(o, tiles_a_pack))

    def kernel(x_ref: Any, y_ref: Any, o_ref: Any, scratch: Any, cotangent: Any) -> None:
        h = pl.program_id(2)

        @pl.when((pl.program_id(1) == 0) & (h == 0))
        def _() -> None:
            o_ref[...] = jnp.zeros(o_ref.shape, jnp.float32)

        stage_input(p, t, x_ref, scratch, h)
        border(cotangent, 0, p.out[1], t.outputs)
        stage(readable(p, y_ref), cotangent, 0, 0, p.out[0] - h * t.rows, 0, t.outputs, STAGED_ROWS)

        def product(row: Any, column: Any, _: int) -> None:
            def add(at: Any) -> None:
                here = pl.ds(at, t.lanes)
                seen = cotangent[pl.ds(row, t.group), pl.ds(column, t.columns), here]
                seen = seen.reshape(t.group * t.columns, t.lanes).astype(lhs.dtype)
                for tap in taps(p):
                    o_ref[0, *tap, :, here] += jax.lax.dot_general(
                        met(p, t, x_ref, scratch, row, column, tap, lhs.dtype),
                        seen,
                        (((0,), (0,)), ((), ())),
                        precision=precision(spec, lhs.dtype),
                        preferred_element_type=jnp.float32,
                    )

            each(t.outputs // t.lanes, t.lanes, add)

        each_product(p, t, product)

    copy = (up(t.rows, STAGED_ROWS), up(p.out[1], t.columns), t.outputs)
    out = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((packs, *p.kernel, p.features, p.outputs), jnp.float32),
        grid=(packs * tiles_a_pack, p.batch, -(-p.out[0] // t.rows)),
        in_specs=[
            input_block(p, t, pack),
            output_block(p, t),
        ],
        out_specs=pl.BlockSpec((1, *p.kernel, p.features, t.outputs), lambda o, n, h: (pack(o), 0, 0, 0, tile(o))),
        scratch_shapes=[pltpu.VMEM(t.scratch, jnp.float32), pltpu.VMEM(copy, jnp.float32)],
        compiler_params=compiler_params(t.vmem, ("parallel", "arbitrary", "arbitrary")),
        interpret=interpret_mode(interpret),
        name="convjax_implicit_gemm_grad",
    )(x, y)
    space = spec.out_space(lhs.shape, rhs.shape)
    return jnp.moveaxis(out.reshape(packs, *space, p.features, p.outputs), -2, 1)
