"""Every notebook runs from top to bottom, at the small size that `CONVJAX_NOTEBOOKS=small` asks for."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def test_there_are_notebooks():
    """Without the checkout, beside which they lie, there is no folder either."""
    assert len(NOTEBOOKS) >= 8 or not FOLDER.exists()


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, monkeypatch, tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="nbclient runs the notebooks")
    nbformat = pytest.importorskip("nbformat", reason="nbclient brings nbformat")
    monkeypatch.setenv("CONVJAX_NOTEBOOKS", "small")
    monkeypatch.setenv("CONVJAX_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("XLA_FLAGS", "")  # one device, as people have it
    notebook = nbformat.read(path, as_version=4)
    outputs = [len(cell.get("outputs", [])) for cell in notebook.cells]
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    assert sum(outputs) > 0, "commit it with its outputs, which the site shows"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_says_first_what_it_shows(path):
    nbformat = pytest.importorskip("nbformat", reason="nbclient brings nbformat")
    head = nbformat.read(path, as_version=4).cells[0]
    assert head.cell_type == "markdown"
    assert head.source.startswith("# ")
    assert "What this shows" in head.source
