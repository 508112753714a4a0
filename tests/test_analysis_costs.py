"""Parameters, multiply-adds, bytes, rooflines, temporary memory and the table of layers; equal to published numbers."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import linen, nnx
from jax import lax

import convjax
import convjax.linen
import convjax.nnx
from convjax.analysis import Ceilings, collect, cost, measure_ceilings, roofline, summary, temporary_memory
from convjax.models import create


def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


# --- published -------------------------------------------------------------------------------------------------------


def test_resnet50():
    """torchvision tells 25,557,032 parameters and 4.089 GFLOPs, a multiply-add counted as one."""
    model, x = nnx.eval_shape(lambda: create("resnet50")), array(1, 224, 224, 3)
    table = summary(model, x)
    assert table.parameters == 25_557_032
    assert round(table.macs / 1e9, 3) == 4.089
    assert sum(r.macs for r in table.records) == table.macs
    assert sum(r.share for r in table.records) == pytest.approx(1)
    last = [r for r in table.records if r.kind == "Conv"][-1]
    assert (last.name, last.out_shape, last.parameters) == ("stages.3.2.convs.2.conv", (1, 7, 7, 2048), 512 * 2048)
    widest = [r for r in table.records if r.out_shape[1:3] == (7, 7)][-1].receptive_field
    assert (widest.size, widest.stride, widest.padding) == ((427, 427), (32, 32), (213, 213))
    assert table.records[-1].receptive_field.is_global


def test_a_layer_against_a_fully_connected_one():
    """64 filters of 3x3x3 with bias: 1,792 parameters; a matrix between the same maps of 224x224: 4.8e11."""
    layer = nnx.eval_shape(lambda: convjax.nnx.Conv(3, 64, (3, 3), rngs=nnx.Rngs(0)))
    found = cost(layer, array(1, 224, 224, 3))
    assert (found.parameters, found.macs) == (1_792, 224 * 224 * 64 * 27)
    dense = cost(jnp.dot, array(224 * 224 * 3), array(224 * 224 * 3, 224 * 224 * 64))
    assert dense.parameters == dense.macs == 483_385_147_392


def test_a_depthwise_separable_layer():
    """1 / C_out + 1 / K^2 of the standard one (Howard et al., arXiv:1704.04861, section 3.1): 0.115 for 256 and 3."""
    x, channels, outputs = array(1, 28, 28, 128), 128, 256
    standard = cost(convjax.conv, x, array(3, 3, channels, outputs))
    separable = cost(convjax.separable_conv, x, array(3, 3, channels, 1), array(channels, outputs))
    assert separable.macs / standard.macs == pytest.approx(1 / outputs + 1 / 9)
    assert round(separable.macs / standard.macs, 3) == round(separable.parameters / standard.parameters, 3) == 0.115


def test_two_small_kernels_have_fewer_weights_than_a_large_one():
    x, w3, w5 = array(1, 9, 9, 1), array(3, 3, 1, 1), array(5, 5, 1, 1)
    two = cost(lambda x, a, b: convjax.conv(convjax.conv(x, a), b), x, w3, w3)
    assert (two.parameters, cost(convjax.conv, x, w5).parameters) == (18, 25)


# --- counts ----------------------------------------------------------------------------------------------------------


def test_convolutions_cost_what_collect_says():
    def network(x, w):
        y = lax.conv_general_dilated(x, w, (2, 1), "SAME", dimension_numbers=("NCHW", "IHWO", "NCHW"))
        step = lambda c, _: (convjax.conv(c, jnp.ones((3, 3, 5, 5)), dilation=2, layout="channels_first"), None)
        return lax.scan(step, jnp.concatenate([y, y], 1)[:, :5], None, length=3)[0]

    x, w = array(2, 4, 8, 8), array(4, 3, 3, 6)
    found, listed = cost(network, x, w), collect(network, x, w)
    assert [times for _, times in found.operations] == [c.times for c in listed] == [1, 3]
    assert found.flops == sum(c.times * c.flops for c in listed)
    assert found.bytes == sum(c.times * c.bytes for c in listed)
    assert found.arithmetic_intensity == found.flops / found.bytes


def test_zeros_between_inputs_are_not_counted():
    """As torch's counters have it: each input meets each tap once."""
    found = cost(
        lambda x, w: convjax.conv_transpose(x, w, stride=2, padding="VALID"), array(1, 7, 7, 8), array(4, 4, 8, 3)
    )
    assert found.macs == 7 * 7 * 4 * 4 * 8 * 3
    assert found.operations[0][0].kind == "conv transpose"


