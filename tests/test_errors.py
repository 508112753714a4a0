"""Bad calls, one by one: each names the argument, says what came in and the relation it breaks, and what to type."""

from __future__ import annotations

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import convjax

ones = jnp.ones
X, W = ones((2, 8, 8, 4)), ones((3, 3, 4, 6))
SIGNAL, TAPS = ones((2, 8, 4)), ones((3, 4, 6))
INTEGERS = X.astype(jnp.int32), W.astype(jnp.int32)
SIXTEEN = X.astype(jnp.bfloat16), W.astype(jnp.bfloat16)

conv, transpose = partial(convjax.conv, X, W), partial(convjax.conv_transpose, X, W)
conv1d = partial(convjax.conv, SIGNAL, TAPS)
traced = lambda call: lambda: jax.jit(call)(2)

BAD_VALUES = (
    # the call, what the message must hold: argument and what came in, relation, what to type
    # ranks
    (lambda: convjax.conv(ones((8, 4)), W), "x of shape (8, 4) has 2 axes", "at least 3", "x[..., None]"),
    (
        lambda: convjax.conv(ones((8, 4)), W, layout="channels_first"),
        "x of shape (8, 4)",
        "(*batch, C, *space)",
        "Type",
    ),
    (lambda: convjax.conv(X, ones(3)), "w of shape (3,) has 1 axes", "(*k, C_in, C_out)", "w[:, None, None]"),
    (lambda: convjax.depthwise_conv(X, ones(3)), "depthwise_conv: w of shape (3,)", "(*k, C, M)", "w[..., None]"),
    (lambda: convjax.causal_conv(SIGNAL, W), "causal_conv: w of shape (3, 3, 4, 6) has 4 axes", "(k, C)", "Type"),
    (lambda: convjax.pointwise_conv(X, W), "pointwise_conv: w of shape (3, 3, 4, 6)", "size 1", "Call conv"),
    (lambda: convjax.pointwise_conv(X, ones(4)), "w of shape (4,)", "(C_in // groups, C_out)", "pointwise_conv"),
    # channels and groups
    (
        lambda: convjax.conv(ones((2, 8, 8, 8)), W),
        "x has 8 channels",
        "(3, 3, 4, 6) expects 4 * groups = 4",
        "type groups=2",
    ),
    (lambda: convjax.conv(ones((2, 8, 8, 5)), W), "x has 5 channels", "expects 4 * groups = 4", "(3, 3, 5, 6)"),
    (lambda: convjax.conv(X, W, groups=4), "x has 4 channels", "expects 4 * groups = 16", "Leave groups out"),
    (lambda: convjax.conv(ones((5, 5)), ones((2, 6)), groups=2), "5 channels of x", "groups=2 does not divide", "1, 5"),
    (lambda: convjax.conv(X, ones((3, 3, 2, 5)), groups=2), "5 output channels of w", "groups=2", "(3, 3, 2, 6)"),
    (lambda: convjax.conv(X, ones((3, 3, 0, 6))), "x has 4 channels", "expects 0 * groups = 0", "(3, 3, 4, 6)"),
    (lambda: conv(groups=0), "groups must be at least 1", "got 0", "groups=1"),
    (lambda: transpose(groups=3), "groups=3", "does not divide x of 4 channels", "one of 1, 2, 4"),
    (lambda: convjax.conv_transpose(X, ones((3, 3, 5, 2))), "x has 4 channels", "expects 5", "(3, 3, 4, 2)"),
    (lambda: convjax.depthwise_conv(X, ones((3, 3, 3, 2))), "x has 4 channels", "a row for 3", "(3, 3, 4, 2)"),
    (
        lambda: convjax.separable_conv(X, ones((3, 3, 4, 2)), ones((4, 5))),
        "w_pointwise of shape (4, 5) expects 4",
        "C * M = 8",
        "of shape (8, 5)",
    ),
    (
        lambda: convjax.separable_conv(X, ones((3, 3, 4, 2)), ones((3, 3, 8, 5))),
        "w_pointwise of shape (3, 3, 8, 5)",
        "size 1",
        "Call conv",
    ),
    (lambda: convjax.causal_conv(SIGNAL, ones((3, 4)), groups=2), "groups=2", "makes 4 groups", "Leave groups out"),
    # sizes
    (lambda: conv(padding="VALID", dilation=5), "spatial axis 0", "span 11", "has 8", "Pad by 3 more"),
    (lambda: conv1d(padding=-3), "kernel is larger than the padded input", "padded by (-3, -3) has 2", "Pad by 1 more"),
    (lambda: transpose(padding=20), "kernel is larger than the padded input", "has -28", "Pad by 31 more"),
    (
        lambda: convjax.conv(X, ones((3, 0, 4, 6))),
        "w of shape (3, 0, 4, 6)",
        "no taps on spatial axis 1",
        "at least one",
    ),
    (lambda: conv(stride=0), "stride must be at least 1", "got 0", "Type stride=1"),
    (lambda: conv(stride=(1, -2)), "stride[1] must be at least 1", "got -2", "Type 1 there"),
    (lambda: conv(stride=(1, 2, 3)), "stride=(1, 2, 3) has 3 entries", "2 spatial axes", "Type one int"),
    (lambda: conv(dilation=-1), "dilation must be at least 1", "got -1", "Type dilation=1"),
    (lambda: conv(input_dilation=0), "input_dilation must be at least 1", "got 0", "Type input_dilation=1"),
    (lambda: convjax.causal_conv(SIGNAL, TAPS, stride=(1, 2)), "causal_conv: stride=(1, 2)", "1 spatial axes", "Type"),
    (lambda: convjax.pointwise_conv(X, W[0, 0], stride=2), "stride=2", "nothing tells how many", "stride=(1, 1)"),
    (lambda: convjax.pointwise_conv(X, W[0, 0], layout="channels_first"), "layout=", "nothing tells", "stride=(1, 1)"),
    # padding
    (lambda: conv(padding="SMAE"), "padding='SMAE' is not known", "'CAUSAL'", "Did you mean 'SAME'?"),
    (lambda: transpose(padding="FULL"), "padding='FULL' is not known", "'SAME', 'SAME_LOWER', 'VALID', 'CAUSAL'"),
    (lambda: conv1d(padding=(1, 2)), "padding=(1, 2) is ambiguous", "one spatial axis", "padding=((1, 2),)"),
    (lambda: conv(padding=((1, 1),)), "padding=((1, 1),) has 1 entries", "2 spatial axes", "2 (lo, hi) pairs"),
    (lambda: conv(padding=(1, 2, 3, 4)), "padding=(1, 2, 3, 4) has 4 entries", "2 spatial axes", "Type one int"),
    (lambda: conv(padding=((1, 1, 1), (0, 0))), "padding[0]=(1, 1, 1)", "int or a pair", "(lo, hi)"),
    (lambda: conv(padding_mode="refelct"), "padding_mode='refelct' is not known", "Did you mean 'reflect'?"),
    (lambda: conv(padding_mode=None), "padding_mode=None is not known", "Type one of 'zeros'"),
    (lambda: conv(padding_mode=True), "padding_mode=True is not known", "Type one of 'zeros'"),
    (lambda: conv(padding_mode=("reflect",)), "padding_mode=('reflect',) has 1 entries", "2 spatial axes", "one mode"),
    (
        lambda: conv(padding=8, padding_mode="reflect"),
        "'reflect' cannot pad spatial axis 0 by 8",
        "8 values",
        "at most 7",
    ),
    (lambda: conv(padding=9, padding_mode="circular"), "'circular' cannot pad", "by 9", "at most 8"),
    (lambda: transpose(padding=-9, padding_mode="symmetric"), "conv_transpose: padding_mode='symmetric'", "at most 8"),
    (
        lambda: conv(input_dilation=2, padding_mode="reflect"),
        "padding_mode='reflect'",
        "input_dilation=2",
        "conv_transpose",
    ),
    (lambda: convjax.conv(*INTEGERS, padding_mode=0.5), "padding_mode=0.5", "x, which is int32", "convert x"),
    (lambda: convjax.conv(*INTEGERS, padding_mode=float("nan")), "padding_mode=nan", "x, which is int32", "convert x"),
    (lambda: conv(padding_mode=1j), "padding_mode=1j", "x, which is float32", "convert x"),
    (
        lambda: convjax.conv(*INTEGERS, padding_mode=2**40),
        "padding_mode=1099511627776",
        "x, which is int32",
        "convert x",
    ),
    # transposed sizes
    (lambda: transpose(stride=2, output_padding=2), "output_padding[0]=2 is out of reach", "stride 2", "from 0 to 1"),
    (lambda: transpose(output_padding=-1), "output_padding must be at least 0", "got -1", "Type output_padding=0"),
    (
        lambda: transpose(stride=2, padding=1, output_shape=(15, 20)),
        "output_shape[1]=20 is out of reach",
        "from 15 to 16",
        "Type",
    ),
    (
        lambda: transpose(output_shape=(8, 8, 3)),
        "output_shape=(8, 8, 3) has 3 entries",
        "2 spatial axes",
        "Type one int",
    ),
    (
        lambda: transpose(stride=2, output_padding=1, output_shape=16),
        "output_padding=1 and output_shape=16",
        "both say",
        "Type one",
    ),
    # layouts
    (
        lambda: conv(layout="channel_last"),
        "layout='channel_last'",
        "2 spatial letters",
        "Did you mean 'channels_last'?",
    ),
    (lambda: conv(layout="nchw"), "layout='nchw'", "N, C and", "Did you mean 'NCHW'?"),
    (lambda: conv(layout="NCDHW"), "layout='NCDHW'", "2 spatial letters", "such as 'NCHW'"),
    (lambda: conv(layout="NHHC"), "layout='NHHC'", "each once", "Did you mean 'NHWC'?"),
    (lambda: conv(layout=3), "layout=3 is not known", "Type 'channels_last'"),
    (lambda: convjax.pointwise_conv(X, W[0, 0], layout=3), "pointwise_conv: layout=3 is not known", "Type"),
    (lambda: conv(layout=("NHWC", "HWIO")), "layout=('NHWC', 'HWIO') is not known", "('NCHW', 'OIHW', 'NCHW')"),
    (lambda: conv(layout=("NHWC", "HWI", "NHWC")), "'HWI' must hold", "2 of them spatial", "('NCHW', 'OIHW', 'NCHW')"),
    (lambda: convjax.conv(SIGNAL[0], TAPS, layout="NTC"), "layout='NTC' names 3 axes", "(8, 4) has 2", "x[None]"),
    (
        lambda: conv1d(layout=jax.lax.conv_dimension_numbers(X.shape, W.shape, ("NHWC", "HWIO", "NHWC"))),
        "layout=ConvDimensionNumbers",
        "1 spatial axes",
        "Type",
    ),
    (
        lambda: convjax.separable_conv(X, ones((3, 3, 4, 2)), ones((8, 5)), layout=("NCHW", "OIHW", "NCHW")),
        "separable_conv: layout=",
        "two kernels",
        "such as 'NCHW'",
    ),
    # algorithm, precision, activation
    (lambda: conv(algorithm="wingrad"), "algorithm='wingrad' is not known", "'xla'", "Did you mean 'winograd'?"),
    (lambda: conv(algorithm=None), "algorithm=None is not known", "Type one of 'auto'"),
    (lambda: conv(algorithm={"foward": "xla"}), "algorithm key='foward' is not known", "Did you mean 'forward'?"),
    (lambda: conv(algorithm={"input_grad": "xlaa"}), "algorithm['input_grad']='xlaa'", "Did you mean 'xla'?"),
    (lambda: conv(precision="hihgest"), "precision='hihgest' is not known", "'highest'"),
    (lambda: conv(precision=("high",) * 3), "precision=('high', 'high', 'high')", "pair"),
    (lambda: conv(activation="rleu"), "activation='rleu' is not known", "Did you mean 'relu'?"),
    (lambda: conv(activation=3), "activation=3 is not known", "Type one of 'relu'"),
    (lambda: conv(preferred_element_type=jnp.bfloat16), "preferred_element_type=bfloat16", "float32", "jnp.bfloat16"),
    (lambda: conv(preferred_element_type=jnp.int32), "preferred_element_type=int32", "of the same kind", ".astype"),
    # what is added
    (lambda: conv(bias=ones(4)), "bias has shape (4,)", "(2, 8, 8, 6) has 6 channels", "of shape (6,)"),
    (lambda: conv(bias=1.0), "bias has shape ()", "6 channels", "of shape (6,)"),
    (lambda: conv(residual=X), "residual has shape (2, 8, 8, 4)", "the output has (2, 8, 8, 6)", "equal shape"),
    # explain
    (lambda: convjax.explain(X.shape, (3, 3, 5, 6)), "x has 4 channels", "expects 5 * groups = 5", "(3, 3, 4, 6)"),
    (lambda: convjax.explain(X.shape, W.shape, platform="cqu"), "platform='cqu'", "Did you mean 'cpu'?"),
    (lambda: convjax.explain(X.shape, W.shape, function=lambda x, w: x), "holds 0 convolutions", "one at a time"),
)

