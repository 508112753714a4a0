"""Any order of axes gives the channels-last result, transposed."""

from __future__ import annotations

import functools
import re

import jax
import numpy as np
import pytest
from jax import lax

import convjax

close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)

X = np.random.default_rng(0).standard_normal((2, 7, 6, 4)).astype(np.float32)  # NHWC
W = np.random.default_rng(1).standard_normal((3, 2, 2, 6)).astype(np.float32)  # HWIO
OPTIONS = dict(stride=(1, 2), padding=((2, 0), (1, 1)), groups=2)


def order(a, source, target):
    """`a`, whose axes are named by `source`, with its axes in the order `target`."""
    return np.transpose(a, [source.index(letter) for letter in target])


@functools.cache
def expected():
    return np.asarray(convjax.conv(X, W, **OPTIONS))


@pytest.mark.parametrize("layout", ["NHWC", "NCHW", "CNHW", "HWCN", "HCWN", "CHWN"])
def test_letters_order_input_and_result(layout):
    y = convjax.conv(order(X, "NHWC", layout), W, layout=layout, **OPTIONS)
    close(order(y, layout, "NHWC"), expected())


THREE = (
    ("NCHW", "OIHW", "NCHW"),
    ("NHWC", "OHWI", "NCHW"),
    ("CHWN", "IHWO", "HWNC"),
    ("NWHC", "HWIO", "NHWC"),
    ("NCHW", "HWOI", "CWNH"),
)


@pytest.mark.parametrize("layout", THREE, ids=str)
def test_three_strings_order_all_and_spatial_options_follow_the_kernel(layout):
    x, w = order(X, "NHWC", layout[0]), order(W, "HWIO", layout[1])
    close(order(convjax.conv(x, w, layout=layout, **OPTIONS), layout[2], "NHWC"), expected())
    ours_in_lax_terms = lax.conv_general_dilated(
        x, w, OPTIONS["stride"], OPTIONS["padding"], dimension_numbers=layout, feature_group_count=2
    )
    close(order(ours_in_lax_terms, layout[2], "NHWC"), expected())


@pytest.mark.parametrize("layout", THREE, ids=str)
def test_dimension_numbers_of_lax(layout):
    x, w = order(X, "NHWC", layout[0]), order(W, "HWIO", layout[1])
    numbers = lax.conv_dimension_numbers(x.shape, w.shape, layout)
    close(order(convjax.conv(x, w, layout=numbers, **OPTIONS), layout[2], "NHWC"), expected())


def test_options_follow_the_kernel_where_its_spatial_axes_are_swapped():
    layout = ("NHWC", "WHIO", "NHWC")
    swapped = dict(stride=(2, 1), padding=((1, 1), (2, 0)), groups=2)
    close(convjax.conv(X, order(W, "HWIO", "WHIO"), layout=layout, **swapped), expected())


def test_one_string_names_the_spatial_axes_in_the_order_of_the_kernel():
    swapped = dict(stride=(2, 1), padding=((1, 1), (2, 0)), groups=2)
    y = convjax.conv(order(X, "NHWC", "NWHC"), order(W, "HWIO", "WHIO"), layout="NWHC", **swapped)
    close(order(y, "NWHC", "NHWC"), expected())


@pytest.mark.parametrize("batch", [(), (2,), (2, 1)], ids=str)
def test_channels_first_takes_any_number_of_batch_axes(batch):
    x = np.broadcast_to(X[:1], (*batch, 7, 6, 4)) if batch else X[0]
    y = convjax.conv(np.moveaxis(x, -1, -3), W, layout="channels_first", **OPTIONS)
    close(np.moveaxis(y, -3, -1), np.broadcast_to(expected()[0], (*batch, *expected().shape[1:])))


def test_one_and_three_spatial_axes():
    x1, w1 = X[:, :, 0], W[:, 0]
    y = convjax.conv(order(x1, "NTC", "NCT"), order(w1, "TIO", "OIT"), layout=("NCT", "OIT", "NCT"), groups=2)
    close(order(y, "NCT", "NTC"), convjax.conv(x1, w1, groups=2))
    x3, w3 = X.reshape(2, 7, 3, 2, 4), W[:, :, None]
    y = convjax.conv(order(x3, "NDHWC", "NCDHW"), w3, layout="NCDHW", groups=2)
    close(order(y, "NCDHW", "NDHWC"), convjax.conv(x3, w3, groups=2))


