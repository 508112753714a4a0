"""`DeformConvV3` and `DeformConvV4`: the blocks around the deformable convolutions of InternImage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from flax.linen.linear import PromoteDtypeFn
from flax.typing import Dtype, Initializer, PrecisionLike
from jax import Array

from convjax._layers import conv, deformable
from convjax.deformable import deform_conv_v3, deform_conv_v4
from convjax.linen.depthwise import DepthwiseConv
from convjax.linen.options import DEFAULT_BIAS_INIT

PROJECTION_INIT = nn.initializers.xavier_uniform()  # as the papers' code begins
PREDICTOR_INIT = nn.initializers.zeros_init()


class DeformWindow(nn.Module):
    """What versions 3 and 4 have in common; the fields are explained there."""

    sample: ClassVar[Callable[..., Array]]

    kernel_size: int | Sequence[int] = (3, 3)
    strides: int | Sequence[int] | None = 1
    groups: int = 4
    kernel_dilation: int | Sequence[int] | None = 1
    depthwise_kernel_size: int | Sequence[int] | None = None
    offset_scale: float = 1.0
    remove_center: bool = False
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    precision: PrecisionLike = None
    kernel_init: Initializer = PROJECTION_INIT
    bias_init: Initializer = DEFAULT_BIAS_INIT
    predictor_init: Initializer = PREDICTOR_INIT
    promote_dtype: PromoteDtypeFn = promote_dtype

    def after_depthwise(self, y: Array) -> Array:
        """What stands between `depthwise` and the predictions."""
        return y

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Convolve `inputs (*batch, H, W, C)`, with any number of batch axes."""
        where = type(self).__name__
        size = deformable.window_size(where, self.kernel_size)
        channels = jnp.shape(inputs)[-1] if jnp.ndim(inputs) else 0
        taps = deformable.window_taps(where, size, channels, self.groups, self.remove_center)
        seen = DepthwiseConv(
            deformable.window_size(where, self.depthwise_kernel_size or size),
            self.strides,
            name="depthwise",
            **self.common(precision=self.precision, promote_dtype=self.promote_dtype),
        )(inputs)
        seen = self.after_depthwise(seen)
        x = self.dense("input_proj", channels, self.kernel_init, self.bias_init)(inputs)
        y = self.sample(
            x,
            self.dense("offset", 2 * taps, self.predictor_init)(seen),
            self.dense("mask", taps, self.predictor_init)(seen),
            kernel_size=size,
            stride=conv.per_axis(where, "strides", self.strides, 2),
            dilation=conv.per_axis(where, "kernel_dilation", self.kernel_dilation, 2),
            groups=self.groups,
            offset_scale=self.offset_scale,
            remove_center=self.remove_center,
        )
        return self.dense("output_proj", channels, self.kernel_init, self.bias_init)(y)

    def common(self, **more: Any) -> dict[str, Any]:
        return dict(dtype=self.dtype, param_dtype=self.param_dtype, **more)

    def dense(
        self, name: str, features: int, kernel_init: Initializer, bias_init: Initializer = DEFAULT_BIAS_INIT
    ) -> Callable[[Array], Array]:
        options = self.common(precision=self.precision, promote_dtype=self.promote_dtype)
        return nn.Dense(features, kernel_init=kernel_init, bias_init=bias_init, name=name, **options)


class DeformConvV3(DeformWindow):
    """Deformable convolution version 3 (DCNv3, InternImage), for images: the mask is a softmax over the taps.

    Parameters and results are those of `convjax.nnx.DeformConvV3`.

    Attributes:
      epsilon: of the norm.
      others: as `DeformConvV4`.

    Raises:
      ValueError: as `DeformConvV4`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import convjax.linen
      >>> layer = convjax.linen.DeformConvV3((3, 3), 2, groups=2)
      >>> params = jax.eval_shape(layer.init, jax.random.key(0), jnp.ones((1, 9, 9, 8)))["params"]
      >>> sorted(params)
      ['depthwise', 'input_proj', 'mask', 'norm', 'offset', 'output_proj']

    Source: Wang et al., InternImage, arXiv:2211.05778, sections 3.1 and 3.2.
    """

    epsilon: float = 1e-6

    sample = staticmethod(deform_conv_v3)

    def after_depthwise(self, y: Array) -> Array:
        return jax.nn.gelu(nn.LayerNorm(self.epsilon, name="norm", **self.common())(y), approximate=False)


class DeformConvV4(DeformWindow):
    """Deformable convolution version 4 (DCNv4), for images: channels mix in two projections, samples are weighted sums.

    Parameters and results are those of `convjax.nnx.DeformConvV4`, and so are the submodules' names.

    Attributes:
      kernel_size: spatial shape of the window; an int is a square.
      strides, kernel_dilation: as `Conv`.
      groups: equal parts of the channels, each with offsets and a mask of its own.
      depthwise_kernel_size: of what predicts; `kernel_size` if None.
      offset_scale, remove_center: as `convjax.deform_conv_v4`.
      kernel_init, bias_init: of the two projections.
      predictor_init: of the kernels of `offset` and `mask`.
      dtype, param_dtype, precision, promote_dtype: as `Conv`.

    Raises:
      ValueError: `groups` does not divide the channels; `remove_center` with an even window; as `Conv`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import convjax.linen
      >>> layer = convjax.linen.DeformConvV4(groups=2)
      >>> params = jax.eval_shape(layer.init, jax.random.key(0), jnp.ones((1, 9, 9, 8)))["params"]
      >>> params["offset"]["kernel"].shape, params["mask"]["kernel"].shape
      ((8, 36), (8, 18))

    Source: Xiong et al., Efficient deformable ConvNets, arXiv:2401.06197, section 3.
    """

    sample = staticmethod(deform_conv_v4)
