"""What the widgets share: one script for Jupyter and for pages of their own."""

from __future__ import annotations

import html
import json
import os
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

import anywidget
import traitlets

# What a page has in the place of Jupyter's model: the same four methods.
MODEL = """
class Model {
  constructor(state) { this.state = state; this.listeners = {}; }
  get(name) { return this.state[name]; }
  set(name, value) {
    this.state[name] = value;
    for (const listener of this.listeners[`change:${name}`] ?? []) listener();
  }
  save_changes() {}
  on(event, listener) { (this.listeners[event] ??= []).push(listener); }
  off(event, listener) { this.listeners[event] = this.listeners[event].filter((l) => l !== listener); }
}
"""

PAGE = """<!doctype html>
<html lang="en" style="color-scheme: {scheme}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ margin: 16px; background: Canvas; }}
{css}</style>
</head>
<body>
<div id="widget"></div>
<script type="module">
{script}{model}
const model = new Model({state});
render({{ model, el: document.getElementById("widget") }});
</script>
</body>
</html>
"""


def static(*names: str) -> str:
    """The text of files of this package, one after the other."""
    folder = resources.files("convjax.viz") / "_static"
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in names)


class Widget(anywidget.AnyWidget):
    """A widget that can be written as a page of its own."""

    _css: Any = static("widgets.css")
    _scripts: ClassVar[tuple[str, ...]]
    _title: ClassVar[str]
    _state: ClassVar[tuple[str, ...]]

    theme = traitlets.Enum(("auto", "light", "dark"), default_value="auto", help="colours").tag(sync=True)

    def to_html(self) -> str:
        """A page with the widget as it stands, which needs neither Jupyter nor a network."""
        state = json.dumps({name: getattr(self, name) for name in (*self._state, "theme")}, allow_nan=False)
        return PAGE.format(
            scheme="light dark" if self.theme == "auto" else self.theme,
            title=html.escape(self._title),
            css=static("widgets.css"),
            script=static(*self._scripts),
            model=MODEL,
            state=state,
        )

    def save_html(self, path: str | os.PathLike[str]) -> Path:
        """Write `to_html()` to a file, and return its path."""
        Path(path).write_text(self.to_html(), encoding="utf-8")
        return Path(path)


def module(*names: str) -> str:
    """The scripts as the module that anywidget wants."""
    return f"{static(*names)}\nexport default {{ render }};\n"
