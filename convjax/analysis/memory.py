"""How much memory each algorithm takes beyond operands and output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from convjax._core import arguments, measure, tuning
from convjax._core.algorithms import ALGORITHMS
from convjax._core.choose import why_not
from convjax._core.collect import convolutions, gradients
from convjax.functional import conv


def temporary_memory(
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    *,
    function: Callable = conv,
    problem: str = "forward",
    algorithms: Sequence[str] | None = None,
    dtype: DTypeLike = jnp.float32,
    **options: Any,
) -> dict[str, int]:
    """Bytes of temporary memory that each algorithm takes for one convolution, as compiled for this device.

    Nothing is computed, but each is compiled, which takes up to a second or so apiece.

    Args:
      x_shape: shape of `x`, as the function takes it.
      w_shape: shape of `w`.
      function: which convolution; any function of `(x, w, **options)`.
      problem: "forward", "input_grad" or "kernel_grad".
      algorithms: names, of `convjax.algorithms()`; all if None.
      dtype: of both operands.
      options: the other arguments of `function`: stride, padding, groups, ...

    Returns:
      bytes by name, for those that can serve; empty on a device whose compiler does not tell.

    Raises:
      ValueError: an unknown problem or algorithm; `function` holds no convolution for these shapes, or several; what
        it raises for them.

    Example:
      >>> from convjax.analysis import temporary_memory
      >>> needs = temporary_memory((1, 32, 32, 8), (3, 3, 8, 8), algorithms=["gemm", "taps", "xla"])
      >>> list(needs)
      ['gemm', 'taps', 'xla']
    """
    where = "temporary_memory"
    problem = arguments.choice(where, "problem", problem, arguments.PROBLEMS)
    names = [
        arguments.choice(where, f"algorithms[{i}]", name, tuple(ALGORITHMS))
        for i, name in enumerate(ALGORITHMS if algorithms is None else algorithms)
    ]
    x, w = (jax.ShapeDtypeStruct(tuple(shape), dtype) for shape in (x_shape, w_shape))
    found = [g for g, _ in convolutions(jax.make_jaxpr(lambda x, w: function(x, w, **options))(x, w).jaxpr)]
    if len(found) != 1:
        raise ValueError(
            f"{where}: function holds {len(found)} convolutions for these arguments. Pass one at a time; "
            "convjax.analysis.collect(fn, *args) lists them."
        )
    (g,) = found
    g = dict(zip(arguments.PROBLEMS, (g, *gradients(g)), strict=True))[problem]
    platform = tuning.lowering_platform()
    operands = [jax.ShapeDtypeStruct(shape, g.dtype) for shape in measure.natural(g)]
    result = {}
    for name in names:
        if why_not(name, g.spec, *g.operands, platform) is None:
            memory = jax.jit(measure.in_place(name, g)).lower(*operands).compile().memory_analysis()
            if memory is not None:
                result[name] = int(memory.temp_size_in_bytes)
    return result
