"""The convolutions that people call: each is its contract, then one call.

All of them are pure: they jit, vmap, differentiate (any order, forward and reverse), export and shard. Shapes, strides
and the like must be static. The word convolution is used as in deep learning, for correlation; `flip_kernel=True` is
the mathematical one. Optional arguments that all share:

- `bias`: added to each output channel, shape `(C_out,)`.
- `padding_mode`: what lies beyond the border: "zeros", a number, "reflect" (numpy's reflect, ndimage's mirror),
  "symmetric" (ndimage's reflect), "replicate", "circular"; one for all spatial axes or one each. The width of a string
  padding takes the stride into account.
- `activation`: a callable, or one of the names in `convjax.ACTIVATIONS`; applied after bias and `residual`.
- `residual`: added to the output before the activation; of the output's shape.
- `layout`: "channels_last", "channels_first", letters such as "NCHW" for `x` and the result (the kernel stays
  `(*k, I, O)`), or lax's dimension numbers for all three, such as `("NCHW", "OIHW", "NCHW")`.
- `algorithm`: "auto", a name of `convjax.algorithms()` (which also is preferred for the gradients, where it serves), or
  a mapping with some of the keys "forward", "input_grad", "kernel_grad".
- `precision`, `preferred_element_type`: as in `jax.lax`; float16 and bfloat16 are summed in float32 and returned as
  they came, integers narrower than 32 bits are summed exactly and returned as int32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Int, Num

from convjax._core import arguments, canonical, epilogue, transposed, variants
from convjax._core.canonical import Problem
from convjax._streaming import causal

Ints = int | Sequence[int]
Padding = str | int | Sequence[int] | Sequence[tuple[int, int]]
PaddingMode = str | float | Sequence[str | float]
Activation = str | Callable[[Array], Array] | None
Layout = str | tuple[str, str, str] | lax.ConvDimensionNumbers
Algorithm = str | Mapping[str, str]
Precision = Any


def conv(
    x: Num[Array, "*batch_space_c"],
    w: Num[Array, "*k_i_o"],
    *,
    bias: Num[Array, " o"] | None = None,
    stride: Ints = 1,
    padding: Padding = "SAME",
    dilation: Ints = 1,
    input_dilation: Ints = 1,
    groups: int = 1,
    padding_mode: PaddingMode = "zeros",
    flip_kernel: bool = False,
    activation: Activation = None,
    residual: Num[Array, "*batch_out_o"] | None = None,
    layout: Layout = "channels_last",
    algorithm: Algorithm = "auto",
    precision: Precision = None,
    preferred_element_type: DTypeLike | None = None,
) -> Num[Array, "*batch_out_o"]:
    """Convolve `x` with `w`, in as many spatial dimensions as `w` has.

    Args:
      x: input `(*batch, *space, C_in)`; any number of batch axes, none included.
      w: kernel `(*k, C_in // groups, C_out)`; its rank gives the number of spatial axes.
      stride: step along each spatial axis, at least 1.
      padding: "SAME" (`ceil(size / stride)` outputs, the odd zero last), "SAME_LOWER" (the odd zero first), "VALID",
        "FULL", "CAUSAL" (output t sees inputs up to `stride * t`); an int for both ends of every axis, one int an
        axis, or `(lo, hi)` pairs; negative numbers crop.
      dilation: distance between neighbouring taps, at least 1.
      input_dilation: distance between neighbouring inputs, filled with zeros, at least 1.
      groups: number of independent convolutions that channels are split into.
      bias, padding_mode, flip_kernel, activation, residual, layout, algorithm, precision, preferred_element_type: see
        the head of `convjax.functional`.

    Returns:
      `(*batch, *out, C_out)` in the dtype of `x`.

    Raises:
      ValueError: ranks, channels, groups or a name do not fit; the kernel is larger than the padded input; a named
        algorithm cannot serve.
      TypeError: operands of different or non-numeric dtypes; a size that is not a static integer.

    Example:
      >>> import jax.numpy as jnp, convjax
      >>> convjax.conv(jnp.ones((8, 28, 28, 3)), jnp.ones((3, 3, 3, 16)), stride=2, activation="relu").shape
      (8, 14, 14, 16)

    Source: Dumoulin and Visin, A guide to convolution arithmetic for deep learning, arXiv:1603.07285.
    """
    problem = canonical.conv(
        "conv",
        x,
        w,
        stride=stride,
        padding=padding,
        dilation=dilation,
        input_dilation=input_dilation,
        groups=groups,
        padding_mode=padding_mode,
        flip_kernel=flip_kernel,
        layout=layout,
        algorithm=algorithm,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    return _finish("conv", problem, bias, residual, activation)


def conv_transpose(
    x: Num[Array, "*batch_space_i"],
    w: Num[Array, "*k_i_o"],
    *,
    bias: Num[Array, " o"] | None = None,
    stride: Ints = 1,
    padding: Padding = "SAME",
    dilation: Ints = 1,
    groups: int = 1,
    output_padding: Ints = 0,
    output_shape: Ints | None = None,
    padding_mode: PaddingMode = "zeros",
    flip_kernel: bool = False,
    activation: Activation = None,
    residual: Num[Array, "*batch_out_o"] | None = None,
    layout: Layout = "channels_last",
    algorithm: Algorithm = "auto",
    precision: Precision = None,
    preferred_element_type: DTypeLike | None = None,
) -> Num[Array, "*batch_out_o"]:
    """Transposed convolution: the input gradient of `conv`, used to enlarge; grouped too.

    Equals `torch.nn.functional.conv_transposeNd` with the weight `jnp.moveaxis(w, (-2, -1), (0, 1))`.

    Args:
      x: input `(*batch, *space, C_in)`.
      w: kernel `(*k, C_in, C_out // groups)` of the forward convolution.
      stride: spacing of neighbouring inputs in the output, at least 1.
      padding: what the forward convolution padded, so what is cropped here: ints and pairs as in torch
        (`(i - 1) * stride - lo - hi + dilation * (k - 1) + 1 + output_padding` outputs); or, as in Keras, "SAME"
        (`i * stride` outputs) and "VALID" (`(i - 1) * stride + max(dilation * (k - 1) + 1, stride)`); "SAME_LOWER";
        "CAUSAL" (`i * stride` outputs, output t sees inputs up to `t // stride`).
      dilation: distance between neighbouring taps, at least 1.
      output_padding: outputs to add at the end, less than the larger of stride and dilation.
      output_shape: the spatial shape wanted, instead of `output_padding`.
      padding_mode: the input is continued by the mode beyond its border before it is spread and cropped.
      bias, groups, flip_kernel, activation, residual, layout, algorithm, precision, preferred_element_type: see the
        head of `convjax.functional`.

    Returns:
      `(*batch, *out, C_out)` in the dtype of `x`.

    Raises:
      ValueError, TypeError: as `conv`; an output shape out of reach.

    Example:
      >>> import jax.numpy as jnp, convjax
      >>> convjax.conv_transpose(jnp.ones((1, 7, 7, 8)), jnp.ones((4, 4, 8, 3)), stride=2).shape
      (1, 14, 14, 3)

    Source: Dumoulin and Visin, arXiv:1603.07285, chapter 4.
    """
    problem = transposed.conv_transpose(
        "conv_transpose",
        x,
        w,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        output_padding=output_padding,
        output_shape=output_shape,
        padding_mode=padding_mode,
        flip_kernel=flip_kernel,
        layout=layout,
        algorithm=algorithm,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    return _finish("conv_transpose", problem, bias, residual, activation)


def depthwise_conv(
    x: Num[Array, "*batch_space_c"],
    w: Num[Array, "*k_c_m"],
    *,
    bias: Num[Array, " c*m"] | None = None,
    stride: Ints = 1,
    padding: Padding = "SAME",
    dilation: Ints = 1,
    padding_mode: PaddingMode = "zeros",
    flip_kernel: bool = False,
    activation: Activation = None,
    residual: Num[Array, "*batch_out_c*m"] | None = None,
    layout: Layout = "channels_last",
    algorithm: Algorithm = "auto",
    precision: Precision = None,
    preferred_element_type: DTypeLike | None = None,
) -> Num[Array, "*batch_out_c*m"]:
    """Convolve each channel with its own `M` kernels.

    Output channel `c * M + m` is input channel `c` convolved with `w[..., c, m]`.

    Args:
      x: input `(*batch, *space, C)`.
      w: kernel `(*k, C, M)`, `M` the channel multiplier (Keras' depthwise layout).
      others: as `conv`. A `layout` of three strings names the kernel's axes I for `C` and O for `M`.

    Returns:
      `(*batch, *out, C * M)` in the dtype of `x`.

    Raises:
      ValueError, TypeError: as `conv`; `x` and `w` differ in channels.

    Example:
      >>> import jax.numpy as jnp, convjax
      >>> convjax.depthwise_conv(jnp.ones((1, 5, 5, 3)), jnp.ones((3, 3, 3, 2))).shape
      (1, 5, 5, 6)

    Source: Howard et al., MobileNets, arXiv:1704.04861, section 3.1.
    """
    problem = variants.depthwise(
        "depthwise_conv",
        x,
        w,
        stride=stride,
        padding=padding,
        dilation=dilation,
        padding_mode=padding_mode,
        flip_kernel=flip_kernel,
        layout=layout,
        algorithm=algorithm,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    return _finish("depthwise_conv", problem, bias, residual, activation)


def separable_conv(
    x: Num[Array, "*batch_space_c"],
    w_depthwise: Num[Array, "*k_c_m"],
    w_pointwise: Num[Array, "c*m o"],
    *,
    bias: Num[Array, " o"] | None = None,
    stride: Ints = 1,
    padding: Padding = "SAME",
    dilation: Ints = 1,
    padding_mode: PaddingMode = "zeros",
    flip_kernel: bool = False,
    activation: Activation = None,
    residual: Num[Array, "*batch_out_o"] | None = None,
    layout: Layout = "channels_last",
    algorithm: Algorithm = "auto",
    precision: Precision = None,
    preferred_element_type: DTypeLike | None = None,
) -> Num[Array, "*batch_out_o"]:
    """A depthwise convolution, then a pointwise one that mixes its channels.

    Args:
      x: input `(*batch, *space, C)`.
      w_depthwise: `(*k, C, M)`, see `depthwise_conv`; stride, padding, dilation and flip_kernel are its own.
      w_pointwise: `(C * M, C_out)`, or with leading axes of size 1.
      others: as `conv`; bias, residual and activation follow the pointwise step. `layout` orders `x` and the result.

    Returns:
      `(*batch, *out, C_out)` in the dtype of `x`.

    Raises:
      ValueError, TypeError: as `conv`.

    Example:
      >>> import jax.numpy as jnp, convjax
      >>> convjax.separable_conv(jnp.ones((1, 5, 5, 3)), jnp.ones((3, 3, 3, 2)), jnp.ones((6, 4))).shape
      (1, 5, 5, 4)

    Source: Chollet, Xception, arXiv:1610.02357; Howard et al., arXiv:1704.04861.
    """
    problem = variants.separable(
        "separable_conv",
        x,
        w_depthwise,
        w_pointwise,
        stride=stride,
        padding=padding,
        dilation=dilation,
        padding_mode=padding_mode,
        flip_kernel=flip_kernel,
        layout=layout,
        algorithm=algorithm,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    return _finish("separable_conv", problem, bias, residual, activation)


def pointwise_conv(
    x: Num[Array, "*batch_space_i"],
    w: Num[Array, "i o"],
    *,
    bias: Num[Array, " o"] | None = None,
    stride: Ints = 1,
    groups: int = 1,
    activation: Activation = None,
    residual: Num[Array, "*batch_out_o"] | None = None,
    layout: Layout = "channels_last",
    algorithm: Algorithm = "auto",
    precision: Precision = None,
    preferred_element_type: DTypeLike | None = None,
) -> Num[Array, "*batch_out_o"]:
    """1x1 convolution: one matrix applied to the channels at every position.

    Args:
      x: input `(*batch, *space, C_in)`; with a stride the spatial axes are counted by the entries of `stride`, by the
        letters of `layout`, or by the axes of `w`.
      w: `(C_in // groups, C_out)`, or with an axis of size 1 for each spatial axis, in the order that `layout` says.
      stride: step along each spatial axis, at least 1.
      others: as `conv`.

    Returns:
      `(*batch, *out, C_out)` in the dtype of `x`.

    Raises:
      ValueError, TypeError: as `conv`; one int for `stride` where nothing tells the number of spatial axes.

    Example:
      >>> import jax.numpy as jnp, convjax
      >>> convjax.pointwise_conv(jnp.ones((1, 5, 5, 3)), jnp.ones((3, 4)), stride=(2, 2)).shape
      (1, 3, 3, 4)

    Source: Lin, Chen and Yan, Network in network, arXiv:1312.4400.
    """
    problem = variants.pointwise(
        "pointwise_conv",
        x,
        w,
        stride=stride,
        groups=groups,
        layout=layout,
        algorithm=algorithm,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    return _finish("pointwise_conv", problem, bias, residual, activation)


def causal_conv(
    x: Num[Array, "*batch t c"],
    w: Num[Array, "*k_i_o"],
    *,
    bias: Num[Array, " o"] | None = None,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    state: Num[Array, "*batch reach c"] | None = None,
    return_state: bool = False,
    segment_ids: Int[Array, "*batch t"] | None = None,
    activation: Activation = None,
    residual: Num[Array, "*batch out o"] | None = None,
    layout: Layout = "channels_last",
    algorithm: Algorithm = "auto",
    precision: Precision = None,
    preferred_element_type: DTypeLike | None = None,
) -> Any:
    """1-D convolution that sees no future: the last tap is now.

    Args:
      x: input `(*batch, T, C_in)`.
      w: `(k, C_in // groups, C_out)`, or `(k, C)` (whatever the `layout`) for a depthwise one.
      stride: output t sees inputs up to `stride * t`; a piece that another follows has a multiple of it.
      state: the `(k - 1) * dilation` inputs before `x`, `(*batch, (k - 1) * dilation, C_in)` in the dtype of `x` and
        whatever the `layout`; None is zeros. See `convjax.streaming` for single steps and for long responses.
      return_state: whether to return the state after `x` as well, also where none was given.
      segment_ids: `(*batch, T)`, whatever the `layout`: an output sees only inputs of its own id, and the gradient of
        an input only outputs of its own, NaN included. Takes memory for `k` copies of `x`, but for a kernel by name.
      others: as `conv`.

    Returns:
      `y (*batch, ceil(T / stride), C_out)` in the dtype of `x`; with `state` or `return_state`, `(y, state)`.

    Raises:
      ValueError, TypeError: as `conv`; `w` has neither 2 nor 3 axes; `state` or `segment_ids` do not fit `x`, or both
        are given.

    Example:
      >>> import jax.numpy as jnp, convjax
      >>> convjax.causal_conv(jnp.arange(4.0)[:, None], jnp.array([[1.0], [10.0]]))[:, 0]
      Array([ 0., 10., 21., 32.], dtype=float32)

    Source: van den Oord et al., WaveNet, arXiv:1609.03499, section 2.1; state and segments as `initial_states` and
    `seq_idx` of causal-conv1d, https://github.com/Dao-AILab/causal-conv1d.
    """
    problem = variants.causal(
        "causal_conv",
        x,
        w,
        stride=stride,
        dilation=dilation,
        groups=groups,
        layout=layout,
        algorithm=algorithm,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    return_state = arguments.flag("causal_conv", "return_state", return_state)
    problem, after = causal.extend(
        "causal_conv", problem, state=state, return_state=return_state, segment_ids=segment_ids
    )
    y = _finish("causal_conv", problem, bias, residual, activation)
    return y if after is None else (y, after)


def _finish(where: str, problem: Problem, bias: Any, residual: Any, activation: Activation) -> Array:
    apply = epilogue.read_activation(where, activation)
    shape, dtype = problem.out_shape, problem.out_dtype
    bias, residual = epilogue.read_addends(where, bias, residual, shape, dtype, problem.layout.out[-1])
    return causal.run(problem, bias, residual, apply)
