"""What the site asks for beside its pages: examples read as code, and every public name in the reference."""

from __future__ import annotations

import importlib
import inspect
import zlib
from pathlib import Path
from typing import Any

import griffe

import convjax

MODULES = (
    "lax",
    "nnx",
    "linen",
    "models",
    "initializers",
    "interop",
    "signal",
    "filters",
    "analysis",
    "viz",
    "testing",
)


class Examples(griffe.Extension):
    """Our docstrings have one `Example:`, where the reader of docstrings knows a section `Examples:`."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("Example:\n", "Examples:\n")


def on_post_build(config: Any) -> None:
    site = Path(config["site_dir"])
    missing = sorted(public_names() - entries(site / "objects.inv") - named_as_flax_s(site))
    if missing:
        raise SystemExit(f"the reference lacks {', '.join(missing)}: see docs/api")


def public_names() -> set[str]:
    modules = [convjax, *(importlib.import_module(f"convjax.{name}") for name in MODULES)]
    return {f"{module.__name__}.{name}" for module in modules for name in names_of(module)}


def names_of(module: Any) -> list[str]:
    """Of functions, classes and constants; the modules have pages of their own."""
    given = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    return [name for name in given if not inspect.ismodule(getattr(module, name))]


def named_as_flax_s(site: Path) -> set[str]:
    """Initialisers that are handed on from Flax have no docstring of ours; the page names them."""
    page, module = (site / "api" / "initializers.html").read_text(), importlib.import_module("convjax.initializers")
    return {f"{module.__name__}.{name}" for name in names_of(module) if f"<code>{name}</code>" in page}


def entries(inventory: Path) -> set[str]:
    """Names in a Sphinx inventory: four lines of heading, then a compressed entry a line."""
    packed = inventory.read_bytes().split(b"\n", 4)[4]
    return {line.split()[0] for line in zlib.decompress(packed).decode().splitlines() if line}
