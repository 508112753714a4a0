"""Pictures show the numbers that convjax computes, are read in both styles, and refuse what they cannot draw."""

from __future__ import annotations

import contextlib
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="pictures are drawn by matplotlib")

from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

import convjax
from convjax import viz
from convjax.viz._slide import read_slide
from convjax.viz.cones import cone_of
from convjax.viz.spectra import response

RNG = np.random.default_rng(0)
SOBEL = np.array([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])
IMAGE = RNG.integers(0, 10, (5, 6)).astype(np.float32)
KERNELS = RNG.standard_normal((3, 5, 2, 4)).astype(np.float32)
MEASURED = {
    "settings": {"mode": ["forward"], "algorithms": ["auto"], "peers": ["lax", "torch"]},
    "records": [
        {
            "layer": "a",
            "mode": "forward",
            "contenders": {"auto": {"ms": 2.0}, "lax": {"ms": 6.0}, "torch": {"ms": 1.0}},
        },
        {"layer": "b", "mode": "forward", "contenders": {"auto": {"ms": 1.0}, "lax": {"failed": "no"}}},
        {"layer": "c", "mode": "forward", "failed": "no memory"},
        {"layer": "d", "mode": "forward", "contenders": {"auto": {"ms": 4.0}, "lax": {"ms": 2.0}}},
    ],
}


def network(x):
    x = convjax.conv(x, jnp.ones((3, 3, 2, 4)), stride=2)
    return convjax.depthwise_conv(x, jnp.ones((3, 3, 4, 1)))


def records():
    return convjax.analysis.collect(network, jnp.ones((1, 8, 8, 2)))


def linear_head(maps):
    return maps.mean((-3, -2)) @ jnp.array([[1.0, -1.0], [0.0, 2.0]])


PICTURES = {
    "kernels": lambda **on: viz.kernels(KERNELS, **on),
    "kernels, 1-D": lambda **on: viz.kernels(KERNELS[0], **on),
    "feature maps": lambda **on: viz.feature_maps(KERNELS[:, :, 0], **on),
    "feature maps, 1-D": lambda **on: viz.feature_maps(KERNELS[0, :, 0], **on),
    "sliding": lambda **on: viz.sliding(IMAGE, SOBEL, step=8, padding=1, **on),
    "sliding, transposed": lambda **on: viz.sliding(IMAGE[:2, :2], SOBEL, stride=2, transposed=True, **on),
    "cone": lambda **on: viz.receptive_cone([3, (3, 2), (3, 1, 2)], **on),
    "effect": lambda **on: viz.effective_receptive_field(np.outer(*[np.hanning(9)] * 2), receptive_field=7, **on),
    "effect, 1-D": lambda **on: viz.effective_receptive_field(np.hanning(9), receptive_field=7, **on),
    "response": lambda **on: viz.frequency_response(SOBEL[:, 0], **on),
    "response, 2-D": lambda **on: viz.frequency_response(SOBEL, **on),
    "checkerboard": lambda **on: viz.checkerboard(np.ones((2, 3)), **on),
    "samples": lambda **on: viz.deformable_points(IMAGE, np.ones((5, 6, 18)), at=[(1, 1), (3, 4)], **on),
    "im2col": lambda **on: viz.im2col_steps(**on),
    "winograd": lambda **on: viz.winograd_steps(**on),
    "fft": lambda **on: viz.fft_steps(**on),
    "costs": lambda **on: viz.costs(records(), **on),
    "roofline": lambda **on: viz.roofline({"a": (10, 50), "b": (0.5, 2)}, peak_gflops=100, peak_gbs=20, **on),
    "benchmark": lambda **on: viz.benchmark(MEASURED, **on),
    "grad-cam": lambda **on: viz.grad_cam(lambda x: x, linear_head, KERNELS[:, :, 0, :2], **on),
}
ON_AXES = ("cone", "effect", "effect, 1-D", "samples", "roofline", "benchmark")


