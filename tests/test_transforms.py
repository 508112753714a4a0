"""JAX's transformations of the primitive: each gives what it gives for lax's convolution."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import convjax
from convjax._core.algorithms import PORTABLE
from convjax._core.bridge import lax_params
from convjax._core.primitive import conv_p, convolve
from convjax.testing import CASES, case

BY_NAME = {str(c): c for c in CASES}
# What the rules for batching and differentiation tell apart: no groups, feature groups, batch groups, dilations.
STRUCTURES = [
    BY_NAME[name]
    for name in ("strides 2 and 3", "grouped 4", "batch groups", "transposed 3x2/3 dilated", "matrix product")
]
SERVED = {name: next(c for c in CASES if c.refusal(name) is None) for name in PORTABLE}
every_structure = pytest.mark.parametrize("c", STRUCTURES, ids=str)
every_algorithm = pytest.mark.parametrize("algorithm", PORTABLE)


def ours(case, algorithm="auto"):
    return functools.partial(convolve, spec=case.using(algorithm, gradients=True))


def reference(case):
    return lambda x, w: lax.conv_general_dilated(x, w, **lax_params(case.spec))


def operands(case, *batch, seed=0):
    """Input and kernel, with `batch` more axes in front."""
    rng = np.random.default_rng(seed)
    shapes = (*batch, *case.lhs_shape), (*batch, *case.rhs_shape)
    return tuple(jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes)


@functools.cache
def jitted_reference(transform, case):
    return jax.jit(transform(reference(case)))


def assert_same(transform, case, algorithm, *arguments):
    """`transform(conv)` equals `transform(lax's conv)`, each in one program, up to 1e-4 of the largest entry."""
    actual = jax.jit(transform(ours(case, algorithm)))(*arguments)
    expected = jitted_reference(transform, case)(*arguments)
    paths, tree = jax.tree.flatten_with_path(expected)
    for (path, e), a in zip(paths, tree.flatten_up_to(actual), strict=True):
        assert (a.shape, a.dtype) == (e.shape, e.dtype), jax.tree_util.keystr(path)
        scale = float(jnp.max(jnp.abs(e)))
        np.testing.assert_allclose(a, e, rtol=0, atol=1e-4 * scale, err_msg=jax.tree_util.keystr(path))


def loss(conv):
    return lambda x, w: jnp.sum(jnp.sin(conv(x, w)))


# --- differentiation --------------------------------------------------------------------------------------------------


def derivatives(conv):
    def run(x, w, dx, dw):
        y, tangent = jax.jvp(conv, (x, w), (dx, dw))
        gradient = jax.grad(loss(conv), (0, 1))
        _, product = jax.jvp(gradient, (x, w), (dx, dw))  # forward over reverse: every second derivative is in it
        return dict(value=y, jvp=tangent, gradient=gradient(x, w), hessian_product=product)

    return run


def more_derivatives(conv):
    def run(x, w, dx, dw):
        _, linear = jax.linearize(conv, x, w)
        gradient = jax.grad(loss(conv), (0, 1))
        along = lambda x, w: sum(jnp.vdot(a, b) for a, b in zip(gradient(x, w), (dx, dw), strict=True))
        return dict(linearize=linear(dx, dw), reverse_over_reverse=jax.grad(along, (0, 1))(x, w))

    return run


@every_structure
def test_derivatives(c):
    for transform in (derivatives, more_derivatives):
        assert_same(transform, c, "auto", *operands(c), *operands(c, seed=1))


@every_algorithm
def test_derivatives_of_an_algorithm(algorithm):
    c = SERVED[algorithm]
    assert_same(derivatives, c, algorithm, *operands(c), *operands(c, seed=1))


@pytest.mark.parametrize("groups", [dict(groups=2), dict(batch_groups=2)], ids=str)
def test_hessian(groups):
    tiny = case("tiny", (2, 4, 2), (3, 2 // groups.get("groups", 1), 2), pads=1, **groups)
    assert_same(lambda conv: jax.hessian(loss(conv), (0, 1)), tiny, "auto", *operands(tiny))


def test_linear_in_each_operand():
    c = STRUCTURES[0]

    def transform(conv):
        def run(x, w):
            y = jnp.cos(conv(x, w))
            return jax.linear_transpose(lambda x: conv(x, w), x)(y), jax.linear_transpose(lambda w: conv(x, w), w)(y)

        return run

    assert_same(transform, c, "auto", *operands(c))


# --- batching ---------------------------------------------------------------------------------------------------------


def maps(conv):
    def run(x, w):
        return dict(
            lhs=jax.vmap(conv, (0, None))(x, w[0]),
            both=jax.vmap(conv)(x, w),
            per_example_gradients=jax.vmap(jax.grad(loss(conv), (0, 1)), (0, None))(x, w[0]),
        )

    return run


def more_maps(conv):
    """Over the kernel; over inner and last axes, with results put there too; nested; gradients of and under vmap."""

    def run(x, w):
        shared = lambda x, w: jnp.sum(jax.vmap(conv, (0, None))(x, w) ** 2)
        return dict(
            rhs=jax.vmap(conv, (None, 0))(x[0], w),
            last=jax.vmap(conv, (-1, -1), -1)(jnp.moveaxis(x, 0, -1), jnp.moveaxis(w, 0, -1)),
            inner=jax.vmap(conv, (1, 2), 1)(jnp.moveaxis(x, 0, 1), jnp.moveaxis(w, 0, 2)),
            nested=jax.vmap(jax.vmap(conv, (None, 0)), (0, None))(x, w),
            nested_both=jax.vmap(jax.vmap(conv), (None, 0))(x, jnp.stack([w, -w])),
            per_model_gradients=jax.vmap(jax.grad(loss(conv), (0, 1)))(x, w),
            gradient_of_vmap=jax.grad(shared, (0, 1))(x, w[0]),
        )

    return run


@every_structure
def test_vmap(c):
    for transform in (maps, more_maps):
        assert_same(transform, c, "auto", *operands(c, 2))


@every_algorithm
def test_vmap_of_an_algorithm(algorithm):
    c = SERVED[algorithm]
    assert_same(maps, c, algorithm, *operands(c, 2))


def test_vmap_over_no_examples():
    c = BY_NAME["grouped 4"]
    x, w = operands(c, 0)
    assert jax.vmap(ours(c), (0, None))(x, operands(c)[1]).shape == (0, *c.out_shape)
    assert jax.vmap(ours(c), (None, 0))(operands(c)[0], w).shape == (0, *c.out_shape)
    assert jax.vmap(ours(c))(x, w).shape == (0, *c.out_shape)


def test_vmap_makes_one_convolution():
    """Per-example kernels become groups of one problem, which an algorithm can then serve as a whole."""
    c = BY_NAME["dense 3x3"]
    specs = [e.params["spec"] for e in convolutions(jax.vmap(ours(c)), *operands(c, 5))]
    assert specs == [c.spec.replace(feature_groups=5)]
    assert len(convolutions(jax.vmap(ours(c), (0, None)), operands(c, 5)[0], operands(c)[1])) == 1
    assert len(convolutions(jax.vmap(ours(c), (None, 0)), operands(c)[0], operands(c, 5)[1])) == 1


# --- control flow -----------------------------------------------------------------------------------------------------


def loops(conv):
    def step(x, w):
        return jnp.tanh(x + jnp.mean(jnp.sin(conv(x, w))))  # of the shape of x, whatever the convolution's

    def scanned(x, w):
        x, sums = lax.scan(lambda x, _: (step(x, w), jnp.sum(x)), x, length=3)
        return jnp.sum(x**2) + jnp.sum(sums)

    def run(x, w):
        return dict(
            scan=jax.value_and_grad(scanned, (0, 1))(x, w),
            fori_loop=lax.fori_loop(0, 3, lambda _, x: step(x, w), x),
            while_loop=lax.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, step(s[1], w)), (0, x))[1],
        )

    return run


@every_algorithm
def test_loops(algorithm):
    c = SERVED[algorithm]
    assert_same(loops, c, algorithm, *operands(c))


def test_cond_and_switch():
    c = STRUCTURES[0]

    def transform(conv):
        return lambda x, w: lax.cond(x.sum() > w.sum(), conv, lambda x, w: conv(-x, w), x, w)

    assert_same(transform, c, "auto", *operands(c))


# --- rematerialisation ------------------------------------------------------------------------------------------------


def convolutions(function, *arguments):
    """The equations of conv_p in the program of `function`, nested ones included."""

    def found(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive is conv_p:
                yield equation
            for value in jax.tree.leaves(equation.params, is_leaf=is_jaxpr):
                if is_jaxpr(value):
                    yield from found(getattr(value, "jaxpr", value))

    def is_jaxpr(value):
        return hasattr(value, "eqns") or hasattr(value, "jaxpr")

    return list(found(jax.make_jaxpr(function)(*arguments).jaxpr))


def test_remat_policy_keeps_convolutions():
    """A convolution and its kernel's gradient, where the policy saves it; once more forward, where nothing is saved."""
    c = BY_NAME["dense 3x3"]
    x, w = operands(c)
    layer = lambda w: loss(ours(c))(x, w)
    saved = jax.grad(jax.checkpoint(layer, policy=convjax.save_convolutions))
    recomputed = jax.grad(jax.checkpoint(layer, policy=jax.checkpoint_policies.nothing_saveable))
    assert len(convolutions(jax.grad(layer), w)) == 2
    assert len(convolutions(saved, w)) == 2
    assert len(convolutions(recomputed, w)) == 3
    for gradient in (saved, recomputed):
        np.testing.assert_allclose(jax.jit(gradient)(w), jax.grad(layer)(w), rtol=1e-5, atol=1e-5)


