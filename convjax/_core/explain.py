"""explain(): what the chooser would do with a convolution and its gradients, and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import jaxprs_in_params
from jax.typing import DTypeLike

from convjax._core import arguments
from convjax._core.algorithms import ALGORITHMS
from convjax._core.choose import decide, why_not
from convjax._core.compat import PLATFORMS
from convjax._core.primitive import conv_p, convolve
from convjax._core.spec import ConvSpec


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One algorithm; `refusal` says why it cannot serve, None where it can."""

    algorithm: str
    refusal: str | None
    chosen: bool


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The choice for one problem; `parts` are the convolutions that a rewrite makes of it, chosen in their turn."""

    problem: str
    lhs_shape: tuple[int, ...]
    rhs_shape: tuple[int, ...]
    spec: ConvSpec
    chosen: str
    why: str
    candidates: tuple[Candidate, ...]
    parts: tuple[Verdict, ...]

    def lines(self, depth: int = 0) -> Iterator[str]:
        indent = "  " * depth
        flops = self.spec.flops(self.lhs_shape, self.rhs_shape)
        yield (
            f"{indent}{self.problem}: input {self.lhs_shape}, kernel {self.rhs_shape}, {flops / 1e6:.3g} MFLOP "
            f"-> {self.chosen} ({self.why})"
        )
        if depth == 0:
            for candidate in self.candidates:
                mark = "*" if candidate.chosen else " "
                yield f"{indent}  {mark} {candidate.algorithm:15} {candidate.refusal or 'can serve'}"
        for part in self.parts:
            yield from part.lines(depth + 1)


@dataclasses.dataclass(frozen=True)
class Explanation:
    """Verdicts on the forward problem and both gradients; `print` it for a table."""

    platform: str
    forward: Verdict
    input_grad: Verdict
    kernel_grad: Verdict

    def __str__(self) -> str:
        verdicts = (self.forward, self.input_grad, self.kernel_grad)
        return "\n".join([f"on {self.platform}", *(line for v in verdicts for line in v.lines())])

    def __repr__(self) -> str:
        names = (f"{p}={getattr(self, p).chosen}" for p in arguments.PROBLEMS)
        return f"<convjax.explain on {self.platform}: {', '.join(names)}>"


def explain(
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    *,
    function: Callable | None = None,
    dtype: DTypeLike = jnp.float32,
    platform: str | None = None,
    **options: Any,
) -> Explanation:
    """Print and return which algorithm serves a convolution and each of its gradients, and why the others do not.

    Nothing is computed: shapes are enough.

    Args:
      x_shape: shape of `x`, as the function takes it.
      w_shape: shape of `w`.
      function: which convolution, `convjax.conv` by default; any function of `(x, w, **options)`.
      dtype: dtype of both operands.
      platform: "cpu", "cuda" (or "gpu"), "rocm" or "tpu"; that of JAX's default device if None.
      options: the other arguments of `function`: stride, padding, groups, algorithm, ...

    Returns:
      an `Explanation` with a `Verdict` for forward, input_grad and kernel_grad.

    Raises:
      what `function` raises for these shapes; ValueError if it holds no convolution, or several.

    Example:
      >>> import convjax
      >>> verdicts = convjax.explain((8, 56, 56, 64), (1, 1, 64, 64), platform="cpu")  # doctest: +ELLIPSIS
      on cpu
      ...
      >>> verdicts.forward.chosen
      'gemm'
    """
    from convjax.functional import conv

    function = function or conv
    if platform is None:
        platform = jax.default_backend()
    else:
        platform = arguments.choice("explain", "platform", platform, (*PLATFORMS, "gpu"))
    platform = "cuda" if platform == "gpu" else platform
    x, w = (jax.ShapeDtypeStruct(tuple(shape), dtype) for shape in (x_shape, w_shape))

    def forward(x: Any, w: Any) -> Any:
        return function(x, w, **options)

    found = list(_convolutions(jax.make_jaxpr(forward)(x, w).jaxpr))
    if len(found) != 1:
        raise ValueError(
            f"explain: function holds {len(found)} convolutions for these arguments; explain one at a time."
        )
    ((lhs, rhs, spec),) = found
    out = jax.eval_shape(partial(convolve, spec=spec), lhs, rhs)
    in_lhs = jax.make_jaxpr(lambda ct, rhs: jax.linear_transpose(lambda lhs: convolve(lhs, rhs, spec), lhs)(ct))
    in_rhs = jax.make_jaxpr(lambda ct, lhs: jax.linear_transpose(lambda rhs: convolve(lhs, rhs, spec), rhs)(ct))
    problems = [*found, *_convolutions(in_lhs(out, rhs).jaxpr), *_convolutions(in_rhs(out, lhs).jaxpr)]
    result = Explanation(
        platform,
        *(_verdict(name, *problem, platform) for name, problem in zip(arguments.PROBLEMS, problems, strict=True)),
    )
    print(result)
    return result


def _verdict(problem: str, lhs: Any, rhs: Any, spec: ConvSpec, platform: str) -> Verdict:
    chosen, why = decide(spec, lhs, rhs, platform)
    candidates = tuple(Candidate(n, why_not(n, spec, lhs, rhs, platform), n == chosen) for n in ALGORITHMS)
    inner = jax.make_jaxpr(partial(ALGORITHMS[chosen].run, spec))(lhs, rhs)
    parts = tuple(_verdict("part", *found, platform) for found in _convolutions(inner.jaxpr))
    return Verdict(problem, lhs.shape, rhs.shape, spec, chosen, why, candidates, parts)


def _convolutions(jaxpr: Any) -> Iterator[tuple[Any, Any, ConvSpec]]:
    """Every convolution of a jaxpr: shapes of its operands and spec."""
    for equation in jaxpr.eqns:
        if equation.primitive is conv_p:
            yield *(v.aval for v in equation.invars), equation.params["spec"]
        for inner in jaxprs_in_params(equation.params):
            yield from _convolutions(inner)
