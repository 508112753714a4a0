"""Convolution of a signal as it arrives: one step, or one block at a time, equal to that of the whole signal.

Whole pieces of any length are `convjax.causal_conv(..., state=...)`. `causal_conv_update` is its single step, to
generate; `stream_conv` is for responses so long that a block is best transformed.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Num, PyTree

from convjax._core import arguments, epilogue, variants
from convjax._core.primitive import convolve
from convjax._core.spec import ConvSpec
from convjax._streaming import causal, partitioned
from convjax.functional import Activation, Algorithm, Precision

ALGORITHMS = ("auto", "direct", "partitioned")


def causal_conv_update(
    x: Num[Array, "*batch c"],
    state: Num[Array, "*batch reach c"],
    w: Num[Array, "*k_i_o"],
    *,
    bias: Num[Array, " o"] | None = None,
    dilation: int = 1,
    groups: int = 1,
    activation: Activation = None,
    algorithm: Algorithm = "auto",
    precision: Precision = None,
) -> tuple[Num[Array, "*batch o"], Num[Array, "*batch reach c"]]:
    """One step of `convjax.causal_conv`: the output at one more input, and the state after it.

    Args:
      x: the input now, `(*batch, C_in)`.
      state: the inputs before it, the last one last, `(*batch, (k - 1) * dilation, C_in)` in the dtype of `x`: zeros
        to begin, or what `causal_conv(..., return_state=True)` returned.
      w: `(k, C_in // groups, C_out)`, or `(k, C)` for a depthwise one.
      others: as `convjax.causal_conv`; a kernel of a TPU or GPU is taken by its name alone, or where it was measured.

    Returns:
      `y (*batch, C_out)` in the dtype of `x`, and the state.

    Raises:
      ValueError, TypeError: as `convjax.causal_conv`; `x` has no axis; `state` is not of the shape or dtype above.

    Example:
      >>> import jax.numpy as jnp
      >>> from convjax.streaming import causal_conv_update
      >>> w = jnp.array([[1.0], [10.0]])
      >>> y, state = causal_conv_update(jnp.array([3.0]), jnp.array([[2.0]]), w, activation="silu")
      >>> y, state
      (Array([32.], dtype=float32), Array([[3.]], dtype=float32))

    Source: Paine et al., Fast Wavenet generation, arXiv:1611.09482; `causal_conv1d_update` of
    https://github.com/Dao-AILab/causal-conv1d.
    """
    where = "causal_conv_update"
    x = arguments.array(where, "x", x)
    if x.ndim == 0:
        raise ValueError(f"{where}: x has no axis, but is (*batch, C_in). Type x[None] for a single channel.")
    options: dict[str, Any] = dict(layout="channels_last", algorithm=algorithm, preferred_element_type=None)
    problem = variants.causal(
        where, x[..., None, :], w, stride=1, dilation=dilation, groups=groups, precision=precision, **options
    )
    if state is None:
        raise TypeError(f"{where}: state must be an array. Type jnp.zeros of (*batch, (k - 1) * dilation, C) to begin.")
    (gap,) = problem.spec.rhs_dilation
    problem, after = causal.advance(where, problem, state)
    if not isinstance(problem, causal.Fused):  # of the inputs that wait, only those that a tap meets now
        problem = dataclasses.replace(problem, lhs=problem.lhs[:, ::gap], spec=problem.spec.replace(rhs_dilation=(1,)))
    bias, _ = epilogue.read_addends(where, bias, None, problem.out_shape, problem.out_dtype, x.ndim)
    return causal.run(problem, bias, None, epilogue.read_activation(where, activation))[..., 0, :], after


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["response"],
    meta_fields=["algorithm", "taps", "block", "channels", "dtype", "spec"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
    """A response made ready for blocks: what `stream_conv` returns. A pytree, whose only leaf is the response.

    Attributes:
      response: the kernel `(k, C_in // groups, C_out)`, or the spectra of its parts.
      algorithm: "direct" or "partitioned".
      taps, block, channels, dtype: `k`, and what a chunk is: `(*batch, block, channels)` of this dtype.
      spec: the convolution of a chunk, without padding.
    """

    response: Array
    algorithm: str
    taps: int
    block: int
    channels: int
    dtype: np.dtype
    spec: ConvSpec

    def init(self, batch_shape: tuple[int, ...] = ()) -> PyTree[Array]:
        """The state before the first chunk, as if zeros had come: arrays of a fixed shape, for chunks of this batch."""
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), self._state(tuple(batch_shape)))

    def _state(self, batch: tuple[int, ...]) -> PyTree[jax.ShapeDtypeStruct]:
        if self.algorithm == "partitioned":
            return partitioned.state(batch, self.block, self.channels, self.response, self.dtype)
        return jax.ShapeDtypeStruct((*batch, self.taps - 1, self.channels), self.dtype)

    def step(
        self, state: PyTree[Array], chunk: Num[Array, "*batch block c"]
    ) -> tuple[PyTree[Array], Num[Array, "*batch block o"]]:
        """The state after `chunk`, and as many outputs as it has inputs: in this order, as `jax.lax.scan` wants it.

        Raises:
          ValueError: `chunk` has another length or other channels, or `state` is not of its batch, or another stream's.
          TypeError: `chunk` is not of the kernel's dtype.
        """
        chunk = arguments.array("Stream.step", "chunk", chunk)
        if chunk.ndim < 2 or chunk.shape[-2:] != (self.block, self.channels):
            raise ValueError(
                f"Stream.step: chunk has shape {chunk.shape}, but this stream takes (*batch, block, C_in) = "
                f"(*batch, {self.block}, {self.channels}). Type stream_conv(w, block=...) for other blocks; pad the "
                "last chunk of a signal with zeros."
            )
        if chunk.dtype != self.dtype:
            raise TypeError(
                f"Stream.step: chunk is {chunk.dtype} but the kernel is {self.dtype}. Type "
                f"chunk.astype(jnp.{self.dtype})."
            )
        expected = self._state(chunk.shape[:-2])
        if _describe(state) != _describe(expected):
            raise ValueError(
                f"Stream.step: state is {_describe(state)}, but for a chunk of {chunk.shape} this stream has "
                f"{_describe(expected)}. Type state = stream.init({chunk.shape[:-2]}) to begin."
            )
        return _advance(self, state, chunk)


def stream_conv(
    w: Num[Array, "*k_i_o"], *, block: int, groups: int = 1, algorithm: str = "auto", precision: Precision = None
) -> Stream:
    """Prepare the causal convolution of an endless signal, `block` inputs at a time.

    Chunk by chunk the outputs are those of `convjax.causal_conv` of the whole signal, each as soon as its chunk is
    whole. Every chunk costs the same, and a long response little: its spectra are taken once, here.

    Args:
      w: the response, `(k, C_in // groups, C_out)`, or `(k, C)` for one each channel; the last tap is now, so for an
        impulse response `h` type `h[::-1]`.
      block: inputs in a chunk, which is the latency.
      groups: as `convjax.conv`.
      algorithm: "direct", which keeps the last `k - 1` inputs; "partitioned", which keeps the spectra of
        `ceil(k / block) - 1` blocks and is as exact as an FFT; "auto" takes what should be faster: partitioned
        where `k` exceeds `block` and some dozens, and `block` is 8 or more, or beyond 16 where channels mix. Integers
        go directly.
      precision: as `jax.lax`, for the direct one; spectra are multiplied at the highest.

    Returns:
      A `Stream`: `state = stream.init(batch_shape)`, then `state, y = stream.step(state, chunk)` for each
      `chunk (*batch, block, C_in)`; y is `(*batch, block, C_out)`. Both work in `jit`, `vmap`, `grad` and `lax.scan`.

    Raises:
      ValueError, TypeError: as `convjax.causal_conv`; `block` is below 1; integers are to be partitioned.

    Example:
      >>> import jax, jax.numpy as jnp, convjax
      >>> from convjax.streaming import stream_conv
      >>> w, x = jnp.ones((129, 2)), jnp.ones((96, 2))
      >>> stream = stream_conv(w, block=32)
      >>> state, y = jax.lax.scan(stream.step, stream.init(), x.reshape(3, 32, 2))
      >>> bool(jnp.allclose(y.reshape(96, 2), convjax.causal_conv(x, w), atol=1e-3))
      True

    Source: Gardner, Efficient convolution without input-output delay, JAES 43(3), 1995; Wefers, Partitioned convolution
    algorithms for real-time auralization, 2014, chapter 5.
    """
    where = "stream_conv"
    w, block = arguments.array(where, "w", w), arguments.integer(where, "block", block, minimum=1)
    groups = arguments.integer(where, "groups", groups, minimum=1)
    algorithm = arguments.choice(where, "algorithm", algorithm, ALGORITHMS)
    channels = math.prod(w.shape[1:2]) * (1 if w.ndim == 2 else groups)
    options: dict[str, Any] = dict(layout="channels_last", algorithm="auto", preferred_element_type=None)
    silence = jnp.zeros((block, channels), w.dtype)  # the kernel is read and checked as causal_conv does
    problem = variants.causal(where, silence, w, stride=1, dilation=1, groups=groups, precision=precision, **options)
    kernel, spec = problem.rhs, problem.spec.replace(padding=((0, 0),))
    taps, per_group, features = kernel.shape
    is_integer = jnp.issubdtype(w.dtype, jnp.integer)
    if algorithm == "partitioned" and is_integer:
        raise ValueError(f"{where}: algorithm='partitioned' is not exact for {w.dtype}. Type algorithm='direct'.")
    if algorithm == "auto":
        cheaper = partitioned.is_cheaper(taps, block, per_group, features, spec.feature_groups)
        algorithm = "partitioned" if cheaper and not is_integer else "direct"
    if algorithm == "partitioned":
        kernel = partitioned.response(kernel, block, spec.feature_groups)
    return Stream(kernel, algorithm, taps, block, channels, np.dtype(w.dtype), spec)


def _describe(state: Any) -> str:
    """Structure, dtypes and shapes."""
    return str(jax.tree.map(lambda leaf: f"{jnp.result_type(leaf)}{jnp.shape(leaf)}", state))


@jax.jit
def _advance(stream: Stream, state: PyTree[Array], chunk: Array) -> tuple[PyTree[Array], Array]:
    if stream.algorithm == "partitioned":
        return partitioned.advance(stream.response, state, chunk)
    seen = jnp.concatenate([state, chunk], axis=-2)
    flat = seen.reshape(math.prod(seen.shape[:-2]), *seen.shape[-2:])
    y = convolve(flat, stream.response, stream.spec)
    return seen[..., stream.block :, :], y.reshape(*chunk.shape[:-1], y.shape[-1])
