"""Layers for `flax.linen`: those of Flax itself, served by convjax, and the ones that it lacks.

The names are those of `convjax.nnx`, and so are the parameters' names and shapes.
"""

from convjax.linen.blocks import ChannelShuffle, ConvNormAct, MixConv, SqueezeExcite
from convjax.linen.causal import CausalConv
from convjax.linen.conv import Conv, ConvTranspose
from convjax.linen.deformable import DeformConv
from convjax.linen.deformable_window import DeformConvV3, DeformConvV4
from convjax.linen.depthwise import DepthwiseConv, PointwiseConv, SeparableConv
from convjax.linen.involution import Involution
from convjax.linen.local import LocalConv
from convjax.linen.long import LongConv
from convjax.linen.masked import MaskedConv, PartialConv
from convjax.linen.reparametrized import DynamicConv, WSConv
from convjax.linen.resample import BlurPool, ResizeConv

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
