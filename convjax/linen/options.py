"""Fields that the layers share, and a convolution of a module's own parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from flax.linen.linear import PromoteDtypeFn
from flax.typing import ConvGeneralDilatedT, Dtype, Initializer, PaddingLike, PrecisionLike
from jax import Array, lax

from convjax._layers import conv
from convjax.functional import Algorithm, PaddingMode

DEFAULT_KERNEL_INIT = nn.initializers.lecun_normal()
DEFAULT_BIAS_INIT = nn.initializers.zeros_init()


class ConvOptions(nn.Module, kw_only=True):
    """Keyword arguments of every layer that convolves; see `convjax.linen.Conv`."""

    padding: PaddingLike = "SAME"
    padding_mode: PaddingMode = "zeros"
    input_dilation: int | Sequence[int] | None = 1
    kernel_dilation: int | Sequence[int] | None = 1
    use_bias: bool = True
    mask: Array | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    precision: PrecisionLike = None
    kernel_init: Initializer = DEFAULT_KERNEL_INIT
    bias_init: Initializer = DEFAULT_BIAS_INIT
    promote_dtype: PromoteDtypeFn = promote_dtype
    preferred_element_type: Dtype | None = None
    algorithm: Algorithm = "auto"
    conv_general_dilated: ConvGeneralDilatedT | None = None

    def options(self, *without: str) -> dict[str, Any]:
        """These fields, for a layer inside this one."""
        return {name: getattr(self, name) for name in OPTION_NAMES if name not in without}


OPTION_NAMES = tuple(name for name in ConvOptions.__dataclass_fields__ if name not in ("parent", "name"))


def convolve(
    module: Any,
    inputs: Array,
    *,
    features: int,
    kernel_size: int | Sequence[int],
    strides: int | Sequence[int] | None,
    groups: int = 1,
    padding: PaddingLike | None = None,
    transform: Callable[[Array], Array] = lambda kernel: kernel,
    seen: Callable[[Array], Array] = lambda x: x,
) -> Array:
    """Convolve `inputs` with the parameters `kernel` and `bias` of `module`, which has the fields of `ConvOptions`.

    Args:
      padding: instead of the module's.
      transform: computes the kernel that is convolved with from the parameter; its mask follows.
      seen: computes what is convolved from the promoted inputs.
      others: as the layers.
    """
    where = type(module).__name__
    size = conv.sizes(where, kernel_size)
    channels = jnp.shape(inputs)[-1] if jnp.ndim(inputs) else 0
    shape = conv.kernel_shape(where, size, channels, features, groups)
    kernel = module.param("kernel", module.kernel_init, shape, module.param_dtype)
    kernel = conv.masked(where, transform(kernel), module.mask)
    bias = module.param("bias", module.bias_init, (features,), module.param_dtype) if module.use_bias else None
    x, kernel, bias = promoted(module, inputs, kernel, bias)
    return conv.convolve(
        where,
        seen(x),
        kernel,
        bias,
        strides=strides,
        padding=module.padding if padding is None else padding,
        feature_group_count=groups,
        **settings(module),
    )


def promoted(module: Any, inputs: Array, kernel: Array, bias: Array | None) -> tuple[Any, Any, Any]:
    """All three in the module's dtype, or the one that jax promotes them to."""
    x, kernel, bias = module.promote_dtype(inputs, kernel, bias, dtype=module.dtype)
    return x, kernel, bias


def settings(module: Any) -> dict[str, Any]:
    """What `convjax._layers.conv.convolve` takes from a module as it is."""
    hook = getattr(module, "conv_general_dilated_cls", None)
    hook = module.conv_general_dilated if hook is None else hook()
    return dict(
        padding_mode=module.padding_mode,
        input_dilation=module.input_dilation,
        kernel_dilation=module.kernel_dilation,
        precision=module.precision,
        preferred_element_type=module.preferred_element_type,
        algorithm=module.algorithm,
        conv_general_dilated=None if hook is lax.conv_general_dilated else hook,
    )
