"""Streaming: in whatever pieces a signal comes the outputs are those of the whole; packed sequences know nothing of
each other."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import convjax
import convjax.nnx
from convjax import testing
from convjax.streaming import causal_conv_update, stream_conv

ones, zeros = jnp.ones, jnp.zeros


def normal(*shape, seed=0, dtype=np.float32):
    return jnp.asarray(np.random.default_rng((seed, *shape)).standard_normal(shape), dtype)


def close(actual, expected, tolerance=1e-5):
    actual, expected = testing.widest(actual), testing.widest(expected)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * max(1.0, np.abs(expected).max(initial=0)))


def whole(x, w, dilation=1, groups=1):
    """The oracle of a causal convolution, for `w (k, I, O)` or `(k, C)`."""
    w = np.asarray(w)
    full, groups = (w[:, None], w.shape[1]) if w.ndim == 2 else (w, groups)
    pads = (((len(w) - 1) * dilation, 0),)
    return testing.direct_conv(
        x, full, testing.case("", x.shape, full.shape, pads=pads, rhs_dilation=dilation, groups=groups).spec
    )


# kernel for four channels, dilation, groups
KERNELS = {
    "width 1": ((1, 4), 1, 1),
    "width 2, dilated": ((2, 4), 7, 1),
    "width 4, depthwise": ((4, 4), 2, 1),
    "width 5, grouped": ((5, 2, 6), 3, 2),
    "width 3, dense": ((3, 4, 3), 2, 1),
    "width 4, multiplied": ((4, 1, 8), 1, 4),
}
KERNEL = pytest.mark.parametrize(("kernel", "dilation", "groups"), KERNELS.values(), ids=KERNELS)


# --- causal_conv with a state -----------------------------------------------------------------------------------------


@KERNEL
@pytest.mark.parametrize("cuts", [(0, 1, 3, 13, 13)], ids=str)
def test_pieces_of_any_length_equal_the_whole(kernel, dilation, groups, cuts):
    x, w, bias = normal(2, 23, 4), normal(*kernel), normal(kernel[1] if len(kernel) == 2 else kernel[2])
    zero = zeros((2, (len(w) - 1) * dilation, 4))

    @jax.jit
    def run(x, state):
        pieces = []
        for piece in jnp.split(x, cuts, axis=1):
            y, state = convjax.causal_conv(
                piece, w, state=state, bias=bias, activation="silu", dilation=dilation, groups=groups
            )
            pieces.append(y)
        return jnp.concatenate(pieces, 1), state

    y, state = run(x, zero)
    close(y, jax.nn.silu(whole(x, w, dilation, groups) + bias))
    np.testing.assert_array_equal(state, np.concatenate([zero, x], 1)[:, 23:])


@KERNEL
def test_steps_equal_the_whole_in_a_scan(kernel, dilation, groups):
    x, w = normal(23, 2, 4), normal(*kernel)
    bias = normal(kernel[1] if len(kernel) == 2 else kernel[2])
    prompt, rest = x[:6].swapaxes(0, 1), x[6:]
    start, state = convjax.causal_conv(prompt, w, dilation=dilation, groups=groups, return_state=True)

    def step(state, now):
        y, state = causal_conv_update(now, state, w, bias=bias, activation="silu", dilation=dilation, groups=groups)
        return state, y

    _, y = jax.jit(lambda state: jax.lax.scan(step, state, rest))(state)
    expected = whole(x.swapaxes(0, 1), w, dilation, groups)
    close(start, expected[:, :6])
    close(y.swapaxes(0, 1), jax.nn.silu(expected[:, 6:] + bias))


def test_a_state_serves_any_batch_layout_and_stride():
    x, w = normal(2, 3, 12, 4), normal(3, 4, 5)
    expected, state = convjax.causal_conv(x, w, dilation=2, stride=3, return_state=True)
    assert state.shape == (2, 3, 4, 4)
    first, state = convjax.causal_conv(x[:, :, :6], w, dilation=2, stride=3, return_state=True)
    second, _ = convjax.causal_conv(
        x[:, :, 6:].swapaxes(2, 3), w, dilation=2, stride=3, state=state, layout="channels_first"
    )
    close(jnp.concatenate([first, second.swapaxes(2, 3)], 2), expected)
    close(causal_conv_update(x[0, 0, 0], zeros((2, 4)), w)[0], convjax.causal_conv(x[0, 0, :1], w)[0])


def test_sixteen_bit_pieces_equal_the_whole():
    x, w = normal(1, 10, 4, dtype=jnp.bfloat16), normal(4, 4, dtype=jnp.bfloat16)
    first, state = convjax.causal_conv(x[:, :7], w, return_state=True)
    second, state = convjax.causal_conv(x[:, 7:], w, state=state)
    assert state.dtype == second.dtype == jnp.bfloat16
    close(jnp.concatenate([first, second], 1), whole(x, w), 1e-2)


def test_the_state_is_that_of_the_decoding_layer():
    layer, x = convjax.nnx.CausalConv(4, 3, 3, kernel_dilation=2, rngs=nnx.Rngs(0)), normal(2, 9, 4)
    layer.init_cache(x.shape)
    layer(x, decode=True)
    _, state = convjax.causal_conv(x, layer.kernel[...], dilation=2, return_state=True)
    np.testing.assert_array_equal(state, layer.cached_inputs[...])


def test_the_gradient_goes_through_the_state():
    x, w, weights = normal(1, 11, 4), normal(3, 4, 2), normal(1, 11, 2)

    def loss(x, w):
        first, state = convjax.causal_conv(x[:, :5], w, dilation=2, return_state=True)
        second, _ = convjax.causal_conv(x[:, 5:], w, dilation=2, state=state)
        return jnp.sum(jnp.concatenate([first, second], 1) * weights)

    once = lambda x, w: jnp.sum(convjax.causal_conv(x, w, dilation=2) * weights)
    expected = jax.jit(jax.grad(once, (0, 1)))(x, w)
    for actual, gradient in zip(jax.jit(jax.grad(loss, (0, 1)))(x, w), expected, strict=True):
        close(actual, gradient)


# --- packed sequences -------------------------------------------------------------------------------------------------

LENGTHS = (1, 7, 2, 9)
IDS = jnp.repeat(jnp.array([3, 0, 4, 1]), jnp.array(LENGTHS))


@KERNEL
def test_packed_sequences_equal_separate_ones(kernel, dilation, groups):
    x, w, bias = normal(2, 19, 4), normal(*kernel), normal(kernel[1] if len(kernel) == 2 else kernel[2])
    ids = jnp.stack([IDS, IDS])
    run = jax.jit(functools.partial(convjax.causal_conv, activation="silu", dilation=dilation, groups=groups))
    y = run(x, w, bias=bias, segment_ids=ids)
    separate = [whole(part, w, dilation, groups) for part in np.split(x, np.cumsum(LENGTHS)[:-1], axis=1)]
    close(y, jax.nn.silu(np.concatenate(separate, 1) + bias))


@pytest.mark.parametrize("kernel", ["width 4, depthwise", "width 5, grouped"])
def test_packed_sequences_have_the_gradients_of_separate_ones(kernel):
    shape, dilation, groups = KERNELS[kernel]
    x, w, weights = normal(19, 4), normal(*shape), normal(19, shape[-1])
    run = functools.partial(convjax.causal_conv, dilation=dilation, groups=groups)
    packed = lambda x, w: run(x, w, segment_ids=IDS)
    separate = lambda x, w: jnp.concatenate([run(part, w) for part in jnp.split(x, np.cumsum(LENGTHS)[:-1])])
    gradients = lambda f: jax.jit(jax.grad(lambda x, w: jnp.sum(f(x, w) * weights), (0, 1)))(x, w)
    for actual, expected in zip(gradients(packed), gradients(separate), strict=True):
        close(actual, expected)


@pytest.mark.parametrize("kernel", [(4, 4), (3, 4, 2)], ids=["depthwise", "dense"])
def test_not_even_nan_crosses_from_one_sequence_to_another(kernel):
    x, w = normal(19, 4), normal(*kernel)
    sick = x.at[1:8].set(jnp.nan)  # the second sequence
    run = jax.jit(lambda x: convjax.causal_conv(x, w, dilation=2, segment_ids=IDS))
    healthy = np.asarray(IDS) != 0
    np.testing.assert_array_equal(run(sick)[healthy], run(x)[healthy])
    assert np.isnan(run(sick)[~healthy]).all()
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(run(x) ** 2)))
    np.testing.assert_array_equal(gradient(sick)[healthy], gradient(x)[healthy])


def test_segments_with_a_stride_and_channels_first():
    x, w = normal(1, 19, 4), normal(3, 4, 2)
    run = functools.partial(convjax.causal_conv, w=w, stride=2, segment_ids=IDS[None])
    expected = convjax.causal_conv(x, w, segment_ids=IDS[None])[:, ::2]
    close(run(x), expected)
    close(run(x.swapaxes(1, 2), layout="channels_first"), expected.swapaxes(1, 2))


def test_an_id_that_returns_is_the_same_segment():
    x, w = jnp.array([[1.0], [10.0], [100.0]]), ones((3, 1))
    y = convjax.causal_conv(x, w, segment_ids=jnp.array([5, 6, 5]))
    np.testing.assert_array_equal(y[:, 0], [1, 10, 101])


def test_an_empty_signal_with_segments_is_empty():
    assert convjax.causal_conv(zeros((2, 0, 4)), ones((3, 4)), segment_ids=zeros((2, 0), int)).shape == (2, 0, 4)


# --- stream_conv ------------------------------------------------------------------------------------------------------


def streamed(stream, x):
    """All of `x (*batch, T, C)` through a scan over chunks, the last one filled up with zeros."""
    length, batch = x.shape[-2], x.shape[:-2]
    count = -(-length // stream.block)
    x = jnp.pad(x, [(0, 0)] * len(batch) + [(0, count * stream.block - length), (0, 0)])
    chunks = jnp.moveaxis(x.reshape(*batch, count, stream.block, x.shape[-1]), -3, 0)
    _, y = jax.lax.scan(stream.step, stream.init(batch), chunks)
    y = jnp.moveaxis(y, 0, -3)
    return y.reshape(*batch, count * stream.block, y.shape[-1])[..., :length, :]


# kernel for four channels, groups
RESPONSES = {
    "129": ((129, 4), 1),
    "151, dense": ((151, 4, 3), 1),
    "151, grouped": ((151, 2, 6), 2),
    "129, multiplied": ((129, 1, 8), 4),
    "width 3, dense": ((3, 4, 5), 1),
}


@pytest.mark.parametrize("algorithm", ["direct", "partitioned"])
@pytest.mark.parametrize("block", [13, 160])
@pytest.mark.parametrize(("kernel", "groups"), RESPONSES.values(), ids=RESPONSES)
def test_chunks_equal_the_whole_signal(kernel, groups, block, algorithm):
    x, w = normal(2, 331, 4), normal(*kernel)
    stream = stream_conv(w, block=block, groups=groups, algorithm=algorithm)
    assert stream.algorithm == algorithm
    close(jax.jit(streamed)(stream, x), whole(x, w, groups=groups), 2e-6)


@pytest.mark.parametrize("algorithm", ["direct", "partitioned"])
def test_a_block_of_one_is_a_step(algorithm):
    x, w = normal(12, 4), normal(5, 4)
    close(streamed(stream_conv(w, block=1, algorithm=algorithm), x), whole(x[None], w)[0])


@pytest.mark.parametrize("algorithm", ["direct", "partitioned"])
def test_a_stream_has_gradients(algorithm):
    x, w, weights = normal(70, 2), normal(33, 2, 3), normal(70, 3)
    gradients = lambda run: jax.jit(jax.grad(lambda x, w: jnp.sum(run(x, w) * weights), (0, 1)))(x, w)
    run = lambda x, w: streamed(stream_conv(w, block=8, algorithm=algorithm), x)
    for actual, expected in zip(gradients(run), gradients(convjax.causal_conv), strict=True):
        close(actual, expected)


@pytest.mark.parametrize("algorithm", ["direct", "partitioned"])
def test_a_stream_is_a_pytree_for_jit_and_vmap(algorithm):
    x, w = normal(3, 40, 2), normal(19, 2)
    stream = stream_conv(w, block=8, algorithm=algorithm)
    step = jax.jit(lambda stream, state, chunk: stream.step(state, chunk))
    state, outputs = stream.init((3,)), []
    for chunk in jnp.split(x, 5, axis=1):
        state, y = step(stream, state, chunk)
        outputs.append(y)
    close(jnp.concatenate(outputs, 1), whole(x, w))
    kernels = normal(3, 19, 2, seed=1)
    each = jax.jit(jax.vmap(lambda x, w: streamed(stream_conv(w, block=8, algorithm=algorithm), x)))(x, kernels)
    close(each, np.concatenate([whole(x[i : i + 1], kernels[i]) for i in range(3)]))


@pytest.mark.parametrize("name", ["bfloat16", "complex64", "int32"])
def test_a_stream_keeps_the_dtype(name):
    dtype, rng = jnp.dtype(name), np.random.default_rng(0)
    x, w = (jnp.asarray(testing.draw(rng, shape, dtype)) for shape in ((1, 80, 2), (40, 2)))
    stream = stream_conv(w, block=16)
    assert stream.algorithm == ("direct" if dtype == jnp.int32 else "partitioned")
    y = jax.jit(streamed)(stream, x)
    assert y.dtype == dtype
    close(y, whole(x, w), 1e-2 if dtype == jnp.bfloat16 else 1e-5)


def test_auto_partitions_long_responses_alone():
    kernel = lambda k, mixed: jax.ShapeDtypeStruct((k, *mixed, 2), jnp.float32)
    chosen = lambda k, block, *mixed: (
        jax.eval_shape(functools.partial(stream_conv, block=block), kernel(k, mixed)).algorithm
    )
    assert {chosen(4096, 64), chosen(48000, 512), chosen(129, 32), chosen(512, 64, 2)} == {"partitioned"}
    assert {chosen(4, 64), chosen(129, 160), chosen(4096, 1), chosen(24, 16), chosen(512, 16, 2)} == {"direct"}


# --- errors -----------------------------------------------------------------------------------------------------------

X, W = ones((2, 8, 4)), ones((3, 4))
STREAM = stream_conv(W, block=8)
ERRORS = {
    "width of a state": (lambda: convjax.causal_conv(X, W, state=zeros((2, 3, 4))), ValueError, "see 2 inputs"),
    "batch of a state": (lambda: convjax.causal_conv(X, W, state=zeros((1, 2, 4))), ValueError, "(2, 2, 4)"),
    "dilation of a state": (
        lambda: convjax.causal_conv(X, W, state=zeros((2, 2, 4)), dilation=3),
        ValueError,
        "jnp.zeros((2, 6, 4)",
    ),
    "dtype of a state": (
        lambda: convjax.causal_conv(X, W, state=zeros((2, 2, 4), jnp.bfloat16)),
        TypeError,
        "state.astype",
    ),
    "flag": (lambda: convjax.causal_conv(X, W, return_state=1), TypeError, "return_state=True"),
    "state and segments": (
        lambda: convjax.causal_conv(X, W, return_state=True, segment_ids=zeros((2, 8), int)),
        ValueError,
        "Leave one",
    ),
    "shape of segments": (lambda: convjax.causal_conv(X, W, segment_ids=zeros(8, int)), ValueError, "(2, 8)"),
    "dtype of segments": (lambda: convjax.causal_conv(X, W, segment_ids=zeros((2, 8))), TypeError, "jnp.int32"),
    "width in a step": (lambda: causal_conv_update(X[:, 0], zeros((2, 3, 4)), W), ValueError, "(2, 2, 4)"),
    "step without a state": (lambda: causal_conv_update(X[:, 0], None, W), TypeError, "jnp.zeros"),
    "step without channels": (lambda: causal_conv_update(1.0, zeros((2, 4)), W), ValueError, "x[None]"),
    "channels in a step": (lambda: causal_conv_update(X[:, 0, :3], zeros((2, 2, 3)), W), ValueError, "3 channels of x"),
    "empty chunk": (lambda: STREAM.step(STREAM.init((2,)), X[:, :0]), ValueError, "(2, 0, 4)"),
    "length of a chunk": (lambda: STREAM.step(STREAM.init((2,)), X[:, :5]), ValueError, "pad the last"),
    "channels of a chunk": (lambda: STREAM.step(STREAM.init((2,)), X[..., :3]), ValueError, "(*batch, 8, 4)"),
    "dtype of a chunk": (lambda: STREAM.step(STREAM.init((2,)), X.astype(int)), TypeError, "jnp.float32"),
    "batch of a stream": (lambda: STREAM.step(STREAM.init((3,)), X), ValueError, "stream.init((2,))"),
    "another stream's state": (
        lambda: STREAM.step(stream_conv(W, block=8, algorithm="partitioned").init((2,)), X),
        ValueError,
        "stream.init((2,))",
    ),
    "block": (lambda: stream_conv(W, block=0), ValueError, "block must be at least 1"),
    "algorithm": (lambda: stream_conv(W, block=8, algorithm="fft"), ValueError, "'partitioned'"),
    "axes of a kernel": (lambda: stream_conv(ones(3), block=8), ValueError, "(k, C)"),
    "no taps": (lambda: stream_conv(ones((0, 4)), block=8), ValueError, "no taps"),
    "groups of a kernel": (lambda: stream_conv(ones((3, 2, 5)), block=8, groups=2), ValueError, "groups=2"),
    "integers in parts": (
        lambda: stream_conv(ones((9, 4), int), block=4, algorithm="partitioned"),
        ValueError,
        "'direct'",
    ),
}


@pytest.mark.parametrize(("call", "kind", "part"), ERRORS.values(), ids=ERRORS)
def test_what_does_not_fit_is_refused(call, kind, part):
    with pytest.raises(kind, match=re.escape(part)) as caught:
        call()
    assert re.match(r"[\w.]+: ", str(caught.value)), "the message opens with the function's name"
