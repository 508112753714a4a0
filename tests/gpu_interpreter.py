"""Mosaic GPU's interpret mode with TMA as the hardware has it, for tests of the kernels.

JAX 0.11 and 0.12 read nothing at all where a box starts before its array, and refuse a view of shared memory in another
shape. On the device the part outside is zeros, and a box is a sequence of rows whatever its sides. And lowering drops
every axis on which array and box have length 1, wherever the box starts: here too. What wgmma reads is looked at for
races, which JAX leaves out. The arithmetic, the barriers and the clocks stay JAX's.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest


def mend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the test is over."""
    from jax._src.pallas.mosaic.interpret import utils
    from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks as callbacks
    from jax._src.state.types import ReshapeTransform

    views = callbacks._remove_noop_transforms

    def without_reshapes(transforms: Any) -> tuple[Any, ...]:
        return tuple(t for t in views(transforms) if not isinstance(t, ReshapeTransform))

    def without_ones(access: Any, memory: Any, key: Any) -> Any:
        shape = memory.buffer_shape_and_dtype(key).shape
        first = lambda axis: 0 if isinstance(axis, int) else slice(0, 1, 1)
        is_one = lambda axis: isinstance(axis, int) or axis.stop - axis.start == 1
        kept = (
            first(axis) if length == 1 and is_one(axis) else axis
            for axis, length in zip(access.range, shape, strict=True)
        )
        return utils.Access(tuple(kept), access.permutation)

    def read(task: Any, memory: Any) -> np.ndarray:
        wanted = without_ones(task.src_access, memory, task.src_allocation_key)
        starts = [max(0, -axis.start) for axis in wanted.range if isinstance(axis, slice)]
        inside = utils.Access(
            tuple(
                slice(max(0, axis.start), max(0, axis.stop), axis.step) if isinstance(axis, slice) else axis
                for axis in wanted.range
            )
        )
        values, (_, dtype), _ = memory.get_buffer_content(
            task.src_allocation_key, inside, task.thread, logging_info=task.logging_info
        )
        whole = np.zeros(wanted.shape, dtype)
        if values is not None:
            whole[tuple(slice(at, at + n) for at, n in zip(starts, values.shape, strict=True))] = values
        return whole

    def copy(task: Any, thread: int) -> None:
        memory = callbacks._get_shared_memory()
        task.pre_read(thread, memory)
        values = read(task, memory)
        task.post_read(thread, memory)
        to = without_ones(task.dst_access, memory, task.dst_allocation_key)
        store = to, values.reshape(to.shape)
        if task.clips_out_of_bounds_destination:
            whole = tuple(memory.buffer_shape_and_dtype(task.dst_allocation_key).shape)
            store = callbacks._clip_store_to_shape(*store, whole)
        if store is not None:
            memory.store_buffer_content(task.dst_allocation_key, *store, task.thread, logging_info=task.logging_info)
        task.post_write(thread, memory)

    multiply = callbacks.wgmma

    @callbacks.fail_on_exception
    def wgmma(**arguments: Any) -> Any:
        memory, thread = callbacks._get_shared_memory(), arguments["thread"]
        for operand in "ab":
            key = callbacks.HostAllocationKey.from_array(arguments[f"{operand}_allocation_key_as_array"])
            seen = jax.tree.map(int, without_reshapes(arguments[f"{operand}_transforms"]))
            callbacks.get_races().check_read(
                thread,
                memory.incr_clock(thread).async_smem_clock,
                key,
                memory.access(key, seen),
                source_info=arguments["source_info"],
            )
        return multiply(**arguments)

    monkeypatch.setattr(callbacks, "wgmma", wgmma)
    monkeypatch.setattr(callbacks, "_remove_noop_transforms", without_reshapes)
    for kind in (callbacks.AsyncCopyGmemToSmemTask, callbacks.AsyncCopySmemToGmemTask):
        monkeypatch.setattr(kind, "__call__", copy)


def races_found() -> bool:
    """Whether the last kernel had any."""
    from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call

    return interpret_pallas_call.get_races().races_found


def forget() -> None:
    """What a kernel that failed left behind, so that the next one can run."""
    from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call

    interpret_pallas_call.reset_gpu_interpret_mode_state()
