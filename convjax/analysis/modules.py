"""Networks as functions of their parameters and inputs, and the calls of their layers as marks in the jaxpr.

A Flax module is traced from the shapes of its parameters, one of nnx in inference mode; nothing is computed, so that an
abstract one serves as well. Each call of a module is bracketed by two equations of `mark_p`, which compute nothing.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Path = tuple[str, ...]

mark_p = Primitive("convjax_layer")
mark_p.multiple_results = True  # none
mark_p.def_abstract_eval(lambda *arrays, **params: [])
mark_p.def_impl(lambda *arrays, **params: [])
ad.primitive_jvps[mark_p] = lambda primals, tangents, **params: (mark_p.bind(*primals, **params), [])
mlir.register_lowering(mark_p, lambda ctx, *arrays, **params: [])
batching.primitive_batchers[mark_p] = lambda args, axes, **params: (mark_p.bind(*args, **params), [])


def called(path: Path, kind: str, call: Callable[[], Any]) -> Any:
    """What `call` returns, between marks: the second is of its outputs."""
    mark_p.bind(path=path, kind=kind, enters=True)
    result = call()
    arrays = [leaf for leaf in jax.tree.leaves(result) if isinstance(leaf, jax.Array)]
    mark_p.bind(*arrays, path=path, kind=kind, enters=False)
    return result


@dataclasses.dataclass(frozen=True)
class Network:
    """Something to trace.

    Attributes:
      fn: takes `state`, then `args`.
      state: the parameters, or their shapes, in whatever form `fn` takes them; None for a plain function.
      parameters: number of parameters by path.
      name: of the function or the module's class.
    """

    fn: Callable
    state: Any
    args: tuple[Any, ...]
    parameters: Mapping[Path, int]
    name: str

    def jaxpr(self) -> Any:
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), self.state)
        return jax.make_jaxpr(self.fn)(shapes, *self.args)


def network(where: str, model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Network:
    """Of a Flax module (nnx or linen) or of any function that JAX can trace."""
    if not callable(model):
        raise TypeError(
            f"{where}: {model!r} is not callable; pass a function or a Flax module, and its arguments after it."
        )
    if "flax" in sys.modules:  # else it cannot be one of its modules
        from flax import linen, nnx

        if isinstance(model, nnx.Module):
            return _of_nnx(nnx, model, args, kwargs)
        if isinstance(model, linen.Module):
            return _of_linen(linen, model, args, kwargs)
    name = getattr(model, "__name__", type(model).__name__)
    return Network(lambda _, *args: model(*args, **kwargs), None, args, {}, name)


def _of_nnx(nnx: Any, model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Network:
    graph, state = nnx.split(model)

    def fn(state: Any, *args: Any) -> Any:
        copy = nnx.merge(graph, state)
        copy.eval()
        for path, module in list(nnx.iter_modules(copy)):
            _mark(tuple(map(str, path)), module)
        return copy(*args, **kwargs)

    parameters = {
        tuple(map(str, path)): sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variable))
        for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param))
    }
    return Network(fn, state, args, parameters, type(model).__name__)


def _mark(path: Path, module: Any) -> None:
    """Let the calls of one module, a copy that nobody else has, leave marks: by a class of its own."""
    kind: Any = type(module)
    if callable(module):
        call = lambda self, *args, **kwargs: called(path, kind.__name__, partial(kind.__call__, self, *args, **kwargs))
        make: Any = type(kind)
        own = make(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__})
        object.__setattr__(module, "__class__", own)


def _of_linen(linen: Any, model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Network:
    keys = {name: jax.random.key(0) for name in ("params", "dropout")}
    if model.scope is None:
        state = jax.eval_shape(lambda keys, *args: model.init(keys, *args, **kwargs), keys, *args)
    else:
        model, state = model.unbind()

    def mark(following: Callable, args: Any, kwargs: Any, context: Any) -> Any:
        call = partial(following, *args, **kwargs)
        if context.method_name != "__call__":
            return call()
        return called(context.module.path, type(context.module).__name__, call)

    def fn(state: Any, *args: Any) -> Any:
        with linen.intercept_methods(mark):
            return model.apply(state, *args, **kwargs, rngs=keys, mutable=True)[0]

    leaves = jax.tree_util.tree_leaves_with_path(state.get("params", {}))
    parameters = {tuple(str(key.key) for key in path): math.prod(leaf.shape) for path, leaf in leaves}
    return Network(fn, state, args, parameters, type(model).__name__)
