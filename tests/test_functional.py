"""Each public function is what its definition says, written out here in numpy or as the oracle's explicit sums."""

from __future__ import annotations

import functools
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

import convjax
from convjax.testing import case, direct_conv, direct_grads

close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)


def normal(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def direct(x, w, **options):
    """The oracle, by the short arguments of `convjax.testing.case`."""
    return direct_conv(x, w, case("", x.shape, w.shape, **options).spec)


def scatter(x, w, stride=1, dilation=1, groups=1):
    """The transposed convolution before cropping: every input times the kernel, laid down `stride` apart."""
    n = w.ndim - 2
    i, o = x.shape[-1] // groups, w.shape[-1]
    size = [(a - 1) * stride + (k - 1) * dilation + 1 for a, k in zip(x.shape[1:-1], w.shape, strict=False)]
    y = np.zeros((len(x), *size, o * groups))
    for at in np.ndindex(*x.shape[1:-1]):
        for tap in np.ndindex(*w.shape[:n]):
            where = tuple(a * stride + t * dilation for a, t in zip(at, tap, strict=True))
            for g in range(groups):
                rows = slice(g * i, (g + 1) * i)
                y[:, *where, g * o : (g + 1) * o] += x[:, *at, rows] @ w[*tap, rows]
    return y


def window(y, start, length):
    """`length` entries from `start` on of each spatial axis, zeros where there are none."""
    for axis, (a, n) in enumerate(zip(start, length, strict=True), 1):
        widths = [(0, 0)] * y.ndim
        widths[axis] = (max(0, -a), max(0, a + n - y.shape[axis]))
        y = np.take(np.pad(y, widths), range(max(a, 0), max(a, 0) + n), axis)
    return y


# --- conv -------------------------------------------------------------------------------------------------------------

CONV = (
    ((4, 6), (6, 5), {}),
    ((2, 9, 3), (4, 3, 5), dict(stride=2, pads=((1, 2),))),
    ((2, 8, 7, 4), (3, 2, 2, 6), dict(pads=1, groups=2, rhs_dilation=(1, 2))),
    ((1, 4, 5, 6, 2), (2, 3, 2, 2, 3), dict(stride=(1, 2, 3), pads=((0, 1), (2, 0), (-1, 1)))),
    ((1, 3, 4, 3, 2, 2), (2, 2, 3, 1, 2, 2), dict(pads=1, lhs_dilation=(1, 2, 1, 3))),
)


@pytest.mark.parametrize(("x_shape", "w_shape", "options"), CONV, ids=lambda v: f"{len(v) - 2}-D" if v else "")
def test_conv_is_the_direct_sum_in_any_number_of_dimensions(x_shape, w_shape, options):
    x, w = normal(*x_shape), normal(*w_shape)
    y = convjax.conv(x, w, **case("", x_shape, w_shape, **options).options)
    close(y, direct(x, w, **options))


@pytest.mark.parametrize("batch", [(), (3,), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("name", ["conv", "conv_transpose", "depthwise_conv", "separable_conv", "pointwise_conv"])
def test_any_number_of_batch_axes(name, batch):
    kernels = {"separable_conv": [(3, 2, 4, 1), (4, 5)], "depthwise_conv": [(3, 2, 4, 2)], "pointwise_conv": [(4, 5)]}
    kernels = [normal(*shape) for shape in kernels.get(name, [(3, 2, 4, 5)])]
    x = normal(*batch, 5, 6, 4)
    y = getattr(convjax, name)(x, *kernels)
    flat = getattr(convjax, name)(x.reshape(-1, 5, 6, 4), *kernels)
    assert y.shape == (*batch, *flat.shape[1:])
    close(np.reshape(y, flat.shape), flat)


@pytest.mark.parametrize("batch", [(), (3,), (2, 1, 3)], ids=str)
def test_any_number_of_batch_axes_without_spatial_ones(batch):
    x, w = normal(*batch, 4), normal(4, 5)
    close(convjax.conv(x, w), x @ w)


def test_flip_kernel_is_the_mathematical_convolution():
    x, w = normal(1, 9, 8, 1), normal(4, 3, 1, 1)
    for mode, padding in (("full", "FULL"), ("valid", "VALID")):
        y = convjax.conv(x, w, padding=padding, flip_kernel=True)
        close(y[0, ..., 0], scipy.signal.convolve(x[0, ..., 0], w[..., 0, 0], mode))


# --- bias, residual, activation ---------------------------------------------------------------------------------------

sigmoid = lambda y: 1 / (1 + np.exp(-y))
softplus = lambda y: np.log1p(np.exp(y))
DEFINITIONS = {
    "relu": lambda y: np.maximum(y, 0),
    "relu6": lambda y: np.clip(y, 0, 6),
    "leaky_relu": lambda y: np.where(y > 0, y, 0.01 * y),
    "elu": lambda y: np.where(y > 0, y, np.expm1(y)),
    "gelu": lambda y: y / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3))),
    "silu": lambda y: y * sigmoid(y),
    "swish": lambda y: y * sigmoid(y),
    "mish": lambda y: y * np.tanh(softplus(y)),
    "hard_swish": lambda y: y * np.clip(y + 3, 0, 6) / 6,
    "sigmoid": sigmoid,
    "tanh": np.tanh,
    "softplus": softplus,
}


