"""Laws of convolution, on problems that hypothesis draws: small integers, on which direct sums are exact."""

from __future__ import annotations

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import convjax

# Each example compiles; derandomized, so that a run is a function of the source.
lawful = functools.partial(settings, derandomize=True, deadline=None, database=None, print_blob=True)
few = lawful(max_examples=15)


@dataclasses.dataclass(frozen=True)
class Problem:
    """Arguments of `convjax.conv` for one spatial size, kernel and set of options."""

    space: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    groups: int
    batch: int
    channels: int  # of a group
    features: int  # of a group

    @property
    def ndim(self):
        return len(self.space)

    @property
    def options(self):
        return dict(stride=self.stride, dilation=self.dilation, padding=self.padding, groups=self.groups)

    def x(self, seed=0):
        return integers((self.batch, *self.space, self.channels * self.groups), seed)

    def w(self, seed=1):
        return integers((*self.kernel, self.channels, self.features * self.groups), seed)


@st.composite
def problems(draw, max_ndim=3):
    n = draw(st.integers(1, max_ndim))
    each = lambda low, high: draw(st.tuples(*[st.integers(low, high)] * n))
    kernel, dilation, stride = each(1, 3), each(1, 2), each(1, 3)
    padding = tuple(zip(each(0, 2), each(0, 2), strict=True))
    windows = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    space = tuple(max(s, w - lo - hi, 1) for s, w, (lo, hi) in zip(each(3, 6), windows, padding, strict=True))
    return Problem(space, kernel, stride, dilation, padding, *draw(st.tuples(*[st.integers(1, 3)] * 4)))


def integers(shape, seed):
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(np.float32)


def same(a, b):
    a, b = np.asarray(a), np.asarray(b)
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1, np.abs(b).max(initial=0)), strict=True)


def conv(x, w, **options):
    return np.asarray(convjax.conv(jnp.asarray(x), jnp.asarray(w), **options))


@few
@given(problems())
def test_linear_in_each_operand(p):
    x, w, y = p.x(), p.w(), conv(p.x(), p.w(), **p.options)
    other_x, other_w = p.x(seed=2), p.w(seed=3)
    same(conv(3 * x - other_x, w, **p.options), 3 * y - conv(other_x, w, **p.options))
    same(conv(x, 2 * w + other_w, **p.options), 2 * y + conv(x, other_w, **p.options))


