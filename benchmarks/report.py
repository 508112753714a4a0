"""Lines, tables and a plot, all made from the JSON of a run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

Measured = dict[str, Any]
Record = dict[str, Any]

# Okabe and Ito, Color universal design, 2008: told apart with any colour vision; markers tell as much without colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
TO_COMPILE = ("trace_s", "compile_s")
NAMED = 8  # cases without a time that are listed for one reason


def line(record: Record) -> str:
    """One case, for the terminal."""
    head = f"{record['layer']:44} {record['mode']:11}"
    if "failed" in record:
        return f"{head} failed: {record['failed']}"
    cells = []
    for name, entry in record["contenders"].items():
        error = f" ({entry['error']:.0e})" if "error" in entry else ""
        if "ms" in entry:
            cells.append(f"{name} {entry['ms']:.3g} ms{error}")
        else:
            cells.append(f"{name} failed: {entry['failed']}" if "failed" in entry else f"{name} -")
    return f"{head} {'  '.join(cells)}"


def milliseconds(record: Record, name: str) -> float | None:
    return record.get("contenders", {}).get(name, {}).get("ms")


def names_of(measured: Measured) -> tuple[str, list[str]]:
    """The first algorithm, which the others are compared with, and the others."""
    names: list[str] = measured["settings"]["algorithms"] + measured["settings"]["peers"]
    return names[0], names[1:]


def ratios(measured: Measured, mode: str, name: str) -> dict[str, float]:
    """By layer, how many times longer `name` takes than the first algorithm, where both have a time.

    1 where both compiled to the same program, whose two times would only tell of the machine's noise.
    """
    base, _ = names_of(measured)
    found = {}
    for record in measured["records"]:
        ours, theirs = milliseconds(record, base), milliseconds(record, name)
        if record["mode"] == mode and ours and theirs:
            found[record["layer"]] = 1.0 if same_program(record, base, name) else theirs / ours
    return found


def same_program(record: Record, *names: str) -> bool:
    programs = {record["contenders"][name].get("program") for name in names}
    return len(programs) == 1 and None not in programs


def heading(measured: Measured) -> str:
    machine, versions, ceilings = (measured[key] for key in ("machine", "versions", "ceilings"))
    dots = ", ".join(f"{rate:.0f} GFLOP/s in {dtype}" for dtype, rate in ceilings["dot_gflops"].items())
    return (
        f"{machine['processor']} ({machine['cores']} cores), {machine['device']}; "
        f"{', '.join(f'{name} {version}' for name, version in versions.items())}. "
        f"A large dot: {dots}; a large copy: {ceilings['copy_gbs']:.1f} GB/s read plus written."
    )


# --- Markdown ---------------------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |".replace("| --- ", "|---").replace("--- |", "---|") for cells in lines)


def summary(measured: Measured) -> str:
    """Layers down; for each mode the first algorithm's milliseconds, and how many times longer the others take."""
    base, others = names_of(measured)
    modes = measured["settings"]["mode"]
    ours = "convjax" if base == "auto" else base
    head = ["layer", *(h for mode in modes for h in (f"{mode}, ms", *(f"{name} / {ours}" for name in others)))]
    ratio = {(mode, name): ratios(measured, mode, name) for mode in modes for name in others}
    time = {(r["layer"], r["mode"]): milliseconds(r, base) for r in measured["records"]}
    rows = []
    for layer in dict.fromkeys(r["layer"] for r in measured["records"]):
        cells = [layer]
        for mode in modes:
            cells += [_number(time.get((layer, mode))), *(_number(ratio[mode, n].get(layer)) for n in others)]
        rows.append(cells)
    means = [text for mode in modes for name in others for text in _means(measured, mode, name, ratio[mode, name])]
    means += [text for mode in modes if "lax" in others for text in _beside_lax(measured, mode)]
    return "\n\n".join([heading(measured), table(head, rows), "\n".join(means)]).rstrip()


def _means(measured: Measured, mode: str, name: str, ratio: dict[str, float]) -> Iterator[str]:
    """A sentence for each dtype."""
    base, _ = names_of(measured)
    ours = "convjax" if base == "auto" else base
    records = {r["layer"]: r for r in measured["records"] if r["mode"] == mode and r["layer"] in ratio}
    for dtype in dict.fromkeys(r["dtype"] for r in records.values()):
        found = {layer: ratio[layer] for layer, r in records.items() if r["dtype"] == dtype}
        same = sum(same_program(records[layer], base, name) for layer in found)
        yield (
            f"Geometric mean of {name} / {ours}, {mode}, {dtype}: {_geometric_mean(found.values()):.3g} over "
            f"{len(found)} layers{f', {same} of which run the same program' if same else ''}; "
            f"least: {min(found.values()):.3g} ({min(found, key=lambda layer: found[layer])})."
        )


