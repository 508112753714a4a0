"""What is compiled ahead of time for accelerators that are not here: each kernel on problems of real layers.

A case is a name, the registry's name of a kernel, and a function that builds the problem, so that importing this file
costs nothing. `python -m benchmarks.aot_tpu` compiles those in `TPU`, and beside each distinct problem lax's own
convolution of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.cases import by_name
from convjax.testing import Case, case


@dataclasses.dataclass(frozen=True)
class AotCase:
    """One kernel on one problem.

    Attributes:
      name: of the problem, dtype included: cases that share it share lax's figures too.
      kernel: the registry's name, such as "tpu_depthwise".
      problem: builds the problem in canonical form.
      kind: "forward", "input_grad", or "kernel_grad", whose operands are those of the layer and transposed inside.
      dtype: of the operands.
      epilogue: what is fused, of "bias", "residual" and the name of an activation.
      quick: whether it is in the short run that CI makes: each file of a kernel once, with what it fuses.
      targets: where it is compiled, by the harness's names; empty for all of them.
      program: for what is no convolution alone, the function to compile for "kernel" and for "lax", and the shapes and
        dtypes of its operands.
    """

    name: str
    kernel: str
    problem: Callable[[], Case]
    kind: str = "forward"
    dtype: str = "bfloat16"
    epilogue: tuple[str, ...] = ()
    quick: bool = False
    targets: tuple[str, ...] = ()
    program: Callable[[str], tuple[Callable, list[tuple[tuple[int, ...], str]]]] | None = None

    def __str__(self) -> str:
        return ", ".join((self.name, self.kernel, *self.epilogue))


def of_layer(layer: str, kind: str = "forward", batch: int | None = None) -> Case:
    """A problem of a layer: "forward", "input_grad" or "kernel_grad", at another batch if asked."""
    problem = by_name(layer).case
    if batch is not None:
        problem = dataclasses.replace(problem, lhs_shape=(batch, *problem.lhs_shape[1:]))
    return {"forward": problem, "input_grad": problem.lhs_grad, "kernel_grad": problem.rhs_grad}[kind]


def entry(kernel: str, layer: str, kind: str = "forward", **options: object) -> AotCase:
    """A case of a layer, named after it, the kind of problem and the dtype."""
    dtype = str(options.get("dtype", "bfloat16"))
    words = (layer.removesuffix(f" {dtype}"), *((kind.replace("_grad", " gradient"),) if kind != "forward" else ()))
    return AotCase(f"{', '.join(words)}, {dtype}", kernel, partial(of_layer, layer, kind), kind, **options)  # type: ignore[arg-type]


def dense_128(k: int, dtype: str = "bfloat16") -> AotCase:
    """128 channels of 8 images, the middle size of ResNet, with k x k taps."""
    problem = partial(case, f"{k}x{k} 128->128 @56 N8", (8, 56, 56, 128), (k, k, 128, 128), pads=k // 2)
    return AotCase(f"{k}x{k} 128->128 @56 N8, {dtype}", "tpu_implicit_gemm", problem, dtype=dtype)


def mobile(k: int) -> Case:
    """The image of MobileNet's 3x3 layer with another kernel."""
    return case(f"depthwise {k}x{k} 128 @56 N8", (8, 56, 56, 128), (k, k, 1, 128), pads=k // 2, groups=128)


def mamba(
    what: str, *, state: bool = False, segments: bool = False, gradients: bool = False
) -> tuple[Callable, list[Any]]:
    """A causal layer as a state space model has it: width 4, bias, SiLU; a state, segments, all of its gradients."""
    import jax
    import jax.numpy as jnp

    from convjax._core.kernels.tpu import causal1d, causal1d_grad

    batch, length, channels, taps = 4, 2048, 512, 4
    shapes = [(batch, length, channels), (taps, channels), (channels,)]

    def lax_layer(x: Any, w: Any, bias: Any, *others: Any) -> Any:
        before, ids = split(others)
        before = jnp.zeros((batch, taps - 1, channels), x.dtype) if before is None else before
        padded = jnp.concatenate([before, x], axis=1)
        if ids is None:
            y = jax.lax.conv_general_dilated(
                padded, w[:, None], (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=channels
            )
            return jax.nn.silu(y + bias)
        own = jnp.pad(ids, ((0, 0), (taps - 1, 0)), mode="edge")
        seen = [
            jnp.where((own[:, i : i + length] == ids)[..., None], padded[:, i : i + length], 0) for i in range(taps)
        ]
        return jax.nn.silu(sum(part * w[i] for i, part in enumerate(seen)) + bias)

    def split(others: tuple[Any, ...]) -> tuple[Any, Any]:
        return others[0] if state else None, others[state] if segments else None

    def kernel_layer(x: Any, w: Any, bias: Any, *others: Any) -> Any:
        return causal1d.forward(x, w, bias, *split(others), True)[0]

    def kernel_gradients(dy: Any, x: Any, w: Any, bias: Any, *others: Any) -> Any:
        return causal1d_grad.backward(x, w, bias, *split(others), True, dy)[: 3 + state]

    def lax_gradients(dy: Any, *operands: Any) -> Any:
        smooth, ids = operands[: 3 + state], operands[3 + state :]
        return jax.vjp(lambda *smooth: lax_layer(*smooth, *ids), *smooth)[1](dy)

    operands = [(shape, "bfloat16") for shape in shapes] + [((batch, taps - 1, channels), "bfloat16")] * state
    operands += [((batch, length), "int32")] * segments
    if not gradients:
        return kernel_layer if what == "kernel" else lax_layer, operands
    return kernel_gradients if what == "kernel" else lax_gradients, [operands[0], *operands]


def block(words: str, *, quick: bool = False, **options: Any) -> AotCase:
    """The layer of `mamba`, with its options."""
    name, program = f"1-D depthwise causal k4 512 L2048 N4, {words}, bfloat16", partial(mamba, **options)
    return AotCase(name, "tpu_causal1d", MAMBA, epilogue=("bias", "silu"), quick=quick, program=program)


depthwise = partial(entry, "tpu_depthwise")
causal1d = partial(entry, "tpu_causal1d")
MAMBA = partial(of_layer, "1-D depthwise causal k4 512 L2048 N4")
dense = partial(entry, "tpu_implicit_gemm")
grouped = partial(entry, "tpu_grouped")
packed = partial(entry, "pack_groups_128")

TPU: tuple[AotCase, ...] = (
    depthwise("depthwise 3x3 128 @56 N8"),
    depthwise("depthwise 3x3 128 @56 N8", epilogue=("bias", "residual", "silu"), quick=True),
    depthwise("depthwise 3x3 128 @56 N8", "input_grad"),
    depthwise("depthwise 3x3 128 @56 N8", "kernel_grad", quick=True),
    depthwise("depthwise 3x3 128 @56 N8", dtype="float32"),
    depthwise("depthwise 3x3/2 128 @56 N8"),
    depthwise("depthwise 3x3/2 128 @56 N8", "kernel_grad"),
    AotCase("depthwise 7x7 128 @56 N8, bfloat16", "tpu_depthwise", partial(mobile, 7)),
    depthwise("depthwise 7x7 192 @28 N8"),
    depthwise("depthwise 7x7 192 @28 N8", "kernel_grad"),
    depthwise("depthwise 31x31 128 @32 N1"),
    depthwise("depthwise 31x31 128 @32 N1", "kernel_grad"),
    depthwise("1-D depthwise causal k4 512 L2048 N4"),
    causal1d("1-D depthwise causal k4 512 L2048 N4", epilogue=("bias", "silu")),
    block("segments", segments=True, quick=True),
    block("state", state=True, quick=True),
    block("all gradients", gradients=True),
    block("all gradients, state and segments", gradients=True, state=True, segments=True, quick=True),
    dense("3x3 64->64 @56 N8"),
    dense("3x3 64->64 @56 N8", epilogue=("bias", "residual", "relu"), quick=True),
    dense("3x3 64->64 @56 N8", "input_grad"),
    dense("3x3 64->64 @56 N8", "kernel_grad", quick=True),
    dense_128(3),
    dense_128(3, "float32"),
    dense_128(5),
    dense("3x3 128->128 @28 N8"),
    dense("3x3 128->128 @28 N8", "kernel_grad"),
    dense("3x3 256->256 @14 N8"),
    dense("3x3 512->512 @7 N8"),
    dense("3x3/2 128->128 @56 N8"),
    dense("3x3/2 128->128 @56 N8", "kernel_grad"),
    dense("1x1 64->256 @56 N8"),
    dense("1x1 64->256 @56 N8", "kernel_grad"),
    dense("1x1 1024->256 @14 N8"),
    dense("1x1/2 256->512 @56 N8"),
    grouped("3x3 groups 32, 128 @56 N8"),
    grouped("3x3 groups 32, 128 @56 N8", epilogue=("bias", "relu"), quick=True),
    grouped("3x3 groups 32, 128 @56 N8", "input_grad"),
    grouped("3x3 groups 32, 128 @56 N8", "kernel_grad", quick=True),
    grouped("3x3 groups 32, 256 @28 N8"),
    grouped("3x3 groups 32, 256 @28 N8", "kernel_grad"),
    grouped("3x3 groups 32, 512 @14 N8"),
    grouped("3x3 groups 32, 1024 @7 N8"),
    packed("3x3 groups 32, 128 @56 N8"),
    packed("3x3 groups 32, 128 @56 N8", "input_grad"),
    packed("3x3 groups 32, 256 @28 N8"),
    packed("3x3 groups 32, 1024 @7 N8"),
)