@few
@given(problems(), st.integers(-3, 3))
def test_shifts_commute_under_circular_padding(p, shift):
    x, w = p.x(), p.w()
    windows = [(k - 1) * d + 1 for k, d in zip(p.kernel, p.dilation, strict=True)]
    pads = tuple((window // 2, (window - 1) // 2) for window in windows)
    axes = tuple(range(1, p.ndim + 1))
    if all(window // 2 <= size for window, size in zip(windows, p.space, strict=True)):
        circular = dict(padding=pads, padding_mode="circular", dilation=p.dilation, groups=p.groups)
        y = conv(x, w, **circular)
        assert y.shape[1:-1] == p.space
        same(conv(np.roll(x, (shift,) * p.ndim, axes), w, **circular), np.roll(y, (shift,) * p.ndim, axes))


@few
@given(problems())
def test_padding_is_padding(p):
    widths = ((0, 0), *p.padding, (0, 0))
    same(conv(p.x(), p.w(), **p.options), conv(np.pad(p.x(), widths), p.w(), **{**p.options, "padding": "VALID"}))


@few
@given(problems(), st.integers(-2, 0), st.integers(-2, 0))
def test_negative_padding_is_cropping(p, lo, hi):
    windows = [(k - 1) * d + 1 for k, d in zip(p.kernel, p.dilation, strict=True)]
    if all(size + lo + hi >= window for size, window in zip(p.space, windows, strict=True)):
        cropped = p.x()[(slice(None), *(slice(-lo, size + hi) for size in p.space))]
        options = dict(stride=p.stride, dilation=p.dilation, groups=p.groups)
        same(conv(p.x(), p.w(), padding=((lo, hi),) * p.ndim, **options), conv(cropped, p.w(), padding=0, **options))


@few
@given(problems())
def test_flipping_twice_is_nothing(p):
    flipped = np.flip(p.w(), tuple(range(p.ndim)))
    same(conv(p.x(), flipped, flip_kernel=True, **p.options), conv(p.x(), p.w(), **p.options))


@few
@given(problems())
def test_groups_are_a_block_diagonal_kernel(p):
    dense = np.zeros((*p.kernel, p.groups, p.channels, p.groups, p.features), np.float32)
    blocks = p.w().reshape(*p.kernel, p.channels, p.groups, p.features)
    for g in range(p.groups):
        dense[..., g, :, g, :] = blocks[..., g, :]
    dense = dense.reshape(*p.kernel, p.groups * p.channels, p.groups * p.features)
    same(conv(p.x(), p.w(), **p.options), conv(p.x(), dense, **{**p.options, "groups": 1}))


@few
@given(problems())
def test_dilation_is_a_kernel_with_zeros(p):
    spread = np.zeros(
        [(k - 1) * d + 1 for k, d in zip(p.kernel, p.dilation, strict=True)] + list(p.w().shape[-2:]), np.float32
    )
    spread[tuple(slice(None, None, d) for d in p.dilation)] = p.w()
    same(conv(p.x(), p.w(), **p.options), conv(p.x(), spread, **{**p.options, "dilation": 1}))


@few
@given(problems())
def test_input_dilation_is_an_input_with_zeros(p):
    x = p.x()
    spread = np.zeros(
        (p.batch, *((s - 1) * d + 1 for s, d in zip(p.space, p.stride, strict=True)), x.shape[-1]), x.dtype
    )
    spread[(slice(None), *(slice(None, None, d) for d in p.stride))] = x
    options = {**p.options, "stride": 1}
    same(conv(x, p.w(), input_dilation=p.stride, **options), conv(spread, p.w(), **options))


@few
@given(problems())
def test_stride_is_subsampling(p):
    dense = conv(p.x(), p.w(), **{**p.options, "stride": 1})
    same(conv(p.x(), p.w(), **p.options), dense[(slice(None), *(slice(None, None, s) for s in p.stride))])


@few
@given(st.integers(1, 12), st.integers(1, 12))
def test_full_convolution_commutes(m, n):
    """And is numpy's."""
    a, b = integers((m,), 0), integers((n,), 1)
    full = lambda x, w: conv(x[:, None], w[:, None, None], padding="FULL", flip_kernel=True)[:, 0]
    same(full(a, b), full(b, a))
    same(full(a, b), np.convolve(a, b))


@few
@given(problems())
def test_convolution_is_associative(p):
    """A kernel of kernels: x * (v * w) = (x * v) * w, one channel, full padding."""
    x = integers((1, *p.space, 1), 0)
    v, w = integers((1, *p.kernel, 1), 1), integers((*p.kernel[::-1], 1, 1), 2)
    full = functools.partial(conv, padding="FULL", flip_kernel=True)
    kernel = lambda a: np.moveaxis(a, 0, -1)
    same(full(full(x, kernel(v)), w), full(x, kernel(full(v, w))))


@few
@given(problems())
def test_conv_transpose_is_the_adjoint(p):
    """<conv(x, w), y> = <x, conv_transpose(y, w')>, with the same stride, padding, dilation and groups.

    w' has input and output channels exchanged, group by group; `output_shape` says which of the inputs that give an
    output of this size is meant.
    """
    x, w = p.x(), p.w()
    y = integers(conv(x, w, **p.options).shape, 5)
    blocks = w.reshape(*p.kernel, p.channels, p.groups, p.features)
    exchanged = np.moveaxis(blocks, -3, -1).reshape(*p.kernel, p.groups * p.features, p.channels)
    reach = [
        (size - 1) * s + (k - 1) * d + 1 - lo - hi
        for size, s, k, d, (lo, hi) in zip(y.shape[1:-1], p.stride, p.kernel, p.dilation, p.padding, strict=True)
    ]
    assert all(0 <= size - r < s for size, r, s in zip(p.space, reach, p.stride, strict=True))
    back = convjax.conv_transpose(jnp.asarray(y), jnp.asarray(exchanged), output_shape=p.space, **p.options)
    same(np.vdot(conv(x, w, **p.options), y), np.vdot(x, back))
    assert back.shape == x.shape
