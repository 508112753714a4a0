"""Every convolution in JAX: one functional toolkit, at the speed the hardware allows."""

from convjax import analysis, filters, lax, signal, streaming, viz
from convjax._core.accelerate import accelerate
from convjax._core.algorithms import names as algorithms
from convjax._core.epilogue import ACTIVATIONS
from convjax._core.explain import explain
from convjax._core.primitive import save_convolutions
from convjax._core.tune import tune
from convjax.deformable import deform_conv, deform_conv_v3, deform_conv_v4
from convjax.functional import (
    causal_conv,
    conv,
    conv_transpose,
    depthwise_conv,
    pointwise_conv,
    separable_conv,
)
from convjax.masked import masked_conv
from convjax.partial import partial_conv
from convjax.patches import fold, unfold
from convjax.per_example import dynamic_conv
from convjax.per_position import involution
from convjax.shuffle import channel_shuffle
from convjax.streaming import causal_conv_update, stream_conv
from convjax.tiled import tiled_apply
from convjax.unshared import local_conv

__version__ = "0.1.0"

__all__ = [
    "ACTIVATIONS",
    "accelerate",
    "algorithms",
    "analysis",
    "causal_conv",
    "causal_conv_update",
    "channel_shuffle",
    "conv",
    "conv_transpose",
    "deform_conv",
    "deform_conv_v3",
    "deform_conv_v4",
    "depthwise_conv",
    "dynamic_conv",
    "explain",
    "filters",
    "fold",
    "involution",
    "lax",
    "local_conv",
    "masked_conv",
    "partial_conv",
    "pointwise_conv",
    "save_convolutions",
    "separable_conv",
    "signal",
    "stream_conv",
    "streaming",
    "tiled_apply",
    "tune",
    "unfold",
    "viz",
]
