"""`convjax.deformable`: values and all gradients against the oracle, in blocks, in bounded memory; ONNX's own cases."""

from __future__ import annotations

import importlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import convjax
from convjax._deformable import blocks, primitive, run, taps
from convjax._testing_deformable import DeformOracle
from convjax.deformable import deform_conv, deform_conv_v3, deform_conv_v4

# name: x (N, *space, C), w (*k, C // groups, O), with a mask or not, options; what is left out is 1 or unpadded
CASES = {
    "1-D": ((2, 7, 2), (3, 2, 3), True, dict(padding=((1, 1),))),
    "2-D": ((2, 4, 5, 2), (3, 3, 2, 3), True, dict(padding=((1, 1), (1, 1)))),
    "version 1": ((1, 4, 5, 2), (2, 3, 2, 3), False, dict(padding=((0, 1), (2, 0)))),
    "3-D": ((1, 3, 2, 3, 2), (2, 1, 2, 2, 2), True, dict(padding=((0, 1), (0, 0), (1, 0)))),
    "strided, dilated": (
        (1, 7, 6, 2),
        (2, 3, 2, 2),
        True,
        dict(stride=(2, 1), dilation=(3, 2), padding=((1, 1), (0, 2))),
    ),
    "offset groups": ((1, 4, 4, 6), (2, 2, 6, 2), True, dict(offset_groups=3)),
    "groups": ((1, 4, 4, 4), (2, 2, 2, 6), False, dict(groups=2)),
    "fewer offset groups": ((1, 4, 4, 8), (2, 2, 2, 4), True, dict(groups=4, offset_groups=2)),
    "more offset groups": ((1, 4, 4, 8), (2, 2, 4, 4), True, dict(groups=2, offset_groups=4)),
    "depthwise": ((1, 4, 4, 4), (2, 2, 1, 8), True, dict(groups=4, offset_groups=2)),
    "1x1": ((2, 3, 3, 2), (1, 1, 2, 2), True, dict()),
    "one pixel": ((2, 1, 1, 2), (3, 3, 2, 2), True, dict(padding=((1, 1), (1, 1)))),
}
CASE = pytest.mark.parametrize(("x_shape", "w_shape", "masked", "options"), CASES.values(), ids=CASES)