def drawn(axes):
    """The numbers of the first image of axes."""
    return np.ma.filled(axes.images[0].get_array(), np.nan)


# --- all of them ------------------------------------------------------------------------------------------------------


def contrast(a, b):
    """Of WCAG 2: from 1, the same, to 21, black on white."""
    linear = [np.where((c := np.array(to_rgb(x))) <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) for x in (a, b)]
    low, high = sorted(float(c @ [0.2126, 0.7152, 0.0722]) for c in linear)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("style", ["light", "dark"])
@pytest.mark.parametrize("name", PICTURES)
def test_words_are_read_in_both_styles_and_fit_a_notebook(name, style):
    """Also when the picture is drawn after the style has gone, as Jupyter does it."""
    with viz.style(style):
        figure = PICTURES[name]()
    ground = figure.get_facecolor()
    words = [*figure.texts]
    for axes in figure.axes:
        if axes.get_visible():
            ticks = [*axes.get_xticklabels(), *axes.get_yticklabels()]
            words += [axes.title, axes.xaxis.label, axes.yaxis.label, *ticks]
    written = [word for word in words if word.get_text()]
    assert written
    assert [word.get_text() for word in written if contrast(word.get_color(), ground) < 7] == []
    if style == "light":
        return  # its places are the same, and to draw takes long
    assert figure.get_size_inches()[0] <= 9
    figure.draw_without_rendering()
    whole, box = figure.bbox, figure.get_tightbbox()
    assert box.x0 >= -0.02, "cut at the left"
    assert box.x1 <= whole.width / figure.dpi + 0.02, "cut at the right"


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_go_where_they_are_told_to(name):
    figure = Figure(figsize=(8, 6), layout="constrained")
    if name in ON_AXES:
        axes = figure.subplots(1, 2)
        assert PICTURES[name](ax=axes[1]) is figure
        assert axes[1].get_title() or axes[1].get_xlabel()
        assert not axes[0].has_data()
    else:
        parts = figure.subfigures(1, 2)
        assert PICTURES[name](figure=parts[1]) is parts[1]
        assert parts[1].axes
        assert not parts[0].axes
    with pytest.raises(TypeError, match="Leave it out"):
        PICTURES[name](**{"ax" if name in ON_AXES else "figure": "here"})


def test_style_comes_and_goes():
    import matplotlib

    settings = lambda: {key: value for key, value in matplotlib.rcParams.items() if key != "backend"}
    before = settings()
    with contextlib.suppress(KeyError), viz.style("dark"):
        assert contrast(matplotlib.rcParams["text.color"], matplotlib.rcParams["figure.facecolor"]) > 10
        raise KeyError
    assert settings() == before
    with pytest.raises(ValueError, match="Did you mean 'dark'"), viz.style("drak"):
        pass


def test_jupyter_shows_a_picture_without_pyplot():
    assert viz.receptive_cone([3])._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize(("name", "package"), [("kernels", "matplotlib"), ("SlidingWidget", "anywidget")])
def test_a_missing_package_is_named_with_what_to_type(monkeypatch, name, package):
    for module in ("grids", "_canvas", "themes", "_page", "sliding_widget"):
        monkeypatch.delitem(sys.modules, f"convjax.viz.{module}", raising=False)
        monkeypatch.delattr(viz, module, raising=False)
    for module in [m for m in sys.modules if m.partition(".")[0] == package] + [package]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"viz.{name} needs {package}.*convjax\[notebooks\]"):
        getattr(viz, name)


def test_public_names():
    assert viz.__all__ == sorted(viz.__all__) == dir(viz)
    assert [name for name in viz.__all__ if not callable(getattr(viz, name))] == []
    with pytest.raises(AttributeError, match="kernles"):
        viz.kernles  # noqa: B018


# --- each shows its numbers -------------------------------------------------------------------------------------------


