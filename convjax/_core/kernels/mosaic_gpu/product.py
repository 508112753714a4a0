"""Forward pass of an implicit matrix product: pixels by channels, summed over taps and input channels.

For every tap and every 64 channels, TMA brings the window of the image that a tile of outputs meets, and 64 rows of the
kernel; wgmma multiplies them and adds to the sums in registers. One warpgroup keeps TMA busy, some buffers ahead; two
multiply, each its half of the pixels, then add bias and residual, activate, round, and store by TMA, which drops what
hangs over the output's border.

Source: NVIDIA, PTX ISA, wgmma and cp.async.bulk.tensor.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from convjax._core.kernels.mosaic_gpu import gemm_tiles, hopper
from convjax._core.kernels.mosaic_gpu.panels import WIDTH, box, matrix, pallas, panels
from convjax._core.kernels.mosaic_gpu.registers import ACTIVATIONS
from convjax._core.kernels.mosaic_gpu.windows import Windows
from convjax._core.spec import ConvSpec, Shape

PRODUCER = gemm_tiles.WARPGROUPS
# Registers a thread, from so many sums on: what the producer gives up, the others take, 3 * 128 threads sharing 65536.
# With fewer sums all of them have enough, and more than one block may be on a multiprocessor.
MANY_SUMS, PRODUCER_REGISTERS, CONSUMER_REGISTERS = 128, 40, 232


@dataclasses.dataclass(frozen=True)
class Product:
    """A forward pass over an image `(N, H, W, C)` with a kernel `(taps, features, O)`.

    Attributes:
      features: panels of 64 input channels that each panel of outputs sums over.
      sharing: consecutive panels of outputs that sum over the same ones; 0 if all do.
    """

    spec: ConvSpec
    lhs: Shape
    rhs: Shape
    features: int
    sharing: int = 0

    @property
    def out(self) -> Shape:
        return self.spec.out_shape(self.lhs, self.rhs)

    @property
    def tile(self) -> gemm_tiles.Tile:
        widest = 1 if self.sharing else gemm_tiles.MOST_OUTPUTS
        return gemm_tiles.choose(self.out[:3], self.out[-1], widest, self.windows.fewest_rows)

    @property
    def windows(self) -> Windows:
        return Windows(self.spec, self.rhs[:2], self.lhs)

    @property
    def across(self) -> int:
        """Blocks for the output channels of one tile of pixels."""
        return -(-self.out[-1] // (WIDTH * self.tile.outputs))

    @property
    def blocks(self) -> int:
        return math.prod(self.tile.counts(self.out[:3])) * self.across

    def __call__(
        self,
        x: Array,
        kernel: Array,
        bias: Array | None,
        residual: Array | None,
        activation: str | None,
        interpret: bool,
    ) -> Array:
        _, plgpu = pallas()
        out, tile = self.out, self.tile
        channels = self.across * tile.outputs * WIDTH
        addends = [] if bias is None else [jnp.pad(bias.astype(jnp.float32), (0, channels - out[-1]))]
        addends += [] if residual is None else [residual]
        body = Body(self, tile, bias is not None, residual is not None, activation, interpret)
        many = gemm_tiles.WARPGROUPS
        return plgpu.kernel(
            body,
            out_type=jax.ShapeDtypeStruct(out, x.dtype),
            scratch_types=[
                panels(tile.stages, tile.pixels, x.dtype, interpret),
                panels(tile.stages * tile.outputs, WIDTH, x.dtype, interpret),
                panels(tile.outputs, tile.pixels, x.dtype, interpret),
                plgpu.Barrier(num_arrivals=1 + tile.outputs, num_barriers=tile.stages),
                plgpu.Barrier(num_arrivals=many, num_barriers=tile.stages),
                plgpu.Barrier(num_arrivals=tile.outputs, num_barriers=many),
            ],
            grid=(self.blocks,),
            grid_names=("block",),
            num_threads=many + 1,
            thread_name="warpgroup",
            interpret=hopper.interpreter() if interpret else None,
            compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Lane),
        )(self.windows.view(x), kernel, *addends)


@dataclasses.dataclass(frozen=True)
class Body:
    """What one block does."""

    product: Product
    tile: gemm_tiles.Tile
    has_bias: bool
    has_residual: bool
    activation: str | None
    interpret: bool

    def __call__(self, x: Any, kernel: Any, *refs: Any) -> None:
        pl, plgpu = pallas()
        *addends, out, image_panels, kernel_panels, out_panels, full, empty, loaded = refs
        bias = addends[0] if self.has_bias else None
        residual = addends[-1] if self.has_residual else None
        block, warpgroup = lax.axis_index("block"), lax.axis_index("warpgroup")
        across = self.product.across  # neighbours read the same pixels
        first, origin = lax.rem(block, across) * self.tile.outputs, self._origin(lax.div(block, across))

        @pl.when(warpgroup == PRODUCER)
        def produce() -> None:
            if self.tile.sums >= MANY_SUMS:
                plgpu.set_max_registers(PRODUCER_REGISTERS, action="decrease")
            self._fill(x, kernel, image_panels, kernel_panels, full, empty, origin, first)

        @pl.when(warpgroup != PRODUCER)
        def consume() -> None:
            if self.tile.sums >= MANY_SUMS:
                plgpu.set_max_registers(CONSUMER_REGISTERS, action="increase")
            part = self.tile.part
            corner = [o + warpgroup * part[i] if i == self.tile.halved else o for i, o in enumerate(origin)]
            rows = warpgroup * math.prod(part)
            at = lambda ref, p: ref.at[(*map(pl.ds, corner, part), pl.ds((first + p) * WIDTH, WIDTH))]
            mine = [box(out_panels, p, rows, part, self.interpret) for p in range(self.tile.outputs)]
            if residual is not None:
                for p, panel in enumerate(mine):
                    plgpu.copy_gmem_to_smem(at(residual, p), panel, loaded.at[warpgroup])
            sums = self._multiply(image_panels, kernel_panels, full, empty, rows)
            if residual is not None:
                plgpu.barrier_wait(loaded.at[warpgroup])
            for p, total in enumerate(sums):
                self._store(total, first + p, matrix(out_panels, p, rows, math.prod(part), self.interpret), bias)
            plgpu.commit_smem()
            for p, panel in enumerate(mine):
                plgpu.copy_smem_to_gmem(panel, at(out, p))
            plgpu.wait_smem_to_gmem(0)

    @property
    def steps(self) -> int:
        return math.prod(self.product.rhs[:2]) * self.product.features

    def _origin(self, index: Any) -> tuple[Any, Any, Any]:
        """Image, row and column of a tile's first pixel."""
        _, rows, columns = self.tile.counts(self.product.out[:3])
        position = lax.div(index, rows * columns), lax.rem(lax.div(index, columns), rows), lax.rem(index, columns)
        image, row, column = (p * side for p, side in zip(position, self.tile.shape, strict=True))
        return image, row, column

    def _fill(
        self,
        x: Any,
        kernel: Any,
        image_panels: Any,
        kernel_panels: Any,
        full: Any,
        empty: Any,
        origin: Any,
        first: Any,
    ) -> None:
        pl, plgpu = pallas()
        stages, outputs, features = self.tile.stages, self.tile.outputs, self.product.features
        base = lax.div(first, self.product.sharing) * features if self.product.sharing else 0

        def step(t: Any, _: None) -> None:
            stage = lax.rem(t, stages)

            @pl.when(t >= stages - 1)
            def wait() -> None:
                plgpu.barrier_wait(empty.at[stage])

            tap, channel = lax.div(t, features), lax.rem(t, features)
            window = self.product.windows.at(x, tap, origin, self.tile.shape, base + channel)
            panel = box(image_panels, stage, 0, self.tile.shape, self.interpret)
            plgpu.copy_gmem_to_smem(window, panel, full.at[stage])
            for p in range(outputs):
                rows = kernel.at[tap, pl.ds(channel * WIDTH, WIDTH), pl.ds((first + p) * WIDTH, WIDTH)]
                panel = box(kernel_panels, stage * outputs + p, 0, (WIDTH,), self.interpret)
                plgpu.copy_gmem_to_smem(rows, panel, full.at[stage])

        lax.fori_loop(0, self.steps, step, None)

    def _multiply(self, image_panels: Any, kernel_panels: Any, full: Any, empty: Any, rows: Any) -> list[Array]:
        pl, plgpu = pallas()
        stages, outputs, pixels = self.tile.stages, self.tile.outputs, math.prod(self.tile.part)

        def scope(*sums: Any) -> list[Array]:
            def step(t: Any, _: None) -> None:
                stage = lax.rem(t, stages)
                plgpu.barrier_wait(full.at[stage])
                image = matrix(image_panels, stage, rows, pixels, self.interpret)
                for p in range(outputs):
                    panel = matrix(kernel_panels, stage * outputs + p, 0, WIDTH, self.interpret)
                    plgpu.wgmma(sums[p], image, panel)
                # All but this step's products are done, so that the buffer before this one is free. In the first step
                # that is the last buffer, which nothing was in: the producer waits once for every buffer but that.
                plgpu.wgmma_wait(outputs)
                plgpu.barrier_arrive(empty.at[lax.rem(t + stages - 1, stages)])

            lax.fori_loop(0, self.steps, step, None)
            return [total[...] for total in sums]

        return pl.run_scoped(scope, *[plgpu.ACC((pixels, WIDTH), jnp.float32)] * outputs)

    def _store(self, total: Array, panel: Any, to: Any, bias: Any) -> None:
        """Finish the sums and leave them in shared memory, where the residual is."""
        pl, plgpu = pallas()
        layout = plgpu.Layout.WGMMA
        if bias is not None:
            row = plgpu.load(bias.at[pl.ds(panel * WIDTH, WIDTH)], layout=layout.reduce(0), optimized=False)
            total = total + lax.broadcast_in_dim(row, total.shape, (1,))
        if self.has_residual:
            total = total + plgpu.load(to, layout=layout).astype(jnp.float32)
        if self.activation is not None:
            total = ACTIVATIONS[self.activation](total)
        to[...] = total.astype(to.dtype)