def test_remat_policy_drops_the_rest():
    """What is not a convolution is recomputed under the policy: the sine's derivative is not among the residuals."""
    c = BY_NAME["dense 3x3"]
    x, w = operands(c)
    layer = jax.checkpoint(lambda w: loss(ours(c))(x, jnp.sin(w)), policy=convjax.save_convolutions)
    names = [str(e.primitive) for e in jax.make_jaxpr(jax.grad(layer))(w).jaxpr.eqns]
    assert any("remat" in name or "checkpoint" in name for name in names)
    np.testing.assert_allclose(
        jax.jit(jax.grad(layer))(w), jax.grad(lambda w: loss(ours(c))(x, jnp.sin(w)))(w), rtol=1e-4, atol=1e-4
    )


def test_remat_policy_knows_lax_too():
    """The same policy serves stock layers, whose convolutions are lax's."""
    c = BY_NAME["dense 3x3"]
    x, w = operands(c)
    saved = jax.checkpoint(lambda w: loss(reference(c))(x, w), policy=convjax.save_convolutions)
    assert str(jax.make_jaxpr(jax.grad(saved))(w)).count("conv_general_dilated[") == 2


# --- export -----------------------------------------------------------------------------------------------------------


def through_bytes(exported, **options):
    return jax.export.deserialize(exported.serialize(**options))