def test_kernels_on_one_scale():
    axes = viz.kernels(KERNELS).axes
    for place, (o, i) in enumerate(np.ndindex(4, 2)):
        np.testing.assert_array_equal(drawn(axes[place]), KERNELS[:, :, i, o])
        assert axes[place].images[0].get_clim() == pytest.approx((-abs(KERNELS).max(), abs(KERNELS).max()))
    np.testing.assert_array_equal(drawn(viz.kernels(KERNELS[0, :, :1]).axes[0]), KERNELS[0, :, 0].T)
    few = viz.kernels(KERNELS, columns=1, limit=3)
    assert len(few.axes) == 3 + 1 + sum(not a.get_visible() for a in few.axes)
    assert "shown: 1 and 3" in few.get_suptitle()
    row = viz.kernels(KERNELS[:, :, :1], columns=3).axes[0].get_gridspec()
    assert (row.nrows, row.ncols) == (2, 3)


def test_feature_maps_on_one_scale():
    maps = KERNELS[:, :, 0]
    axes = viz.feature_maps(maps).axes
    for channel in range(4):
        np.testing.assert_array_equal(drawn(axes[channel]), maps[..., channel])
        assert axes[channel].images[0].get_clim() == pytest.approx((maps.min(), maps.max()))
    np.testing.assert_array_equal(drawn(viz.feature_maps(maps[0]).axes[0]), maps[0].T)


SETTINGS = {
    "plain": dict(),
    "padded": dict(padding=((2, 1), (0, 3)), stride=2),
    "same, dilated": dict(padding="SAME", dilation=2),
    "cropped": dict(padding=-1),
    "transposed": dict(transposed=True, stride=2, padding=1),
    "transposed, dilated": dict(transposed=True, stride=(3, 1), dilation=2, padding=((5, 0), (1, 2))),
}


@pytest.mark.parametrize("one_axis", [False, True], ids=["2-D", "1-D"])
@pytest.mark.parametrize("name", SETTINGS)
def test_sliding_shows_the_output_of_convjax_and_its_products(name, one_axis):
    settings = dict(SETTINGS[name])
    x, w = (IMAGE[0], SOBEL[0].astype(np.float32)) if one_axis else (IMAGE, SOBEL.astype(np.float32) + 0.5)
    if one_axis:
        settings |= {key: value[-1:] for key, value in settings.items() if isinstance(value, tuple)}
    transposed = settings.pop("transposed", False)
    function = convjax.conv_transpose if transposed else convjax.conv
    expected = np.atleast_2d(function(x[..., None], w[..., None, None], **settings)[..., 0])
    step = expected.size // 2
    figure = viz.sliding(x, w, step=step, transposed=transposed, **settings)
    shown = drawn(figure.axes[2])
    np.testing.assert_allclose(shown.ravel()[: step + 1], expected.ravel()[: step + 1], rtol=1e-6)
    assert np.isnan(shown.ravel()[step + 1 :]).all()
    said = figure.texts[0].get_text().replace("\n", " ")
    assert float(said.rpartition("= ")[2]) == pytest.approx(expected.ravel()[step], rel=5e-3)
    terms = [part.strip().split(" · ") for part in said.split("=")[1].split(" + ")]
    total = sum(float(a.strip("()")) * float(b.strip("()")) for a, b in terms)
    assert total == pytest.approx(expected.ravel()[step])
    slide = read_slide("", x, w, **({"stride": 1, "padding": "SAME", "dilation": 1} | settings), transposed=transposed)
    sums = [(slide.field[np.ix_(*slide.window(i))] * slide.kernel).sum() for i in range(expected.size)]
    np.testing.assert_allclose(sums, expected.ravel(), rtol=1e-6)


def test_gif_has_a_frame_for_each_cell(tmp_path):
    path = viz.sliding_gif(tmp_path / "a.gif", IMAGE[:3, :3], SOBEL[:2, :2], padding=0, fps=4)
    with Image.open(path) as picture:
        frames = []
        for i in range(picture.n_frames):
            picture.seek(i)
            assert picture.info["duration"] == 250
            frames.append(picture.convert("RGB").tobytes())
    assert len(frames) == 4
    assert len(set(frames)) == 4
    with pytest.raises(ValueError, match="484 frames"):
        viz.sliding_gif(tmp_path / "b.gif", np.ones((22, 22)), np.ones((1, 1)))


