"""Which GPU kernels are compiled without a GPU, and on what: real layers, at batches that fill a large device.

A program is a function of arrays, and their shapes. `conv` makes those of a kernel that serves problems of the
canonical family: forward with its epilogue and both gradients of a layer, as they reach the kernel's `run`. A kernel
with functions of its own lists them as `Program`s. To add a kernel, append its lines to `PROGRAMS`.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.cases import by_name
from convjax._core import measure
from convjax._core.geometry import Geometry
from convjax.testing import Case

FORWARD, INPUT_GRAD, KERNEL_GRAD = "forward", "input_grad", "kernel_grad"
Shapes = tuple[jax.ShapeDtypeStruct, ...]


@dataclasses.dataclass(frozen=True)
class Program:
    """What is compiled: `make()` gives a function and the shapes of its arguments.

    Attributes:
      kernel: name in the registry.
      name: of the layer, with batch, dtype and epilogue.
      problem: which of its problems.
      make: called late, as it imports the kernel.
      quick: whether `--quick` lowers it too.
      refusal: the kernel's reason against it, None where it serves.
    """

    kernel: str
    name: str
    problem: str
    make: Callable[[], tuple[Callable[..., Any], Shapes]]
    quick: bool = False
    refusal: Callable[[], str | None] = lambda: None

    def __str__(self) -> str:
        return f"{self.kernel}, {self.name}, {self.problem}"


def module(kernel: str) -> Any:
    """The file of a kernel named as in the registry."""
    return importlib.import_module(f"convjax._core.kernels.mosaic_gpu.{kernel.removeprefix('gpu_')}")


def conv(
    kernel: str,
    layer: str,
    batch: int,
    *dtypes: str,
    of: Sequence[str] = (FORWARD, INPUT_GRAD, KERNEL_GRAD),
    bias: bool = False,
    residual: bool = False,
    activation: str | None = None,
    quick: bool = False,
) -> Iterator[Program]:
    """Problems of a layer of `benchmarks.cases`; the epilogue belongs to the forward one."""
    for dtype in dtypes:
        at = by_name(layer).at(batch=batch, dtype=dtype)
        for problem in of:
            plain = problem != FORWARD
            epilogue = (False, False, None) if plain else (bias, residual, activation)
            words = ["bias"] * epilogue[0] + ["residual"] * epilogue[1] + ([activation] if epilogue[2] else [])
            name = " + ".join([at.name, *(word for word in words if word)])
            case = {FORWARD: at.case, INPUT_GRAD: at.case.lhs_grad, KERNEL_GRAD: at.case.rhs_grad}[problem]
            make = partial(_conv, kernel, case, dtype, *epilogue)
            yield Program(kernel, name, problem, make, quick, partial(_refusal, kernel, case, dtype))


def _operands(case: Case, dtype: str) -> Shapes:
    return tuple(jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)) for shape in (case.lhs_shape, case.rhs_shape))


def _refusal(kernel: str, case: Case, dtype: str) -> str | None:
    return module(kernel).supports(case.spec, *_operands(case, dtype), "cuda")


def _conv(
    kernel: str, case: Case, dtype: str, has_bias: bool, has_residual: bool, activation: str | None
) -> tuple[Callable[..., Any], Shapes]:
    run = module(kernel).run
    problem = Geometry(case.spec, case.lhs_shape, case.rhs_shape, jnp.dtype(dtype))
    shapes = [*measure.natural(problem), *[case.out_shape[-1:]] * has_bias, *[case.out_shape] * has_residual]

    def program(lhs: Any, rhs: Any, *addends: Any) -> Any:
        bias, residual = addends[0] if has_bias else None, addends[-1] if has_residual else None
        if problem.is_kernel_gradient:  # input and cotangent, as the program around it has them
            return jnp.moveaxis(run(case.spec, jnp.swapaxes(lhs, 0, -1), jnp.moveaxis(rhs, 0, -2)), 0, -2)
        return run(case.spec, lhs, rhs, bias=bias, residual=residual, activation=activation)

    return program, tuple(jax.ShapeDtypeStruct(shape, problem.dtype) for shape in shapes)


def causal1d(dtype: str, *, batch: int, length: int, channels: int, taps: int, **options: bool) -> Iterator[Program]:
    """Both directions of the causal kernel, with bias and SiLU; `options`: state, segments, quick."""
    words = [word for word in ("state", "segments") if options.get(word)]
    name = " + ".join([f"k{taps} {channels} L{length} N{batch} {dtype} + bias + silu", *words])
    for problem in ("forward", "backward"):
        make = partial(
            _causal1d, problem, dtype, (batch, length, channels), taps, *(w in words for w in ("state", "segments"))
        )
        yield Program(
            "gpu_causal1d",
            name,
            problem,
            make,
            options.get("quick", False),
            lambda: module("gpu_causal1d").refusal(taps, 1, jnp.dtype(dtype), gradients=True),
        )


def _causal1d(
    problem: str, dtype: str, shape: tuple[int, int, int], taps: int, has_state: bool, has_segments: bool
) -> tuple[Callable[..., Any], Shapes]:
    batch, length, channels = shape
    like = lambda *sizes, dtype=dtype: jax.ShapeDtypeStruct(sizes, jnp.dtype(dtype))
    operands = [like(*shape), like(taps, channels), like(channels)]
    operands += [like(batch, taps - 1, channels)] * has_state + [like(batch, length, dtype="int32")] * has_segments

    def program(x: Any, w: Any, bias: Any, *others: Any) -> Any:
        state, segment_ids = others[0] if has_state else None, others[has_state] if has_segments else None
        if problem == "forward":
            return module("gpu_causal1d").forward(x, w, bias, state, segment_ids, True)
        return module("gpu_causal1d_grad").backward(x, w, bias, state, segment_ids, True, others[-1])

    return program, (*operands, *[like(*shape)] * (problem == "backward"))


BOTH = ("bfloat16", "float32")
ALL: dict[str, Any] = dict(bias=True, residual=True, activation="relu")

PROGRAMS: tuple[Program, ...] = (
    *conv("gpu_depthwise", "depthwise 3x3 128 @56 N8", 128, *BOTH, **ALL, quick=True),
    *conv("gpu_depthwise", "depthwise 3x3/2 128 @56 N8", 256, "bfloat16", of=(FORWARD, KERNEL_GRAD), quick=True),
    *conv("gpu_depthwise", "depthwise 5x5/2 144 @56 N8", 128, "bfloat16", of=(FORWARD, KERNEL_GRAD)),
    *conv("gpu_depthwise", "depthwise 7x7 192 @28 N8", 256, *BOTH, bias=True, activation="silu"),
    *conv("gpu_depthwise", "depthwise 31x31 128 @32 N1", 64, *BOTH),
    *conv("gpu_depthwise", "1-D depthwise causal k4 512 L2048 N4", 128, *BOTH, bias=True, activation="silu"),
    *conv(
        "gpu_causal1d",
        "1-D depthwise causal k4 512 L2048 N4",
        128,
        *BOTH,
        of=(FORWARD,),
        bias=True,
        activation="silu",
        quick=True,
    ),
    *causal1d("bfloat16", batch=128, length=2048, channels=512, taps=4, quick=True),
    *causal1d("float32", batch=128, length=2048, channels=512, taps=4),
    *causal1d("bfloat16", batch=128, length=2048, channels=512, taps=4, state=True, segments=True, quick=True),
    *causal1d("bfloat16", batch=16, length=2048, channels=1536, taps=16),
    *conv("gpu_implicit_gemm", "3x3 64->64 @56 N8", 32, "bfloat16", **ALL, quick=True),
    *conv("gpu_implicit_gemm", "3x3 128->128 @28 N8", 32, "bfloat16", "float16", **ALL),
    *conv("gpu_implicit_gemm", "3x3 256->256 @14 N8", 32, "bfloat16", **ALL),
    *conv("gpu_implicit_gemm", "3x3 512->512 @7 N8", 32, "bfloat16", **ALL),
    *conv("gpu_implicit_gemm", "3x3/2 128->128 @56 N8", 32, "bfloat16", bias=True, activation="relu", quick=True),
    *conv("gpu_implicit_gemm", "1x1 64->256 @56 N8", 32, "bfloat16", **ALL),
    *conv("gpu_implicit_gemm", "1x1 1024->256 @14 N8", 32, "bfloat16", bias=True, activation="gelu"),
    *conv("gpu_implicit_gemm", "1x1/2 256->512 @56 N8", 32, "bfloat16", of=(FORWARD, KERNEL_GRAD), bias=True),
    *conv("gpu_implicit_gemm", "3x3 dilation 12 256->64 @65 N1", 8, "bfloat16"),
    *conv("gpu_implicit_gemm", "1-D k2 dilation 256 64->128 L16000", 4, "bfloat16", bias=True, activation="tanh"),
    *conv("gpu_grouped", "3x3 groups 32, 128 @56 N8", 32, "bfloat16", bias=True, activation="relu"),
    *conv("gpu_grouped", "3x3 groups 32, 256 @28 N8", 32, "bfloat16", **ALL, quick=True),
    *conv("gpu_grouped", "3x3 groups 32, 512 @14 N8", 32, "bfloat16", bias=True, activation="silu"),
    *conv("gpu_grouped", "3x3 groups 32, 1024 @7 N8", 32, "bfloat16"),
)