@pytest.mark.parametrize("algorithm", PORTABLE)
def test_export_round_trip(algorithm):
    c = SERVED[algorithm]
    x, w = operands(c)
    function = jax.jit(ours(c, algorithm))
    again = through_bytes(jax.export.export(function)(x, w))
    np.testing.assert_allclose(again.call(x, w), function(x, w), rtol=1e-5, atol=1e-5)


def test_export_of_the_gradient():
    c = STRUCTURES[1]
    x, w = operands(c)
    again = through_bytes(jax.export.export(jax.jit(loss(ours(c))))(x, w), vjp_order=1)
    for a, e in zip(jax.grad(again.call, (0, 1))(x, w), jax.grad(loss(reference(c)), (0, 1))(x, w), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("c", [c for c in STRUCTURES if c.spec.batch_groups == 1], ids=str)
def test_export_with_a_symbolic_batch(c):
    x, w = operands(c)
    (b,) = jax.export.symbolic_shape("b")
    symbolic = jax.ShapeDtypeStruct((b, *x.shape[1:]), x.dtype)
    again = through_bytes(jax.export.export(jax.jit(ours(c)))(symbolic, w))
    for batch in (1, 3):
        many = jnp.tile(x[:1], (batch,) + (1,) * (x.ndim - 1))
        np.testing.assert_allclose(again.call(many, w), reference(c)(many, w), rtol=1e-4, atol=1e-4)


def test_export_with_a_symbolic_length():
    """Through the public function: SAME padding of a length that is known at the call."""
    (length,) = jax.export.symbolic_shape("length")
    w = jnp.ones((3, 2, 4))
    conv = jax.jit(lambda x: convjax.conv(x, w))
    exported = jax.export.export(conv)(jax.ShapeDtypeStruct((1, length, 2), jnp.float32))
    x = jnp.ones((1, 9, 2))
    np.testing.assert_allclose(through_bytes(exported).call(x), conv(x))


@pytest.mark.parametrize("name", ["dense 3x3", "depthwise 3x3", "transposed 4x4/2"])
def test_export_for_several_platforms(name):
    """One artefact, with a choice of its own for each platform; its CPU branch runs here."""
    c = BY_NAME[name]
    x, w = operands(c)
    exported = jax.export.export(jax.jit(ours(c)), platforms=("cpu", "cuda", "tpu"))(x, w)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    np.testing.assert_allclose(through_bytes(exported).call(x, w), reference(c)(x, w), rtol=1e-4, atol=1e-4)


# --- eager and compiled -----------------------------------------------------------------------------------------------


def test_eager_equals_jit():
    c = STRUCTURES[0]
    x, w = operands(c)
    np.testing.assert_array_equal(ours(c)(x, w), jax.jit(ours(c))(x, w))


def test_equal_layers_share_one_function():
    """Five equal layers are one function in the program, called five times."""
    c = BY_NAME["depthwise 3x3"]
    x, w = operands(c)

    def network(x, w):
        for _ in range(5):
            x = ours(c)(x, w)
        return x

    text = jax.jit(network).lower(x, w).as_text()
    assert text.count("call @convjax(") == 5
    assert text.count("func.func private @convjax(") == 1
