"""Convolution arithmetic: sizes are those of real outputs, counted by hand, and its inverses invert it."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from convjax.analysis import (
    effective_kernel,
    find_kernel,
    find_padding,
    find_stride,
    output_size,
    output_size_transposed,
)

DRAWN = settings(derandomize=True, deadline=None, database=None, max_examples=60)
SIZES, KERNELS, STEPS = st.integers(1, 40), st.integers(1, 9), st.integers(1, 4)
PADS = st.tuples(st.integers(0, 5), st.integers(0, 5))


def counted(size, kernel, stride, pads, dilation):
    """Places at which all taps are within the padded input."""
    lo, hi = pads
    places = range(-lo, size + hi, stride)
    return sum(place + (kernel - 1) * dilation < size + hi for place in places)


@DRAWN
@given(SIZES, KERNELS, STEPS, PADS, STEPS)
def test_output_size_counts_places(size, kernel, stride, pads, dilation):
    expected = counted(size, kernel, stride, pads, dilation)
    assume(expected)
    assert output_size(size, kernel, stride, (pads,), dilation) == (expected,)


def test_paddings_by_name():
    """SAME: ceil(size / stride); FULL: all overlaps; CAUSAL: as SAME."""
    given = dict(size=(10, 11), kernel=(3, 4), stride=(3, 2))
    sizes = {name: output_size(**given, padding=name) for name in ("SAME", "SAME_LOWER", "VALID", "FULL", "CAUSAL")}
    assert sizes == {
        "SAME": (4, 6),
        "SAME_LOWER": (4, 6),
        "VALID": (3, 4),
        "FULL": (4, 7),
        "CAUSAL": (4, 6),
    }
    assert output_size(7, 4, padding=((1, 2),), input_dilation=2) == (13 + 3 - 3,)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((4, 3, 1, 2), 2),  # Dumoulin and Visin, figures 4.1 to 4.6: the sizes of chapter 2 the other way round
        ((5, 4, 1, 2), 4),
        ((5, 3, 1, 1), 5),
        ((7, 3, 1, 2), 5),
        ((2, 3, 2, 0), 5),
        ((3, 3, 2, 1), 5),
        ((7, 4, 2, "SAME"), 14),
        ((7, 2, 3, "VALID"), 21),
    ],
    ids=str,
)
def test_transposed_sizes(arguments, expected):
    assert output_size_transposed(*arguments) == expected


def test_transposed_with_output_padding():
    assert output_size_transposed((3, 3), 3, 2, 1, output_padding=(1, 0)) == (6, 5)


@pytest.mark.parametrize(("dilation", "expected"), [(1, 3), (2, 5), (3, 7)])
def test_effective_kernel(dilation, expected):
    assert effective_kernel(3, dilation) == expected


@DRAWN
@given(SIZES, KERNELS, KERNELS, STEPS, STEPS)
def test_find_padding_is_the_least(size, out, kernel, stride, dilation):
    lo, hi = find_padding(size, out, kernel, stride, dilation)
    assert counted(size, kernel, stride, (lo, hi), dilation) == out or lo + hi < 0
    assert 0 <= hi - lo <= 1
    if lo + hi > 0:
        assert counted(size, kernel, stride, (lo, hi - 1), dilation) < out
    if lo + hi < 0:
        assert output_size(size, kernel, stride, ((lo, hi),), dilation) == (out,)
        assert counted(size, kernel, stride, (0, 0), dilation) > out


@DRAWN
@given(SIZES, KERNELS, STEPS)
def test_find_padding_of_same_is_same(size, kernel, stride):
    assume(kernel >= stride)
    assert output_size(size, kernel, stride, (find_padding(size, -(-size // stride), kernel, stride),)) == output_size(
        (size,), kernel, stride, "SAME"
    )


@DRAWN
@given(SIZES, KERNELS, STEPS, PADS, STEPS)
def test_find_kernel_is_the_largest(size, kernel, stride, pads, dilation):
    out = counted(size, kernel, stride, pads, dilation)
    assume(out)
    (found,) = find_kernel(size, out, stride, (pads,), dilation)
    assert found >= kernel
    assert counted(size, found, stride, pads, dilation) == out
    assert counted(size, found + 1, stride, pads, dilation) < out


@DRAWN
@given(SIZES, KERNELS, STEPS, PADS, STEPS)
def test_find_stride_is_the_least(size, kernel, stride, pads, dilation):
    out = counted(size, kernel, stride, pads, dilation)
    assume(out)
    (found,) = find_stride(size, out, kernel, (pads,), dilation)
    assert found <= stride
    assert counted(size, kernel, found, pads, dilation) == out
    assert found == 1 or counted(size, kernel, found - 1, pads, dilation) != out


def test_several_axes_and_names_for_paddings():
    assert find_padding((28, 28), (28, 14), 3, (1, 2)) == ((1, 1), (0, 1))
    assert find_kernel((28, 9), (24, 9), padding="VALID") == (5, 1)
    assert find_stride((32, 32), (16, 8), (2, 4)) == (2, 4)
    assert find_stride(10, 12, 3, "FULL") == find_stride(10, 10, 3, "CAUSAL") == 1


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: output_size(5, 7, padding=0), ValueError, "output_size: the kernel is larger than the padded input"),
        (lambda: output_size((5, 5), (3, 3, 3)), ValueError, "size=(5, 5) has 2 entries"),
        (lambda: output_size(5, 3, 0), ValueError, "stride must be at least 1"),
        (lambda: output_size(5.0, 3), TypeError, "size must be an integer"),
        (lambda: output_size(5, 3, padding="SAM"), ValueError, "'SAME'"),
        (lambda: output_size_transposed(5, 3, 2, output_padding=2), ValueError, "out of reach"),
        (lambda: effective_kernel(0), ValueError, "kernel must be at least 1"),
        (lambda: find_padding(5, 0, 3), ValueError, "out must be at least 1"),
        (lambda: find_kernel(9, 4, stride=3), ValueError, "Type out=3, or"),
        (lambda: find_kernel(9, 4, padding="SAME"), ValueError, "'VALID'"),
        (lambda: find_kernel(10, 4, dilation=4), ValueError, "Type out=6, or"),
        (lambda: find_stride(9, 8, 3), ValueError, "no stride gives out=8"),
        (lambda: find_stride(9, 8, 10), ValueError, "no stride"),
        (lambda: find_stride(9, 8, 3, padding="SAME"), ValueError, "'CAUSAL'"),
    ],
)
def test_errors_say_what_to_type(call, error, words):
    with pytest.raises(error) as caught:
        call()
    assert words in str(caught.value)
