"""Measurements, remembered: one JSON file for each kind of device, in the user's cache folder and in the package.

    {"format": 1, "device": "NVIDIA H200", "versions": {"jaxlib 0.11.2, revision 1": {PROBLEM: {ALGORITHM: ms}}}}

What is not understood is ignored with one warning: a table can be stale or broken, a result cannot be wrong for it.
Several processes may measure at once: each reads, merges and replaces the file in one step, under a lock.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import jaxlib

from convjax._core import processor
from convjax._core.algorithms import ALGORITHMS, REVISION
from convjax._core.geometry import Geometry

FORMAT = 1
VERSION = f"jaxlib {jaxlib.__version__}, revision {REVISION}"
LOCK_TIMEOUT_S = 10.0

Table = dict[str, dict[str, float]]


def problem_key(g: Geometry) -> str:
    """A problem in words; equal for what is the same work."""
    spec = g.spec
    parts = [
        f"input {_by(g.lhs)}",
        f"kernel {_by(g.rhs)}",
        g.dtype.name,
        f"strides {_by(spec.strides)}",
        f"pads {' '.join(f'{lo},{hi}' for lo, hi in spec.padding)}",
        f"input dilation {_by(spec.lhs_dilation)}",
        f"dilation {_by(spec.rhs_dilation)}",
        f"groups {spec.feature_groups}",
        f"batch groups {spec.batch_groups}",
        f"precision {'default' if spec.precision is None else ' '.join(str(p) for p in spec.precision)}",
    ]
    if spec.preferred_element_type is not None and spec.preferred_element_type != g.dtype:
        parts.append(f"to {spec.preferred_element_type}")
    return "; ".join(parts)


def _by(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))


def device_kind(device: jax.Device) -> str:
    """What measurements hold for."""
    return processor.kind() if device.platform == "cpu" else device.device_kind


def folder() -> Path:
    """Where the user's tables are: `CONVJAX_CACHE_DIR`, or the platform's own place for caches."""
    if chosen := os.environ.get("CONVJAX_CACHE_DIR"):
        return Path(chosen)
    import platformdirs

    return platformdirs.user_cache_path("convjax")


def file_name(kind: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", kind.lower()).strip("-") + ".json"


def document(kind: str, versions: Mapping[str, Table]) -> dict[str, Any]:
    """What a file holds."""
    return {"format": FORMAT, "device": kind, "versions": versions}


# --- reading ----------------------------------------------------------------------------------------------------------


@functools.cache
def shipped(kind: str) -> Table:
    """The table that comes with the package."""
    file = resources.files("convjax._core") / "tables" / file_name(kind)
    if not file.is_file():
        return {}
    content = json.loads(file.read_text())  # ours, so that it is sound; for another version there is nothing to say
    return content["versions"].get(VERSION, {}) if content["device"] == kind else {}


@functools.cache
def own(kind: str, where: Path) -> Table:
    """The user's table. It is read once, and after that holds what this process adds."""
    path = where / file_name(kind)
    try:
        return _understood(path.read_text(encoding="utf-8"), kind, str(path))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        return _ignored(str(path), str(error))


def lookup(kind: str, key: str) -> tuple[dict[str, float], str]:
    """Milliseconds by algorithm, the user's before the shipped ones, and whose they are; empty where there are none."""
    for table, whose in ((own(kind, folder()), "yours"), (shipped(kind), "shipped")):
        if key in table:
            return table[key], whose
    return {}, ""


def _understood(text: str, kind: str, path: str) -> Table:
    try:
        content = json.loads(text)
        if content["format"] != FORMAT:
            return _ignored(path, f"format {content['format']}, and this release reads {FORMAT}")
        if content["device"] != kind:
            return _ignored(path, f"measured on {content['device']!r}, and this is {kind!r}")
        versions = content["versions"]
        if versions and VERSION not in versions:
            return _ignored(path, f"measured with {', '.join(versions)}, and this is {VERSION}; tune anew")
        entries = versions.get(VERSION, {})
        sound = {key: times for key, times in entries.items() if _is_sound(times)}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return _ignored(path, f"not a table of measurements ({type(error).__name__}: {error})")
    if len(sound) < len(entries):
        _ignored(f"{len(entries) - len(sound)} entries of {path}", "not times by algorithm")
    return sound


def _is_sound(times: Any) -> bool:
    return (
        isinstance(times, dict)
        and bool(times)
        and all(name in ALGORITHMS for name in times)
        and all(isinstance(ms, float | int) and math.isfinite(ms) and ms > 0 for ms in times.values())
    )


def _ignored(what: str, why: str) -> Table:
    warnings.warn(f"convjax ignores {what}: {why}.", stacklevel=2)
    return {}


# --- writing ----------------------------------------------------------------------------------------------------------


def remember(kind: str, measured: Mapping[str, Mapping[str, float]]) -> Path:
    """Add measurements to the user's table, in memory and on disk; what other processes wrote meanwhile stays.

    A folder that cannot be written is a warning: the measurements hold for this process.
    """
    import filelock

    where = folder()
    path = where / file_name(kind)
    own(kind, where).update({key: dict(times) for key, times in measured.items()})
    try:
        where.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path.with_suffix(".lock"), timeout=LOCK_TIMEOUT_S):
            others = _versions(path, kind)
            others[VERSION] = {**others.get(VERSION, {}), **own(kind, where)}
            _replace(path, document(kind, others))
    except (OSError, filelock.Timeout) as error:
        warnings.warn(f"convjax could not save measurements to {path}: {error}.", stacklevel=2)
    return path


def _versions(path: Path, kind: str) -> dict[str, Table]:
    """All of a sound file, other versions included; nothing of a broken one, which was warned of when it was read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] == FORMAT and content["device"] == kind:
            return {str(version): dict(table) for version, table in content["versions"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        pass
    return {}


def _replace(path: Path, content: Any) -> None:
    """Write beside, then rename: a reader sees the old file or the new one."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False, encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.write("\n")
    Path(file.name).replace(path)


def forget() -> None:
    """Drop what was read, for tests and for a folder that was changed by hand."""
    own.cache_clear()
    shipped.cache_clear()


def entries(kind: str) -> Iterator[tuple[str, dict[str, float], str]]:
    """Every measurement in force: problem, times, whose."""
    mine = own(kind, folder())
    for key, times in mine.items():
        yield key, times, "yours"
    for key, times in shipped(kind).items():
        if key not in mine:
            yield key, times, "shipped"
