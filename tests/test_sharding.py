"""Eight devices: sharded programs give what one device gives, and where the compiler partitions, the choice is xla."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from convjax._core.algorithms import PORTABLE
from convjax._core.choose import choose
from convjax._core.primitive import convolve
from convjax.testing import CASES, case

DENSE = case("dense", (8, 16, 5, 8), (3, 3, 8, 16), pads=1)
DEPTHWISE = case("depthwise", (8, 16, 5, 8), (3, 3, 1, 8), pads=1, groups=8)
STRIDED = case("strided", (8, 16, 6, 8), (3, 3, 4, 16), stride=2, pads=1, groups=2)
every_case = pytest.mark.parametrize("c", [DENSE, DEPTHWISE, STRIDED], ids=str)
SHARDINGS = dict(batch=P("d"), space=P(None, "d"), channels=P(None, None, None, "d"))


def mesh(kind=AxisType.Auto, shape=(8,), names=("d",)):
    assert len(jax.devices()) == 8, "tests/conftest.py asks for eight devices"
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(names))


def operands(c):
    return tuple(map(jnp.asarray, c.operands()))


def conv(c):
    return functools.partial(convolve, spec=c.spec)


def value_and_gradients(c):
    def run(x, w):
        y, pullback = jax.vjp(conv(c), x, w)
        return y, *pullback(jnp.cos(y))

    return run


def algorithms_in(lowered) -> set[str]:
    """The algorithms of a program, each of which stands under its own name in the operations' locations."""
    text = lowered.as_text(debug_info=True)
    scopes = {scope for location in re.findall(r'loc\("([^"]*)"', text) for scope in location.split("/")}
    assert "jit(convjax)" in scopes
    return scopes & set(PORTABLE)


def assert_close(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-4 * float(jnp.max(jnp.abs(e))))


def test_programs_name_their_algorithms():
    """What the other tests read from a program is there to be read."""
    x, w = operands(DEPTHWISE)
    for name in ("xla", "taps", "gemm"):
        spec = DEPTHWISE.spec.replace(algorithms=(name, "auto", "auto"))
        assert name in algorithms_in(jax.jit(functools.partial(convolve, spec=spec)).lower(x, w))
    assert choose(DENSE.spec, *operands(DENSE), "cpu") in algorithms_in(jax.jit(conv(DENSE)).lower(*operands(DENSE)))


@every_case
@pytest.mark.parametrize("how", SHARDINGS)
def test_jit_of_sharded_inputs(c, how):
    x, w = operands(c)
    run = jax.jit(value_and_gradients(c))
    sharded = jax.device_put(x, NamedSharding(mesh(), SHARDINGS[how]))
    assert algorithms_in(run.lower(sharded, w)) == {"xla"}
    assert_close(run(sharded, w), run(x, w))


def test_jit_of_a_sharded_kernel():
    x, w = operands(DENSE)
    run = jax.jit(value_and_gradients(DENSE))
    sharded = jax.device_put(w, NamedSharding(mesh(), P(None, None, None, "d")))
    assert algorithms_in(run.lower(x, sharded)) == {"xla"}
    assert_close(run(x, sharded), run(x, w))


def test_a_named_algorithm_is_kept():
    """The caller's choice goes before the rule about partitioned programs."""
    x, w = operands(DEPTHWISE)
    run = jax.jit(functools.partial(convolve, spec=DEPTHWISE.spec.replace(algorithms=("taps", "auto", "auto"))))
    sharded = jax.device_put(x, NamedSharding(mesh(), P("d")))
    assert algorithms_in(run.lower(sharded, w)) == {"taps"}
    assert_close([run(sharded, w)], [jax.jit(conv(DEPTHWISE))(x, w)])


@every_case
def test_shard_map_over_the_batch(c):
    """The body is one device's program: it chooses for its own part, as a single device would; values and gradients."""
    x, w = operands(c)
    run = jax.jit(jax.shard_map(conv(c), mesh=mesh(), in_specs=(P("d"), P()), out_specs=P("d")))
    assert algorithms_in(run.lower(x, w)) >= {choose(c.spec, x[:1], w, "cpu")}

    def gradients(x, w):
        y, pullback = jax.vjp(run, x, w)
        return y, *pullback(jnp.cos(y))

    assert_close(jax.jit(gradients)(x, w), jax.jit(value_and_gradients(c))(x, w))


