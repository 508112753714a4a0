"""Padding: which zeros a name or number means, what else may lie beyond the border, and who calls it what."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
from jax import lax

import convjax
from convjax._core.padding import MODES, NAMES, pads
from convjax.testing import case, direct_conv

close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)


def normal(*shape):
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def conv1d(x, w, **options):
    """A 1-D signal with a 1-D filter."""
    return convjax.conv(np.asarray(x)[:, None], np.asarray(w)[:, None, None], **options)[:, 0]


def valid(x, w, stride, dilation=1):
    """The direct sum over an input (1, n, C) that is padded already."""
    return direct_conv(x, w, case("", x.shape, w.shape, stride=stride, rhs_dilation=dilation).spec)


# --- the arithmetic of names ------------------------------------------------------------------------------------------

GRID = tuple(itertools.product(range(1, 9), range(1, 6), range(1, 4), range(1, 5)))  # size, taps, dilation, stride


def pads_by_hand(name, size, reach, stride):
    """`lo, hi` from the definitions, `reach` being the dilated kernel size."""
    short = max(0, (-(-size // stride) - 1) * stride + reach - size)
    return {
        "SAME": (short // 2, short - short // 2),
        "SAME_LOWER": (short - short // 2, short // 2),
        "VALID": (0, 0),
        "FULL": (reach - 1, reach - 1),
        "CAUSAL": (reach - 1, 0),
    }[name]


@pytest.mark.parametrize("name", NAMES)
def test_names_mean_what_their_definitions_say(name):
    for size, k, dilation, stride in GRID:
        reach = (k - 1) * dilation + 1
        for given in (name, name.lower()):
            found = pads("", given, [size, 7], [reach, 1], [stride, 1])
            assert found[0] == pads_by_hand(name, size, reach, stride), (size, k, dilation, stride)


@pytest.mark.parametrize("name", ["SAME", "SAME_LOWER", "VALID"])
def test_names_that_lax_has_mean_the_same_there(name):
    for size, k, dilation, stride in GRID:
        reach = (k - 1) * dilation + 1
        assert pads("", name, [size], [reach], [stride]) == tuple(lax.padtype_to_pads([size], [reach], [stride], name))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("k", "dilation", "stride"), [(2, 1, 1), (2, 3, 2), (4, 1, 3), (3, 2, 2), (5, 1, 2)], ids=str)
def test_names_in_use_even_effective_kernels_too(name, k, dilation, stride):
    x, w = normal(1, 9, 2), normal(k, 2, 3)
    lo, hi = pads_by_hand(name, 9, (k - 1) * dilation + 1, stride)
    y = convjax.conv(x, w, stride=stride, dilation=dilation, padding=name)
    close(y, valid(np.pad(x, ((0, 0), (lo, hi), (0, 0))), w, stride, dilation))


def test_same_depends_on_size_and_stride():
    """The odd zero comes last (first for SAME_LOWER), and moves as the stride changes what is short."""
    box = np.ones(3, np.float32)
    close(conv1d([1, 2, 3, 4, 5, 6.0], box, stride=1), [3, 6, 9, 12, 15, 11])
    close(conv1d([1, 2, 3, 4, 5, 6.0], box, stride=2), [6, 12, 11])  # pads (0, 1)
    close(conv1d([1, 2, 3, 4, 5, 6.0], box, stride=2, padding="SAME_LOWER"), [3, 9, 15])  # pads (1, 0)
    close(conv1d([1, 2, 3, 4, 5.0], box, stride=2), [3, 9, 9])  # pads (1, 1)


def test_same_with_input_dilation_counts_the_dilated_input():
    x, w = normal(1, 5, 2), normal(4, 2, 3)
    dilated = np.zeros((1, 9, 2), np.float32)
    dilated[:, ::2] = x
    close(convjax.conv(x, w, input_dilation=2), convjax.conv(dilated, w))


# --- numbers ----------------------------------------------------------------------------------------------------------

NUMBERS = (
    (1, ((1, 1), (1, 1))),
    (0, ((0, 0), (0, 0))),
    (np.int64(2), ((2, 2), (2, 2))),
    ((1, 2), ((1, 1), (2, 2))),
    ([1, (2, 0)], ((1, 1), (2, 0))),
    (((1, 0), (0, 3)), ((1, 0), (0, 3))),
    (np.array([[1, 0], [0, 3]]), ((1, 0), (0, 3))),
    (-1, ((-1, -1), (-1, -1))),
    (((-2, 3), (1, -1)), ((-2, 3), (1, -1))),
)


@pytest.mark.parametrize(("given", "meant"), NUMBERS, ids=str)
def test_numbers(given, meant):
    x, w = normal(1, 8, 7, 2), normal(3, 2, 2, 3)
    expected = direct_conv(x, w, case("", x.shape, w.shape, pads=meant).spec)
    close(convjax.conv(x, w, padding=given), expected)


def test_negative_pads_crop():
    x, w = normal(1, 9, 8, 2), normal(3, 3, 2, 3)
    close(convjax.conv(x, w, padding=((-2, -1), (0, -3))), convjax.conv(x[:, 2:-1, :-3], w, padding="VALID"))


def test_negative_pads_crop_the_dilated_input():
    x, w = normal(1, 5, 2), normal(2, 2, 3)
    dilated = np.zeros((1, 9, 2), np.float32)
    dilated[:, ::2] = x
    y = convjax.conv(x, w, input_dilation=2, padding=((-1, -2),))
    close(y, convjax.conv(dilated[:, 1:-2], w, padding="VALID"))


@pytest.mark.parametrize("padding", [*NAMES, 0, 1, ((3, 0),)], ids=str)
@pytest.mark.parametrize("shape", [(0, 5, 2), (2, 0, 2)], ids=str)
def test_empty_inputs_have_an_output_and_zero_gradients(shape, padding):
    total = lambda x, w: convjax.conv(x, w, padding=padding).sum()
    value, (dx, dw) = jax.value_and_grad(total, (0, 1))(jnp.zeros(shape), jnp.ones((3, 2, 4)))
    assert value == 0
    np.testing.assert_array_equal(dx, np.zeros(shape, np.float32), strict=True)
    np.testing.assert_array_equal(dw, np.zeros((3, 2, 4), np.float32), strict=True)


def test_a_kernel_beyond_the_padded_input_is_an_error_where_lax_gives_nothing():
    x, w = jnp.ones((1, 4, 2)), jnp.ones((5, 2, 3))
    empty = lax.conv_general_dilated(x, w, (1,), "VALID", dimension_numbers=("NHC", "HIO", "NHC"))
    assert empty.shape == (1, 0, 3)
    with pytest.raises(ValueError, match="the kernel is larger than the padded input"):
        convjax.conv(x, w, padding="VALID")
    assert convjax.conv(x, w, padding=((1, 0),)).shape == (1, 1, 3)


# --- other things than zeros ------------------------------------------------------------------------------------------

NUMPY_MODES = {"reflect": "reflect", "symmetric": "symmetric", "replicate": "edge", "circular": "wrap"}


def numpy_pad(x, widths, mode):
    """`np.pad` on the spatial axes alone, by our name for the mode."""
    widths = ((0, 0), *widths, (0, 0))
    if mode in NUMPY_MODES:
        return np.pad(x, widths, mode=NUMPY_MODES[mode])
    return np.pad(x, widths, constant_values=0 if mode == "zeros" else mode)


def test_every_mode_is_in_the_table():
    assert set(MODES) == {*NUMPY_MODES, "zeros"}


@pytest.mark.parametrize("mode", [*NUMPY_MODES, "zeros", 3, -1.5], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", ["SAME", "CAUSAL", ((3, 1),)], ids=str)
def test_modes_are_those_of_numpy(mode, stride, padding):
    """With a name, the width is what the name means with this stride (not Flax's fixed `(k - 1) // 2, k // 2`)."""
    x, w = normal(1, 8, 2), normal(4, 2, 3)
    widths = padding if isinstance(padding, tuple) else (pads_by_hand(padding, 8, 4, stride),)
    y = convjax.conv(x, w, stride=stride, padding=padding, padding_mode=mode)
    close(y, valid(numpy_pad(x, widths, mode), w, stride))


def test_full_wraps_around_as_well():
    x, w = normal(1, 6, 2), normal(4, 2, 3)
    y = convjax.conv(x, w, padding="FULL", padding_mode="circular")
    close(y, valid(np.pad(x, ((0, 0), (3, 3), (0, 0)), mode="wrap"), w, 1))


def test_circular_same_is_periodic():
    x, w = normal(1, 6, 1), normal(3, 1, 1)
    y = convjax.conv(x, w, padding_mode="circular")
    close(convjax.conv(np.roll(x, 2, 1), w, padding_mode="circular"), np.roll(y, 2, 1))


MIXED = (("circular", "reflect"), ("zeros", "replicate"), (2.0, "symmetric"), (0, 5), (5, 0))


@pytest.mark.parametrize("modes", MIXED, ids=str)
def test_one_mode_an_axis(modes):
    x, w = normal(2, 7, 6, 2), normal(3, 4, 2, 3)
    widths = ((2, 1), (0, 3))
    padded = numpy_pad(numpy_pad(x, (widths[0], (0, 0)), modes[0]), ((0, 0), widths[1]), modes[1])
    close(convjax.conv(x, w, padding=widths, padding_mode=modes), convjax.conv(padded, w, padding="VALID"))


@pytest.mark.parametrize("mode", [*NUMPY_MODES, 4], ids=str)
def test_a_negative_pad_crops_after_the_mode_has_padded_the_other_end(mode):
    x, w = normal(1, 7, 2), normal(2, 2, 3)
    padded = numpy_pad(x, ((0, 3),), mode)[:, 2:]
    close(convjax.conv(x, w, padding=((-2, 3),), padding_mode=mode), convjax.conv(padded, w, padding="VALID"))


@pytest.mark.parametrize("mode", [*NUMPY_MODES, 4], ids=str)
def test_gradients_pass_through_the_mode(mode):
    x, w, ct = normal(1, 5, 2), normal(4, 2, 3), normal(1, 5, 3)
    jacobian_in_pads = jax.vjp(lambda x: convjax.conv(x, w, padding="VALID"), numpy_pad(x, ((1, 2),), mode))[1](ct)[0]
    grad = jax.vjp(lambda x: convjax.conv(x, w, padding_mode=mode), x)[1](ct)[0]
    where = np.pad(np.arange(5), (1, 2), mode=NUMPY_MODES[mode]) if mode in NUMPY_MODES else [-1, *range(5), -1, -1]
    expected = np.zeros_like(x)
    for source, column in zip(where, np.moveaxis(np.asarray(jacobian_in_pads), 1, 0), strict=True):
        if source >= 0:
            expected[:, source] += column
    close(grad, expected)


def test_a_constant_beyond_the_border_keeps_the_dtype():
    x, w = jnp.ones((1, 3, 1), jnp.bfloat16), jnp.ones((3, 1, 1), jnp.bfloat16)
    y = convjax.conv(x, w, padding_mode=0.5)
    assert y.dtype == jnp.bfloat16
    close(np.asarray(y[0, :, 0], np.float32), [2.5, 3, 2.5])


# --- what others call it ----------------------------------------------------------------------------------------------

# scipy.ndimage's name: ours. Its reflect repeats the edge, which numpy calls symmetric; its mirror is our reflect.
NDIMAGE = {
    "reflect": "symmetric",
    "grid-mirror": "symmetric",
    "mirror": "reflect",
    "nearest": "replicate",
    "grid-wrap": "circular",
    "constant": "zeros",
}


@pytest.mark.parametrize("theirs", NDIMAGE)
def test_names_of_scipy_ndimage(theirs):
    x, w = normal(8, 7), normal(5, 3)
    y = convjax.conv(x[..., None], w[..., None, None], padding_mode=NDIMAGE[theirs])[..., 0]
    close(y, scipy.ndimage.correlate(x, w, mode=theirs))


def test_same_of_numpy_scipy_signal_and_scipy_ndimage_for_an_even_kernel():
    """Three meanings of "same": the first input's length (scipy), the longer's (numpy), and two centres."""
    x, k = np.array([1.0, 2, 3, 4], np.float32), np.array([1.0, 10], np.float32)
    close(scipy.signal.convolve(x, k, "same"), [1, 12, 23, 34])
    close(conv1d(x, k, padding="SAME_LOWER", flip_kernel=True), [1, 12, 23, 34])
    close(scipy.ndimage.convolve(x, k, mode="constant"), [12, 23, 34, 40])
    close(conv1d(x, k, padding="SAME", flip_kernel=True), [12, 23, 34, 40])
    assert conv1d(k, x).shape == (2,)
    assert np.convolve(k, x, "same").shape == (4,)


@pytest.mark.parametrize("mode", ["reflect", "symmetric", "replicate", "circular"])
def test_a_mode_of_a_symbolic_size(mode):
    """A mirror must be known to show enough."""
    w, x = normal(4, 2, 2), normal(9, 2)
    conv = jax.jit(lambda x: convjax.conv(x, w, padding_mode=mode))
    symbolic = lambda *known: jax.ShapeDtypeStruct(jax.export.symbolic_shape("n, 2", constraints=known), jnp.float32)
    close(jax.export.export(conv)(symbolic("n >= 3")).call(x), conv(x))
    if mode != "replicate":
        with pytest.raises(ValueError, match="n >= "):
            jax.export.export(conv)(symbolic())