@pytest.mark.parametrize(
    "layers", [[3, (3, 2), 3], [(2, 1, 4), (3, 2)], [(2, 3), {"kernel": 3, "dilation": 2}]], ids=str
)
def test_cone_is_what_the_gradient_reaches(layers):
    read, cone = cone_of("", layers, 1, 4)

    def stack(x):
        for layer in read:
            w = jnp.ones((layer.kernel, 1, 1))
            x = convjax.conv(x, w, stride=layer.stride, dilation=layer.dilation, padding="VALID")
        return x

    x = jnp.zeros((cone.sizes[0], 1))
    assert stack(x).shape == (4, 1)
    reached = np.flatnonzero(jax.grad(lambda x: stack(x)[1, 0])(x))
    assert cone.seen[0] == tuple(reached)
    assert cone.fields[-1] == reached[-1] - reached[0] + 1
    coloured = sum(len(c.get_paths()) for c in viz.receptive_cone(layers, cell=1, cells=4).axes[0].collections)
    assert coloured == sum(cone.sizes)


def test_effect_and_its_box():
    effect = RNG.random((9, 12)) * np.outer(np.hanning(9), np.hanning(12))
    axes = viz.effective_receptive_field(-effect, receptive_field=(3, 5)).axes[0]
    np.testing.assert_allclose(drawn(axes), effect / effect.max(), rtol=1e-5)
    box, theoretical = axes.patches
    left, top = box.get_x() + 0.5, box.get_y() + 0.5
    inside = effect[int(top) : int(top + box.get_height()), int(left) : int(left + box.get_width())]
    assert 0.95 * effect.sum() <= inside.sum() < effect.sum()
    assert (theoretical.get_height(), theoretical.get_width()) == (3, 5)


@pytest.mark.parametrize("shape", [(3,), (4,), (3, 4), (2, 5)], ids=str)
def test_response_is_what_conv_does_to_frequencies(shape):
    """On a circle, convolution multiplies the spectrum by the response."""
    w = RNG.standard_normal(shape).astype(np.float32)
    x = RNG.standard_normal((16,) * len(shape)).astype(np.float32)
    y = convjax.conv(x[..., None], w[..., None, None], padding_mode="circular")[..., 0]
    gain = np.fft.ifftshift(response(w, 16))
    np.testing.assert_allclose(np.fft.fftn(y), np.fft.fftn(x) * gain, atol=1e-4)


def test_response_of_a_blur_falls_to_zero():
    gain = viz.frequency_response(np.array([1.0, 2, 1])).axes[0].lines[0].get_xydata()
    np.testing.assert_allclose(gain[:-1, 1], 20 * np.log10(2 + 2 * np.cos(2 * np.pi * gain[:-1, 0])), atol=1e-6)


def test_checkerboard_is_uneven_overlap():
    given, spread, resized = (drawn(a) for a in viz.checkerboard(np.ones((3, 4)), kernel_size=3).axes[:3])
    assert (given == 1).all()
    np.testing.assert_allclose(resized, 1, rtol=1e-6)
    along = lambda n: np.convolve(np.kron(np.ones(n), [1, 0]), np.ones(3))[: 2 * n]  # windows over each output
    np.testing.assert_allclose(spread, np.outer(along(3), along(4)) * 4 / 9, rtol=1e-6)
    even = drawn(viz.checkerboard(np.ones((3, 4)), kernel_size=4).axes[1])
    np.testing.assert_allclose(even[2:-2, 2:-2], 1, rtol=1e-6)


