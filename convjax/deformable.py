"""Deformable convolution: each output says by an offset where each of its taps looks, between pixels.

Version 1 and 2 are `deform_conv`, without and with a mask; 3 and 4, which have no kernel but a sum weighted by the
mask, are `deform_conv_v3` and `deform_conv_v4`. Samples are linear interpolations, of zeros outside of the input. All
samples side by side would take `prod(k)` times the memory of the input: they are computed in blocks of at most its
size, and again for the gradients. All derivatives exist, forward and reverse; that in the offset jumps at pixels, where
it is taken from the right.

Offsets are data, not arguments that could be refused when a program is traced. What is not finite in them is defined
so: an infinite offset samples outside, which is zero and has zero gradients; NaN makes the outputs at its own position
NaN, in the channels that see it, and the gradients of its own sample and of the kernel, and leaves all else alone.
"""

from __future__ import annotations

from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, Inexact

from convjax._core import epilogue
from convjax._deformable import read, run
from convjax.functional import Ints, Padding, Precision


def deform_conv(
    x: Inexact[Array, "*batch_space_i"],
    offset: Float[Array, "*batch_out_g*k*nd"],
    w: Inexact[Array, "*k_i_o"],
    *,
    mask: Float[Array, "*batch_out_g*k"] | None = None,
    bias: Inexact[Array, " o"] | None = None,
    stride: Ints = 1,
    padding: Padding = "SAME",
    dilation: Ints = 1,
    groups: int = 1,
    offset_groups: int = 1,
    precision: Precision = None,
    preferred_element_type: DTypeLike | None = None,
) -> Inexact[Array, "*batch_out_o"]:
    """Convolve `x` with `w`, each tap displaced by an offset (version 1) and, with a `mask`, scaled (version 2).

    The definition is that of `torchvision.ops.deform_conv2d`, its channels moved last, in any number of dimensions.

    Args:
      x: input `(*batch, *space, C_in)`, floating or complex.
      offset: `(*batch, *out, offset_groups * K * ndim)` in pixels, `K = prod(k)`; the channel of group g, tap t and
        axis a is `(g * K + t) * ndim + a`: (y, x) for images. Of any floating dtype; positions are computed in float32
        at least.
      w: kernel `(*k, C_in // groups, C_out)`.
      mask: `(*batch, *out, offset_groups * K)`, multiplied as it is; the channel is `g * K + t`.
      stride, padding, dilation, groups, precision, preferred_element_type: as `convjax.conv`.
      bias: `(C_out,)`.
      offset_groups: equal parts of the input channels, each with offsets of its own; independent of `groups`.

    Returns:
      `(*batch, *out, C_out)` in the dtype of `x`; 16-bit floats are sampled and summed in float32.

    Raises:
      ValueError: `offset` or `mask` is not of the shape above; channels, groups or sizes do not fit.
      TypeError: `x` and `w` differ in dtype or are integers, `offset` or `mask` is not floating.

    Example:
      >>> import jax.numpy as jnp
      >>> from convjax.deformable import deform_conv
      >>> ramp = jnp.arange(5.0)[:, None]
      >>> deform_conv(ramp, jnp.full((5, 1), 0.5), jnp.ones((1, 1, 1)))[:, 0]
      Array([0.5, 1.5, 2.5, 3.5, 2. ], dtype=float32)

    Source: Dai et al., arXiv:1703.06211, equations 2 to 4; Zhu et al., arXiv:1811.11168, equation 1.
    """
    where = "deform_conv"
    problem = read.convolution(
        where,
        x,
        w,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    sampling = read.sampling_of_kernel(where, problem, offset_groups)
    offset = read.displacements(where, "offset", offset, problem, sampling, problem.spec.ndim)
    mask = None if mask is None else read.displacements(where, "mask", mask, problem, sampling, 1)
    shape = problem.out_shape
    bias, _ = epilogue.read_addends(where, bias, None, shape, problem.out_dtype, len(shape) - 1)
    y = run.convolve(problem.lhs, offset, mask, problem.rhs, problem.spec, sampling)
    return epilogue.apply(y.reshape(shape), bias, None, None)


def deform_conv_v3(
    x: Float[Array, "*batch h w c"],
    offset: Float[Array, "*batch out_h out_w g*k*2"],
    mask: Float[Array, "*batch out_h out_w g*k"],
    *,
    kernel_size: Ints = 3,
    stride: Ints = 1,
    padding: Padding = "SAME",
    dilation: Ints = 1,
    groups: int = 1,
    offset_scale: float = 1.0,
    remove_center: bool = False,
) -> Float[Array, "*batch out_h out_w c"]:
    """Sum the samples of each group of channels, weighted by the softmax of its mask (DCNv3, of InternImage).

    Taps are counted from the centre of the window, `dilation * (k - 1) // 2`, and column by column: tap
    `x * k_h + y`. Channels are those of the papers' own code.

    Args:
      x: input `(*batch, H, W, C)`, floating.
      offset: `(*batch, *out, groups * K * 2)` with `K = k_h * k_w`; the channel of group g and tap t is
        `(g * K + t) * 2` for its x and one more for its y, in units of `offset_scale` pixels.
      mask: `(*batch, *out, groups * K)`, channel `g * K + t`; a softmax over the taps of each group follows.
      kernel_size: one int for a square window, or (k_h, k_w).
      stride, padding, dilation: as `convjax.conv`. SAME pads as for the stride, `(k - 1) // 2` as the papers' code.
      groups: equal parts of the channels.
      offset_scale: factor of the taps' distances from the centre and of the offsets.
      remove_center: leave the tap at the centre out, so that `K = k_h * k_w - 1`; for odd windows.

    Returns:
      `(*batch, *out, C)` in the dtype of `x`; 16-bit floats are summed in float32.

    Raises:
      ValueError: `offset` or `mask` is not of the shape above; `groups` does not divide the channels.
      TypeError: an argument that is not floating.

    Example:
      >>> import jax.numpy as jnp
      >>> from convjax.deformable import deform_conv_v3
      >>> y = deform_conv_v3(jnp.ones((1, 8, 8, 4)), jnp.zeros((1, 8, 8, 36)), jnp.zeros((1, 8, 8, 18)), groups=2)
      >>> y.shape, round(float(y[0, 4, 4, 0]), 4)
      ((1, 8, 8, 4), 1.0)

    Source: Wang et al., InternImage, arXiv:2211.05778, equation 2.
    """
    where = "deform_conv_v3"
    problem, sampling = read.window(
        where, x, kernel_size, stride, padding, dilation, groups, offset_scale, remove_center
    )
    offset = read.displacements(where, "offset", offset, problem, sampling, 2)
    mask = read.displacements(where, "mask", mask, problem, sampling, 1)
    y = run.weighted_sum(problem.lhs, offset, run.softmax(mask, sampling), sampling)
    return y.reshape(problem.out_shape)


def deform_conv_v4(
    x: Float[Array, "*batch h w c"],
    offset: Float[Array, "*batch out_h out_w g*k*2"],
    mask: Float[Array, "*batch out_h out_w g*k"],
    *,
    kernel_size: Ints = 3,
    stride: Ints = 1,
    padding: Padding = "SAME",
    dilation: Ints = 1,
    groups: int = 1,
    offset_scale: float = 1.0,
    remove_center: bool = False,
) -> Float[Array, "*batch out_h out_w c"]:
    """`deform_conv_v3` without the softmax (DCNv4): the mask is multiplied as it is, of any sign and size.

    Args:
      x, offset, mask, others: as `deform_conv_v3`.

    Returns:
      `(*batch, *out, C)` in the dtype of `x`.

    Raises:
      ValueError, TypeError: as `deform_conv_v3`.

    Example:
      >>> import jax.numpy as jnp
      >>> from convjax.deformable import deform_conv_v4
      >>> y = deform_conv_v4(jnp.ones((1, 8, 8, 4)), jnp.zeros((1, 8, 8, 18)), jnp.ones((1, 8, 8, 9)))
      >>> float(y[0, 4, 4, 0]), float(y[0, 0, 0, 0])
      (9.0, 4.0)

    Source: Xiong et al., Efficient deformable ConvNets, arXiv:2401.06197, section 3.1.
    """
    where = "deform_conv_v4"
    problem, sampling = read.window(
        where, x, kernel_size, stride, padding, dilation, groups, offset_scale, remove_center
    )
    offset = read.displacements(where, "offset", offset, problem, sampling, 2)
    mask = read.displacements(where, "mask", mask, problem, sampling, 1)
    y = run.weighted_sum(problem.lhs, offset, mask, sampling)
    return y.reshape(problem.out_shape)
