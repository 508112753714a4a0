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

from convjax._core.arrange import largest_divisor
from convjax._core.kernels.tpu import gemm_tiles
from convjax._core.kernels.tpu.blocks import interpret_mode
from convjax._core.kernels.tpu.gemm_blocks import (
    compiler_params,
    depth,
    each,
    each_product,
    input_block,
    joined,
    laid,
    met,
    output_block,
    place,
    precision,
    readable,
    stage_input,
    taps,
    unfold,
)
from convjax._core.kernels.tpu.stage import border, stage
from convjax._core.kernels.tpu.tiles import LANES, SUBLANES, rows_at_once, up
from convjax._core.spec import ConvSpec


def correlate(spec: ConvSpec, lhs: Array, rhs: Array, packs: int, dtype: Any, interpret: Any) -> Array:
    """Of `lhs (C, *space, N)` and `rhs (*out, N, O)`, of all packs: `(packs, features, *k, outputs)` in a dtype."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    p = gemm_tiles.of_gradient(spec, lhs, rhs, packs)
    t = gemm_tiles.choose(p, gradient=True)
    tiles_a_pack = p.outputs // t.outputs
    rows, columns, features, _ = p.folded
    is_whole = p.out[0] % t.rows == 0 == p.out[1] % t.columns  # then the cotangent is read where it lies
    at_once = max(1, 2 * LANES // features)  # taps whose products fill the widest matrix unit, 256 x 256
    together = largest_divisor(t.rows, rows_at_once(t.rows, up(p.out[1], SUBLANES) // SUBLANES))
    steps = p.batch, -(-p.out[0] // t.rows)
    pack, tile = (lambda o: jax.lax.div(o, tiles_a_pack)), (lambda o: jax.lax.rem(o, tiles_a_pack))

    def kernel(x_ref: Any, y_ref: Any, o_ref: Any, sums: Any, scratch: Any, *cotangent: Any) -> None:
        n, h = pl.program_id(1), pl.program_id(2)

        @pl.when((n == 0) & (h == 0))
        def _() -> None:
            sums[...] = jnp.zeros(sums.shape, jnp.float32)

        stage_input(p, t, x_ref, scratch, h)
        for copy in cotangent:
            border(copy, 0, p.out[1], t.outputs)
            stage(readable(p, y_ref), copy, 0, 0, p.out[0] - h * t.rows, 0, t.outputs, together)

        def product(row: Any, column: Any, _: int) -> None:
            here = pl.ds(row, t.group), column, t.columns

            def add(at: Any) -> None:
                lanes = pl.ds(at, t.lanes)
                if is_whole:
                    seen = y_ref[place(p, *here, lanes)].astype(jnp.float32)
                else:
                    seen = cotangent[0][here[0], pl.ds(column, t.columns), lanes]
                # Transposed once for all taps.
                seen = seen.reshape(t.group * t.columns, t.lanes).astype(lhs.dtype).T
                for first_tap in range(0, rows * columns, at_once):
                    some = taps(p)[first_tap : first_tap + at_once]
                    inputs = [met(p, t, x_ref, scratch, row, column, tap, lhs.dtype) for tap in some]
                    products = jnp.dot(
                        seen,
                        joined(inputs, 1),
                        precision=precision(spec, lhs.dtype),
                        preferred_element_type=jnp.float32,
                    )
                    first = 0
                    for tap in some:
                        last = first + depth(p, tap)
                        sums[*tap, lanes, : last - first] += products[:, first:last]
                        first = last

            each(t.outputs // t.lanes, t.lanes, add)

        each_product(p, t, product)

        @pl.when((n == steps[0] - 1) & (h == steps[1] - 1))
        def _() -> None:
            for tap in taps(p):
                o_ref[0, *tap] = sums[tap].T.astype(dtype)

    copy = (t.rows, up(p.out[1], t.columns), t.outputs)
    scratch = [(rows, columns, t.outputs, features), t.scratch, *([] if is_whole else [copy])]
    out = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((packs, rows, columns, features, p.outputs), dtype),
        grid=(packs * tiles_a_pack, *steps),
        in_specs=[input_block(p, t, pack), output_block(p, t)],
        out_specs=pl.BlockSpec((1, rows, columns, features, t.outputs), lambda o, n, h: (pack(o), 0, 0, 0, tile(o))),
        scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
        compiler_params=compiler_params(t.vmem, ("parallel", "arbitrary", "arbitrary")),
        interpret=interpret_mode(interpret),
        name="convjax_implicit_gemm_grad",
    )(laid(p, jnp.swapaxes(lhs, 0, -1), p.space), laid(p, jnp.moveaxis(rhs, -2, 0), p.out))
    space = spec.out_space(lhs.shape, rhs.shape)
    return jnp.moveaxis(unfold(p, out).reshape(packs, *space, p.features, p.outputs), -2, 1)