def test_deformable_points_are_where_deform_conv_looks():
    """An input that is its own coordinate returns where each tap looks."""
    options = dict(stride=2, padding=1, dilation=2)
    offset = RNG.uniform(-0.9, 0.9, (3, 5, 12)).astype(np.float32)
    rows, columns = np.meshgrid(np.arange(8.0), np.arange(10.0), indexing="ij")
    figure = viz.deformable_points(rows, offset, at=(1, 2), kernel_size=(3, 2), **options)
    places = figure.axes[0].collections[-1].get_offsets()
    for axis, ramp in enumerate((columns, rows)):
        one_tap_each = jnp.eye(6).reshape(3, 2, 1, 6)
        y = convjax.deform_conv(jnp.asarray(ramp, jnp.float32)[..., None], offset, one_tap_each, **options)
        np.testing.assert_allclose(places[:, axis], y[1, 2], rtol=1e-5)


def test_steps_end_with_the_output_of_conv():
    x, w = RNG.integers(-5, 5, (5, 6)).astype(np.float32), RNG.integers(-3, 4, (2, 3)).astype(np.float32)
    axes = viz.im2col_steps(x, w).axes
    expected = convjax.conv(x[..., None], w[..., None, None], padding="VALID")[..., 0]
    np.testing.assert_array_equal(drawn(axes[-1]), expected)
    np.testing.assert_array_equal((drawn(axes[2]) @ drawn(axes[3])).reshape(4, 4), expected)
    signal = lambda x, w: convjax.conv(x[:, None], w[:, None, None], padding="VALID")[:, 0]
    np.testing.assert_allclose(drawn(viz.winograd_steps(x[0, :4], w[0]).axes[-1])[:, 0], signal(x[0, :4], w[0]))
    bars = viz.fft_steps(x[0], w[0]).axes[4].patches
    np.testing.assert_allclose([b.get_height() for b in bars][:4], signal(x[0], w[0]), atol=1e-5)
    assert [b.get_hatch() is not None for b in bars] == [False] * 4 + [True] * 2


def test_costs_are_those_of_the_records():
    found = records()
    flops, bytes_ = viz.costs(found).axes
    assert [bar.get_width() for bar in flops.patches] == [r.flops / 1e6 for r in found]
    assert [bar.get_width() for bar in bytes_.patches] == [r.bytes / 1e6 for r in found]
    assert flops.get_yticklabels()[1].get_text() == "1: 3x3 4→4 @4x4 g4"


def test_roofline_compares_with_the_lower_ceiling():
    axes = viz.roofline({"fast": (10, 50), "slow": (0.5, 2)}, peak_gflops=100, peak_gbs=20).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["fast: 50%", "slow: 20%"]
    intensity, speed = axes.lines[0].get_data()
    np.testing.assert_allclose(speed, np.minimum(100, 20 * intensity))


def test_benchmark_shows_ratios(tmp_path):
    path = tmp_path / "measured.json"
    path.write_text(json.dumps(MEASURED))
    axes = viz.benchmark(path).axes[0]
    assert {c.get_label(): c.get_offsets().tolist() for c in axes.collections} == {
        "lax": [[3.0, 0.0], [0.5, 1.0]],
        "torch": [[0.5, 0.0]],
    }
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "d"]


def test_grad_cam_weighs_maps_by_their_mean_gradient():
    """With a linear head the gradient is known: its column over the number of cells."""
    image = RNG.standard_normal((2, 4, 6, 2)).astype(np.float32)
    cam = viz.grad_cam_map(lambda x: x, linear_head, image, target=1)
    np.testing.assert_allclose(cam, np.maximum((-image[..., 0] + 2 * image[..., 1]) / 24, 0), rtol=1e-4, atol=1e-7)
    best = np.asarray(linear_head(image)).argmax(-1)
    each = [viz.grad_cam_map(lambda x: x, linear_head, im, target=int(t)) for im, t in zip(image, best, strict=True)]
    np.testing.assert_allclose(viz.grad_cam_map(lambda x: x, linear_head, image), np.stack(each), rtol=1e-6)
    figure = viz.grad_cam(lambda x: x[:, ::2, ::2], linear_head, image[:1], target=1)
    assert figure.axes[1].images[1].get_array().shape == (4, 6)


# --- errors -----------------------------------------------------------------------------------------------------------