def test_a_while_loop_counts_one_round():
    w, x = array(3, 2, 2), array(1, 8, 2)
    run = lambda x, w: lax.while_loop(lambda c: jnp.sum(c) < 1, lambda c: convjax.conv(c, w), x)
    assert cost(run, x, w).macs == 8 * 3 * 2 * 2
    (record,) = summary(lambda w, x: run(x, w), w, x).records
    assert record.receptive_field.is_global


def test_matrix_products_and_gradients():
    x, w = array(4, 16, dtype=jnp.bfloat16), array(16, 8, dtype=jnp.bfloat16)
    (product, _), *rest = cost(jnp.dot, x, w).operations
    assert (product.kind, product.macs, product.bytes, product.weights) == ("dot", 512, 2 * (64 + 128 + 32), 128)
    assert not rest
    assert cost(jax.grad(lambda w, x: jnp.dot(x, w).sum()), w, x).macs == 2 * 512
    assert cost(jnp.sin, x).arithmetic_intensity == 0


def test_the_operations_of_a_linen_module():
    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = convjax.linen.Conv(4, (3, 3))(x)
            return linen.Dense(5)(linen.avg_pool(x, (2, 2), (2, 2)))

    found = cost(Net(), array(2, 8, 8, 3))
    assert (found.parameters, found.macs) == (4 * 28 + 25, 2 * 64 * 4 * 27 + 2 * 16 * 20)
    assert [o.kind for o, _ in found.operations] == ["conv", "sum pool", "dot"]
    table = summary(Net(), array(2, 8, 8, 3), platform="gpu")
    assert [(r.name, r.kind, r.parameters, r.algorithm) for r in table.records] == [
        ("Conv_0", "Conv", 112, "xla"),
        ("sum pool 1", "sum pool", 0, None),
        ("Dense_0", "Dense", 25, None),
    ]


# --- table -----------------------------------------------------------------------------------------------------------


class Twice(nnx.Module):
    """One layer that runs twice, one that is never called, and a parameter of its own."""

    def __init__(self, rngs):
        self.conv = convjax.nnx.Conv(3, 3, (3, 3), rngs=rngs)
        self.idle = convjax.nnx.Conv(3, 3, (1, 1), rngs=rngs)
        self.scale = nnx.Param(jnp.ones(3))

    def __call__(self, x):
        return self.conv(self.conv(x)) * self.scale[...]


def test_parameters_are_told_once():
    table = summary(Twice(nnx.Rngs(0)), array(1, 8, 8, 3))
    rows = [(r.name, r.parameters, r.receptive_field.size) for r in table.records]
    assert rows == [("Twice", 3 + 12, (5, 5)), ("conv", 84, (3, 3)), ("conv", 0, (5, 5))]
    assert table.parameters == cost(Twice(nnx.Rngs(0)), array(1, 8, 8, 3)).parameters == 99


def test_a_function_has_its_operations_for_layers():
    def network(w, x):
        return jnp.dot(
            nnx.max_pool(convjax.conv(x, w, algorithm="fft"), (2, 2), (2, 2)).reshape(1, -1), jnp.ones((64, 5))
        )

    table = summary(network, array(3, 3, 3, 4), array(1, 8, 8, 3))
    assert [(r.name, r.out_shape, r.parameters, r.algorithm) for r in table.records] == [
        ("conv 1", (1, 8, 8, 4), 108, "fft"),
        ("max pool 1", (1, 4, 4, 4), 0, None),
        ("dot 1", (1, 5), 320, None),
    ]
    text = str(table)
    for word in ("network", "conv 1", "1 x 8 x 8 x 4", "6,912", "95.6%", "all", "fft", "428 parameters"):
        assert word in text
    assert len(text.splitlines()) == 9