def test_no_spatial_axes():
    x, w = X[0, 0], W[0, 0].reshape(4, 3)
    close(convjax.conv(x.T, w, layout="CN"), (x @ w).T)
    close(convjax.conv(x, w.T, layout=("NC", "OI", "NC")), x @ w)


KERNELS = {
    "conv": (W[:, :, :, :4].reshape(3, 2, 2, 4), dict(OPTIONS)),
    "conv_transpose": (np.repeat(W, 2, 2), dict(stride=(1, 2), padding=((2, 0), (1, 1)), groups=2)),
    "depthwise_conv": (W[..., :4].repeat(2, 2)[..., :3], dict(stride=(1, 2), dilation=2)),
}


@pytest.mark.parametrize("layout", ["NCHW", "CHWN", ("NCHW", "OIHW", "NHWC"), ("WHCN", "OHWI", "NCHW")], ids=str)
@pytest.mark.parametrize("name", KERNELS)
def test_every_function_with_epilogue_in_every_layout(name, layout):
    w, options = KERNELS[name]
    function = getattr(convjax, name)
    x_order, w_order, y_order = layout if isinstance(layout, tuple) else (layout, "HWIO", layout)
    plain = function(X, w, **options)
    bias, residual = np.arange(plain.shape[-1], dtype=np.float32), np.cos(plain)
    y = function(
        order(X, "NHWC", x_order),
        order(w, "HWIO", w_order),
        bias=bias,
        residual=order(residual, "NHWC", y_order),
        layout=layout,
        **options,
    )
    close(order(y, y_order, "NHWC"), plain + bias + residual)


@pytest.mark.parametrize("layout", ["NCHW", "channels_first"])
def test_separable_and_pointwise(layout):
    x, bias = order(X, "NHWC", "NCHW"), np.arange(5, dtype=np.float32)
    depthwise, pointwise = W[:, :, :1].repeat(4, 2)[..., :2], W.reshape(-1)[:40].reshape(8, 5)
    y = convjax.separable_conv(x, depthwise, pointwise, bias=bias, stride=2, layout=layout)
    close(order(y, "NCHW", "NHWC"), convjax.separable_conv(X, depthwise, pointwise, bias=bias, stride=2))
    y = convjax.pointwise_conv(x, pointwise[:4], bias=bias, stride=(2, 3), layout=layout)
    close(order(y, "NCHW", "NHWC"), X[:, ::2, ::3] @ pointwise[:4] + bias)


def test_pointwise_takes_the_spatial_axes_from_the_layout():
    w = W.reshape(-1)[:20].reshape(4, 5)
    y = convjax.pointwise_conv(order(X, "NHWC", "NCHW"), w, stride=2, layout="NCHW")
    close(order(y, "NCHW", "NHWC"), X[:, ::2, ::2] @ w)
    y = convjax.pointwise_conv(order(X, "NHWC", "NCHW"), w.T[:, :, None, None], layout=("NCHW", "OIHW", "NCHW"))
    close(order(y, "NCHW", "NHWC"), X @ w)


@pytest.mark.parametrize("layout", ["channels_first", "NCT", ("NCT", "OIT", "NCT")], ids=str)
def test_causal(layout):
    x, w = X[:, :, 0], W[:, 0, :, :4]
    given = order(w, "TIO", "OIT") if isinstance(layout, tuple) else w
    y = convjax.causal_conv(order(x, "NTC", "NCT"), given, groups=2, dilation=2, layout=layout)
    close(order(y, "NCT", "NTC"), convjax.causal_conv(x, w, groups=2, dilation=2))


@pytest.mark.parametrize("layout", ["channels_first", "NCT", ("NCT", "OIT", "NCT")], ids=str)
def test_causal_depthwise(layout):
    x, w = X[:, :, 0], W[:, 0, 0, :4]
    y = convjax.causal_conv(order(x, "NTC", "NCT"), w, layout=layout)  # (k, C), whatever the layout
    close(order(y, "NCT", "NTC"), convjax.causal_conv(x, w))


def test_modes_and_output_shape_follow_the_layout():
    x = order(X, "NHWC", "NCHW")
    y = convjax.conv(x, W, padding=(1, 2), padding_mode=("circular", 3), groups=2, layout="NCHW")
    close(order(y, "NCHW", "NHWC"), convjax.conv(X, W, padding=(1, 2), padding_mode=("circular", 3), groups=2))
    options = dict(stride=2, padding=1, output_shape=(14, 10))
    w = W.repeat(2, 2)
    y = convjax.conv_transpose(x, w, layout="NCHW", **options)
    close(order(y, "NCHW", "NHWC"), convjax.conv_transpose(X, w, **options))