def test_every_activation_has_a_definition_here():
    assert set(DEFINITIONS) == set(convjax.ACTIVATIONS)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_activation_by_name(name):
    x, w = 3 * normal(4, 6), normal(6, 5)
    close(convjax.conv(x, w, activation=name.upper()), DEFINITIONS[name]((x @ w).astype(float)))


WITH_EPILOGUE = {
    "conv": [(3, 4, 6)],
    "conv_transpose": [(3, 4, 6)],
    "depthwise_conv": [(3, 4, 2)],
    "separable_conv": [(3, 4, 1), (4, 6)],
    "pointwise_conv": [(4, 6)],
    "causal_conv": [(3, 4, 6)],
}


@pytest.mark.parametrize("name", WITH_EPILOGUE)
def test_bias_then_residual_then_activation(name):
    function = getattr(convjax, name)
    operands = [normal(2, 7, 4), *(normal(*shape) for shape in WITH_EPILOGUE[name])]
    plain = np.asarray(function(*operands))
    bias, residual = normal(plain.shape[-1]), normal(*plain.shape, seed=1)
    square = lambda y: y * y
    close(function(*operands, bias=bias, residual=residual, activation=square), (plain + bias + residual) ** 2)
    close(function(*operands, bias=bias), plain + bias)
    close(function(*operands, residual=residual, activation="relu"), np.maximum(plain + residual, 0))


@pytest.mark.parametrize(
    ("dtype", "preferred", "result"),
    [
        ("float32", None, "float32"),
        ("bfloat16", None, "bfloat16"),
        ("float16", "float32", "float32"),
        ("complex64", None, "complex64"),
        ("int8", None, "int32"),
        ("uint8", None, "int32"),
        ("int32", None, "int32"),
    ],
)
def test_dtype_of_the_result_with_a_bias(dtype, preferred, result):
    x, w, bias = jnp.ones((1, 300, 1), dtype), jnp.ones((3, 1, 1), dtype), jnp.ones(1, dtype)
    y = convjax.conv(x, w, padding="VALID", bias=bias, preferred_element_type=preferred)
    assert y.dtype == result
    close(np.asarray(y, float if dtype != "complex64" else complex), np.full((1, 298, 1), 4))


def test_sixteen_bit_operands_are_summed_in_float32():
    x, w = jnp.ones((1, 4001, 1), jnp.float16), jnp.ones((4001, 1, 1), jnp.float16)
    assert convjax.conv(x, w, padding="VALID").item() == np.float16(4001)  # in float16 the sum would stop at 2048


# --- depthwise, separable, pointwise ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, dict(stride=2), dict(rhs_dilation=2), dict(pads=((2, 0), (0, 1)))], ids=lambda o: str(o or "plain")
)
def test_depthwise_channel_c_and_multiplier_m_give_channel_c_times_m_plus_m(options):
    x, w = normal(2, 7, 8, 3), normal(3, 2, 3, 4)
    y = convjax.depthwise_conv(
        x,
        w,
        stride=options.get("stride", 1),
        dilation=options.get("rhs_dilation", 1),
        padding=options.get("pads", "VALID"),
    )
    assert y.shape[-1] == 12
    for c in range(3):
        for m in range(4):
            expected = direct(x[..., c : c + 1], w[..., c : c + 1, m : m + 1], **options)
            close(y[..., c * 4 + m : c * 4 + m + 1], expected)


