"""collect() lists every convolution of a traced function."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import convjax

X, W = np.ones((2, 9, 8, 4), np.float32), np.ones((3, 3, 4, 6), np.float32)


def test_it_lists_what_there_is_in_order():
    def network(x, w):
        x = convjax.conv(x, w, stride=2)
        x = convjax.depthwise_conv(x, jnp.ones((3, 3, 6, 1)))
        return lax.conv_general_dilated(
            x,
            jnp.ones((6, 2, 1, 1)),
            (1, 1),
            "VALID",
            feature_group_count=3,
            dimension_numbers=("NHWC", "OIHW", "NHWC"),
        )

    first, second, third = convjax.analysis.collect(network, X, W)
    assert (first.lhs_shape, first.rhs_shape, first.out_shape) == (X.shape, W.shape, (2, 5, 4, 6))
    assert first.flops == 2 * (2 * 5 * 4 * 6) * (3 * 3 * 4)
    assert first.bytes == 4 * (X.size + W.size + 2 * 5 * 4 * 6)
    assert first.spec.strides == (2, 2)
    assert second.spec.feature_groups == 6
    assert (third.rhs_shape, third.spec.feature_groups) == ((1, 1, 2, 6), 3)
    for record in (first, second, third):
        assert record.dtype == "float32"
        assert record.times == 1
        assert record.algorithm in convjax.algorithms()
        assert f"{record.algorithm} ({record.why})" in str(record)


def test_a_scan_counts_its_rounds():
    def repeated(x, w):
        step = lambda x, _: (lax.scan(lambda x, _: (convjax.conv(x, w), None), x, None, length=2)[0], None)
        return lax.scan(step, x, None, length=5)[0]

    (record,) = convjax.analysis.collect(repeated, X, np.ones((3, 3, 4, 4), np.float32))
    assert record.times == 10
    assert str(record).startswith("10 x ")


def test_gradients_are_listed_where_the_function_computes_them():
    step = jax.grad(lambda w: jnp.sum(convjax.conv(X, w) ** 2))
    assert [r.rhs_shape for r in convjax.analysis.collect(step, W)] == [W.shape, (9, 8, 2, 6)]


def test_abstract_arguments_and_other_dtypes():
    x, w = jax.ShapeDtypeStruct((10**4, 10**4, 10**3, 4), jnp.bfloat16), jax.ShapeDtypeStruct(W.shape, jnp.bfloat16)
    (record,) = convjax.analysis.collect(convjax.conv, x, w)
    assert record.dtype == "bfloat16"
    assert record.bytes == 2 * (10**11 * 4 + W.size + 10**11 * 6)


def test_the_platform_is_the_one_asked_for():
    x, w = jax.ShapeDtypeStruct((8, 56, 56, 128), np.float32), jax.ShapeDtypeStruct((3, 3, 128, 1), np.float32)
    (here,) = convjax.analysis.collect(convjax.depthwise_conv, x, w, platform="cpu")
    (there,) = convjax.analysis.collect(convjax.depthwise_conv, x, w, platform="gpu")
    assert here.algorithm != "xla"
    assert (there.algorithm, "cuda" in there.why) == ("xla", True)
    with pytest.raises(ValueError, match="platform"):
        convjax.analysis.collect(convjax.conv, X, W, platform="abacus")


def test_symbolic_and_empty_sizes_do_not_stop_it():
    (record,) = convjax.analysis.collect(convjax.conv, X[:0], W)
    assert (record.flops, record.algorithm) == (0, "xla")


def test_a_function_without_convolutions():
    assert convjax.analysis.collect(jnp.sin, X) == []
