"""Each parameter of a model with its tensor elsewhere: everything is checked before anything is written."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from convjax.interop.layouts import Layout, Table, kind
from convjax.interop.names import Names

OWN = Layout("")  # as it is, under the name that stands before it


@dataclasses.dataclass(frozen=True)
class Binding:
    """A parameter or running statistic of ours, and what can be its tensor elsewhere: full names and layouts."""

    path: str
    variable: Any
    layer: Any
    candidates: tuple[tuple[str, Layout], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.variable.get_value().shape)

    def tensor(self) -> tuple[str, np.ndarray]:
        """The usual candidate, filled with our values."""
        name, layout = self.candidates[0]
        return name, self.write(layout)

    def write(self, layout: Layout) -> np.ndarray:
        return np.ascontiguousarray(layout.write(np.asarray(self.variable.get_value()), self.layer))


def variables(where: str, model: Any) -> dict[tuple[Any, ...], Any]:
    """Parameters and running statistics by path; keys of dropout and caches are no weights."""
    if not isinstance(model, nnx.Module):
        raise TypeError(f"{where}: model must be a flax.nnx module, got {type(model).__name__}.")
    kept = (nnx.Param, nnx.BatchStat)
    return {path: leaf for path, leaf in nnx.iter_graph(model) if isinstance(leaf, kept)}


def dotted(path: Iterable[Any]) -> str:
    return ".".join(map(str, path))


def bind(
    where: str, model: Any, table: Table, names: Names, *, prefix: str, separator: str, head: bool
) -> list[Binding]:
    """Every parameter of `model`, but for the head where that is not wanted."""
    found = variables(where, model)
    layers = dict(nnx.iter_modules(model))
    full = {ours: theirs if ours in names.head else prefix + theirs for ours, theirs in names.layers.items()}
    bindings, unnamed = [], []
    for (*parent, attribute), variable in found.items():
        owner, path = dotted(parent), dotted((*parent, attribute))
        layer = layers.get(tuple(parent))
        if not head and owner in names.head:
            continue
        tensors = (kind(table, layer) or {}).get(str(attribute))
        if path in full:
            bindings.append(Binding(path, variable, layer, ((full[path], OWN),)))
        elif owner in full and tensors is not None:
            stem = full[owner] + separator if full[owner] else ""
            served = tuple((stem + layout.name, layout) for layout in tensors if layout.serves(layer))
            bindings.append(Binding(path, variable, layer, served))
        else:
            unnamed.append(path)
    if unnamed:
        raise ValueError(
            f"{where}: names leaves out {_listing(unnamed)}. Type an entry for its layer or, where this kind of "
            "layer is not known here, for the parameter itself."
        )
    there = {*map(dotted, layers), *map(dotted, found)}
    stray = [ours for ours in full if ours not in there]
    if stray:
        raise ValueError(f"{where}: names has {_listing(stray)}, which the model does not have.")
    return bindings


def match(where: str, bindings: Iterable[Binding], shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[str, Layout]]:
    """Name and layout of each binding's tensor among tensors of these shapes, which all must be taken."""
    chosen = []
    for binding in bindings:
        present = [(name, layout) for name, layout in binding.candidates if name in shapes]
        wanted = [(name, layout.shape(binding.shape, binding.layer)) for name, layout in present]
        fits = [c for c, (name, shape) in zip(present, wanted, strict=True) if shapes[name] == shape]
        if not present:
            name, layout = binding.candidates[0]
            near = difflib.get_close_matches(name, shapes, n=1)
            hint = f" The most similar is {near[0]} {shapes[near[0]]}." if near else ""
            raise ValueError(
                f"{where}: there is no tensor {name}, of shape {layout.shape(binding.shape, binding.layer)}, for our "
                f"{binding.path} {binding.shape}.{hint} Build the network as the other one is, pass head=False where "
                "the other has no classifier, or correct names."
            )
        if not fits:
            expected = " or ".join(str(shape) for shape in dict.fromkeys(shape for _, shape in wanted))
            name = wanted[0][0]
            raise ValueError(
                f"{where}: tensor {name} has shape {shapes[name]}, but our {binding.path} {binding.shape} needs "
                f"{expected}. Build the network with the sizes of the other one."
            )
        chosen.append(fits[0])
    taken = {name for name, _ in chosen}
    superfluous = [f"{name} {shape}" for name, shape in shapes.items() if name not in taken]
    if superfluous:
        raise ValueError(
            f"{where}: nothing of ours takes {_listing(superfluous)}; expected were only the {len(taken)} tensors of "
            "our model. Build the network as the other one is (depths, use_bias, ...), or leave the tensor out."
        )
    return chosen


def fill(where: str, bindings: list[Binding], tensors: Mapping[str, np.ndarray]) -> None:
    """Write `tensors` into the model, in the dtypes and on the devices of what was there."""
    chosen = match(where, bindings, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    for binding, (name, layout) in zip(bindings, chosen, strict=True):
        old = binding.variable.get_value()
        # A copy: asarray would share memory with a torch tensor, and change when that is trained.
        value = jnp.array(layout.read(tensors[name], binding.layer), old.dtype)
        binding.variable.set_value(jax.device_put(value, old.sharding) if isinstance(old, jax.Array) else value)


def without_head(tensors: Mapping[str, Any], names: Names, separator: str) -> dict[str, Any]:
    """`tensors` but for those of the head."""
    heads = tuple(names.layers[ours] + separator for ours in names.head)
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(heads)}


def _listing(items: list[str]) -> str:
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return ", ".join(items[:3]) + more