@pytest.mark.parametrize("algorithm", PORTABLE)
def test_every_algorithm_inside_shard_map(algorithm):
    """With either operand varying over the mesh, or both; and in the gradients."""
    c = next(c for c in CASES if c.refusal(algorithm) is None)
    run = functools.partial(convolve, spec=c.using(algorithm, gradients=True))
    x, w = (jnp.stack([a, -a]) for a in operands(c))

    def body(x, w, both_x, both_w):
        gradients = jax.vjp(run, both_x[0], both_w[0])[1](run(both_x[0], both_w[0]))
        return jax.tree.map(lambda y: y[None], (run(x[0], w), run(both_x[0], both_w[0]), *gradients))

    two = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    parallel = jax.jit(jax.shard_map(body, mesh=two, in_specs=(P("d"), P(), P("d"), P("d")), out_specs=P("d")))
    gradients = jax.vmap(lambda x, w: jax.vjp(run, x, w)[1](run(x, w)))
    plain = jax.jit(lambda x, w: (jax.vmap(run, (0, None))(x, w[0]), jax.vmap(run)(x, w), *gradients(x, w)))
    assert_close(parallel(x, w[0], x, w), plain(x, w))


def test_gradient_inside_shard_map():
    """Data-parallel training: each device's gradient in the shared kernel, summed over the mesh."""
    x, w = operands(DEPTHWISE)

    def loss(w, x):
        return jnp.sum(jnp.sin(conv(DEPTHWISE)(x, w)))

    def step(x, w):
        return jax.grad(loss)(w, x)  # the kernel does not vary over the mesh, so its gradient is summed over it

    parallel = jax.jit(jax.shard_map(step, mesh=mesh(), in_specs=(P("d"), P()), out_specs=P()))
    assert_close([parallel(x, w)], [jax.grad(loss)(w, x)])


def test_shard_map_over_channels():
    """Both operands vary; the sum over input channels is a collective."""
    x, w = operands(DENSE)

    def body(x, w):
        return jax.lax.psum(conv(DENSE)(x, w), "d")

    specs = P(None, None, None, "d"), P(None, None, "d", None)
    run = jax.jit(jax.shard_map(body, mesh=mesh(), in_specs=specs, out_specs=P()))
    assert_close([run(x, w)], [jax.jit(conv(DENSE))(x, w)])


def test_shard_map_over_one_of_two_axes():
    """The other axis is still the compiler's to partition, so the choice is xla."""
    x, w = operands(DEPTHWISE)
    two = mesh(shape=(4, 2), names=("d", "m"))
    run = jax.jit(jax.shard_map(conv(DEPTHWISE), mesh=two, in_specs=(P("d"), P()), out_specs=P("d"), axis_names={"d"}))
    assert algorithms_in(run.lower(x, w)) == {"xla"}
    assert_close([run(x, w)], [jax.jit(conv(DEPTHWISE))(x, w)])


@every_case
def test_explicit_sharding(c):
    """Sharding in types: output and input gradient have what lax gives them.

    The gradient in the kernel is a sum over devices, which lax, and so we, leave to the caller's `reshard`.
    """
    x, w = operands(c)

    def run(x, w):
        y, pullback = jax.vjp(lambda x: conv(c)(x, w), x)
        return y, *pullback(jnp.cos(y))

    expected = jax.jit(run)(x, w)
    with jax.set_mesh(mesh(AxisType.Explicit)):
        sharded = jax.device_put(x, P("d"))
        y, x_grad = jax.jit(run)(sharded, w)
        assert jax.typeof(y).sharding.spec[0] == "d"
        assert jax.typeof(x_grad).sharding.spec[0] == "d"
        assert algorithms_in(jax.jit(run).lower(sharded, w)) == {"xla"}
        assert_close(jax.device_get((y, x_grad)), expected)


def test_one_device_of_many_chooses_freely():
    """An array on another device than the first is not a partitioned program."""
    x, w = (jax.device_put(a, jax.devices()[5]) for a in operands(DEPTHWISE))
    assert algorithms_in(jax.jit(conv(DEPTHWISE)).lower(x, w)) >= {choose(DEPTHWISE.spec, x, w, "cpu")}