BAD_TYPES = (
    (lambda: convjax.conv(None, W), "x must be an array, got None", "Type"),
    (lambda: convjax.conv(X, "w"), "w must be an array, got 'w'", "Type"),
    (lambda: convjax.conv(object(), W), "x must be an array", "object"),
    (lambda: convjax.conv([[1.0], [2.0, 3.0]], W), "x must be an array", "list"),
    (lambda: convjax.conv(X > 0, W), "x must hold numbers", "got dtype bool", "x.astype(jnp.float32)"),
    (lambda: convjax.conv(X > 0, W > 0), "x must hold numbers", "got dtype bool", "x.astype(jnp.float32)"),
    (lambda: convjax.conv(X, SIXTEEN[1]), "x is float32 but w is bfloat16", "one dtype", "w.astype(x.dtype)"),
    (
        lambda: convjax.separable_conv(X, ones((3, 3, 4, 2)), ones((8, 5), jnp.float16)),
        "x is float32 but w_pointwise is float16",
        "one dtype",
        "w_pointwise.astype(x.dtype)",
    ),
    (lambda: conv(stride=2.0), "stride must be an integer", "got 2.0 of type float", "Type stride=2"),
    (lambda: conv(stride="2"), "stride must be an integer", "got '2' of type str", "Type stride=2"),
    (lambda: conv(stride=None), "stride must be an integer", "got None", "Type stride=1"),
    (lambda: conv(stride=True), "stride must be an integer", "got the bool True", "Type stride=1"),
    (lambda: conv(groups=1.5), "groups must be an integer", "got 1.5", "Type groups=1"),
    (lambda: conv(groups=(1, 2)), "groups must be an integer", "got (1, 2) of type tuple", "Type groups=1"),
    (lambda: conv(dilation=np.float32(2)), "dilation must be an integer", "float32", "Type dilation=2"),
    (lambda: conv(padding=None), "padding must be an integer", "got None", "Type padding=0"),
    (lambda: conv(padding=1.0), "padding must be an integer", "got 1.0", "Type padding=1"),
    (lambda: conv(padding=float("nan")), "padding must be an integer", "got nan", "Type padding=0"),
    (lambda: conv(padding=((0, float("nan")), (0, 0))), "padding[0][1] must be an integer", "got nan", "Type 0 there"),
    (lambda: conv(padding=((0, float("inf")), (0, 0))), "padding[0][1] must be an integer", "got inf", "Type 0 there"),
    (lambda: conv(padding=(False, 1)), "padding[0] must be an integer", "got the bool False", "Type 0 there"),
    (lambda: conv(padding=("SAME", "VALID")), "padding[0] must be an integer", "got 'SAME'", "Type 0 there"),
    (lambda: conv(flip_kernel="yes"), "flip_kernel must be a bool", "got 'yes'", "Type flip_kernel=True"),
    (
        lambda: conv(preferred_element_type="foo"),
        "preferred_element_type='foo' is not a dtype",
        "Type e.g. jnp.float32",
    ),
    (lambda: conv(bias="b"), "bias must be an array", "got 'b'", "Type"),
    (
        lambda: convjax.conv(*SIXTEEN, bias=ones(6)),
        "bias is float32",
        "bfloat16 cannot hold",
        "bias.astype(jnp.bfloat16)",
    ),
    (lambda: convjax.conv(*INTEGERS, bias=ones(6)), "bias is float32", "int32 cannot hold", "bias.astype(jnp.int32)"),
    (
        lambda: convjax.conv(*SIXTEEN, residual=ones((2, 8, 8, 6))),
        "residual is float32",
        "bfloat16 cannot hold",
        "residual.astype(jnp.bfloat16)",
    ),
    # what must be static
    (traced(lambda s: conv(stride=s)), "stride must be static", "traced (int32[])", "static_argnames=('stride',)"),
    (traced(lambda s: conv(stride=(1, s))), "stride[1] must be static", "traced", "static_argnames=('stride',)"),
    (traced(lambda s: conv(dilation=s)), "dilation must be static", "traced", "static_argnames=('dilation',)"),
    (traced(lambda s: conv(groups=s)), "groups must be static", "traced", "static_argnames=('groups',)"),
    (traced(lambda s: conv(padding=s)), "padding must be static", "traced", "static_argnames=('padding',)"),
    (traced(lambda s: conv(padding=((s, 0), (0, 0)))), "padding[0][0] must be static", "static_argnames=('padding',)"),
    (traced(lambda s: conv(padding_mode=s)), "padding_mode must be static", "static_argnames=('padding_mode',)"),
    (traced(lambda s: conv(flip_kernel=s > 0)), "flip_kernel must be static", "static_argnames=('flip_kernel',)"),
    (traced(lambda s: transpose(output_shape=s)), "output_shape must be static", "static_argnames=('output_shape',)"),
)