def test_gradients_come_in_the_layout_of_their_operand():
    layout = ("NCHW", "OIHW", "NCHW")
    x, w = order(X, "NHWC", "NCHW"), order(W, "HWIO", "OIHW")
    loss = lambda x, w, **options: (convjax.conv(x, w, **OPTIONS, **options) ** 2).sum()
    dx, dw = jax.grad(functools.partial(loss, layout=layout), (0, 1))(x, w)
    expected_dx, expected_dw = jax.grad(loss, (0, 1))(X, W)
    close(order(dx, "NCHW", "NHWC"), expected_dx, rtol=1e-3, atol=1e-3)
    close(order(dw, "OIHW", "HWIO"), expected_dw, rtol=1e-3, atol=1e-3)


def test_a_layout_that_moves_nothing_adds_no_operation():
    def operations(layout, order="NHWC"):
        run = functools.partial(convjax.conv, layout=layout, **OPTIONS)
        return [
            e.primitive.name for e in jax.make_jaxpr(run)(np.transpose(X, ["NHWC".index(a) for a in order]), W).eqns
        ]

    assert "transpose" not in operations("NHWC") + operations("channels_last")
    assert operations("NCHW", "NCHW").count("transpose") == 2


# --- channels first, on CPUs ------------------------------------------------------------------------------------------

FIRST = {1: ("NCW", "OIW", "NCW"), 2: ("NCHW", "OIHW", "NCHW"), 3: ("NCDHW", "OIDHW", "NCDHW")}
TAPS = dict(algorithm={"forward": "taps", "input_grad": "taps", "kernel_grad": "offsets"})


def step(layout, groups):
    """Output and both gradients of a layer."""
    conv = functools.partial(convjax.conv, layout=layout, groups=groups, **TAPS)
    return lambda x, w, ct: (lambda y, pullback: (y, *pullback(ct)))(*jax.vjp(conv, x, w))


@pytest.mark.parametrize("layout", [*FIRST.values(), "channels_first"], ids=str)
def test_sums_of_taps_are_written_where_the_caller_has_them(layout):
    """XLA would have them read columns and write channels last, for the sake of the kernel gradient, and then copy."""
    ndim = len(layout[0]) - 2 if isinstance(layout, tuple) else 2
    space = (10, 9, 8)[:ndim]
    x, w = np.ones((2, 16, *space), np.float32), np.ones((16, 1, *(3,) * ndim), np.float32)
    w = w if isinstance(layout, tuple) else np.moveaxis(w, (0, 1), (-1, -2))
    program = jax.jit(step(layout, 16)).lower(x, w, x).compile().as_text()
    entry = program[program.index("ENTRY") :]
    made = re.findall(rf"= f32\[{','.join(map(str, x.shape))}\]{{(.*?)}} (?:fusion|copy|transpose)", entry)
    assert made == [",".join(map(str, reversed(range(x.ndim))))] * 2  # the output and the gradient, nothing beside them


@pytest.mark.parametrize("layout", FIRST.values(), ids=str)
def test_channels_first_gives_what_channels_last_gives(layout):
    ndim = len(layout[0]) - 2
    rng = np.random.default_rng(0)
    x, ct = (rng.standard_normal((2, 8, *(7, 6, 5)[:ndim])).astype(np.float32) for _ in range(2))
    w = rng.standard_normal((8, 1, *(3,) * ndim)).astype(np.float32)
    last = lambda a: np.moveaxis(a, 1, -1)
    y, dx, dw = jax.jit(step(layout, 8))(x, w, ct)
    expected = jax.jit(step("channels_last", 8))(last(x), np.moveaxis(w, (0, 1), (-1, -2)), last(ct))
    for found, known in zip((last(y), last(dx), np.moveaxis(dw, (0, 1), (-1, -2))), expected, strict=True):
        close(found, known)


def test_channels_first_maps_batches_and_exports():
    conv = functools.partial(convjax.conv, layout="NCHW", groups=4, **TAPS)
    x, w = np.moveaxis(X, -1, 1), np.ones((3, 3, 1, 4), np.float32)
    one = conv(x, w)
    close(jax.vmap(conv, in_axes=(0, None))(x[:, None], w)[:, 0], one)
    close(jax.vmap(conv)(x[:, None], np.stack([w, w]))[:, 0], one)
    exported = jax.export.export(jax.jit(conv))(x, w)
    close(jax.export.deserialize(exported.serialize()).call(x, w), one)