def test_a_function_without_layers():
    assert summary(jnp.sin, array(3)).records == ()


# --- rooflines and memory --------------------------------------------------------------------------------------------


def test_a_roofline_tells_what_bounds():
    """Williams et al.: the lesser of the peak and of intensity times bandwidth."""
    rates = Ceilings(gflops=100.0, gbs=10.0)
    large = roofline(convjax.conv, array(8, 56, 56, 64), array(3, 3, 64, 64), ceilings=rates)
    assert large.compute_bound
    assert large.attainable_gflops == pytest.approx(100)
    narrow = roofline(convjax.depthwise_conv, array(8, 56, 56, 64), array(3, 3, 64, 1), ceilings=rates)
    assert narrow.memory_bound
    assert narrow.arithmetic_intensity < rates.ridge == 10
    assert narrow.attainable_gflops == pytest.approx(10 * narrow.arithmetic_intensity)
    both = roofline(
        lambda x, a, b: convjax.conv(convjax.depthwise_conv(x, b), a),
        *(array(8, 56, 56, 64), array(3, 3, 64, 64), array(3, 3, 64, 1)),
        ceilings=rates,
    )
    assert [la.memory_bound for la in both.layers] == [True, False]
    assert both.least_ms == pytest.approx(large.least_ms + narrow.least_ms)
    assert "compute-bound" in str(both)


def test_ceilings_are_measured():
    rates = measure_ceilings("bfloat16", side=64, copied_bytes=2**16, calls=2)
    assert rates.gflops > 0 < rates.gbs
    assert (rates.dtype, rates.device) == ("bfloat16", jax.devices()[0].device_kind)


def test_a_roofline_measures_in_the_dtype_of_most_work(monkeypatch):
    from convjax.analysis import rooflines

    monkeypatch.setattr(rooflines, "measure_ceilings", lambda dtype: Ceilings(1.0, 1.0, dtype))
    x, w = array(1, 8, 8, 4, dtype=jnp.bfloat16), array(3, 3, 4, 4, dtype=jnp.bfloat16)
    assert roofline(convjax.conv, x, w).ceilings.dtype == "bfloat16"
    assert roofline(jnp.sin, x).attainable_gflops == 0


def test_temporary_memory_of_each_algorithm():
    """gemm holds all patches, 9 of each input; one that cannot serve is not there."""
    x, w = (1, 32, 32, 8), (3, 3, 8, 8)
    found = temporary_memory(x, w, algorithms=("gemm", "taps", "pack_groups"))
    assert list(found) == ["gemm", "taps"]
    assert found["gemm"] >= 9 * 32 * 32 * 8 * 4 > found["taps"]


def test_temporary_memory_of_a_gradient():
    found = temporary_memory((2, 16, 3), (5, 3, 4), problem="kernel_grad", algorithms=["gemm"], padding="CAUSAL")
    assert found["gemm"] > 0


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: cost(3), TypeError, "cost: 3 is not callable"),
        (lambda: summary(jnp.sin), ValueError, "summary: argnum=-1"),
        (lambda: summary(jnp.sin, array(3), platform="abacus"), ValueError, "platform"),
        (lambda: measure_ceilings(side=0), ValueError, "side must be at least 1"),
        (lambda: temporary_memory((1, 3, 1), (3, 1, 1), problem="backward"), ValueError, "'input_grad'"),
        (lambda: temporary_memory((1, 3, 1), (3, 1, 1), algorithms=["fast"]), ValueError, "algorithms[0]='fast'"),
        (lambda: temporary_memory((1, 3, 1), (3, 1, 1), function=lambda x, w: x), ValueError, "holds 0 convolutions"),
    ],
)
def test_errors_say_what_to_type(call, error, words):
    with pytest.raises(error) as caught:
        call()
    assert words in str(caught.value)


def test_records_are_plain_values():
    record = summary(lambda x: nnx.max_pool(x, (2,)), array(1, 8, 3)).records[0]
    assert dataclasses.asdict(record)["out_shape"] == (1, 7, 3)
