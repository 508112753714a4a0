"""Where the kernels of this folder run: on CUDA devices of compute capability 9, with a JAX that can write them."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import jax


def unavailable(platform: str) -> str | None:
    """The reason why no kernel of this folder runs there, or None.

    Without a CUDA device in this process a program can still be lowered for one, to be compiled or run elsewhere: the
    kernels then trust that it is a Hopper.
    """
    if platform != "cuda":
        return f"it is written for Hopper GPUs (platform cuda), not for {platform}"
    return _lacking() or _other_device()


def interpreter() -> Any:
    """What `interpret=` of a kernel takes, to run it on a CPU with its races detected."""
    from jax.experimental.pallas import mosaic_gpu as plgpu

    interpreted: Any = plgpu.InterpretGPUParams  # type: ignore[attr-defined, unused-ignore]
    return interpreted(detect_races=True)


def launch(body: Any, *, blocks: int, warpgroups: int = 1, interpret: bool = False, **kinds: Any) -> Any:
    """A kernel of so many blocks, numbered on the axis "block", of warpgroups on the axis "warpgroup".

    No barriers but those that the body writes: each kernel says why none lacks, and the interpreter finds out.

    Args:
      body: the program of a warpgroup.
      blocks: how many.
      warpgroups: of a block.
      interpret: on a CPU, with races detected.
      kinds: `out_type` and `scratch_types` as Pallas has them.
    """
    from jax.experimental.pallas import mosaic_gpu as plgpu

    kernel: Any = plgpu.kernel  # whose parameters depend on the version of JAX
    lane = plgpu.LoweringSemantics.Lane
    return kernel(
        body,
        grid=(blocks,),
        grid_names=("block",),
        num_threads=warpgroups,
        thread_name="warpgroup",
        interpret=interpreter() if interpret else None,
        compiler_params=plgpu.CompilerParams(lowering_semantics=lane, unsafe_no_auto_barriers=True),
        **kinds,
    )


@functools.cache
def _lacking() -> str | None:
    try:
        from jax.experimental.pallas import mosaic_gpu as plgpu
    except ImportError as error:
        return f"Pallas for GPUs cannot be imported: {error}"
    needed = {"out_type", "scratch_types", "interpret"}
    if not needed <= set(inspect.signature(plgpu.kernel).parameters):
        return f"jax {jax.__version__} lacks what the kernel is written with: install jax 0.11.2 or newer"
    return None


@functools.cache
def _other_device() -> str | None:
    if jax.default_backend() != "gpu":
        return None
    capability = str(getattr(jax.local_devices()[0], "compute_capability", "unknown"))
    if capability.split(".")[0] != "9":
        return f"it is written for compute capability 9 (Hopper), and this device has {capability}"
    return None
