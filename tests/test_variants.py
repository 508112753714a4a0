"""Patches, masked, partial, per-example and involution: each against plain NumPy, with gradients, dtypes and errors."""

from __future__ import annotations

import importlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import convjax
from convjax._core.spec import ConvSpec
from convjax.masked import masked_conv
from convjax.partial import partial_conv
from convjax.patches import fold, unfold
from convjax.per_example import dynamic_conv
from convjax.per_position import involution
from convjax.shuffle import channel_shuffle
from convjax.testing import direct_conv

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def small_problems_stand_for_large_ones():
    """Not here: what serves a convolution is tested elsewhere, and these are many small programs."""


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def check_gradients(run, *operands):
    """`run` is linear in each operand: `<run(t), g> = <t, its gradient>`, t in the place of one operand."""
    run = jax.jit(run)
    cotangent = normal(*jax.eval_shape(run, *operands).shape)
    gradients = jax.jit(lambda operands: jax.vjp(run, *operands)[1](cotangent))(operands)
    for i, gradient in enumerate(gradients):
        direction = normal(*operands[i].shape)
        moved = run(*(direction if i == j else a for j, a in enumerate(operands)))
        np.testing.assert_allclose(np.vdot(moved, cotangent), np.vdot(direction, gradient), rtol=1e-3, atol=1e-4)


# name: input (*batch, *space, C), kernel size, options, pads that they mean
WINDOWS = {
    "1-D": ((2, 7, 3), (3,), dict(), [(0, 0)]),
    "2-D": ((2, 9, 8, 2), (3, 2), dict(stride=(2, 3), dilation=(2, 1), padding=1), [(1, 1), (1, 1)]),
    "same": ((1, 7, 6, 2), (4, 3), dict(padding="SAME", stride=2), [(1, 2), (0, 1)]),
    "cropped": ((2, 9, 2), (3,), dict(padding=[(-1, -2)]), [(-1, -2)]),
    "3-D, two batch axes": ((2, 1, 3, 4, 3, 2), (2, 1, 2), dict(padding=[(0, 1), (1, 0), (0, 0)]), None),
    "no batch": ((6, 5, 2), (3, 3), dict(), [(0, 0)] * 2),
    "no spatial axes": ((3, 2), (), dict(), []),
    "no example": ((0, 5, 2), (3,), dict(), [(0, 0)]),
    "no length": ((2, 0, 3), (3,), dict(), [(0, 0)]),
    "no length, padded": ((2, 0, 3), (3,), dict(padding=2), [(2, 2)]),
}
WINDOW = pytest.mark.parametrize(("shape", "kernel", "options", "pads"), WINDOWS.values(), ids=WINDOWS)