TABLE = [(ValueError, *row) for row in BAD_VALUES] + [(TypeError, *row) for row in BAD_TYPES]


@pytest.mark.parametrize(("kind", "call", "parts"), [(k, c, p) for k, c, *p in TABLE], ids=[row[2] for row in TABLE])
def test_a_bad_call_says_what_is_wrong_and_what_to_type(kind, call, parts):
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    for part in parts:
        assert part in str(caught.value), f"{part!r} is not in: {caught.value}"
    assert re.match(r"\w+: ", str(caught.value)), "the message opens with the function's name"


@pytest.mark.parametrize(
    "name", ["conv", "conv_transpose", "depthwise_conv", "separable_conv", "pointwise_conv", "causal_conv"]
)
def test_a_message_names_the_function_that_was_called(name):
    kernels = {"separable_conv": [ones((3, 4, 1)), ones((4, 6))], "pointwise_conv": [ones((4, 6))]}.get(name, [TAPS])
    for bad in (dict(activation="rleu"), dict(algorithm="wingrad"), dict(precision="hihgest")):
        with pytest.raises(ValueError, match=f"^{name}: {next(iter(bad))}="):
            getattr(convjax, name)(SIGNAL, *kernels, **bad)


# --- what a message tells to type, typed ------------------------------------------------------------------------------

