"""`DeformConvV3` and `DeformConvV4`: the blocks around the deformable convolutions of InternImage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes
from flax.typing import Dtype, Initializer, PrecisionLike, PromoteDtypeFn
from jax import Array

from convjax._layers import conv, deformable
from convjax.deformable import deform_conv_v3, deform_conv_v4
from convjax.nnx.conv import DEFAULT_BIAS_INIT, NO_METADATA
from convjax.nnx.depthwise import DepthwiseConv

PROJECTION_INIT = nnx.initializers.xavier_uniform()  # as the papers' code begins
PREDICTOR_INIT = nnx.initializers.zeros_init()


class DeformWindow(nnx.Module):
    """What versions 3 and 4 have in common; the arguments are explained there."""

    sample: Callable[..., Array]

    def __init__(
        self,
        in_features: int,
        kernel_size: int | Sequence[int] = (3, 3),
        strides: int | Sequence[int] | None = 1,
        *,
        groups: int = 4,
        kernel_dilation: int | Sequence[int] | None = 1,
        depthwise_kernel_size: int | Sequence[int] | None = None,
        offset_scale: float = 1.0,
        remove_center: bool = False,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        precision: PrecisionLike = None,
        kernel_init: Initializer = PROJECTION_INIT,
        bias_init: Initializer = DEFAULT_BIAS_INIT,
        predictor_init: Initializer = PREDICTOR_INIT,
        promote_dtype: PromoteDtypeFn = dtypes.promote_dtype,
        rngs: nnx.Rngs,
        kernel_metadata: Mapping[str, Any] = NO_METADATA,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
    ):
        where = type(self).__name__
        self.in_features = in_features
        self.kernel_size = deformable.window_size(where, kernel_size)
        self.strides, self.kernel_dilation = strides, kernel_dilation
        self.groups, self.offset_scale, self.remove_center = groups, offset_scale, remove_center
        taps = deformable.window_taps(where, self.kernel_size, in_features, groups, remove_center)
        common: dict[str, Any] = dict(
            dtype=dtype, param_dtype=param_dtype, precision=precision, promote_dtype=promote_dtype, rngs=rngs
        )
        projection: dict[str, Any] = common | dict(
            kernel_init=kernel_init, bias_init=bias_init, kernel_metadata=kernel_metadata, bias_metadata=bias_metadata
        )
        self.depthwise = DepthwiseConv(
            in_features,
            deformable.window_size(where, depthwise_kernel_size or kernel_size),
            strides,
            **common,
        )
        self.offset = nnx.Linear(in_features, 2 * taps, kernel_init=predictor_init, **common)
        self.mask = nnx.Linear(in_features, taps, kernel_init=predictor_init, **common)
        self.input_proj = nnx.Linear(in_features, in_features, **projection)
        self.output_proj = nnx.Linear(in_features, in_features, **projection)

    def seen(self, inputs: Array) -> Array:
        """What offsets and mask are predicted from, at each output."""
        return self.depthwise(inputs)

    def __call__(self, inputs: Array) -> Array:
        """Convolve `inputs (*batch, H, W, in_features)`, with any number of batch axes."""
        where, seen = type(self).__name__, self.seen(inputs)
        y = self.sample(
            self.input_proj(inputs),
            self.offset(seen),
            self.mask(seen),
            kernel_size=self.kernel_size,
            stride=conv.per_axis(where, "strides", self.strides, 2),
            dilation=conv.per_axis(where, "kernel_dilation", self.kernel_dilation, 2),
            groups=self.groups,
            offset_scale=self.offset_scale,
            remove_center=self.remove_center,
        )
        return self.output_proj(y)


class DeformConvV3(DeformWindow):
    """Deformable convolution version 3 (DCNv3, InternImage), for images: the mask is a softmax over the taps.

    Submodules: as `DeformConvV4`, and `norm`, a `flax.nnx.LayerNorm`, which with a GELU follows `depthwise`. It begins
    as a mean over the window between two projections.

    Args:
      epsilon: of the norm.
      others: as `DeformConvV4`.

    Raises:
      ValueError: as `DeformConvV4`.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> import convjax.nnx
      >>> convjax.nnx.DeformConvV3(8, (3, 3), 2, groups=2, rngs=nnx.Rngs(0))(jnp.ones((1, 9, 9, 8))).shape
      (1, 5, 5, 8)

    Source: Wang et al., InternImage, arXiv:2211.05778, sections 3.1 and 3.2.
    """

    sample = staticmethod(deform_conv_v3)

    def __init__(
        self,
        in_features: int,
        kernel_size: int | Sequence[int] = (3, 3),
        strides: int | Sequence[int] | None = 1,
        *,
        epsilon: float = 1e-6,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        promote_dtype: PromoteDtypeFn = dtypes.promote_dtype,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        common: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, promote_dtype=promote_dtype, rngs=rngs)
        super().__init__(in_features, kernel_size, strides, **common, **options)
        self.norm = nnx.LayerNorm(in_features, epsilon=epsilon, **common)

    def seen(self, inputs: Array) -> Array:
        return jax.nn.gelu(self.norm(self.depthwise(inputs)), approximate=False)


class DeformConvV4(DeformWindow):
    """Deformable convolution version 4 (DCNv4), for images: channels mix in two projections, samples are weighted sums.

    Submodules: `input_proj` and `output_proj`, around it; `depthwise`, a `DepthwiseConv` of the input, from which
    `offset` and `mask` are predicted. But for `depthwise` all are `flax.nnx.Linear`. The last two begin at zero, and so
    does the output, which is that of `output_proj`'s bias. The size becomes `ceil(size / stride)`.

    Args:
      in_features: number of channels, in and out.
      kernel_size: spatial shape of the window; an int is a square.
      strides, kernel_dilation: as `Conv`.
      groups: equal parts of the channels, each with offsets and a mask of its own.
      depthwise_kernel_size: of what predicts; `kernel_size` if None.
      offset_scale, remove_center: as `convjax.deform_conv_v4`.
      kernel_init, bias_init, kernel_metadata, bias_metadata: of the two projections.
      predictor_init: of the kernels of `offset` and `mask`.
      dtype, param_dtype, precision, promote_dtype: as `Conv`.

    Raises:
      ValueError: `groups` does not divide the channels; `remove_center` with an even window; as `Conv`.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> import convjax.nnx
      >>> layer = convjax.nnx.DeformConvV4(8, groups=2, rngs=nnx.Rngs(0))
      >>> layer(jnp.ones((1, 9, 9, 8))).shape, layer.offset.kernel.shape, layer.mask.kernel.shape
      ((1, 9, 9, 8), (8, 36), (8, 18))

    Source: Xiong et al., Efficient deformable ConvNets, arXiv:2401.06197, section 3.
    """

    sample = staticmethod(deform_conv_v4)
