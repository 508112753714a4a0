"""Pallas kernels: algorithms of one platform each, in the form of those in `convjax._core.algorithms`.

    run(spec, lhs, rhs, *, bias, residual, activation, interpret) -> the output

A kernel adds and activates before it writes (`convjax._core.fused`); `FUSES` names the activations that it knows.
"""

from __future__ import annotations

from typing import Any

from convjax._core.kernels.mosaic_gpu import causal1d as gpu_causal1d
from convjax._core.kernels.mosaic_gpu import causal1d_grad as gpu_causal1d_grad
from convjax._core.kernels.mosaic_gpu import depthwise as gpu_depthwise
from convjax._core.kernels.mosaic_gpu import grouped as gpu_grouped
from convjax._core.kernels.mosaic_gpu import implicit_gemm as gpu_implicit_gemm
from convjax._core.kernels.tpu import causal1d as tpu_causal1d
from convjax._core.kernels.tpu import causal1d_grad as tpu_causal1d_grad
from convjax._core.kernels.tpu import depthwise as tpu_depthwise
from convjax._core.kernels.tpu import grouped as tpu_grouped
from convjax._core.kernels.tpu import implicit_gemm as tpu_implicit_gemm

KERNELS: dict[str, Any] = {
    "tpu_depthwise": tpu_depthwise,
    "tpu_causal1d": tpu_causal1d,
    "tpu_implicit_gemm": tpu_implicit_gemm,
    "tpu_grouped": tpu_grouped,
    "gpu_depthwise": gpu_depthwise,
    "gpu_causal1d": gpu_causal1d,
    "gpu_implicit_gemm": gpu_implicit_gemm,
    "gpu_grouped": gpu_grouped,
}

# Those whose `run` takes a `state` and `segment_ids` too, and the file of all their gradients: `backward`, and
# `refusal(taps, dilation, dtype)` of what it cannot serve.
CAUSAL: dict[str, tuple[Any, Any]] = {
    "tpu_causal1d": (tpu_causal1d, tpu_causal1d_grad),
    "gpu_causal1d": (gpu_causal1d, gpu_causal1d_grad),
}