def test_depthwise_flips_and_pads_as_conv():
    x, w = normal(1, 9, 1), normal(4, 1, 1)
    options = dict(stride=2, padding="SAME_LOWER", dilation=2, padding_mode="circular", flip_kernel=True)
    close(convjax.depthwise_conv(x, w, **options), convjax.conv(x, w, **options))


@pytest.mark.parametrize("leading", [(), (1, 1), (1,)], ids=str)
def test_separable_is_its_two_parts(leading):
    x, w, p = normal(2, 7, 8, 3), normal(3, 2, 3, 2), normal(*leading, 6, 5)
    options = dict(stride=(2, 1), dilation=2, padding="SAME_LOWER", padding_mode="reflect", flip_kernel=True)
    bias, residual = normal(5), normal(2, 4, 8, 5)
    y = convjax.separable_conv(x, w, p, bias=bias, residual=residual, activation="tanh", **options)
    parts = np.asarray(convjax.depthwise_conv(x, w, **options)) @ p.reshape(6, 5)
    close(y, np.tanh(parts + bias + residual))


def test_separable_accepts_narrow_integers():
    x, w, p = (np.full(shape, 100, np.int8) for shape in ((1, 4, 2), (1, 2, 1), (2, 3)))
    np.testing.assert_array_equal(convjax.separable_conv(x, w, p), np.full((1, 4, 3), 2_000_000))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("stride", [1, (1, 1), (2, 3)], ids=str)