MENDED = (
    (lambda: convjax.conv(ones((8, 8)), W[:, :, :1]), lambda: convjax.conv(ones((8, 8))[..., None], W[:, :, :1])),
    (lambda: convjax.conv(ones((2, 8, 8, 8)), W), lambda: convjax.conv(ones((2, 8, 8, 8)), W, groups=2)),
    (lambda: convjax.conv(ones((2, 8, 8, 8)), W), lambda: convjax.conv(ones((2, 8, 8, 8)), ones((3, 3, 8, 6)))),
    (lambda: convjax.conv(X, W, groups=4), lambda: convjax.conv(X, W)),
    (lambda: convjax.conv(X, ones((3, 3, 2, 5)), groups=2), lambda: convjax.conv(X, ones((3, 3, 2, 6)), groups=2)),
    (lambda: conv1d(padding=(1, 2)), lambda: conv1d(padding=((1, 2),))),
    (lambda: conv(padding="VALID", dilation=5), lambda: conv(padding=((3, 0), (3, 0)), dilation=5)),
    (lambda: conv(padding="VALID", dilation=5), lambda: conv(padding="SAME", dilation=5)),
    (lambda: transpose(padding=20), lambda: transpose(padding=((5, 4), (5, 4)))),
    (lambda: convjax.conv(X, SIXTEEN[1]), lambda: convjax.conv(X, SIXTEEN[1].astype(X.dtype))),
    (lambda: convjax.conv(X > 0, W), lambda: convjax.conv((X > 0).astype(jnp.float32), W)),
    (lambda: conv(stride=2.0), lambda: conv(stride=2)),
    (lambda: conv(padding=9, padding_mode="circular"), lambda: conv(padding=8, padding_mode="circular")),
    (lambda: convjax.conv(SIGNAL[0], TAPS, layout="NTC"), lambda: convjax.conv(SIGNAL[0][None], TAPS, layout="NTC")),
    (lambda: convjax.pointwise_conv(X, W[0, 0], stride=2), lambda: convjax.pointwise_conv(X, W[0, 0], stride=(2, 2))),
    (lambda: convjax.pointwise_conv(X, W[0, 0], stride=2), lambda: convjax.pointwise_conv(X, W[:1, :1], stride=2)),
    (
        lambda: traced(lambda stride: conv(stride=stride))(),
        lambda: jax.jit(lambda stride: conv(stride=stride), static_argnames=("stride",))(2),
    ),
)


