"""Layers for `flax.nnx`: those of Flax itself, served by convjax, and the ones that it lacks.

One import changes a model: `from convjax.nnx import Conv` in the place of `nnx.Conv`. `convjax.linen` has the same
names.
"""

from convjax.nnx.blocks import ChannelShuffle, ConvNormAct, MixConv, SqueezeExcite
from convjax.nnx.causal import CausalConv
from convjax.nnx.conv import Conv
from convjax.nnx.conv_transpose import ConvTranspose
from convjax.nnx.deformable import DeformConv
from convjax.nnx.deformable_window import DeformConvV3, DeformConvV4
from convjax.nnx.depthwise import DepthwiseConv, PointwiseConv, SeparableConv
from convjax.nnx.involution import Involution
from convjax.nnx.local import LocalConv
from convjax.nnx.long import LongConv
from convjax.nnx.masked import MaskedConv, PartialConv
from convjax.nnx.reparametrized import DynamicConv, WSConv
from convjax.nnx.resample import BlurPool, ResizeConv

__all__ = [
    "BlurPool",
    "CausalConv",
    "ChannelShuffle",
    "Conv",
    "ConvNormAct",
    "ConvTranspose",
    "DeformConv",
    "DeformConvV3",
    "DeformConvV4",
    "DepthwiseConv",
    "DynamicConv",
    "Involution",
    "LocalConv",
    "LongConv",
    "MaskedConv",
    "MixConv",
    "PartialConv",
    "PointwiseConv",
    "ResizeConv",
    "SeparableConv",
    "SqueezeExcite",
    "WSConv",
]