def patches_of(x, kernel, pads, stride=1, dilation=1, **_):
    """Each value of each patch by itself."""
    n = len(kernel)
    stride, dilation = np.broadcast_to(stride, n), np.broadcast_to(dilation, n)
    split = x.ndim - n - 1
    room = [
        s + lo + hi - d * (k - 1) for s, (lo, hi), d, k in zip(x.shape[split:-1], pads, dilation, kernel, strict=True)
    ]
    out = [max(0, -(-r // s)) for r, s in zip(room, stride, strict=True)]
    patches = np.zeros((*x.shape[:split], *out, *kernel, x.shape[-1]), x.dtype)
    for at, tap in itertools.product(np.ndindex(*out), np.ndindex(*kernel)):
        place = [a * s + t * d - lo for a, s, t, d, (lo, _) in zip(at, stride, tap, dilation, pads, strict=True)]
        if all(0 <= p < s for p, s in zip(place, x.shape[split:-1], strict=True)):
            patches[(..., *at, *tap, slice(None))] = x[(..., *place, slice(None))]
    return patches


@WINDOW
def test_unfold_and_fold(shape, kernel, options, pads):
    """Against loops; fold is the transpose of unfold, in integers without a rounding."""
    pads = options["padding"] if pads is None else pads
    x = RNG.integers(-9, 10, shape).astype(np.int32)
    patches = unfold(x, kernel, **options)
    np.testing.assert_array_equal(patches, patches_of(x, kernel, pads, **options))
    assert patches.dtype == jnp.int32
    g = RNG.integers(-9, 10, patches.shape).astype(np.int32)
    space = shape[len(shape) - len(kernel) - 1 : -1]
    folded = fold(g, space, **options)
    assert folded.shape == shape
    assert np.vdot(patches, g) == np.vdot(x, folded)
    energy = lambda x: jnp.sum(unfold(x, kernel, **options) * g)
    gradient = jax.jit(jax.grad(energy))(x.astype(np.float32))
    np.testing.assert_array_equal(gradient, folded)


def test_unfold_padding_modes_nan_and_dtypes():
    x = normal(2, 5, 4, 3)
    expected = unfold(np.pad(x, ((0, 0), (1, 2), (2, 1), (0, 0)), mode="reflect"), (3, 2))
    pads = [(1, 2), (2, 1)]
    np.testing.assert_array_equal(unfold(x, (3, 2), padding=pads, padding_mode="reflect"), expected)
    broken = x.copy()
    broken[0, 2, 1, 0] = np.nan
    np.testing.assert_array_equal(unfold(broken, (3, 2)), patches_of(broken, (3, 2), [(0, 0)] * 2))
    folded = np.asarray(fold(unfold(broken, (3, 2)), (5, 4)))
    assert np.argwhere(np.isnan(folded)).tolist() == [[0, 2, 1, 0]]
    assert unfold(jnp.ones((4, 1), jnp.int8), (2,)).dtype == jnp.int8
    assert fold(jnp.full((3, 3, 1), 100, jnp.int8), (5,))[:, 0].tolist() == [100, 200, 300, 200, 100]
    # 258 is a number of 16 bits, 257 is not: summed in them it would stay at 256
    anti = jnp.array([[0, 0, 1], [0, 256, 0], [1, 0, 0]], jnp.bfloat16)[..., None]
    half = fold(anti, (5,))
    assert half.dtype == jnp.bfloat16
    assert half[2, 0] == 258
    gradient = jax.jit(lambda g: jax.vjp(lambda x: unfold(x, (3,)), jnp.ones((5, 1), g.dtype))[1](g)[0])(anti)
    assert gradient[2, 0] == 258
    complex_patches = unfold(jnp.full((3, 1), 1j), (2,))
    assert complex_patches[0, 0, 0] == 1j


def test_unfold_times_a_kernel_is_a_convolution_under_jit_and_vmap():
    x, w = normal(3, 2, 7, 6, 2), normal(3, 2, 2, 4)
    run = jax.jit(jax.vmap(lambda x: jnp.tensordot(unfold(x, (3, 2), stride=2, padding="SAME"), w, 3)))
    close(run(x), convjax.conv(x, w, stride=2))
    counts = fold(unfold(jnp.ones((5, 1)), (3,)), (5,))
    np.testing.assert_array_equal(counts[:, 0], [1, 2, 3, 2, 1])


@pytest.mark.parametrize("options", [dict(), dict(stride=(2, 1), padding=(1, 2), dilation=(1, 2))], ids=str)
def test_unfold_and_fold_are_torch_s(options):
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    x = normal(2, 7, 6, 3)
    patches = np.asarray(unfold(x, (3, 2), **options))
    reorder = lambda p: np.moveaxis(p, -1, 1).reshape(2, 3, -1, 6).swapaxes(2, 3).reshape(2, 18, -1)
    theirs = torch.nn.functional.unfold(torch.from_numpy(np.moveaxis(x, -1, 1).copy()), (3, 2), **options)
    np.testing.assert_array_equal(reorder(patches), theirs)
    g = normal(*patches.shape)
    back = torch.nn.functional.fold(torch.from_numpy(reorder(g)), (7, 6), (3, 2), **options)
    close(np.moveaxis(fold(g, (7, 6), **options), -1, 1), back)


def test_fold_is_onnx_s(monkeypatch):
    """The cases of the operator's own test suite; those of all other operators would be computed too, for 15 s."""
    node_cases = pytest.importorskip("onnx.backend.test.case.node", reason="ONNX's own cases come with onnx")
    only = lambda package: importlib.import_module(f"{package.__name__}.col2im")
    monkeypatch.setattr(node_cases, "import_recursive", only)
    # The list is one of the whole process: it holds what other tests asked for too.
    cases = [c for c in node_cases.collect_testcases("Col2Im") if c.model.graph.node[0].op_type == "Col2Im"]
    assert len(cases) >= 5
    for case in cases:
        (((columns, size, kernel), (expected,)),) = case.data_sets
        (node,) = case.model.graph.node
        given = {a.name: list(a.ints) for a in node.attribute}
        n = len(size)
        stride, dilation, pads = given.get("strides", 1), given.get("dilations", 1), given.get("pads", [0] * 2 * n)
        options = dict(stride=stride, dilation=dilation, padding=list(zip(pads[:n], pads[n:], strict=True)))
        out = jax.eval_shape(lambda: unfold(jnp.ones((*size, 1)), kernel, **options)).shape[:n]  # noqa: B023
        patches = columns.reshape(len(columns), -1, *kernel, *out)
        patches = np.transpose(patches, (0, *range(2 + n, 2 + 2 * n), *range(2, 2 + n), 1))
        y = fold(patches, size, **options)
        np.testing.assert_array_equal(np.moveaxis(y, -1, 1), expected, err_msg=case.name)


# --- masked -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["A", "B"])
@pytest.mark.parametrize(
    ("space", "kernel", "colours", "groups"), [((9,), (5,), 1, 1), ((4, 5), (3, 5), 3, 1), ((3, 3, 2), (3, 1, 3), 2, 2)]
)
def test_a_masked_convolution_sees_what_comes_before(kind, space, kernel, colours, groups):
    """By the Jacobian: exactly the values of earlier positions in the window, and at the centre of earlier colours."""
    inputs, outputs = 12, 6 * groups
    x, w = normal(*space, inputs), np.abs(normal(*kernel, inputs // groups, outputs)) + 1
    run = lambda x: masked_conv(x, w, mask=kind, channel_groups=colours, groups=groups)
    seen = np.abs(jax.jit(jax.jacobian(run))(x)) > 0.5  # a weight is at least 1
    n = len(space)
    for target, source in itertools.product(np.ndindex(*space), np.ndindex(*space)):
        offset = [s - t for s, t in zip(source, target, strict=True)]
        inside = all(abs(o) <= k // 2 for o, k in zip(offset, kernel, strict=True))
        colour_in, colour_out = np.arange(inputs) * colours // inputs, np.arange(outputs) * colours // outputs
        same_group = np.arange(inputs) * groups // inputs == (np.arange(outputs) * groups // outputs)[:, None]
        if source == target:
            allowed = colour_in < colour_out[:, None] if kind == "A" else colour_in <= colour_out[:, None]
        else:
            allowed = np.full((outputs, inputs), inside and source < target)
        actual = seen[(*target, slice(None), *source, slice(None))]
        np.testing.assert_array_equal(actual, allowed & same_group, err_msg=f"{n}-D, {target} of {source}")


@pytest.mark.parametrize(
    "options",
    [dict(), dict(padding="VALID", stride=2), dict(padding=[(3, 0), (1, 2)], dilation=(2, 1), stride=(1, 2))],
    ids=str,
)
def test_masked_equals_the_oracle(options):
    """All taps, with the weights that are left out as zeros."""
    x, w, bias = normal(2, 9, 8, 3), normal(3, 5, 3, 4), normal(4)
    keep = np.zeros((3, 5, 1, 1))
    keep[0], keep[1, :3] = 1, 1
    expected = convjax.conv(x, w * keep.astype(np.float32), bias=bias, activation="relu", **options)
    close(masked_conv(x, w, mask="B", bias=bias, activation="relu", **options), expected)
    close(masked_conv(x, w, mask=keep == 1, bias=bias, activation="relu", **options), expected)
    check_gradients(lambda x, w: masked_conv(x, w, mask="A", **options), x, w)


def test_what_a_mask_leaves_out_may_be_anything():
    x, w = normal(2, 6, 1), np.array([1, 2, np.nan], np.float32).reshape(3, 1, 1)
    y = jax.jit(lambda x, w, m: masked_conv(x, w, mask=m))(x, w, jnp.array([1, 1, 0]).reshape(3, 1, 1))
    spec = ConvSpec((1,), ((1, 0),), (1,), (1,))
    close(y, direct_conv(x, w[:2], spec))
    close(masked_conv(x, w, mask="b"), y)
    gradient = jax.jit(jax.grad(lambda w: masked_conv(x, w, mask="B").sum()))(w)
    assert gradient[2] == 0
    assert masked_conv(jnp.ones((0, 5, 2)), jnp.ones((3, 2, 4)), mask="A").shape == (0, 5, 4)
    assert masked_conv(jnp.ones((2, 0, 2)), jnp.ones((3, 2, 4)), mask="A").shape == (2, 0, 4)
    np.testing.assert_array_equal(
        masked_conv(jnp.ones((2, 3)), jnp.ones((3, 3)), mask="A", channel_groups=3)[0], [0, 1, 2]
    )
    assert masked_conv(jnp.ones((5, 1), jnp.int8), jnp.ones((3, 1, 1), jnp.int8), mask="B").dtype == jnp.int32


# --- partial ----------------------------------------------------------------------------------------------------------

PARTIAL = {
    "2-D": ((2, 5, 6, 3), (3, 3, 3, 4), False, dict(padding=1)),
    "strided, dilated": ((1, 9, 8, 2), (3, 2, 2, 3), False, dict(stride=2, dilation=(2, 1), padding=((0, 2), (1, 0)))),
    "single channels": ((2, 7, 3), (3, 3, 4), True, dict(padding=((1, 1),))),
    "groups": ((2, 7, 4), (3, 2, 6), True, dict(padding=((0, 2),), groups=2)),
}


@pytest.mark.parametrize(("x_shape", "w_shape", "channels", "options"), PARTIAL.values(), ids=PARTIAL)
def test_partial_is_the_equations(x_shape, w_shape, channels, options):
    x, w, bias = normal(*x_shape), normal(*w_shape), normal(w_shape[-1])
    mask = (RNG.random((*x_shape[:-1], x_shape[-1] if channels else 1)) < 0.3).astype(np.float32)
    mask[0, :5], mask[0, -1] = 0, 1
    n, groups, pads = len(w_shape) - 2, options.get("groups", 1), options["padding"]
    each = lambda v: tuple(np.broadcast_to(v, n).tolist())
    pads = ((pads, pads),) * n if isinstance(pads, int) else pads
    spec = ConvSpec(each(options.get("stride", 1)), pads, (1,) * n, each(options.get("dilation", 1)), groups)
    known = direct_conv(np.broadcast_to(mask, x_shape), np.ones(w_shape), spec)
    total = direct_conv(x * mask, w, spec) * np.prod(w_shape[:-1]) / np.maximum(known, 1) + bias
    holed = np.where(mask, x, np.nan).astype(np.float32)
    y, new = jax.jit(lambda x, mask: partial_conv(x, w, mask=mask, bias=bias, **options))(holed, mask)
    close(y, np.where(known > 0, total, 0))
    np.testing.assert_array_equal(np.broadcast_to(new, y.shape), known > 0)
    assert new.shape[-1] == (w_shape[-1] if channels else 1)
    assert new.dtype == jnp.float32
    assert 0 < np.mean(known > 0) < 1
    check_gradients(lambda x, w: partial_conv(x, w, mask=mask, **options)[0], x, w)
    into_holes = jax.jit(jax.grad(lambda x: partial_conv(x, w, mask=mask, **options)[0].sum()))(holed)
    np.testing.assert_array_equal(np.where(mask, 0, into_holes), 0)


def test_partial_dtypes_vmap_and_empty():
    known = jnp.array([True, False, False, False, True])[:, None]
    y, new = partial_conv(jnp.ones((5, 1), jnp.bfloat16), jnp.ones((3, 1, 1), jnp.bfloat16), mask=known)
    assert y.dtype == jnp.bfloat16
    assert new.dtype == bool
    np.testing.assert_array_equal(y[:, 0].astype(np.float32), [3, 3, 0, 3, 3])
    np.testing.assert_array_equal(new[:, 0], [True, True, False, True, True])
    y, _ = partial_conv(jnp.full((5, 1), 1j), jnp.full((3, 1, 1), 1j), mask=known)
    assert y[0, 0] == -3
    xs, masks = normal(3, 5, 2), (normal(3, 5, 1) > 0).astype(np.int32)
    w = normal(3, 2, 2)
    mapped = jax.jit(jax.vmap(lambda x, mask: partial_conv(x, w, mask=mask)))(xs, masks)
    together = jax.jit(lambda x, mask: partial_conv(x, w, mask=mask))(xs, masks)
    for a, b in zip(mapped, together, strict=True):
        close(a, b)
    y, new = partial_conv(jnp.ones((0, 5, 2)), w, mask=jnp.ones((0, 5, 1)))
    assert (y.shape, new.shape) == ((0, 5, 2), (0, 5, 1))


# --- per example, involution, shuffle ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "options"),
    [
        ((3, 7, 2), (3, 3, 2, 4), dict(padding=((1, 1),))),
        ((2, 6, 5, 4), (2, 3, 2, 2, 6), dict(stride=2, padding=((0, 1), (1, 0)), groups=2)),
        ((2, 3), (2, 3, 4), dict(padding=())),
    ],
    ids=["1-D", "2-D grouped", "matrix"],
)
def test_dynamic_equals_the_oracle_of_each_example(x_shape, w_shape, options):
    x, w, bias = normal(*x_shape), normal(*w_shape), normal(x_shape[0], w_shape[-1])
    n = len(w_shape) - 3
    one = (1,) * n
    spec = ConvSpec((options.get("stride", 1),) * n, options["padding"], one, one, options.get("groups", 1))
    expected = np.concatenate([direct_conv(x[i : i + 1], w[i], spec) + bias[i] for i in range(len(x))])
    run = jax.jit(lambda x, w: dynamic_conv(x, w, **options))
    close(dynamic_conv(x, w, bias=bias, **options), expected)
    close(
        dynamic_conv(x, w, bias=bias[0], residual=expected, activation="relu", **options),
        np.maximum(run(x, w) + bias[0] + expected, 0),
    )
    check_gradients(run, x, w)


def test_dynamic_shares_a_kernel_along_further_batch_axes_and_is_one_convolution():
    x, w = normal(2, 3, 7, 2), normal(2, 3, 2, 4)
    close(dynamic_conv(x, w)[1], convjax.conv(x[1], w[1]))
    program = jax.make_jaxpr(dynamic_conv)(x, w)
    assert str(program).count("convjax_conv") == 1
    mapped = jax.jit(jax.vmap(dynamic_conv))(np.stack([x, -x]), np.stack([w, w]))
    close(mapped[1], -mapped[0])
    close(mapped[0], dynamic_conv(x, w))
    empty = dynamic_conv(jnp.ones((0, 7, 2)), jnp.ones((0, 3, 2, 4)), stride=2, bias=jnp.ones((0, 4)))
    assert empty.shape == (0, 4, 4)
    narrow = jnp.ones((2, 5, 1), jnp.int8), jnp.ones((2, 3, 1, 1), jnp.int8)
    assert jax.eval_shape(dynamic_conv, *narrow).dtype == jnp.int32


INVOLUTION = {name: case for name, case in WINDOWS.items() if name != "3-D, two batch axes"}


@pytest.mark.parametrize(("shape", "kernel", "options", "pads"), INVOLUTION.values(), ids=INVOLUTION)
def test_involution_is_a_weighted_sum_of_patches(shape, kernel, options, pads):
    x, n = normal(*shape), len(kernel)
    groups = shape[-1] if n == 2 else 1
    patches = patches_of(x, kernel, pads, **options)
    weights = normal(*patches.shape[:-1], groups)
    wide = np.repeat(weights, shape[-1] // groups, axis=-1)
    expected = (patches * wide).sum(tuple(range(-1 - n, -1)))
    run = lambda x, w: involution(x, w, **{"padding": "VALID", **options})
    close(run(x, weights), expected)
    if n == 2:
        check_gradients(run, x, weights)


def test_involution_groups_dtypes_modes_and_vmap():
    x, kernel = normal(2, 3, 6, 4), normal(2, 3, 6, 3, 2)
    close(involution(x, kernel)[..., 1], involution(x[..., 1:2], kernel[..., :1])[..., 0])
    close(involution(x, kernel)[..., 2], involution(x[..., 2:3], kernel[..., 1:])[..., 0])
    close(jax.vmap(involution)(x, kernel), involution(x, kernel))
    same = np.broadcast_to(kernel[0, 0, 0, :, :1], (2, 3, 6, 3, 1))
    w = kernel[0, 0, 0, :, :1, None]
    close(involution(x[..., :1], same, padding_mode="circular"), convjax.conv(x[..., :1], w, padding_mode="circular"))
    assert involution(jnp.full((4, 1), 100, jnp.int8), jnp.ones((4, 3, 1), jnp.int8))[1, 0] == 300
    ramp = jnp.array([[1], [256], [1]], jnp.bfloat16)
    half = involution(ramp, jnp.ones((1, 3, 1), jnp.bfloat16), padding="VALID")
    assert half.dtype == jnp.bfloat16
    assert half[0, 0] == 258


def test_shuffle_deals_channels_out():
    x = normal(2, 3, 12)
    expected = x.reshape(2, 3, 3, 4).transpose(0, 1, 3, 2).reshape(2, 3, 12)
    np.testing.assert_array_equal(jax.jit(channel_shuffle, static_argnums=1)(x, 3), expected)
    np.testing.assert_array_equal(channel_shuffle(expected, 4), x)
    assert channel_shuffle(jnp.ones((0, 4)), 2).shape == (0, 4)


# --- errors -----------------------------------------------------------------------------------------------------------

ONES = jnp.ones

ERRORS = {
    "unfold one int": (TypeError, r"unfold: kernel_size=3 must be a sequence", lambda: unfold(ONES((5, 1)), 3)),
    "unfold no taps": (ValueError, r"kernel_size\[0\] must be at least 1", lambda: unfold(ONES((5, 1)), (0,))),
    "unfold rank": (ValueError, r"Type x\[..., None\]", lambda: unfold(ONES(5), (3,))),
    "unfold too large": (ValueError, r"unfold: the kernel is larger", lambda: unfold(ONES((2, 1)), (3,))),
    "unfold bool": (TypeError, r"x must hold numbers", lambda: unfold(ONES((5, 1), bool), (3,))),
    "unfold traced": (TypeError, r"must be static", lambda: jax.jit(lambda k: unfold(ONES((5, 1)), (k,)))(3)),
    "unfold stride": (ValueError, r"2 entries", lambda: unfold(ONES((5, 1)), (3,), stride=(1, 1))),
    "unfold mode": (ValueError, r"padding_mode='mirror'", lambda: unfold(ONES((5, 1)), (3,), padding_mode="mirror")),
    "fold counts": (ValueError, r"has \(4,\)", lambda: fold(ONES((3, 2, 1)), (5,))),
    "fold rank": (ValueError, r"at least 3", lambda: fold(ONES((3, 2)), (5,))),
    "fold no taps": (ValueError, r"at least one an axis", lambda: fold(ONES((3, 0, 1)), (5,))),
    "masked name": (ValueError, r"mask='C'", lambda: masked_conv(ONES((5, 1)), ONES((3, 1, 1)), mask="C")),
    "masked even": (ValueError, r"Type odd sizes", lambda: masked_conv(ONES((5, 1)), ONES((2, 1, 1)), mask="A")),
    "masked colours": (
        ValueError,
        r"does not divide the 4 output",
        lambda: masked_conv(ONES((5, 3)), ONES((3, 3, 4)), mask="A", channel_groups=3),
    ),
    "masked colours, array": (
        ValueError,
        r"Leave channel_groups out",
        lambda: masked_conv(ONES((5, 3)), ONES((3, 3, 3)), mask=ONES((3, 3, 3)), channel_groups=3),
    ),
    "masked shape": (
        ValueError,
        r"does not broadcast to w of shape \(3, 2, 4\)",
        lambda: masked_conv(ONES((5, 2)), ONES((3, 2, 4)), mask=ONES(3)),
    ),
    "masked none": (TypeError, r"mask must be an array", lambda: masked_conv(ONES((5, 1)), ONES((3, 1, 1)), mask=None)),
    "partial mask": (
        ValueError,
        r"Type one of shape \(5, 1\)",
        lambda: partial_conv(ONES((5, 3)), ONES((3, 3, 1)), mask=ONES((5, 2))),
    ),
    "partial integers": (
        TypeError,
        r"cannot be scaled",
        lambda: partial_conv(ONES((5, 1), int), ONES((3, 1, 1), int), mask=ONES((5, 1))),
    ),
    "dynamic batch": (ValueError, r"2 examples, but w", lambda: dynamic_conv(ONES((2, 5, 1)), ONES((3, 3, 1, 1)))),
    "dynamic shared": (ValueError, r"Call conv", lambda: dynamic_conv(ONES((2, 1)), ONES((1, 1)))),
    "dynamic bias": (
        ValueError,
        r"2 examples, but bias has shape \(3, 1\)",
        lambda: dynamic_conv(ONES((2, 5, 1)), ONES((2, 3, 1, 1)), bias=ONES((3, 1))),
    ),
    "dynamic channels": (
        ValueError,
        r"dynamic_conv: x has 2 channels",
        lambda: dynamic_conv(ONES((2, 5, 2)), ONES((2, 3, 1, 1))),
    ),
    "involution shape": (
        ValueError,
        r"Type a kernel of shape \(5, 3, 1\)",
        lambda: involution(ONES((5, 1)), ONES((4, 3, 1))),
    ),
    "involution rank": (ValueError, r"do not fit", lambda: involution(ONES((5, 1)), ONES(1))),
    "involution no taps": (ValueError, r"do not fit", lambda: involution(ONES((5, 1)), ONES((5, 0, 1)))),
    "involution groups": (
        ValueError,
        r"groups=2 does not divide the 3 channels",
        lambda: involution(ONES((5, 3)), ONES((5, 3, 2))),
    ),
    "involution dtypes": (TypeError, r"one dtype", lambda: involution(ONES((5, 1)), ONES((5, 3, 1), int))),
    "shuffle groups": (ValueError, r"channel_shuffle: groups=2 does not divide", lambda: channel_shuffle(ONES(3), 2)),
    "shuffle scalar": (ValueError, r"is a scalar", lambda: channel_shuffle(ONES(()), 1)),
}


@pytest.mark.parametrize(("error", "match", "call"), ERRORS.values(), ids=ERRORS)
def test_errors_say_what_to_type(error, match, call):
    with pytest.raises(error, match=match):
        call()
