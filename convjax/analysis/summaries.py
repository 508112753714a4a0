"""The table of a network's layers."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from convjax._core import tuning
from convjax._core.choose import decide
from convjax._core.explain import platform_named
from convjax.analysis.fields import ReceptiveField
from convjax.analysis.modules import Path
from convjax.analysis.receptive import Traced, field_of, trace
from convjax.analysis.state import State
from convjax.analysis.walk import Step


@dataclasses.dataclass(frozen=True)
class LayerRecord:
    """One layer: a module that computes something itself, or an operation outside of all such.

    Attributes:
      name: its path in the network, joined by dots; the kind and a number where it has none.
      kind: class of the module, or kind of the operation.
      out_shape: of its (first) output.
      parameters: of its own; those of a module that runs twice are told the first time.
      macs: multiply-adds of its convolutions and matrix products.
      share: of the network's multiply-adds, from 0 to 1.
      receptive_field: of its output on the network's input; None where it does not depend on it, or that has no spatial
        axes.
      algorithm: what serves its convolutions; None where it has none.
    """

    name: str
    kind: str
    out_shape: tuple[int, ...]
    parameters: int
    macs: int
    share: float
    receptive_field: ReceptiveField | None
    algorithm: str | None


@dataclasses.dataclass(frozen=True)
class Summary:
    """The layers of a network; `print` it, or show it with rich, for a table.

    Attributes:
      name: of the network.
      records: its layers, in the order in which they run.
      parameters, macs: of all.
    """

    name: str
    records: tuple[LayerRecord, ...]
    parameters: int
    macs: int

    def __rich__(self) -> Any:
        from rich.table import Table

        table = Table(title=self.name, caption=f"{self.parameters:,} parameters, {self.macs / 1e9:.4g} GMAC")
        for heading in ("layer", "kind", "output"):
            table.add_column(heading, overflow="fold")
        for heading in ("parameters", "MACs", "share", "field", "stride"):
            table.add_column(heading, justify="right")
        table.add_column("algorithm")
        for record in self.records:
            table.add_row(*_cells(record))
        return table

    def __str__(self) -> str:
        from rich.console import Console

        out = io.StringIO()
        Console(file=out, width=140, color_system=None).print(self)
        return out.getvalue().rstrip("\n")


def _cells(record: LayerRecord) -> Iterator[str]:
    field = record.receptive_field
    yield from (record.name, record.kind, " x ".join(map(str, record.out_shape)))
    yield f"{record.parameters:,}" if record.parameters else ""
    yield from (f"{record.macs:,}", f"{record.share:.1%}") if record.macs else ("", "")
    yield from ("", "") if field is None else (_told(field.size), _told(field.stride))
    yield record.algorithm or ""


def _told(values: Sequence[Any]) -> str:
    each = ["all" if v == math.inf else str(v) for v in values]
    return each[0] if len(set(each)) == 1 else " x ".join(each)


def summary(model: Callable, *args: Any, argnum: int = -1, platform: str | None = None, **kwargs: Any) -> Summary:
    """The layers of a network: shapes, parameters, multiply-adds, receptive fields, algorithms. Nothing is computed.

    Args:
      model: a Flax module, nnx (in inference mode, abstract ones too) or linen; or any function that JAX can trace,
        whose convolutions, matrix products and poolings are the layers.
      args, kwargs: its arguments: arrays, or `jax.ShapeDtypeStruct`s in their place.
      argnum: which of `args` the receptive fields are about.
      platform: as `collect`.

    Returns:
      a `Summary`; its `records` are the layers.

    Raises:
      TypeError: `model` is not callable, or the input no array. ValueError: an unknown platform; `argnum` is none.
        What `model` raises when traced.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from convjax.analysis import summary
      >>> from convjax.models import create
      >>> table = summary(nnx.eval_shape(lambda: create("lenet5")), jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32))
      >>> [(r.name, r.out_shape, r.parameters, r.macs) for r in table.records[:2]]
      [('conv1', (1, 28, 28, 6), 156, 117600), ('max pool 1', (1, 14, 14, 6), 0, 0)]
    """
    platform = platform_named("summary", platform)
    traced = trace("summary", model, args, kwargs, None, argnum)
    total = sum(event.times * event.operation.macs for event in traced.events if isinstance(event, Step))
    records = tuple(_records(traced, platform, total))
    return Summary(traced.network.name, records, sum(r.parameters for r in records), total)


@dataclasses.dataclass
class _Call:
    """A call of a module that has begun."""

    path: Path
    place: int
    steps: list[tuple[int, Step]] = dataclasses.field(default_factory=list)
    has_parts: bool = False


def _records(traced: Traced, platform: str, total: int) -> Iterator[LayerRecord]:
    """In the order in which layers begin; an operation of a module that has parts, but no parameters, is a layer."""
    owned = _owned(traced)
    rows: dict[int, LayerRecord] = {}
    open_calls = [_Call((), -1, has_parts=True)]
    counts: dict[str, int] = {}

    def record(name: str, kind: str, shape: Any, parameters: int, steps: list[Step], state: State) -> LayerRecord:
        macs = sum(step.times * step.operation.macs for step in steps)
        field = field_of(state, traced.axes) if state is not None and traced.axes else None
        return LayerRecord(
            name, kind, shape, parameters, macs, macs / total if total else 0.0, field, _algorithm(steps, platform)
        )

    def alone(place: int, step: Step) -> None:
        kind = step.operation.kind
        counts[kind] = counts.get(kind, 0) + 1
        parameters = step.operation.weights if traced.network.state is None else 0
        name = f"{kind} {counts[kind]}"
        rows[place] = record(name, kind, step.operation.out_shape, parameters, [step], step.state)

    for place, event in enumerate(traced.events):
        if isinstance(event, Step):
            open_calls[-1].steps.append((place, event))
        elif event.enters:
            open_calls[-1].has_parts = True
            open_calls.append(_Call(event.path, place))
        else:
            call = open_calls.pop()
            parameters = owned.pop(call.path, 0)
            if parameters or not call.has_parts:
                steps = [step for _, step in call.steps]
                shape = event.shapes[0] if event.shapes else ()
                name = ".".join(call.path) or event.kind
                rows[call.place] = record(name, event.kind, shape, parameters, steps, event.state)
            else:
                for step in call.steps:
                    alone(*step)
    for step in open_calls[0].steps:
        alone(*step)
    yield from (rows[place] for place in sorted(rows))


def _owned(traced: Traced) -> dict[Path, int]:
    """Parameters by the innermost module that is called around them."""
    paths = {event.path for event in traced.events if not isinstance(event, Step)}
    owned: dict[Path, int] = {}
    for path, count in traced.network.parameters.items():
        owner = next((path[:n] for n in range(len(path) - 1, -1, -1) if path[:n] in paths), ())
        owned[owner] = owned.get(owner, 0) + count
    return owned


def _algorithm(steps: Sequence[Step], platform: str) -> str | None:
    names = []
    with tuning.reading():
        for step in steps:
            if (g := step.operation.geometry) is not None:
                names.append(decide(g.spec, *g.operands, platform)[0])
    return ", ".join(dict.fromkeys(names)) or None
