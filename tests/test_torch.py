"""Values and both gradients are those of torch.nn.functional, by torch's own sizes, paddings and kernel layouts."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import convjax

torch = pytest.importorskip("torch", reason="torch, to compare with, is not installed")
F = torch.nn.functional

close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)


def normal(*shape):
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def compare(theirs, our, x, w):
    """Value, and both gradients for the same random cotangent."""
    a, b = (torch.tensor(v, requires_grad=True) for v in (x, w))
    expected = theirs(a, b)
    cotangent = normal(*expected.shape)
    expected.backward(torch.tensor(cotangent))

    @jax.jit
    def value_and_gradients(x, w, cotangent):
        y, pullback = jax.vjp(our, x, w)
        return y, *pullback(cotangent)

    y, *grads = value_and_gradients(x, w, cotangent)
    assert y.shape == tuple(expected.shape)
    close(y, expected.detach())
    for mine, grad in zip(grads, (a.grad, b.grad), strict=True):
        close(mine, grad, rtol=1e-3, atol=1e-3)


def kernel(w, *, transposed=False):
    """Torch's `(O, I / g, *k)`, or `(I, O / g, *k)` when transposed, as ours `(*k, I, O)`."""
    return jnp.moveaxis(w, (0, 1), (-2, -1) if transposed else (-1, -2))


CONV = (
    # input, kernel, options
    ((2, 3, 11), (5, 3, 3), {}),
    ((2, 4, 12), (6, 2, 4), dict(stride=2, padding=3, groups=2)),
    ((1, 3, 15), (3, 1, 5), dict(stride=3, padding=2, dilation=2, groups=3)),
    ((2, 3, 9), (4, 3, 4), dict(padding="same", dilation=3)),
    ((2, 3, 9), (4, 3, 4), dict(padding="valid", stride=2)),
    ((2, 3, 8, 7), (5, 3, 3, 3), dict(padding=1)),
    ((2, 3, 9, 8), (4, 3, 3, 2), dict(stride=(2, 3), padding=(0, 1), dilation=(1, 2))),
    ((1, 6, 7, 6), (12, 1, 3, 3), dict(stride=2, padding=1, groups=6)),
    ((1, 6, 7, 6), (4, 3, 2, 4), dict(padding="same", groups=2)),
    ((6, 3, 7), (4, 6, 2, 2), dict(padding=2)),  # no batch
    ((1, 2, 5, 6, 4), (4, 2, 3, 2, 3), dict(stride=(1, 2, 1), padding=(1, 0, 2), dilation=(1, 2, 1))),
    ((1, 4, 4, 4, 5), (4, 2, 2, 3, 2), dict(padding="same", groups=2)),
)


@pytest.mark.parametrize(("x_shape", "w_shape", "options"), CONV, ids=str)
def test_conv(x_shape, w_shape, options):
    theirs = functools.partial(getattr(F, f"conv{len(w_shape) - 2}d"), **options)
    our = lambda x, w: convjax.conv(x, kernel(w), layout="channels_first", **{"padding": 0, **options})
    compare(theirs, our, normal(*x_shape), normal(*w_shape))


TRANSPOSED = (
    ((2, 3, 7), (3, 5, 3), {}),
    ((2, 4, 6), (4, 3, 4), dict(stride=2, padding=1, groups=2)),
    ((1, 6, 5), (6, 1, 3), dict(stride=3, padding=2, output_padding=2, dilation=2, groups=3)),
    ((2, 3, 5), (3, 4, 2), dict(stride=1, dilation=3, output_padding=2)),
    ((2, 3, 4, 5), (3, 5, 4, 4), dict(stride=2, padding=1)),
    ((1, 4, 4, 3), (4, 2, 3, 2), dict(stride=(2, 3), padding=(1, 0), output_padding=(1, 2), groups=2)),
    ((1, 4, 4, 3), (4, 3, 3, 3), dict(stride=(1, 2), padding=(2, 1), dilation=(2, 1), groups=4)),
    ((3, 5, 4), (3, 2, 2, 3), dict(stride=2)),  # no batch
    ((1, 2, 3, 4, 3), (2, 3, 2, 3, 3), dict(stride=(1, 2, 2), padding=(0, 1, 1), output_padding=(0, 1, 0))),
    ((1, 4, 3, 2, 3), (4, 2, 3, 2, 2), dict(stride=2, padding=1, groups=2)),
)


@pytest.mark.parametrize(("x_shape", "w_shape", "options"), TRANSPOSED, ids=str)
def test_conv_transpose(x_shape, w_shape, options):
    theirs = functools.partial(getattr(F, f"conv_transpose{len(w_shape) - 2}d"), **options)
    our = lambda x, w: convjax.conv_transpose(
        x, kernel(w, transposed=True), layout="channels_first", **{"padding": 0, **options}
    )
    compare(theirs, our, normal(*x_shape), normal(*w_shape))


@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect", "replicate"])
@pytest.mark.parametrize(
    "options",
    [dict(padding=2), dict(padding=(1, 3), stride=2, dilation=(1, 2)), dict(padding="same")],
    ids=str,
)
def test_padding_modes_of_the_layer(mode, options):
    layer = torch.nn.Conv2d(4, 6, (3, 4), padding_mode=mode, groups=2, **options)
    x = normal(2, 4, 8, 9)
    w, bias = (p.detach().numpy() for p in (layer.weight, layer.bias))

    def theirs(x, w):
        return torch.func.functional_call(layer, {"weight": w}, (x,))

    def our(x, w):
        return convjax.conv(x, kernel(w), bias=bias, padding_mode=mode, groups=2, layout="channels_first", **options)

    compare(theirs, our, x, w)


def test_a_layout_of_torch_needs_no_change_of_the_kernel():
    x, w = normal(2, 4, 8, 7), normal(6, 2, 3, 3)
    y = convjax.conv(x, w, groups=2, stride=2, padding=1, layout=("NCHW", "OIHW", "NCHW"))
    close(y, F.conv2d(torch.tensor(x), torch.tensor(w), groups=2, stride=2, padding=1))


def test_same_with_a_stride_is_refused_there_and_means_ceil_of_size_over_stride_here():
    x, w = normal(1, 2, 9), normal(3, 2, 4)
    with pytest.raises(RuntimeError, match="same"):
        F.conv1d(torch.tensor(x), torch.tensor(w), padding="same", stride=2)
    assert convjax.conv(x, kernel(w), padding="same", stride=2, layout="channels_first").shape == (1, 3, 5)


def test_the_odd_zero_of_same_comes_last_in_both():
    x, w = normal(1, 1, 6), normal(1, 1, 4)
    y = convjax.conv(x, kernel(w), padding="same", layout="channels_first")
    close(y, F.conv1d(torch.tensor(x), torch.tensor(w), padding="same"))
    close(y, F.conv1d(F.pad(torch.tensor(x), (1, 2)), torch.tensor(w)))