def _beside_lax(measured: Measured, mode: str) -> Iterator[str]:
    """What else is asked of an algorithm: memory, and the time until it runs."""
    base, _ = names_of(measured)
    memory, compiling = {}, {}
    for record in measured["records"]:
        ours, lax = (record.get("contenders", {}).get(name, {}) for name in (base, "lax"))
        if record["mode"] == mode and all("ms" in entry and "temp_bytes" in entry for entry in (ours, lax)):
            layer, moved = record["layer"], record["bytes"]
            memory[layer] = (moved + ours["temp_bytes"]) / (moved + lax["temp_bytes"])
            compiling[layer] = sum(ours[key] for key in TO_COMPILE) / sum(lax[key] for key in TO_COMPILE)
    whats = {"Memory (operands, results, temporaries)": memory, "Time to trace and compile": compiling}
    for what, found in whats.items():
        if found:
            most = max(found, key=lambda layer: found[layer])
            mean = _geometric_mean(found.values())
            yield f"{what} over that of lax, {mode}: {mean:.3g}, at most {found[most]:.3g} ({most})."


def markdown(measured: Measured) -> str:
    """The summary, then every number of each mode, then what has none."""
    parts = ["# Benchmarks", summary(measured)]
    if measured.get("interrupted"):
        parts.append("The run was interrupted: the layers after the last one here were not measured.")
    for mode in measured["settings"]["mode"]:
        rows = [row for record in measured["records"] if record["mode"] == mode for row in _details(record)]
        parts += [f"## {mode}", DETAILS_NOTE, table(DETAILS, rows)]
    if missing := _missing(measured):
        parts += ["## Without a time", table(("who", "why", "cases"), missing)]
    return "\n\n".join(parts) + "\n"


DETAILS = (
    "layer",
    "who",
    "ms",
    "least to most",
    "relative error",
    "GFLOP/s",
    "GB/s",
    "of ceiling",
    "temporary, MiB",
    "compile, s",
    "served by",
)
DETAILS_NOTE = (
    "Medians. Errors are relative to the largest element, against direct sums or spectra in float64, or against the "
    "one that says so. FLOPs are those of direct sums (2 a multiply-add, padding counted, inserted zeros not); of "
    "ceiling: what a large dot or a large copy would need for them, whichever is more, over the time taken."
)


def _details(record: Record) -> Iterator[list[str]]:
    for name, entry in record.get("contenders", {}).items():
        if "ms" in entry:
            yield [
                record["layer"],
                name,
                _number(entry["ms"]),
                f"{entry['least_ms']:.3g} to {entry['most_ms']:.3g} ({entry['calls']})",
                f"{entry['error']:.1e}" if "error" in entry else "the reference",
                _number(entry["gflops"]),
                _number(entry["gbs"]),
                f"{entry['fraction']:.0%}",
                _number(entry["temp_bytes"] / 2**20) if "temp_bytes" in entry else "",
                _number(entry.get("compile_s")),
                ", ".join(entry.get("served_by", ())),
            ]


def _missing(measured: Measured) -> list[list[str]]:
    """Who has no time, why, and for which cases: all of them counted, the first few named."""
    cases: dict[tuple[str, str], list[str]] = {}
    for record in measured["records"]:
        entries = record.get("contenders", {}).items()
        found = [("all", record["failed"])] if "failed" in record else []
        found += [(name, entry.get("failed") or entry["left_out"]) for name, entry in entries if "ms" not in entry]
        for key in found:
            cases.setdefault(key, []).append(f"{record['layer']} ({record['mode']})")
    rows = []
    for (who, why), names in cases.items():
        more = [f"and {len(names) - NAMED} more"] if len(names) > NAMED else []
        rows.append([who, why.replace("|", "\\|"), "; ".join([*names[:NAMED], *more])])
    return rows


def _number(value: float | None) -> str:
    """Three digits, and no exponent where a plain number is as short."""
    if value is None:
        return ""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _geometric_mean(values: Any) -> float:
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


# --- plot -------------------------------------------------------------------------------------------------------------


def plot(measured: Measured, path: Path) -> None:
    """A panel a mode, a row a layer, a mark for each contender: how many times longer it takes than the first."""
    from matplotlib.figure import Figure

    base, others = names_of(measured)
    modes = measured["settings"]["mode"]
    layers = list(dict.fromkeys(r["layer"] for r in measured["records"]))
    rows = {layer: i for i, layer in enumerate(layers)}
    height = 1.6 + 0.2 * len(layers)
    figure = Figure(figsize=(4.2 + 4.0 * len(modes), height), layout="constrained")
    axes = figure.subplots(1, len(modes), sharey=True, squeeze=False)[0]
    for panel, mode in zip(axes, modes, strict=True):
        for i, name in enumerate(others):
            found = ratios(measured, mode, name)
            panel.scatter(
                list(found.values()),
                [rows[layer] for layer in found],
                color=COLOURS[i % len(COLOURS)],
                marker=MARKERS[i % len(MARKERS)],
                s=30,
                label=name,
                zorder=3,
            )
        panel.axvline(1, color="black", linewidth=1)
        panel.set_xscale("log")
        panel.set_title(mode)
        panel.set_xlabel(f"times as long as {'convjax' if base == 'auto' else base}")
        panel.grid(axis="both", color="0.88", linewidth=0.6)
        panel.set_axisbelow(True)
    axes[0].set_yticks(range(len(layers)), layers, fontsize=8)
    axes[0].set_ylim(len(layers) - 0.5, -0.5)
    if others:
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=min(len(others), 4))
    figure.savefig(path, dpi=150)
