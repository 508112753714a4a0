"""`tiled_apply`: in tiles as on the whole image, for layers and networks, and what it refuses."""

from __future__ import annotations

import sys
from fractions import Fraction
from types import SimpleNamespace

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import convjax
import convjax.nnx
from convjax.models import ResNet, UNet
from convjax.tiled import tiled_apply


def draw(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def field(size, stride, start):
    return SimpleNamespace(size=size, stride=stride, start=start)


def check(fn, image, *, expected=None, **options):
    """In tiles and on the whole; returns the number of tiles."""
    counts = []
    y = tiled_apply(fn, image, progress=lambda done, total: counts.append((done, total)), **options)
    expected = jax.jit(lambda x: fn(x))(image) if expected is None else expected
    assert isinstance(y, np.ndarray)
    assert y.dtype == expected.dtype
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    total = len(counts)
    assert counts == [(i + 1, total) for i in range(total)]
    return total


# --- single layers ----------------------------------------------------------------------------------------------------

CONVOLUTIONS = {
    "same": (dict(), 5, field((5,), (1,), (-2,))),
    "same lower, dilated": (dict(padding="SAME_LOWER", dilation=3), 13, field(13, 1, -6)),
    "valid, stride 2": (dict(padding="VALID", stride=2), 5, field([5], [2], [0])),
    "full": (dict(padding="FULL"), 5, field(5, 1, -4)),
    "causal, stride 3": (dict(padding="CAUSAL", stride=3), 5, field(5, 3, -4)),
    "same, stride 3": (dict(stride=3), 5, field(5, 3, -2)),
    "same, stride 4 of an odd size": (dict(stride=4), 5, field(5, 4, -2)),
    "stride beyond the kernel": (dict(stride=7, padding="VALID"), 5, field(5, 7, 0)),
    "cropped": (dict(padding=-3, stride=2), 8, field(5, 2, 3)),
    "input dilated": (dict(input_dilation=2, padding=((3, 4),)), 3, field(3, Fraction(1, 2), Fraction(-3, 2))),
    "reflect": (dict(padding_mode="reflect"), 5, field(5, 1, -2)),
}


@pytest.mark.parametrize(("options", "size", "exact"), CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_a_convolution(options, size, exact):
    w, image = draw(5, 2, 3), draw(2, 61, 2)
    fn = lambda x: convjax.conv(x, w, **options)
    whole = fn(image)
    many = check(fn, image, expected=whole, receptive_field=size, tile=2 * size + 9)
    assert 1 < check(fn, image, expected=whole, receptive_field=exact, tile=2 * size + 9) <= many


@pytest.mark.parametrize("stride", [2, 3])
def test_outputs_larger_than_the_image(stride):
    w = draw(4, 4, 2, 3)
    fn, image = lambda x: convjax.conv_transpose(x, w, stride=stride), draw(1, 23, 17, 2)
    check(fn, image, receptive_field=2, tile=8)
    check(fn, image, receptive_field=field((2, 2), (Fraction(1, stride),) * 2, (-1, -1)), tile=(9, 7))


def test_images_of_three_axes_without_a_batch():
    w = draw(3, 3, 3, 2, 4)
    fn, image = lambda x: convjax.conv(x, w, stride=(1, 2, 1)), draw(11, 13, 6, 2)
    whole = fn(image)
    assert check(fn, image, expected=whole, receptive_field=(3, 3, 3), tile=(7, 8, 6)) > 3
    assert check(fn, image, expected=whole, receptive_field=(3, 3, 3), tile=100) == 1  # larger than the image


LAYERS = st.lists(
    st.tuples(
        st.integers(1, 4),
        st.integers(1, 3),
        st.integers(1, 2),
        st.sampled_from(["SAME", "SAME_LOWER", "VALID", "FULL"]),
    ),
    min_size=1,
    max_size=2,
)


@hypothesis.given(LAYERS, st.integers(60, 99), st.integers(1, 70), st.integers(1, 2))
@hypothesis.settings(max_examples=8, deadline=None, derandomize=True, database=None)
def test_any_stack_of_convolutions(layers, length, tile, multiple):
    """Equal to the whole, or refused as too small with a tile that does."""
    size, jump = 1, 1
    for k, stride, dilation, _ in layers:
        size, jump = size + (k - 1) * dilation * jump, jump * stride

    def fn(x):
        for k, stride, dilation, padding in layers:
            x = jnp.tanh(convjax.conv(x, draw(k, 1, 1), stride=stride, dilation=dilation, padding=padding) + 0.1)
        return x

    options = dict(receptive_field=size, align=jump * multiple)
    image = draw(1, length, 1)
    try:
        check(fn, image, tile=tile, **options)
    except ValueError as error:
        enough = int(str(error).split("Type a tile of ")[1].split(" or more")[0])
        assert enough > tile
        check(fn, image, tile=enough, **options)


# --- networks ---------------------------------------------------------------------------------------------------------


def test_a_unet_of_any_size():
    """Its strides inside are 4, though its outputs have a stride of 1."""
    model = UNet(depth=2, width=2, num_classes=2, batch_norm=True, rngs=nnx.Rngs(0))
    model.eval()
    image = draw(1, 10, 203, 1)
    exact = convjax.analysis.receptive_field(model, image)
    assert exact.size == (47, 47)
    assert check(model, image, receptive_field=exact, tile=(10, 90)) > 3
    with pytest.raises(ValueError, match="grow by whole steps with 2 pixels more"):
        tiled_apply(model, image, receptive_field=47, tile=(10, 120), align=2)


def test_a_receptive_field_that_is_too_small_shows():
    """Else the tests above could not fail."""
    image, fn = draw(1, 60, 1), lambda x: convjax.conv(x, draw(7, 1, 1))
    y = tiled_apply(fn, image, receptive_field=field(5, 1, -2), tile=20)
    wrong = np.abs(y - fn(image))[0, :, 0] > 1e-4
    assert set(np.flatnonzero(wrong)) == {17, 18, 33, 34, 49}  # on both sides of each seam; the last tile begins at 40


def test_stages_of_a_resnet_but_not_what_it_pools():
    model = ResNet(
        block="basic", depths=(1, 1), widths=(4, 6), strides=(1, 2), stem_width=4, num_classes=3, rngs=nnx.Rngs(0)
    )
    model.eval()
    image = draw(1, 131, 64, 3)
    stage = lambda x: model.features(x)["stage2"]
    assert jax.eval_shape(stage, image).shape == (1, 17, 8, 6)
    assert check(stage, image, receptive_field=59, tile=(126, 64)) == 2
    with pytest.raises(ValueError, match=r"reduces the image along spatial axis 0 \(reduce_sum over"):
        tiled_apply(
            lambda x: x + model.features(x)["pooled"].mean(), image, receptive_field=59, tile=(126, 64)
        )  # of the shape of the image, but wrong in tiles
    with pytest.raises(TypeError, match="must return one array of 4 axes"):
        tiled_apply(model, image, receptive_field=59, tile=126)


def test_what_is_centred_on_the_whole_image_is_refused_and_new_weights_are_seen():
    block = convjax.nnx.ConvNormAct(2, 3, (3,), rngs=nnx.Rngs(0))
    block.eval()
    image, options = draw(1, 50, 2), dict(receptive_field=3, tile=20)
    with pytest.raises(ValueError, match="reduces the image along spatial axis 0"):
        tiled_apply(lambda x: block(x - x.mean(1, keepdims=True)), image, **options)
    before = tiled_apply(block, image, **options)
    block.conv.kernel[...] *= 2
    after = tiled_apply(block, image, **options)
    np.testing.assert_allclose(after, block(image), rtol=1e-4, atol=1e-5)
    assert np.abs(after - before).max() > 0.1


# --- memory -----------------------------------------------------------------------------------------------------------


class Recorder:
    """An array that knows what was read of it."""

    def __init__(self, array):
        self.array, self.read = array, []
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, array.ndim

    def __getitem__(self, index):
        self.read.append(self.array[index].shape)
        return self.array[index]


def test_files_are_read_and_written_in_tiles_of_one_shape(tmp_path):
    image = np.memmap(tmp_path / "image", np.dtype(">f4"), "w+", shape=(1, 40, 53, 2))
    image[...] = draw(*image.shape)
    out = np.memmap(tmp_path / "out", np.float64, "w+", shape=(1, 20, 27, 3))
    w, traced = draw(3, 3, 2, 3), []

    def fn(x):
        traced.append(x.shape)
        return convjax.conv(x, w, stride=2)

    recorder = Recorder(image)
    assert tiled_apply(fn, recorder, receptive_field=3, tile=(16, 20), out=out) is out
    assert set(recorder.read) == {(1, 16, 19, 2)}  # 53 and 19 differ by a multiple of the stride
    assert traced.count((1, 16, 19, 2)) == 2  # for its shape, and to be compiled
    np.testing.assert_allclose(out, fn(np.asarray(image, np.float32)), rtol=1e-4, atol=1e-4)


def test_a_function_that_is_compiled_already_and_an_image_on_the_device():
    w = draw(3, 2, 3)
    fn = jax.jit(lambda x: convjax.conv(x, w))
    image = jnp.asarray(draw(30, 2), jnp.bfloat16)
    y = tiled_apply(fn, image.astype(jnp.float32), receptive_field=(3,), tile=12)
    assert fn._cache_size() == 1
    np.testing.assert_allclose(y, fn(image.astype(jnp.float32)), rtol=1e-4, atol=1e-4)
    out = np.zeros((30, 2), np.float32)
    tiled_apply(lambda x: 2 * x, image, receptive_field=(1,), tile=7, out=out)
    np.testing.assert_array_equal(out, 2 * np.asarray(image, np.float32))


def test_progress(capsys, monkeypatch):
    options = dict(receptive_field=1, tile=10)
    tiled_apply(lambda x: x, draw(1, 40, 1), progress=True, **options)
    assert "4/4" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ImportError, match="pip install tqdm"):
        tiled_apply(lambda x: x, draw(1, 40, 1), progress=True, **options)


# --- errors -----------------------------------------------------------------------------------------------------------

FIVE = lambda x: convjax.conv(x, jnp.ones((5, 1, 1)), stride=2)
IMAGE = draw(1, 40, 1)
ERRORS = {
    "no function": (dict(fn=3), TypeError, "fn is 3, which is not callable"),
    "tile": (dict(tile=4), ValueError, r"a tile of 4 along spatial axis 0 is too small.* Type a tile of 10 or more"),
    "align": (dict(align=3), ValueError, r"with 3 pixels more\. Type a multiple"),
    "stride": (
        dict(receptive_field=field(5, 1, -2)),
        ValueError,
        "says a stride of 1 along spatial axis 0, but fn gives",
    ),
    "entries": (dict(receptive_field=field((5, 5), 2, -1)), ValueError, "2 sizes, 1 strides and 1 starts"),
    "global": (dict(receptive_field=field(float("inf"), 1, 0)), ValueError, "no finite number"),
    "axes": (dict(receptive_field=(5, 5, 5)), ValueError, "with 3 spatial axes"),
    "tiles": (dict(tile=(8, 8)), ValueError, r"tile=\(8, 8\) has 2 entries"),
    "no growth": (dict(fn=lambda x: jnp.tile(x[:, :3], (1, 2, 1))), ValueError, "does not grow with spatial axis 0"),
    "tuple": (dict(fn=lambda x: (x, x)), TypeError, "must return one array of 3 axes"),
    "small images differ": (
        dict(fn=lambda x: x if x.shape[1] > 30 else x[:, 1:], receptive_field=1),
        ValueError,
        r"fn gives \(9,\) outputs for a tile of \(10,\), but \(10,\)",
    ),
    "out shape": (dict(out=np.zeros((1, 21, 1))), ValueError, r"out has shape \(1, 21, 1\), but fn gives \(1, 20, 1\)"),
    "out dtype": (dict(out=np.zeros((1, 20, 1), np.int32)), TypeError, "out is int32, but fn gives float32"),
    "in place": (dict(out=IMAGE[:, 20:]), ValueError, "out lies where image does"),
    "text": (dict(image=np.array([[["a"]]])), TypeError, "must hold numbers"),
    "progress": (dict(progress="yes"), TypeError, "progress must be a bool"),
}


@pytest.mark.parametrize(("options", "error", "match"), ERRORS.values(), ids=ERRORS)
def test_errors_say_what_to_type(options, error, match):
    with pytest.raises(error, match=match):
        tiled_apply(**dict(fn=FIVE, image=IMAGE, receptive_field=5, tile=10) | options)


def test_it_does_not_trace():
    with pytest.raises(TypeError, match="outside of jit"):
        jax.jit(lambda x: tiled_apply(FIVE, x, receptive_field=5, tile=10))(IMAGE)