def problem(x_shape, w_shape, masked, options):
    """Operands, a third of the offsets on pixels, some far outside; options and the oracle of the same problem."""
    rng, ndim = np.random.default_rng(0), len(w_shape) - 2
    options = {"padding": ((0, 0),) * ndim, **options}
    stride, dilation = (np.broadcast_to(options.get(name, 1), ndim).tolist() for name in ("stride", "dilation"))
    room = [
        s + sum(p) - d * (k - 1)
        for s, p, d, k in zip(x_shape[1:-1], options["padding"], dilation, w_shape, strict=False)
    ]
    out = [-(-r // s) for r, s in zip(room, stride, strict=True)]
    channels = options.get("offset_groups", 1) * int(np.prod(w_shape[:-2]))
    x, w = rng.standard_normal(x_shape), rng.standard_normal(w_shape)
    offset = 2 * rng.standard_normal((x_shape[0], *out, channels * ndim))
    offset[..., ::3] = offset[..., ::3].round()
    mask = rng.standard_normal((x_shape[0], *out, channels)) if masked else None
    counts = (options.get("groups", 1), options.get("offset_groups", 1))
    return (
        (x, offset, w, mask),
        options,
        DeformOracle(x, offset, w, mask, stride, options["padding"], dilation, *counts),
    )


def value_and_gradients(run, operands, cotangent):
    y, pullback = jax.vjp(run, *operands)
    return y, *pullback(cotangent)


def check(operands, options, oracle, run=deform_conv):
    """Value and gradients of all operands against the oracle, in float64."""
    with jax.enable_x64(True):
        expected = oracle.value()
        cotangent = np.random.default_rng(1).standard_normal(expected.shape)
        gradients = oracle.gradients(cotangent)
        call = jax.jit(lambda x, offset, w, mask: run(x, offset, w, mask=mask, **options))
        actual = value_and_gradients(call, [None if a is None else jnp.asarray(a) for a in operands], cotangent)
        for a, b in zip(actual, (expected, *gradients), strict=True):
            if a is not None:
                np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


@CASE
def test_value_and_gradients_equal_the_oracle(x_shape, w_shape, masked, options):
    check(*problem(x_shape, w_shape, masked, options))


@pytest.fixture
def by_definition(monkeypatch):
    """What other platforms than CPUs compute."""

    def deform(x, offset, mask, w, sampling, spec):
        plan = primitive.Plan(sampling, spec, mask is not None)
        return primitive.definition(*plan.join(x, offset, mask, w), plan=plan)

    monkeypatch.setattr(run, "deform", deform)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.parametrize("name", ["3-D", "more offset groups", "depthwise"])
def test_the_definition_equals_the_oracle(by_definition, name):
    check(*problem(*CASES[name]))


@pytest.mark.parametrize(("name", "block_bytes"), [("2-D", 100), ("more offset groups", 1), ("depthwise", 200)])
def test_blocks_of_a_tap_are_the_whole(monkeypatch, name, block_bytes):
    """The last of them filled up, or a position each."""
    monkeypatch.setattr(taps, "BLOCK_BYTES", block_bytes)
    taken = []
    monkeypatch.setattr(taps, "_blocks", lambda *a, _blocks=taps._blocks: taken.append(_blocks(*a)) or taken[-1])
    jax.clear_caches()
    check(*problem(*CASES[name]))
    assert min(taken) > 1


@pytest.mark.parametrize(("batch", "block_bytes"), [(1, 1), (2, 1), (5, 2 * 4 * 4 * 9 * 2 * 8)])
def test_blocks_of_positions_and_of_examples_are_the_whole(monkeypatch, by_definition, batch, block_bytes):
    """A part of the positions of one example at a time; or two examples, the last of them a filler."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", block_bytes)
    taken = []
    monkeypatch.setattr(blocks, "_block", lambda *a, _block=blocks._block: taken.append(_block(*a)) or taken[-1])
    jax.clear_caches()
    check(*problem((batch, 4, 4, 2), (3, 3, 2, 2), True, dict(padding=((1, 1), (1, 1)))))
    examples, length = taken[0]
    assert (examples, length) == ((2, 16) if block_bytes > 1 else (1, 2))


def test_forward_mode_and_second_order():
    (x, offset, w, mask), options, _ = problem(*CASES["offset groups"])
    energy = lambda *operands: (deform_conv(*operands[:3], mask=operands[3], **options) ** 2).sum()
    with jax.enable_x64(True):
        operands = tuple(map(jnp.asarray, (x, offset + 0.01, w, mask)))  # off the pixels, where it is smooth
        rng = np.random.default_rng(2)
        tangents = tuple(jnp.asarray(rng.standard_normal(a.shape)) for a in operands)
        gradient = jax.jit(jax.grad(energy, (0, 1, 2, 3)))
        slope = jax.jit(lambda *a: jax.jvp(energy, *a)[1])(operands, tangents)
        np.testing.assert_allclose(slope, sum(map(jnp.vdot, gradient(*operands), tangents)), rtol=1e-10)
        curvature = jax.jvp(gradient, operands, tangents)[1]
        step = 1e-6
        ahead, behind = (gradient(*(a + s * t for a, t in zip(operands, tangents, strict=True))) for s in (step, -step))
        for a, b, c in zip(curvature, ahead, behind, strict=True):
            np.testing.assert_allclose(a, (b - c) / (2 * step), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gradient", [False, True])
def test_a_layer_trains_in_2_gb(gradient):
    """2x256x100x168, 3x3: its samples side by side are 0.3 GB, and their gradients at four corners 1.2 GB more."""
    x, offset, mask = (jax.ShapeDtypeStruct((2, 100, 168, c), jnp.float32) for c in (256, 18, 9))
    w = jax.ShapeDtypeStruct((3, 3, 256, 256), jnp.float32)
    run = lambda x, offset, w, mask: deform_conv(x, offset, w, mask=mask)
    if gradient:
        run = jax.grad(lambda *operands: (deform_conv(*operands[:3], mask=operands[3]) ** 2).sum(), (0, 1, 2, 3))
    memory = jax.jit(run).lower(x, offset, w, mask).compile().memory_analysis()
    samples = 4 * 2 * 100 * 168 * 9 * 256
    assert memory.temp_size_in_bytes < (1.5 if gradient else 0.5) * samples
    assert memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes < 2e9


@pytest.mark.parametrize(
    "options", [dict(stride=2), dict(padding="VALID", groups=2), dict(padding=-1, dilation=2)], ids=str
)
def test_without_offsets_it_is_a_convolution(options):
    rng = np.random.default_rng(0)
    x, w, bias = (
        rng.standard_normal(s).astype(np.float32)
        for s in ((2, 3, 9, 8, 4), (3, 2, 4 // options.get("groups", 1), 6), (6,))
    )
    expected = convjax.conv(x, w, bias=bias, **options)
    offset = jnp.zeros((*expected.shape[:-1], 12))
    np.testing.assert_allclose(deform_conv(x, offset, w, bias=bias, **options), expected, rtol=1e-5, atol=1e-5)


def test_each_corner_outside_is_zero_by_itself():
    position = jnp.array([-1.5, -1.0, -0.5, 0.0, 1.5, 2.0, 3.0])
    sample = lambda position: deform_conv(
        jnp.ones((1, 2, 1)), position.reshape(1, 7, 1), jnp.ones((1, 1, 1)), padding=((0, 5),)
    )
    at_origin = position - jnp.arange(7.0)
    np.testing.assert_array_equal(sample(at_origin)[0, :, 0], [0, 0, 0.5, 1, 0.5, 0, 0])
    slopes = jax.grad(lambda p: sample(p).sum())(at_origin)
    np.testing.assert_array_equal(slopes, [0, 1, 1, 0, -1, 0, 0])  # from the right


def test_offsets_that_are_not_finite():
    """Infinite ones sample zeros; NaN is NaN at its own output, in its own gradients and in the kernel's."""
    (x, offset, w, mask), options, _ = problem(*CASES["offset groups"])
    bad = offset.copy()
    bad[0, 0, 0, 0], bad[0, 1, 1, 9], bad[0, 2, 2, 4] = np.inf, -np.inf, np.nan
    far = np.where(np.isinf(bad), np.sign(bad) * 1e30, bad)
    run = lambda *operands: deform_conv(*operands[:3], mask=operands[3], **options)
    clean = run(x, far, w, mask)
    cotangent = jnp.ones_like(clean)
    y, dx, doffset, dw, dmask = value_and_gradients(run, tuple(map(jnp.asarray, (x, bad, w, mask))), cotangent)
    np.testing.assert_array_equal(np.isnan(y).nonzero()[1:3], [[2, 2], [2, 2]])
    np.testing.assert_array_equal(y, clean)
    assert np.isfinite(dx).all()
    assert np.isnan(doffset[0, 2, 2, 4:6]).any()
    assert np.isfinite(np.delete(np.asarray(doffset[0, 2, 2]), [4, 5])).all()
    assert np.isfinite(doffset[0, :2]).all()
    assert doffset[0, 0, 0, 0] == doffset[0, 1, 1, 9] == 0
    assert np.argwhere(np.isnan(dmask)).tolist() == [[0, 2, 2, 2]]
    assert np.isnan(dw[1, 0, :2]).all()
    assert np.isfinite(dw).sum() == dw.size - 2 * 2


@pytest.mark.parametrize("axis", [0, 2, 3])
def test_vmap_over_one_operand_and_its_gradient(axis):
    operands, options, _ = problem(*CASES["more offset groups"])
    several = [np.stack([a, -a]).astype(np.float32) if i == axis else a for i, a in enumerate(operands)]
    run = lambda *operands: deform_conv(*operands[:3], mask=operands[3], **options)
    both = lambda *operands: value_and_gradients(run, operands, jnp.ones((1, 3, 3, 4)))
    mapped = jax.jit(jax.vmap(both, [0 if i == axis else None for i in range(4)]))(*several)
    alone = jax.jit(both)
    for i in range(2):
        expected = alone(*(a[i] if j == axis else a for j, a in enumerate(several)))
        for a, b in zip(mapped, expected, strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-4)


def test_any_batch_axes_and_none():
    rng = np.random.default_rng(0)
    x, offset, w = (rng.standard_normal(s).astype(np.float32) for s in ((2, 3, 5, 2), (2, 3, 5, 3), (3, 2, 4)))
    y = deform_conv(x, offset, w)
    np.testing.assert_allclose(y[1, 2], deform_conv(x[1, 2], offset[1, 2], w), rtol=1e-5, atol=1e-5)
    empty = deform_conv(x[:0], offset[:0], w, bias=jnp.ones(4))
    assert empty.shape == (0, 3, 5, 4)
    np.testing.assert_array_equal(
        deform_conv(jnp.ones((1, 5, 0)), offset[0, :1], jnp.ones((3, 0, 4)), bias=jnp.ones(4)), 1
    )


def test_export_with_a_symbolic_batch():
    run = lambda x, offset: deform_conv(x, offset, jnp.ones((3, 2, 4)))
    batch = jax.export.symbolic_shape("n")[0]
    shapes = [jax.ShapeDtypeStruct((batch, 5, c), jnp.float32) for c in (2, 3)]
    x, offset = (np.random.default_rng(0).standard_normal((3, 5, c)).astype(np.float32) for c in (2, 3))
    exported = jax.export.export(jax.jit(run))(*shapes)
    np.testing.assert_allclose(exported.call(x, offset), run(x, offset), rtol=1e-6)


def test_dtypes():
    """16 bits are sampled and summed in 32, at positions of 32; complex numbers are not conjugated."""
    x, w = jnp.ones((1, 300, 3)), jnp.ones((3, 3, 1))
    offset = jnp.full((1, 300, 3), 0.25)
    y = deform_conv(x.astype(jnp.bfloat16), offset.astype(jnp.bfloat16), w.astype(jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    ramp = jnp.arange(300.0)[None, :, None] % 2
    y = deform_conv(ramp.astype(jnp.bfloat16), offset.astype(jnp.bfloat16), jnp.ones((3, 1, 1), jnp.bfloat16))
    np.testing.assert_array_equal(y, deform_conv(ramp, offset, jnp.ones((3, 1, 1))).astype(jnp.bfloat16))
    y = deform_conv(x * 1j, offset, w * 1j, mask=jnp.full((1, 300, 3), 2.0))
    assert complex(y[0, 5, 0]) == -18
    y = deform_conv(x.astype(jnp.bfloat16), offset, w.astype(jnp.bfloat16), preferred_element_type=jnp.float32)
    assert y.dtype == jnp.float32


def test_onnx(monkeypatch):
    """The cases of the operator's own test suite; those of all other operators would be computed too, for 15 s."""
    node_cases = pytest.importorskip("onnx.backend.test.case.node", reason="ONNX's own cases come with onnx")
    only = lambda package: importlib.import_module(f"{package.__name__}.deformconv")
    monkeypatch.setattr(node_cases, "import_recursive", only)
    # The list is one of the whole process: it holds what other tests asked for too.
    cases = [c for c in node_cases.collect_testcases("DeformConv") if c.model.graph.node[0].op_type == "DeformConv"]
    assert len(cases) >= 4
    for case in cases:
        ((inputs, (expected,)),) = case.data_sets
        (node,) = case.model.graph.node
        given = {a.name: list(a.ints) or a.i for a in node.attribute}
        operands = dict(zip(("x", "w", "offset", "bias", "mask"), inputs, strict=False))
        last = lambda a: np.moveaxis(a, 1, -1)
        ndim = operands["x"].ndim - 2
        pads = given.get("pads", [0] * 2 * ndim)
        y = deform_conv(
            last(operands["x"]),
            last(operands["offset"]),
            np.transpose(operands["w"], (*range(2, ndim + 2), 1, 0)),
            mask=last(operands["mask"]) if "mask" in operands else None,
            bias=operands.get("bias"),
            stride=given.get("strides", 1),
            padding=list(zip(pads[:ndim], pads[ndim:], strict=True)),
            dilation=given.get("dilations", 1),
            groups=given.get("group", 1),
            offset_groups=given.get("offset_group", 1),
        )
        np.testing.assert_allclose(np.moveaxis(y, -1, 1), expected, rtol=1e-6, err_msg=case.name)


@pytest.mark.parametrize(("run", "scale", "remove_center"), [(deform_conv_v3, 1.0, False), (deform_conv_v4, 1.5, True)])
def test_v3_and_v4_are_the_oracle_with_a_kernel_of_ones(run, scale, remove_center):
    """Taps column by column, offsets (x, y), both scaled from the centre; the softmax is version 3's."""
    rng, groups, kernel, stride, dilation = np.random.default_rng(0), 2, (3, 5), (2, 1), (2, 1)
    x = rng.standard_normal((2, 6, 5, 4))
    taps = list(itertools.product(range(kernel[1]), range(kernel[0])))  # (x, y)
    kept = [i for i in range(15) if not (remove_center and i == 7)]
    out = (2, 5)
    offset = 2 * rng.standard_normal((2, *out, groups, len(kept), 2))
    mask = rng.standard_normal((2, *out, groups, len(kept)))
    weights = np.exp(mask) / np.exp(mask).sum(-1, keepdims=True) if run is deform_conv_v3 else mask
    theirs, factors = np.zeros((2, *out, groups, 15, 2)), np.zeros((2, *out, groups, 15))
    for i, k in enumerate(kept):
        across, down = taps[k]
        from_centre = np.array([(down - 1) * dilation[0], (across - 2) * dilation[1]])
        theirs[..., down * 5 + across, :] = (scale - 1) * from_centre + scale * offset[..., i, ::-1]
        factors[..., down * 5 + across] = weights[..., i]
    flat = lambda a, axes: a.reshape(2, *out, -1)
    oracle = DeformOracle(
        x, flat(theirs, 2), np.ones((*kernel, 1, 4)), flat(factors, 1), stride, ((1, 1), (2, 2)), dilation, 4, groups
    )
    options = dict(kernel_size=kernel, stride=stride, padding=(1, 2), dilation=dilation, groups=groups)
    with jax.enable_x64(True):
        call = jax.jit(lambda *a: run(*a, offset_scale=scale, remove_center=remove_center, **options))
        operands = (jnp.asarray(x), jnp.asarray(flat(offset, 2)), jnp.asarray(flat(mask, 1)))
        cotangent = rng.standard_normal((2, *out, 4))
        y, dx, doffset, _ = value_and_gradients(call, operands, cotangent)
        np.testing.assert_allclose(y, oracle.value(), rtol=1e-10, atol=1e-10)
        expected_dx, expected_doffset, _, _ = oracle.gradients(cotangent)
        np.testing.assert_allclose(dx, expected_dx, rtol=1e-10, atol=1e-10)
        swapped = expected_doffset.reshape(theirs.shape)[..., [down * 5 + across for across, down in taps], ::-1][
            ..., kept, :
        ]
        np.testing.assert_allclose(doffset, scale * flat(swapped, 2), rtol=1e-9, atol=1e-9)


ONES = jnp.ones((1, 6, 6, 4)), jnp.zeros((1, 6, 6, 18)), jnp.ones((3, 3, 4, 2))
WINDOW = jnp.ones((1, 6, 6, 4)), jnp.zeros((1, 6, 6, 18)), jnp.ones((1, 6, 6, 9))


@pytest.mark.parametrize(
    ("error", "call", "match"),
    [
        (ValueError, lambda x, o, w: deform_conv(x, o[..., :9], w), r"offset has shape \(1, 6, 6, 9\).* 6, 18\)"),
        (ValueError, lambda x, o, w: deform_conv(x, o, w, offset_groups=2), r"= \(1, 6, 6, 36\)"),
        (ValueError, lambda x, o, w: deform_conv(x, o, w, stride=2), r"= \(1, 3, 3, 18\)"),
        (ValueError, lambda x, o, w: deform_conv(x, o, w, mask=o), r"mask has shape \(1, 6, 6, 18\).*\(1, 6, 6, 9\)"),
        (ValueError, lambda x, o, w: deform_conv(x, o, w, offset_groups=3), "offset_groups=3 does not divide the 4"),
        (ValueError, lambda x, o, w: deform_conv(x, o, w[:, :, :2]), "deform_conv: x has 4 channels but w"),
        (ValueError, lambda x, o, w: deform_conv(x, o, w, bias=jnp.ones(3)), r"bias has shape \(3,\)"),
        (TypeError, lambda x, o, w: deform_conv(x, o.astype(int), w), "offset must be floating, got int32"),
        (TypeError, lambda x, o, w: deform_conv(x.astype(int), o, w.astype(int)), r"Type x.astype\(jnp.float32\)"),
        (TypeError, lambda x, o, w: deform_conv(x, None, w), "offset must be an array"),
        (ValueError, lambda x, o, w: deform_conv_v3(x, o, o), r"deform_conv_v3: mask has shape"),
        (ValueError, lambda x, o, w: deform_conv_v4(x, o, o[..., :9], groups=3), "groups=3 does not divide the 4"),
        (ValueError, lambda x, o, w: deform_conv_v4(x, o, o, kernel_size=2, remove_center=True), "no tap at its"),
        (ValueError, lambda x, o, w: deform_conv_v4(x, o, o, offset_scale=np.nan), "must be a finite number, got nan"),
        (ValueError, lambda x, o, w: deform_conv_v4(x[0, 0], o, o), r"must be \(\*batch, H, W, C\)"),
        (TypeError, lambda x, o, w: deform_conv_v4(x.astype(int), o, o), "x is int32, but must be floating"),
    ],
    ids=itertools.count(),
)  # fmt: skip
def test_errors_say_what_to_type(error, call, match):
    with pytest.raises(error, match=match):
        call(*ONES)
