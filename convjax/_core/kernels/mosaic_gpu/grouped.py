"""Narrow groups on Hopper: packs of groups with 64 channels on the narrower side, as dense products.

A pack's kernel is block diagonal: every input channel of the pack meets every output channel, with zeros where they
belong to different groups. So a panel of 64 outputs sums over the few panels of inputs of its own pack, in the loop of
`product`; the kernel gradient computes whole packs, and the blocks on their diagonals are kept.

Cost: as many times the products as there are groups in a panel.
Error: that of direct summation in float32; a NaN or infinity spreads to its pack by 0 * inf.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import Array

from convjax._core.geometry import Geometry, Work
from convjax._core.kernels.mosaic_gpu import implicit_gemm, implicit_gemm_grad
from convjax._core.kernels.mosaic_gpu.panels import WIDTH
from convjax._core.kernels.mosaic_gpu.product import Product
from convjax._core.kernels.mosaic_gpu.registers import FUSES as FUSES
from convjax._core.spec import ConvSpec, Shape

FEWEST_CHANNELS = 4


@dataclasses.dataclass(frozen=True)
class Pack:
    """Groups that are multiplied as one.

    Attributes:
      features: input channels of a group.
      outputs: output channels of a group.
    """

    features: int
    outputs: int

    @property
    def groups(self) -> int:
        return WIDTH // min(self.features, self.outputs)

    @property
    def rows(self) -> int:
        """Panels of input channels."""
        return self.groups * self.features // WIDTH

    @property
    def columns(self) -> int:
        """Panels of output channels."""
        return self.groups * self.outputs // WIDTH

    def own(self, outputs: int) -> Array:
        """`(groups, outputs)`: which output channel belongs to which group of its pack."""
        return jnp.arange(self.groups)[:, None] == jnp.arange(outputs) // self.outputs % self.groups

    def diagonal(self, kernel: Array) -> Array:
        """`(taps, features, O)` as the kernels of whole packs, `(taps, groups * features, O)`."""
        taps, features, outputs = kernel.shape
        blocks = jnp.where(self.own(outputs)[:, None], kernel[:, None], 0)
        return blocks.reshape(taps, self.groups * features, outputs)

    def on_diagonal(self, sums: Array) -> Array:
        """The inverse, of the gradient."""
        taps, _, outputs = sums.shape
        blocks = sums.reshape(taps, self.groups, self.features, outputs)
        return jnp.where(self.own(outputs)[:, None], blocks, 0).sum(1)


def supports(spec: ConvSpec, lhs: Any, rhs: Any, platform: str) -> str | None:
    """None where this kernel can serve, else the reason why not, in words for a user."""
    if (reason := implicit_gemm.refusal(spec, lhs, rhs, platform)) is not None:
        return reason
    if spec.groups == 1:
        return "one group: there is nothing to pack"
    is_gradient = spec.batch_groups > 1
    pack = pack_of(spec, lhs.shape, rhs.shape)
    for kind, channels in (("input", pack.features), ("output", pack.outputs)):
        if not FEWEST_CHANNELS <= channels <= WIDTH or WIDTH % channels:
            return f"{channels} {kind} channels a group: packs of 64 hold 4, 8, 16, 32 or 64"
    if is_gradient:
        if pack.rows > 1 or pack.columns > 1:
            return f"{pack.features} channels to {pack.outputs} in a group: the kernel gradient packs equal numbers"
        return implicit_gemm_grad.refusal(*implicit_gemm.as_images(spec, lhs.shape, rhs.shape))
    return implicit_gemm.forward_refusal(*implicit_gemm.as_images(spec, lhs.shape, rhs.shape))


def work(g: Geometry) -> Work:
    pack = pack_of(g.spec, g.lhs, g.rhs)
    return Work("gpu_grouped", g.macs * pack.groups, 2 * g.elements[1] * pack.groups, 1)


def run(
    spec: ConvSpec,
    lhs: Array,
    rhs: Array,
    *,
    bias: Array | None = None,
    residual: Array | None = None,
    activation: str | None = None,
    interpret: bool = False,
) -> Array:
    out, pack = spec.out_shape(lhs.shape, rhs.shape), pack_of(spec, lhs.shape, rhs.shape)
    if spec.batch_groups > 1:
        return implicit_gemm.finish(_gradient(spec, lhs, rhs, pack, out, interpret), bias, residual, activation)
    spec, lhs_shape, rhs_shape = implicit_gemm.as_images(spec, lhs.shape, rhs.shape)
    product = Product(spec, lhs_shape, rhs_shape, pack.rows, pack.columns)
    addend = None if residual is None else residual.reshape(spec.out_shape(lhs_shape, rhs_shape))
    kernel = pack.diagonal(rhs.reshape(-1, *rhs.shape[-2:]))
    return product(lhs.reshape(lhs_shape), kernel, bias, addend, activation, interpret).reshape(out)


def _gradient(spec: ConvSpec, lhs: Array, rhs: Array, pack: Pack, out: Shape, interpret: bool) -> Array:
    x, cotangent = jnp.swapaxes(lhs, 0, -1), jnp.moveaxis(rhs, -2, 0)
    sums = implicit_gemm_grad.gradient(spec, x, cotangent, out[1:-1], diagonal=True, interpret=interpret)
    taps, panels = sums.shape[0], sums.shape[1] // WIDTH
    sums = sums.reshape(taps, panels, WIDTH, WIDTH).transpose(0, 2, 1, 3).reshape(taps, WIDTH, panels * WIDTH)
    kept = pack.on_diagonal(sums[..., : out[-1]]).astype(lhs.dtype)
    return jnp.moveaxis(kept, 1, 0).reshape(out)


def pack_of(spec: ConvSpec, lhs: Shape, rhs: Shape) -> Pack:
    """How the groups are packed; those of a kernel gradient are in the batch of `lhs`, which holds input channels."""
    features = lhs[0] // spec.batch_groups if spec.batch_groups > 1 else rhs[-2]
    return Pack(max(1, features), max(1, rhs[-1] // spec.groups))
