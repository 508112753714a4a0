"""Every convolution in JAX: one functional toolkit, at the speed the hardware allows."""

from convjax import analysis, filters, lax, signal
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
from convjax.unshared import local_conv

__version__ = "0.1.0"

__all__ = [
    "ACTIVATIONS",
    "accelerate",
    "algorithms",
    "analysis",
    "causal_conv",
    "conv",
    "conv_transpose",
    "deform_conv",
    "deform_conv_v3",
    "deform_conv_v4",
    "depthwise_conv",
    "explain",
    "filters",
    "lax",
    "local_conv",
    "pointwise_conv",
    "save_convolutions",
    "separable_conv",
    "signal",
    "tune",
]
