"""Kernel gradient of a dense convolution on Hopper: pixels summed over by wgmma.

For each tap, 64 input channels and 64 output channels the gradient is the product of the window of the image,
transposed, with the cotangent. A block takes one tap, one or two panels of each kind of channels, and a share of the
pixels; its sums stay in registers. The shares' sums are added in a second pass, in a fixed order: no atomics, the same
result each time.

Error: that of direct summation in float32.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from convjax._core.kernels.mosaic_gpu import gemm_tiles, hopper, windows
from convjax._core.kernels.mosaic_gpu.panels import WIDTH, box, matrix, pallas, panels
from convjax._core.kernels.mosaic_gpu.tiles import MULTIPROCESSORS
from convjax._core.kernels.mosaic_gpu.windows import Windows
from convjax._core.spec import ConvSpec, Shape

PIXELS = 64  # of a step: four wgmma deep
STAGES = 4
BLOCKS = 2 * MULTIPROCESSORS  # so many shares that every multiprocessor has work, and no more: each writes its sums


def refusal(spec: ConvSpec, lhs: Shape, rhs: Shape) -> str | None:
    """What boxes of a kernel gradient cannot be; `lhs` is `(C, H, W, N)` and `rhs` `(*out, N, O)`."""
    if (reason := windows.refusal(forward(spec), lhs[1:-1], lhs[0])) is not None:
        return reason
    if rhs[-1] % 8:
        return f"TMA moves rows of 16 bytes: {rhs[-1]} output channels of 2 bytes are no multiple of 8"
    if max(abs(p) for pads in spec.padding for p in pads) >= windows.POSITIVE:
        return f"padding of {windows.POSITIVE} and more"
    return None


def forward(spec: ConvSpec) -> ConvSpec:
    """The convolution whose gradient this is, as far as its windows go."""
    return spec.replace(strides=spec.rhs_dilation, rhs_dilation=spec.strides, feature_groups=1, batch_groups=1)


def run(spec: ConvSpec, lhs: Array, rhs: Array, interpret: bool) -> Array:
    """`(C, *taps, O)` from `(C, *space, N)` and `(*out, N, O)`, as the gradient of `conv_p` hands them over."""
    out = spec.out_shape(lhs.shape, rhs.shape)
    x, cotangent = jnp.swapaxes(lhs, 0, -1), jnp.moveaxis(rhs, -2, 0)
    sums = gradient(spec, x, cotangent, out[1:-1], diagonal=False, interpret=interpret)
    sums = sums[:, : out[0], : out[-1]].astype(lhs.dtype)
    return jnp.moveaxis(sums, 1, 0).reshape(out)


def gradient(spec: ConvSpec, x: Array, cotangent: Array, taps: Shape, *, diagonal: bool, interpret: bool) -> Array:
    """`(taps, rows, columns)` in float32: input by output channels, or, `diagonal`, by those of the same panel."""
    if spec.ndim == 1:
        spec = spec.replace(
            strides=(1, *spec.strides), padding=((0, 0), *spec.padding), rhs_dilation=(1, *spec.rhs_dilation)
        )
        x, cotangent, taps = x[:, None], cotangent[:, None], (1, *taps)
    spec = forward(spec)
    is_shifted = any(low != 0 for low, _ in spec.padding)
    if taps == (1, 1) and spec.strides == (1, 1) and x.shape[:-1] == cotangent.shape[:-1] and not is_shifted:
        x, cotangent = (a.reshape(1, 1, -1, a.shape[-1]) for a in (x, cotangent))
        spec = spec.replace(padding=((0, 0), (0, 0)))
    return Gradient.of(spec, x.shape, cotangent.shape, taps, diagonal)(x, cotangent, interpret)


@dataclasses.dataclass(frozen=True)
class Gradient:
    """The first pass, of `(N, H, W, C)` and `(N, *out, O)`.

    Attributes:
      rows: panels of input channels in a block, at most 2.
      columns: panels of output channels in a block, at most 2.
      diagonal: a panel of input channels meets the panel of output channels of the same number only.
      shares: of the pixels.
    """

    windows: Windows
    cotangent: Shape
    rows: int
    columns: int
    diagonal: bool
    shares: int

    @classmethod
    def of(cls, spec: ConvSpec, image: Shape, cotangent: Shape, taps: Shape, diagonal: bool) -> Gradient:
        rows, columns = (min(2, -(-shape[-1] // WIDTH)) for shape in (image, cotangent))
        whole = cls(Windows(spec, taps, image), cotangent, rows, columns, diagonal, 1)
        return dataclasses.replace(whole, shares=max(1, min(whole.tiles, -(-BLOCKS // math.prod(whole.grid)))))

    @property
    def box(self) -> Shape:
        """Images, rows and columns of the pixels of a step."""
        return gemm_tiles.box(self.cotangent[:3], PIXELS, self.windows.fewest_rows)

    @property
    def counts(self) -> Shape:
        return tuple(-(-size // side) for size, side in zip(self.cotangent[:3], self.box, strict=True))

    @property
    def tiles(self) -> int:
        return math.prod(self.counts)

    @property
    def blocks(self) -> tuple[int, int]:
        """Of input channels and of output channels; on the diagonal the latter are the former's."""
        across = -(-self.cotangent[-1] // (WIDTH * self.columns))
        return -(-self.windows.image[-1] // (WIDTH * self.rows)), 1 if self.diagonal else across

    @property
    def grid(self) -> Shape:
        """Shares, taps, blocks of input channels, blocks of output channels."""
        return self.shares, math.prod(self.windows.kernel), *self.blocks

    @property
    def sums(self) -> Shape:
        shares, taps, down, across = self.grid
        columns = 1 if self.diagonal else across * self.columns
        return shares, taps, down * self.rows * WIDTH, columns * WIDTH

    @property
    def warpgroups(self) -> int:
        return max(self.rows, self.columns)

    @property
    def each(self) -> int:
        """Panels of output channels that one warpgroup multiplies a panel of input channels with."""
        return self.columns if self.rows == 2 and not self.diagonal else 1

    def __call__(self, x: Array, cotangent: Array, interpret: bool) -> Array:
        _, plgpu = pallas()
        panel_count = self.rows + self.columns
        shares = plgpu.kernel(
            Body(self, interpret),
            out_type=jax.ShapeDtypeStruct(self.sums, jnp.float32),
            scratch_types=[
                panels(STAGES * self.rows, PIXELS, x.dtype, interpret),
                panels(STAGES * self.columns, PIXELS, x.dtype, interpret),
                plgpu.Barrier(num_arrivals=panel_count, num_barriers=STAGES),
                plgpu.Barrier(num_arrivals=self.warpgroups, num_barriers=STAGES),
            ],
            grid=(math.prod(self.grid),),
            grid_names=("block",),
            num_threads=self.warpgroups + 1,
            thread_name="warpgroup",
            interpret=hopper.interpreter() if interpret else None,
            compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Lane),
        )(self.windows.view(x), cotangent)
        return shares.sum(0)


@dataclasses.dataclass(frozen=True)
class Body:
    """What one block does."""

    problem: Gradient
    interpret: bool

    def __call__(self, x: Any, cotangent: Any, sums: Any, images: Any, cotangents: Any, full: Any, empty: Any) -> None:
        pl, plgpu = pallas()
        problem = self.problem
        _, taps, down, across = problem.grid
        block, warpgroup = lax.axis_index("block"), lax.axis_index("warpgroup")
        # Blocks that read the same pixels are neighbours.
        column, row = lax.rem(block, across), lax.rem(lax.div(block, across), down)
        tap, share = lax.rem(lax.div(block, across * down), taps), lax.div(block, across * down * taps)
        row, column = row * problem.rows, (row if problem.diagonal else column) * problem.columns
        steps = -(-problem.tiles // problem.shares)  # beyond the last tile there are zeros: see _fill

        @pl.when(warpgroup == problem.warpgroups)
        def produce() -> None:
            def step(t: Any, _: None) -> None:
                stage = lax.rem(t, STAGES)

                @pl.when(t >= STAGES - 1)
                def wait() -> None:
                    plgpu.barrier_wait(empty.at[stage])

                self._fill(x, cotangent, images, cotangents, full.at[stage], stage, share * steps + t, tap, row, column)

            lax.fori_loop(0, steps, step, None)

        @pl.when(warpgroup != problem.warpgroups)
        def consume() -> None:
            mine = warpgroup if problem.rows == 2 else 0
            first = warpgroup if problem.rows == 1 or problem.diagonal else 0
            totals = self._multiply(images, cotangents, full, empty, steps, mine, first)
            for p, total in enumerate(totals):
                at = 0 if problem.diagonal else column + first + p
                sums.at[share, tap, pl.ds((row + mine) * WIDTH, WIDTH), pl.ds(at * WIDTH, WIDTH)][...] = total

    def _fill(
        self,
        x: Any,
        cotangent: Any,
        images: Any,
        cotangents: Any,
        barrier: Any,
        stage: Any,
        tile: Any,
        tap: Any,
        row: Any,
        column: Any,
    ) -> None:
        pl, plgpu = pallas()
        problem, shape = self.problem, self.problem.box
        many, down, _ = problem.counts
        # Columns come last: beyond the last tile a box is outside of them, and zeros. See `Windows.fewest_rows`.
        image, height, width = lax.rem(tile, many), lax.rem(lax.div(tile, many), down), lax.div(tile, many * down)
        origin = image * shape[0], height * shape[1], width * shape[2]
        for p in range(problem.rows):
            window = problem.windows.at(x, tap, origin, shape, row + p)
            plgpu.copy_gmem_to_smem(window, box(images, stage * problem.rows + p, 0, shape, self.interpret), barrier)
        for p in range(problem.columns):
            pixels = cotangent.at[(*map(pl.ds, origin, shape), pl.ds((column + p) * WIDTH, WIDTH))]
            panel = box(cotangents, stage * problem.columns + p, 0, shape, self.interpret)
            plgpu.copy_gmem_to_smem(pixels, panel, barrier)

    def _multiply(
        self, images: Any, cotangents: Any, full: Any, empty: Any, steps: int, mine: Any, first: Any
    ) -> list[Array]:
        pl, plgpu = pallas()
        problem = self.problem

        def scope(*sums: Any) -> list[Array]:
            def step(t: Any, _: None) -> None:
                stage = lax.rem(t, STAGES)
                plgpu.barrier_wait(full.at[stage])
                image = matrix(images, stage * problem.rows + mine, 0, PIXELS, self.interpret).transpose((1, 0))
                for p, total in enumerate(sums):
                    panel = matrix(cotangents, stage * problem.columns + first + p, 0, PIXELS, self.interpret)
                    plgpu.wgmma(total, image, panel)
                plgpu.wgmma_wait(len(sums))  # the buffer before this one is free: see product
                plgpu.barrier_arrive(empty.at[lax.rem(t + STAGES - 1, STAGES)])

            lax.fori_loop(0, steps, step, None)
            return [total[...] for total in sums]

        return pl.run_scoped(scope, *[plgpu.ACC((WIDTH, WIDTH), jnp.float32)] * problem.each)