@pytest.mark.parametrize(("bad", "mended"), MENDED)
def test_what_a_message_tells_to_type_works(bad, mended):
    with pytest.raises((ValueError, TypeError)):
        bad()
    assert jax.eval_shape(mended).size > 0


# --- algorithms that cannot serve -------------------------------------------------------------------------------------

UNFIT = (
    ("winograd", dict(stride=2), jnp.float32, "stride"),
    ("fft", {}, jnp.int32, "integers"),
    ("phase", {}, jnp.float32, "not dilated"),
    ("subpixel", {}, jnp.float32, "not dilated"),
    ("depth_to_space", {}, jnp.float32, "not dilated"),
    ("depth_to_space", dict(input_dilation=2, stride=2), jnp.float32, "do not fall into blocks"),
    ("kn2row", dict(input_dilation=2), jnp.float32, "the input is dilated"),
    ("space_to_depth", {}, jnp.float32, "no stride"),
)


@pytest.mark.parametrize(
    ("algorithm", "options", "dtype", "reason"), UNFIT, ids=lambda v: v if isinstance(v, str) else ""
)
def test_a_named_algorithm_that_cannot_serve_raises_before_any_work(algorithm, options, dtype, reason):
    x, w = (jax.ShapeDtypeStruct(a.shape, dtype) for a in (X, W))
    call = jax.jit(partial(convjax.conv, algorithm=algorithm, **options))
    with pytest.raises(ValueError, match="cannot serve") as caught:
        call.lower(x, w)  # nothing but shapes: no device has anything to work on
    for part in (f"algorithm={algorithm!r}", "(2, 8, 8, 4)", "(3, 3, 4, 6)", np.dtype(dtype).name, reason, "'auto'"):
        assert part in str(caught.value)


def test_a_named_algorithm_that_cannot_serve_a_gradient_leaves_it_to_the_chooser():
    loss = lambda x: convjax.conv(x, W, stride=2, algorithm="space_to_depth").sum()
    assert jax.grad(loss)(X).shape == X.shape
    insist = lambda x: convjax.conv(x, W, stride=2, algorithm={"input_grad": "winograd"}).sum()
    with pytest.raises(ValueError, match="algorithm='winograd' cannot serve"):
        jax.grad(insist)(X)
