"""Every convolution in JAX: one functional toolkit, at the speed the hardware allows."""

from convjax._core.epilogue import ACTIVATIONS
from convjax._core.primitive import save_convolutions
from convjax.functional import (
    causal_conv,
    conv,
    conv_transpose,
    depthwise_conv,
    pointwise_conv,
    separable_conv,
)

__version__ = "0.1.0"

__all__ = [
    "ACTIVATIONS",
    "causal_conv",
    "conv",
    "conv_transpose",
    "depthwise_conv",
    "pointwise_conv",
    "save_convolutions",
    "separable_conv",
]
