"""The spec's algebra: shapes, gradients as convolutions (exact, on integers in float64), the cost of known layers."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax import lax

from convjax._core.bridge import lax_params, spec_from_lax
from convjax.testing import CASES, EMPTY_CASES, Case, case, direct_conv, draw


def integers(shape, seed):
    return draw(np.random.default_rng(seed), shape, np.int8).astype(np.float64)


def lhs_grad(ct: np.ndarray, w: np.ndarray, case: Case) -> np.ndarray:
    """The gradient in the input as the spec says it: the cotangent with the kernel flipped and transposed by group."""
    y = direct_conv(ct, transposed(w, case), case.lhs_grad.spec)
    return batch_first(y, case) if case.spec.batch_groups > 1 else y


def transposed(w: np.ndarray, case: Case) -> np.ndarray:
    *k, channels, features = w.shape
    groups = case.spec.groups
    w = np.flip(w, tuple(range(case.spec.ndim))).reshape(*k, channels, groups, features // groups)
    return np.moveaxis(w, (-1, -2, -3), (-3, -2, -1)).reshape(*k, features // groups, groups * channels)


def batch_first(y: np.ndarray, case: Case) -> np.ndarray:
    """`(N / groups, *space, groups * C)` to `(N, *space, C)`."""
    y = y.reshape(*y.shape[:-1], case.spec.batch_groups, -1)
    return np.moveaxis(y, -2, 0).reshape(-1, *y.shape[1:-2], y.shape[-1])


def features_last(x: np.ndarray, case: Case) -> np.ndarray:
    """The inverse of `batch_first`."""
    x = np.moveaxis(x.reshape(case.spec.batch_groups, -1, *x.shape[1:]), 0, -2)
    return x.reshape(*x.shape[:-2], -1)


def rhs_grad(x: np.ndarray, ct: np.ndarray, case: Case) -> np.ndarray:
    """The gradient in the kernel as the spec says it: batch and features exchanged."""
    return np.moveaxis(direct_conv(np.swapaxes(x, 0, -1), np.moveaxis(ct, 0, -2), case.rhs_grad.spec), 0, -2)


@pytest.mark.parametrize("case", CASES + EMPTY_CASES, ids=str)
def test_gradients_by_dot_products(case):
    """<conv(x, w), y> = <x, input gradient> = <w, kernel gradient>, exactly, and of exactly these shapes."""
    x, w, ct = (integers(shape, i) for i, shape in enumerate((case.lhs_shape, case.rhs_shape, case.out_shape)))
    x_grad, w_grad = lhs_grad(ct, w, case), rhs_grad(x, ct, case)
    assert x_grad.shape == x.shape
    assert w_grad.shape == w.shape
    inner = np.vdot(direct_conv(x, w, case.spec), ct)
    assert np.vdot(x, x_grad) == inner
    assert np.vdot(w, w_grad) == inner
    if inner == 0:
        assert case in EMPTY_CASES  # else the identity would say little


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_gradient_of_the_gradient_is_the_convolution(case):
    x, w = (integers(shape, i) for i, shape in enumerate((case.lhs_shape, case.rhs_shape)))
    y = direct_conv(x, w, case.spec)
    ct = features_last(x, case) if case.spec.batch_groups > 1 else x
    np.testing.assert_array_equal(lhs_grad(ct, transposed(w, case), case.lhs_grad), y)
    # The kernel gradient's kernel is the cotangent: its kernel gradient is the output.
    again = rhs_grad(np.swapaxes(x, 0, -1), np.moveaxis(w, -2, 0), case.rhs_grad)
    np.testing.assert_array_equal(np.moveaxis(again, -2, 0), y)


@pytest.mark.parametrize("case", CASES + EMPTY_CASES, ids=str)
def test_out_shape_is_that_of_lax(case):
    operands = (jax.ShapeDtypeStruct(shape, np.float32) for shape in (case.lhs_shape, case.rhs_shape))
    out = jax.eval_shape(lambda x, w: lax.conv_general_dilated(x, w, **lax_params(case.spec)), *operands)
    assert case.out_shape == out.shape
    assert spec_from_lax(lax_params(case.spec)) == case.spec


def test_algorithms_follow_their_problem():
    spec = CASES[0].spec.replace(algorithms=("forward", "input", "kernel"))
    shapes = CASES[0].lhs_shape, CASES[0].rhs_shape
    assert spec.lhs_grad(*shapes).algorithms[0] == "input"
    assert spec.rhs_grad(*shapes).algorithms[0] == "kernel"
    problem = Case("", *shapes, spec)
    assert problem.lhs_grad.lhs_grad.spec.algorithms[0] == "forward"
    assert problem.rhs_grad.rhs_grad.spec.algorithms[0] == "forward"
    assert spec.auto().algorithms == ("auto", "auto", "auto")


def test_specs_are_values():
    a, b = CASES[0].spec, CASES[0].spec.replace()
    assert a == b
    assert hash(a) == hash(b)
    assert a != a.replace(strides=(2, 2))
    assert len({c.spec for c in CASES}) > 30


def resnet50():
    """Its convolutions: sizes from He et al., arXiv:1512.03385, table 1, with the stride on the 3x3 (torchvision's)."""
    yield case("stem", (1, 224, 224, 3), (7, 7, 3, 64), stride=2, pads=3)
    size, channels = 56, 64
    for width, blocks, first in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for stride in (first,) + (1,) * (blocks - 1):
            yield case("reduce", (1, size, size, channels), (1, 1, channels, width))
            yield case("3x3", (1, size, size, width), (3, 3, width, width), stride=stride, pads=1)
            if channels != 4 * width:
                yield case("shortcut", (1, size, size, channels), (1, 1, channels, 4 * width), stride=stride)
            size, channels = size // stride, 4 * width
            yield case("expand", (1, size, size, width), (1, 1, width, channels))


def test_flops_of_resnet50():
    """Published for torchvision's: 4,089,184,256 multiply-adds, of which 2048 * 1000 are the classifier's."""
    flops = sum(c.spec.flops(c.lhs_shape, c.rhs_shape) for c in resnet50())
    assert flops == 2 * (4_089_184_256 - 2048 * 1000)


@pytest.mark.parametrize(
    ("layer", "flops", "numbers"),
    [
        (case("MobileNet's first depthwise", (1, 112, 112, 32), (3, 3, 1, 32), pads=1, groups=32), 7_225_344, 803_104),
        (case("1x1", (8, 14, 14, 256), (1, 1, 256, 64)), 51_380_224, 518_144),
        (case("transposed", (1, 7, 7, 8), (4, 4, 8, 3), pads=2, lhs_dilation=2), 150_528, 392 + 384 + 588),
    ],
    ids=str,
)
def test_cost_of_known_layers(layer, flops, numbers):
    shapes = layer.lhs_shape, layer.rhs_shape
    assert layer.spec.flops(*shapes) == flops
    assert layer.spec.bytes(*shapes) == 4 * numbers
    assert layer.spec.bytes(*shapes, itemsize=2) == 2 * numbers
