"""`python -m convjax`: which algorithm serves, how long each takes, and measure what a script does."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Convolutions in JAX: explain, time and tune them.")
console = Console()

Sizes = Annotated[str, typer.Argument(help="sizes with commas or x between them: 8x56x56x128")]
Stride = Annotated[int, typer.Option(help="the same along each axis")]
Dilation = Annotated[int, typer.Option(help="of the kernel, the same along each axis")]
Groups = Annotated[int, typer.Option(help="independent convolutions of the features")]
Padding = Annotated[str, typer.Option(help="SAME, VALID, FULL, CAUSAL, SAME_LOWER, or a number")]
Dtype = Annotated[str, typer.Option(help="of both operands")]


@app.command()
def explain(
    x_shape: Sizes,
    w_shape: Sizes,
    stride: Stride = 1,
    padding: Padding = "SAME",
    dilation: Dilation = 1,
    groups: Groups = 1,
    dtype: Dtype = "float32",
    platform: Annotated[str | None, typer.Option(help="cpu, cuda, rocm or tpu; this machine's by default")] = None,
) -> None:
    """Say which algorithm serves a convolution and its gradients, and why not the others. Nothing is computed."""
    import convjax

    options = _options(stride, padding, dilation, groups)
    _or_exit(lambda: convjax.explain(_sizes(x_shape), _sizes(w_shape), dtype=dtype, platform=platform, **options))


@app.command()
def bench(
    x_shape: Sizes,
    w_shape: Sizes,
    stride: Stride = 1,
    padding: Padding = "SAME",
    dilation: Dilation = 1,
    groups: Groups = 1,
    dtype: Dtype = "float32",
    every: Annotated[bool, typer.Option("--all", help="slow and less accurate algorithms too")] = False,
) -> None:
    """Time the algorithms that can serve a convolution, forward and both gradients, on this device."""
    import jax
    import jax.numpy as jnp

    import convjax
    from convjax._core import measure, tuning
    from convjax._core.algorithms import ALGORITHMS
    from convjax._core.choose import decide, why_not
    from convjax._core.collect import convolutions, gradients

    options = _options(stride, padding, dilation, groups)
    operands = [jax.ShapeDtypeStruct(_sizes(shape), jnp.dtype(dtype)) for shape in (x_shape, w_shape)]
    traced = _or_exit(lambda: jax.make_jaxpr(lambda x, w: convjax.conv(x, w, **options))(*operands))
    ((forward, _),) = convolutions(traced.jaxpr)
    platform = tuning.lowering_platform()
    problems = dict(zip(("forward", "input_grad", "kernel_grad"), (forward, *gradients(forward)), strict=True))
    for problem, g in problems.items():
        names = [n for n in ALGORITHMS if why_not(n, g.spec, *g.operands, platform) is None]
        timings = measure.measure(g, names if every else tuning.candidates(g, platform))
        chosen, _ = decide(g.spec, *g.operands, platform)
        table = Table("algorithm", "ms", "GFLOP/s", "temporary MB", title=f"{problem}, auto: {chosen}")
        for name, timing in sorted(timings.items(), key=lambda pair: pair[1].ms):
            rate = g.spec.flops(g.lhs, g.rhs) / timing.ms / 1e6
            table.add_row(name, f"{timing.ms:.3g}", f"{rate:.3g}", f"{timing.temporary_bytes / 1e6:.3g}")
        console.print(table)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def tune(
    context: typer.Context,
    script: Annotated[
        Path, typer.Argument(help="a Python script; what follows is for it", exists=True, dir_okay=False)
    ],
) -> None:
    """Run a script; measure each convolution, ours or lax's, when it is first compiled, and remember the fastest."""
    import jax

    import convjax
    from convjax._core import cache

    kind = cache.device_kind(jax.local_devices()[0])
    before = {key for key, *_ in cache.entries(kind)}
    sys.argv = [str(script), *context.args]
    sys.path.insert(0, str(script.parent.resolve()))
    try:
        with convjax.accelerate(tune=True):
            runpy.run_path(str(script), run_name="__main__")
    finally:
        table = Table("problem", "fastest", "ms", "xla, ms", title=f"measured on {kind}")
        for key, times, _ in cache.entries(kind):
            if key not in before:
                best = min(times, key=times.__getitem__)
                table.add_row(key, best, f"{times[best]:.3g}", f"{times['xla']:.3g}" if "xla" in times else "")
        console.print(table)
        console.print(f"remembered in {cache.folder() / cache.file_name(kind)}")


@app.command()
def devices() -> None:
    """List the devices of this process and what was measured on their kinds."""
    import jax

    from convjax._core import cache, cost, tuning

    table = Table("device", "kind", "measured by you", "shipped", "cost model")
    for device in jax.local_devices():
        kind = cache.device_kind(device)
        whose = [whose for *_, whose in cache.entries(kind)]
        known = "yes" if cost.model(tuning.lowering_platform()).nanoseconds else "no: xla unless measured"
        table.add_row(str(device), kind, str(whose.count("yours")), str(whose.count("shipped")), known)
    console.print(table)
    console.print(f"tables are in {cache.folder()}; CONVJAX_TUNE={tuning.mode()}")


def _options(stride: int, padding: str, dilation: int, groups: int) -> dict[str, Any]:
    number = padding.lstrip("-").isdigit()
    return dict(stride=stride, padding=int(padding) if number else padding, dilation=dilation, groups=groups)


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in text.replace("x", ",").split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not sizes; write 8x56x56x128") from None


def _or_exit(run: Any) -> Any:
    """What a user typed wrong is a message, not a traceback."""
    try:
        return run()
    except (ValueError, TypeError) as error:
        raise typer.BadParameter(str(error)) from None


if __name__ == "__main__":
    app(prog_name="python -m convjax")
