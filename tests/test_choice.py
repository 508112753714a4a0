"""The choice of an algorithm: who is asked first, what is chosen, and that it explains."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import convjax
from convjax._core import choose
from convjax._core.algorithms import ALGORITHMS, KERNELS
from convjax.testing import CASES, EMPTY_CASES, ERROR_CLASS, case

X, W = (2, 9, 8, 6), (3, 3, 6, 4)

# Beside the small cases of the package, problems of the size that rules are about.
LARGE = (
    case("depthwise 3x3", (8, 56, 56, 128), (3, 3, 1, 128), pads=1, groups=128),
    case("depthwise 3x3/2", (8, 56, 56, 128), (3, 3, 1, 128), stride=2, pads=((0, 1), (0, 1)), groups=128),
    case("depthwise 31x31", (2, 64, 64, 64), (31, 31, 1, 64), pads=15, groups=64),
    case("depthwise causal k4", (4, 2048, 256), (4, 1, 256), pads=((3, 0),), groups=256),
    case("depthwise causal k1024", (2, 8192, 64), (1024, 1, 64), pads=((1023, 0),), groups=64),
    case("grouped 32", (8, 56, 56, 128), (3, 3, 4, 128), pads=1, groups=32),
    case("grouped 4 x 64", (4, 28, 28, 256), (3, 3, 64, 256), pads=1, groups=4),
    case("dense 3x3", (8, 56, 56, 64), (3, 3, 64, 64), pads=1),
    case("dense 3x3 wide", (4, 28, 28, 256), (3, 3, 256, 256), pads=1),
    case("dense 3x3 narrow", (1, 128, 128, 16), (3, 3, 16, 16), pads=1),
    case("dense 3x3/2", (8, 56, 56, 64), (3, 3, 64, 128), stride=2, pads=((0, 1), (0, 1))),
    case("dense 5x5", (8, 28, 28, 64), (5, 5, 64, 64), pads=2),
    case("stem 7x7/2", (8, 224, 224, 3), (7, 7, 3, 64), stride=2, pads=3),
    case("patches 16x16/16", (4, 224, 224, 3), (16, 16, 3, 192), stride=16),
    case("dilated 3x3", (4, 32, 32, 64), (3, 3, 64, 64), pads=4, rhs_dilation=4),
    case("transposed 4x4/2", (4, 28, 28, 128), (4, 4, 128, 64), pads=2, lhs_dilation=2),
    case("3-D", (1, 16, 56, 56, 16), (3, 3, 3, 16, 16), pads=1),
    case("1x1", (8, 56, 56, 64), (1, 1, 64, 256)),
    case("1-D dense", (4, 1024, 64), (5, 64, 64), pads=2),
    case("long dense response", (1, 16384, 2), (512, 2, 2), pads=256),
    case("large batch", (256, 8, 8, 64), (3, 3, 64, 64), pads=1),
    case("per-example gradients", (16, 28, 28, 512), (3, 3, 64, 512), pads=1, groups=8),
)


def problems():
    """Every case, its gradients, and theirs."""
    first = [*CASES, *LARGE]
    second = [gradient for c in first for gradient in (c.lhs_grad, c.rhs_grad)]
    return first + second


def shapes(problem, dtype=np.float32):
    return [jax.ShapeDtypeStruct(shape, dtype) for shape in (problem.lhs_shape, problem.rhs_shape)]


def decide(problem, platform="cpu", dtype=np.float32, **changes):
    return choose.decide(problem.spec.replace(**changes), *shapes(problem, dtype), platform)


# --- the cost model decides -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("platform", ["cpu", "cuda", "rocm", "tpu", "other"])
def test_what_is_chosen_can_serve(platform):
    for problem in problems():
        name, why = decide(problem, platform)
        assert problem.refusal(name, platform=platform) is None, f"{problem}: {name}, because {why}"


@pytest.mark.parametrize(
    "dtype", [np.int32, np.int8, np.complex64, jnp.bfloat16, np.float16], ids=lambda d: np.dtype(d).name
)
def test_what_is_chosen_can_serve_other_dtypes(dtype):
    for problem in problems():
        name, why = decide(problem, dtype=dtype)
        assert problem.refusal(name, dtype) is None, f"{problem}: {name}, because {why}"
        if np.issubdtype(dtype, np.integer):
            assert name not in ERROR_CLASS, f"{problem}: {name} rounds integers"


@pytest.mark.parametrize("precision", ["highest", jax.lax.Precision.HIGHEST, ("default", "highest")], ids=str)
def test_highest_precision_is_never_given_an_error_relative_to_the_largest_output(precision):
    pair = convjax._core.arguments.precision("", precision)
    mixing = {p: decide(p)[0] for p in problems() if decide(p)[0] in ERROR_CLASS}
    assert mixing, "no case at all for which the chooser mixes elements: this test shows nothing"
    for problem in problems():
        assert decide(problem, precision=pair)[0] not in ERROR_CLASS, problem


def test_the_big_cases():
    """What the package is for: these must not fall back to XLA."""
    chosen = {c.name: decide(c)[0] for c in LARGE}
    assert chosen["depthwise 3x3"] == chosen["depthwise causal k4"] == "taps"
    assert chosen["depthwise causal k1024"] in ("fft", "overlap_add")
    for name in ("depthwise 3x3", "depthwise 3x3/2", "depthwise causal k4", "grouped 32", "transposed 4x4/2"):
        (problem,) = (c for c in LARGE if c.name == name)
        assert decide(problem.rhs_grad)[0] != "xla", name


def test_what_was_not_measured_stays_with_xla():
    (empty, *_) = EMPTY_CASES
    assert decide(empty) == ("xla", "empty operands")
    (dense,) = (c for c in LARGE if c.name == "depthwise 3x3")
    assert choose.decide(dense.spec, *shapes(dense), "cpu", partitioned=True)[0] == "xla"
    assert decide(dense, "a platform of the future") == (
        "xla",
        "no measurement backs another algorithm on a platform of the future",
    )
    symbolic = jax.export.symbolic_shape("n, 9, 8, 6")
    lhs, rhs = jax.ShapeDtypeStruct(symbolic, np.float32), jax.ShapeDtypeStruct((3, 3, 1, 6), np.float32)
    spec = case("", X, (3, 3, 1, 6), groups=6).spec
    assert choose.decide(spec, lhs, rhs, "cpu") == ("xla", "sizes are symbolic")
    assert "symbolic" in choose.why_not("taps", spec, lhs, rhs, "cpu")


def test_the_reason_names_the_time_expected_and_that_of_xla():
    (dense,) = (c for c in LARGE if c.name == "depthwise 3x3")
    name, why = decide(dense)
    assert name == "taps"
    assert re.fullmatch(r"estimated: [\d.e+]+ ms, \w+ [\d.e+]+ ms(, xla [\d.e+]+ ms)?", why), why


def test_xla_is_kept_where_little_is_promised(monkeypatch):
    problem, times = case("", X, W, pads=1), {"xla": 1.0, "gemm": 0.98}
    monkeypatch.setattr(choose.cost.CostModel, "estimates", property(lambda _: lambda g: times), raising=False)
    model = choose.cost.CostModel.__new__(choose.cost.CostModel)
    monkeypatch.setattr(choose.cost, "model", lambda platform: model)
    assert decide(problem)[0] == "xla"
    times["gemm"] = 0.5
    assert decide(problem)[0] == "gemm"


def test_a_measurement_comes_before_the_estimate(monkeypatch):
    problem = case("", X, W, pads=1)
    times = {"indirect": 0.1, "xla": 0.2, "fft": 0.05}
    monkeypatch.setattr(choose.tuning, "measurement", lambda g, platform: (times, "yours"))
    name, why = decide(problem)
    assert name == "indirect"  # fft is faster, and not as accurate as promised
    assert why == "measured on this kind of device, yours: 0.1 ms, xla 0.2 ms"
    times["indirect"] = 0.19  # another day it would be the other way round
    assert decide(problem)[0] == "xla"
    assert decide(problem, algorithms=("gemm", "auto", "auto"))[0] == "gemm"


# --- the compiler of a TPU decides ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "groups"), [(256, 32), (512, 32), (128, 32)])
def test_narrow_groups_are_packed_on_a_tpu(channels, groups):
    problem = case("", (8, 28, 28, channels), (3, 3, channels // groups, channels), pads=1, groups=groups)
    for each in (problem, problem.lhs_grad):
        assert decide(each, "tpu")[0] == "pack_groups_128"
        assert "static" in decide(each, "tpu")[1]
        assert decide(each, "cuda")[0] == "xla"
    with pytest.raises(ValueError, match="its packs are for a tpu"):
        decide(problem, algorithms=("pack_groups_128", "auto", "auto"))


@pytest.mark.parametrize("w", [(3, 3, 1, 128), (3, 3, 128, 128), (3, 3, 64, 128)])
def test_nothing_else_is_taken_on_a_tpu_unmeasured(w):
    problem = case("", (8, 28, 28, 128), w, pads=1, groups=128 // w[2])
    assert decide(problem, "tpu")[0] == "xla"


# --- who is asked first -----------------------------------------------------------------------------------------------


def served_by(problem):
    return [name for name in ALGORITHMS if problem.refusal(name) is None]


def test_the_caller_comes_first():
    problem = case("", X, W, pads=1)
    for name in served_by(problem):
        assert decide(problem, algorithms=(name, "auto", "auto")) == (name, "the caller's algorithm=")


def test_a_caller_who_cannot_be_served_is_told_why():
    problem = case("", X, W, pads=1, stride=2)
    for name in set(ALGORITHMS) - set(served_by(problem)):
        with pytest.raises(ValueError, match="cannot serve") as caught:
            decide(problem, algorithms=(name, "auto", "auto"))
        assert problem.refusal(name) in str(caught.value)


def test_a_preference_holds_where_it_serves_and_else_is_the_choosers():
    problem = case("", X, W, pads=1, stride=2)
    for name in ALGORITHMS:
        expected = name if name in served_by(problem) else decide(problem)[0]
        assert decide(problem, algorithms=(f"{name}?", "auto", "auto"))[0] == expected


def test_the_caller_comes_before_the_partitioner():
    problem = case("", X, W, pads=1)
    spec = problem.spec.replace(algorithms=("gemm", "auto", "auto"))
    assert choose.choose(spec, *shapes(problem), "cpu", partitioned=True) == "gemm"


def explain(*args, **options):
    return convjax.explain(*args, platform="cpu", **options)


def test_one_name_binds_forward_and_is_preferred_for_gradients():
    verdicts = explain(X, W, algorithm="winograd")
    assert verdicts.forward.chosen == verdicts.input_grad.chosen == "winograd"
    verdicts = explain(X, W, stride=2, algorithm="space_to_depth")
    assert verdicts.forward.chosen == "space_to_depth"
    assert verdicts.input_grad.chosen != "space_to_depth"  # it has no stride
    automatic = explain(X, W, stride=2)
    assert verdicts.input_grad.chosen == automatic.input_grad.chosen


KINDS = {"forward": "", "input_grad": "lhs_grad", "kernel_grad": "rhs_grad"}


@pytest.mark.parametrize("key", KINDS)
def test_a_mapping_binds_each_problem_by_its_name(key):
    automatic = explain(X, W)
    chosen = {getattr(automatic, k).chosen for k in ("forward", "input_grad", "kernel_grad")}
    problem = case("", X, W, pads=1)
    name = next(n for n in served_by(problem if key == "forward" else getattr(problem, KINDS[key])) if n not in chosen)
    verdicts = explain(X, W, algorithm={key: name})
    for k in ("forward", "input_grad", "kernel_grad"):
        assert getattr(verdicts, k).chosen == (name if k == key else getattr(automatic, k).chosen)


def test_a_mapping_is_what_runs():
    names = {"forward": "taps", "input_grad": "indirect", "kernel_grad": "windows"}
    x, w = (np.ones(shape, np.float32) for shape in ((1, 6, 5, 2), (3, 3, 2, 3)))
    run = jax.jit(
        lambda x, w: jax.vjp(functools.partial(convjax.conv, algorithm=names), x, w)[1](jnp.ones((1, 6, 5, 3)))
    )
    text = jax.jit(functools.partial(convjax.conv, algorithm=names)).lower(x, w).as_text(debug_info=True)
    assert "taps" in text
    text = run.lower(x, w).as_text(debug_info=True)
    assert "indirect" in text
    assert "windows" in text


def test_second_derivatives_follow_the_mapping_too():
    """The gradient in the kernel of the gradient in the input is a forward problem again, and so on around."""
    spec = case("", X, W).spec.replace(algorithms=("f", "i", "k"))
    assert spec.lhs_grad(X, W).algorithms[0] == "i"
    assert spec.rhs_grad(X, W).algorithms[0] == "k"
    out = spec.out_shape(X, W)
    back = spec.lhs_grad(X, W)
    assert back.lhs_grad(out, (3, 3, 4, 6)).algorithms == ("f", "i", "k")
    assert back.rhs_grad(out, (3, 3, 4, 6)).algorithms[0] == "k"


# --- explain ----------------------------------------------------------------------------------------------------------


def test_explain_returns_what_it_prints(capsys):
    result = explain(X, W, stride=2)
    assert capsys.readouterr().out == f"{result}\n"
    assert result.platform == "cpu"
    assert repr(result).startswith("<convjax.explain on cpu: forward=")


def test_explain_lists_every_candidate_with_its_verdict():
    result = explain(X, W, stride=2)
    problem = case("", X, W, stride=2, pads=((1, 1), (0, 1)))
    for verdict, p in zip(
        (result.forward, result.input_grad, result.kernel_grad),
        (problem, problem.lhs_grad, problem.rhs_grad),
        strict=True,
    ):
        assert (verdict.lhs_shape, verdict.rhs_shape) == (p.lhs_shape, p.rhs_shape)
        assert [c.algorithm for c in verdict.candidates] == list(ALGORITHMS)
        assert [c.algorithm for c in verdict.candidates if c.chosen] == [verdict.chosen]
        for candidate in verdict.candidates:
            assert candidate.refusal == p.refusal(candidate.algorithm)
            assert candidate.algorithm in str(result)
            assert (candidate.refusal or "") in str(result) or candidate.elsewhere
            assert candidate.measured_ms is None
            if candidate.chosen:
                assert f"{candidate.estimate_ms:.3g} ms" in verdict.why
        assert verdict.why in str(result)


def test_explain_shows_the_parts_of_a_rewrite():
    verdict = explain(
        (2, 8, 8, 16), (4, 4, 16, 8), function=convjax.conv_transpose, stride=2, algorithm="subpixel"
    ).forward
    assert verdict.chosen == "subpixel"
    assert verdict.parts
    for part in verdict.parts:
        assert part.problem == "part"
        assert max(part.spec.lhs_dilation) == 1
        assert part.chosen in ALGORITHMS
    printed = "\n".join(verdict.lines())
    assert printed.count("part: ") >= len(verdict.parts)
    inner = sum(part.spec.flops(part.lhs_shape, part.rhs_shape) for part in verdict.parts)
    assert inner < verdict.spec.flops(verdict.lhs_shape, verdict.rhs_shape) / 2


def test_explain_takes_any_function_of_one_convolution():
    result = explain(X, (3, 3, 6, 1), function=convjax.depthwise_conv, stride=2)
    assert result.forward.spec.feature_groups == 6
    result = explain((2, 6, 9, 8), (4, 6, 3, 3), layout=("NCHW", "OIHW", "NCHW"))
    assert result.forward.lhs_shape == X
    batched = explain((5, *X), (5, *W), function=jax.vmap(convjax.conv))
    assert batched.forward.spec.feature_groups == 5


def test_explain_computes_nothing():
    result = explain((1000, 10_000, 10_000, 64), (3, 3, 64, 64))
    assert result.forward.spec.flops(result.forward.lhs_shape, result.forward.rhs_shape) > 1e15


def test_explain_speaks_of_the_platform_asked_for():
    assert convjax.explain(X, W, platform="gpu").platform == "cuda"
    on_a_tpu = convjax.explain(X, W, platform="tpu")
    assert on_a_tpu.platform == "tpu"
    kernels = str(on_a_tpu).splitlines()[-1]
    assert kernels == "kernels of other platforms, platform='cuda': " + ", ".join(n for n in KERNELS if "gpu" in n)
    assert str(on_a_tpu).count("tpu_causal1d") == 3
    assert convjax.explain(X, W).platform == "cpu"


def test_explain_agrees_with_what_is_lowered():
    for problem in (c for c in CASES if c.spec.batch_groups == 1):
        x, w = shapes(problem)
        name = explain(problem.lhs_shape, problem.rhs_shape, **problem.options).forward.chosen
        text = jax.jit(functools.partial(convjax.conv, **problem.options)).lower(x, w).as_text(debug_info=True)
        assert name in text, problem