ERRORS = {
    "kernels of an image": (lambda: viz.kernels(IMAGE), "kernels: w must be .k, I, O. or .k_h, k_w, I, O., got shape"),
    "complex kernels": (lambda: viz.kernels(KERNELS + 1j), "must be real"),
    "no columns": (lambda: viz.kernels(KERNELS, columns=0), "columns must be at least 1"),
    "a batch of maps": (lambda: viz.feature_maps(KERNELS), "Select or reshape its axes"),
    "ranks": (lambda: viz.sliding(IMAGE, SOBEL[0]), "x has 2 axes but w has 1"),
    "large kernel": (lambda: viz.sliding(IMAGE[:2], SOBEL, padding=0), "larger than the padded input"),
    "no such step": (lambda: viz.sliding(IMAGE, SOBEL, step=30), "has 30 cells. Type one from 0 to 29"),
    "no layers": (lambda: viz.receptive_cone([]), "layers is empty"),
    "a layer of four": (lambda: viz.receptive_cone([(3, 1, 1, 1)]), "must be .kernel, stride, dilation."),
    "a key of a layer": (lambda: viz.receptive_cone([{"strides": 2}]), "Did you mean 'stride'"),
    "no taps": (lambda: viz.receptive_cone([0]), r"layers\[0\].kernel must be at least 1"),
    "no such cell": (lambda: viz.receptive_cone([3], cell=5), "has 5 cells"),
    "many inputs": (lambda: viz.receptive_cone([(3, 8)] * 4), "too many to draw"),
    "no effect": (lambda: viz.effective_receptive_field(np.zeros(4)), "not zero everywhere"),
    "infinite response": (lambda: viz.frequency_response([np.inf, 1]), "not finite"),
    "offsets": (lambda: viz.deformable_points(IMAGE, np.ones((5, 6, 9)), at=(0, 0)), r"take \(5, 6, 18\)"),
    "no such output": (lambda: viz.deformable_points(IMAGE, np.ones((5, 6, 18)), at=(5, 0)), "outputs are 5 x 6"),
    "four channels": (lambda: viz.deformable_points(np.ones((2, 2, 4)), IMAGE, at=(0, 0)), "has 4 channels"),
    "input of a step": (lambda: viz.im2col_steps(np.ones((9, 9))), "too large to read"),
    "kernel of a step": (lambda: viz.fft_steps(np.ones(3), np.ones(4)), "does not fit into x"),
    "winograd": (lambda: viz.winograd_steps(np.ones(5)), "four inputs and three taps"),
    "no records": (lambda: viz.costs([]), "from 1 to 60"),
    "a record": (lambda: viz.costs([3]), "got int"),
    "no points": (lambda: viz.roofline({}, peak_gflops=1, peak_gbs=1), "at least one"),
    "a point": (lambda: viz.roofline({"a": 3}, peak_gflops=1, peak_gbs=1), "must be a pair"),
    "a peak": (lambda: viz.roofline({"a": (1, 1)}, peak_gflops=0, peak_gbs=1), "peak_gflops must be finite"),
    "no result": (lambda: viz.benchmark({}), "no result of the benchmarks"),
    "a mode": (lambda: viz.benchmark(MEASURED, mode="train"), "Type one of 'forward'"),
    "a class": (lambda: viz.grad_cam(lambda x: x, linear_head, np.ones((4, 4, 2)), target=2), "head returns 2 scores"),
    "a batch": (lambda: viz.grad_cam(lambda x: x, linear_head, np.ones((2, 4, 4, 2))), "is a batch"),
    "flat features": (lambda: viz.grad_cam(lambda x: x.mean(0), linear_head, np.ones((4, 4, 2))), "has features of"),
    "no head": (lambda: viz.grad_cam(lambda x: x, None, np.ones((4, 4, 2))), "head must be a function"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors_say_what_to_type(name):
    call, message = ERRORS[name]
    with pytest.raises((ValueError, TypeError), match=message):
        call()