def test_pointwise_is_a_matrix_at_every_strided_position(stride, groups):
    x, w = normal(2, 5, 7, 4), normal(4 // groups, 6)
    y = convjax.pointwise_conv(x, w, stride=stride, groups=groups)
    steps = stride if isinstance(stride, tuple) else (1, 1)
    parts = [x[..., :: steps[0], :: steps[1], g * 4 // groups : (g + 1) * 4 // groups] for g in range(groups)]
    kernels = np.split(w, groups, axis=1)
    close(y, np.concatenate([a @ b for a, b in zip(parts, kernels, strict=True)], -1))


def test_pointwise_kernel_may_carry_its_spatial_axes():
    x, w = normal(2, 5, 7, 4), normal(1, 1, 4, 6)
    close(convjax.pointwise_conv(x, w, stride=2), x[:, ::2, ::2] @ w[0, 0])


# --- causal -----------------------------------------------------------------------------------------------------------

CAUSAL = [
    (kernel, stride, dilation, groups)
    for kernel, groups in (((3, 4, 6), 1), ((4, 2, 6), 2), ((3, 4), 1), ((1, 4), 4))
    for stride, dilation in ((1, 1), (2, 1), (1, 3), (3, 2))
]


@pytest.mark.parametrize(("kernel", "stride", "dilation", "groups"), CAUSAL)
def test_causal_output_t_sees_inputs_up_to_stride_t_and_nothing_later(kernel, stride, dilation, groups):
    x, w = normal(1, 11, 4), normal(*kernel)
    run = functools.partial(convjax.causal_conv, w=w, stride=stride, dilation=dilation, groups=groups)
    y = run(x)
    assert y.shape[1] == -(-11 // stride)
    full = w[:, None] if w.ndim == 2 else w
    reach = (len(w) - 1) * dilation
    groups = 4 if w.ndim == 2 else groups
    close(y, direct(x, full, stride=stride, rhs_dilation=dilation, groups=groups, pads=((reach, 0),)))
    futures = np.stack([np.where(np.arange(11)[:, None] > stride * t, 1e3, x[0]) for t in range(y.shape[1])])
    perturbed = np.asarray(run(futures))
    for t in range(y.shape[1]):
        close(perturbed[t, : t + 1], y[0, : t + 1])


# --- empty operands ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("x_shape", [(0, 5, 4), (2, 0, 4)], ids=["no batch", "no length"])
@pytest.mark.parametrize("name", WITH_EPILOGUE)
def test_empty_inputs_give_empty_outputs_and_zero_gradients(name, x_shape):
    operands = [jnp.ones(x_shape), *(jnp.ones(shape) for shape in WITH_EPILOGUE[name])]
    total = lambda *operands: getattr(convjax, name)(*operands, bias=jnp.ones(8 if "depth" in name else 6)).sum()
    value, grads = jax.value_and_grad(total, argnums=tuple(range(len(operands))))(*operands)
    assert value == 0
    for grad, operand in zip(grads, operands, strict=True):
        np.testing.assert_array_equal(grad, np.zeros(operand.shape, np.float32), strict=True)


# --- transposed -------------------------------------------------------------------------------------------------------

STRINGS = ("SAME", "SAME_LOWER", "VALID", "CAUSAL")


def start_and_length(padding, size, k, stride, dilation, extra=0):
    """Which part of the scattered output a padding keeps on one axis: Keras' rule for strings, torch's for pairs."""
    reach = (k - 1) * dilation + 1
    cut = max(reach - stride, 0)
    if padding == "VALID":
        return 0, (size - 1) * stride + max(reach, stride) + extra
    if padding in STRINGS:
        return {"SAME": cut // 2, "SAME_LOWER": cut - cut // 2, "CAUSAL": 0}[padding], size * stride + extra
    lo, hi = padding
    return lo, (size - 1) * stride - lo - hi + reach + extra


@pytest.mark.parametrize("padding", [*STRINGS, (1, 0), (-2, 1)], ids=str)
@pytest.mark.parametrize(("k", "stride", "dilation"), [(4, 2, 1), (3, 2, 1), (2, 3, 1), (3, 1, 2), (3, 3, 2)], ids=str)
def test_transposed_is_the_scattered_kernel_cropped_by_the_rule(padding, k, stride, dilation):
    x, w = normal(2, 5, 3), normal(k, 3, 2)
    start, length = start_and_length(padding, 5, k, stride, dilation)
    y = convjax.conv_transpose(
        x, w, stride=stride, dilation=dilation, padding=padding if padding in STRINGS else (padding,)
    )
    close(y, window(scatter(x, w, stride, dilation), [start], [length]))


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_transposed_lengths_are_those_of_keras(k, stride):
    x, w = (jax.ShapeDtypeStruct(s, np.float32) for s in ((1, 6, 2), (k, 2, 2)))
    length = lambda padding: jax.eval_shape(
        functools.partial(convjax.conv_transpose, stride=stride, padding=padding), x, w
    ).shape[1]
    assert length("valid") == 5 * stride + max(k, stride)
    assert length("same") == length("SAME_LOWER") == length("CAUSAL") == 6 * stride


@pytest.mark.parametrize(("stride", "k"), [(1, 3), (2, 4), (3, 2)])
def test_transposed_causal_output_t_sees_inputs_up_to_t_over_stride(stride, k):
    x, w = normal(1, 6, 1), normal(k, 1, 1)
    run = functools.partial(convjax.conv_transpose, w=w, stride=stride, padding="CAUSAL")
    y = np.asarray(run(x))
    for t in range(y.shape[1]):
        close(run(np.where(np.arange(6)[:, None] > t // stride, 1e3, x))[:, : t + 1], y[:, : t + 1])


TRANSPOSED = (
    # input space, kernel, groups, options
    ((4,), (3, 4, 2), 2, dict(stride=2, padding=1, output_padding=1)),
    ((4, 3), (3, 4, 4, 3), 1, dict(stride=2, padding=((1, 0), (2, 1)), output_padding=(0, 1))),
    ((4, 3), (2, 3, 6, 1), 3, dict(stride=3, padding="SAME", output_padding=(2, 1))),
    ((5, 4), (3, 3, 2, 2), 1, dict(stride=1, dilation=3, padding="VALID", output_padding=2)),
    ((3, 2, 2), (2, 3, 2, 4, 1), 4, dict(stride=2, padding=(1, 0, 1))),
)


@pytest.mark.parametrize(("space", "kernel", "groups", "options"), TRANSPOSED)
def test_transposed_output_padding_groups_and_output_shape(space, kernel, groups, options):
    x, w = normal(2, *space, kernel[-2]), normal(*kernel)
    n, stride, dilation = len(space), options["stride"], options.get("dilation", 1)
    each = lambda v: (v,) * n if isinstance(v, int | str) else v
    paddings = [(p, p) if isinstance(p, int) else p for p in each(options["padding"])]
    extras = each(options.get("output_padding", 0))
    kept = [
        start_and_length(p, size, k, stride, dilation, e)
        for p, size, k, e in zip(paddings, space, kernel[:n], extras, strict=True)
    ]
    expected = window(scatter(x, w, stride, dilation, groups), *zip(*kept, strict=True))
    close(convjax.conv_transpose(x, w, groups=groups, **options), expected)
    by_shape = {**options, "output_padding": 0, "output_shape": expected.shape[1:-1]}
    close(convjax.conv_transpose(x, w, groups=groups, **by_shape), expected)


NUMPY_MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap", "symmetric": "symmetric"}


@pytest.mark.parametrize("mode", [*NUMPY_MODES, 2.0, "zeros"], ids=str)
@pytest.mark.parametrize("padding", ["SAME", ((2, 1),), ((0, 0),)], ids=str)
def test_transposed_padding_mode_continues_the_input(mode, padding):
    x, w, far = normal(1, 6, 2), normal(5, 2, 3), 4
    if mode in NUMPY_MODES:
        extended = np.pad(x, ((0, 0), (far, far), (0, 0)), mode=NUMPY_MODES[mode])
    else:
        extended = np.pad(x, ((0, 0), (far, far), (0, 0)), constant_values=0 if mode == "zeros" else mode)
    start, length = start_and_length(padding if padding in STRINGS else padding[0], 6, 5, 2, 1)
    y = convjax.conv_transpose(x, w, stride=2, padding=padding, padding_mode=mode)
    close(y, window(scatter(extended, w, 2), [start + 2 * far], [length]))


def test_transposed_padding_mode_an_axis():
    x, w = normal(1, 4, 5, 1), normal(3, 3, 1, 2)
    extended = np.pad(np.pad(x, ((0, 0), (2, 2), (0, 0), (0, 0))), ((0, 0), (0, 0), (2, 2), (0, 0)), constant_values=5)
    y = convjax.conv_transpose(x, w, padding="SAME", padding_mode=("zeros", 5))
    close(y, window(scatter(extended, w), [3, 3], [4, 5]))


def test_transposed_padding_mode_asks_for_no_more_input_than_it_uses():
    x, w = normal(1, 1, 1), normal(2, 1, 1)  # both outputs come from the one input: there is nothing to continue
    close(convjax.conv_transpose(x, w, stride=2, padding="SAME", padding_mode="reflect"), x * w.reshape(1, 2, 1))


ADJOINT = (
    ((2, 9, 4), (3, 2, 6), dict(stride=2, pads=((1, 2),), groups=2)),
    ((2, 8, 7, 3), (3, 4, 3, 5), dict(stride=(2, 3), pads=((1, 1), (2, 0)))),
    ((1, 9, 8, 2), (3, 2, 1, 4), dict(stride=(2, 1), pads=2, rhs_dilation=(2, 3), groups=2)),
    ((1, 5, 4, 5, 2), (2, 3, 2, 2, 3), dict(stride=2, pads=1)),
    ((3, 4), (4, 5), {}),
)


@pytest.mark.parametrize(("x_shape", "w_shape", "options"), ADJOINT, ids=lambda v: str(v))
def test_transposed_is_the_adjoint_of_conv(x_shape, w_shape, options):
    forward = case("", x_shape, w_shape, **options)
    x, w = forward.operands()
    cotangent = forward.cotangent()
    expected, _ = direct_grads(x, w, cotangent, forward.spec)
    y = convjax.conv_transpose(
        cotangent,
        np.swapaxes(w, -1, -2),
        stride=forward.spec.strides,
        padding=forward.spec.padding,
        dilation=forward.spec.rhs_dilation,
        groups=forward.spec.feature_groups,
        output_shape=x_shape[1:-1],
    )
    close(y, expected)
    pullback = jax.vjp(lambda x: convjax.conv(x, w, **forward.options), x)[1]
    close(y, pullback(cotangent)[0])


def test_transposed_flip_kernel():
    x, w = normal(1, 5, 2), normal(3, 2, 4)
    close(convjax.conv_transpose(x, w, flip_kernel=True), convjax.conv_transpose(x, w[::-1]))


# --- signatures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_EPILOGUE)
def test_options_are_keyword_only_and_share_their_defaults(name):
    parameters = inspect.signature(getattr(convjax, name)).parameters
    reference = inspect.signature(convjax.conv).parameters
    options = {k: p for k, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert next(iter(parameters)) == "x"
    assert all(k.startswith("w") for k in list(parameters.keys() - options.keys() - {"x"}))
    for key in options.keys() & reference.keys():
        assert options[key].default == reference[key].default, key
