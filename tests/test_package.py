"""The built wheel is what the tests see, whole and documented."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import pkgutil
import tomllib
from pathlib import Path

import pytest

import convjax

ROOT = Path(__file__).parent.parent
MODULES = ["convjax", *sorted(m.name for m in pkgutil.walk_packages(convjax.__path__, "convjax."))]


def test_the_installed_package_is_tested():
    """`make test` builds and installs the wheel; the source tree beside the tests must not hide it."""
    assert not Path(convjax.__file__).is_relative_to(ROOT / "convjax"), "run `make test`, or pytest's own command"
    files = importlib.metadata.files("convjax") or []
    assert "convjax/__init__.py" in map(str, files), "an editable install is not the wheel"


def test_the_wheel_is_whole():
    """Every file of the source tree is in it, and nothing beside the package."""
    files = {str(f) for f in importlib.metadata.files("convjax") or []}
    source = {str(f.relative_to(ROOT)) for f in (ROOT / "convjax").rglob("*") if f.is_file() and f.suffix != ".pyc"}
    assert source <= files
    assert {f.split("/")[0] for f in files if "dist-info" not in f} == {"convjax"}


def test_the_wheel_is_of_this_tree():
    """A stale wheel would pass for the code that is read here."""
    source, installed = ROOT / "convjax", Path(convjax.__file__).parent
    names = [f.relative_to(source) for f in source.rglob("*.py")]
    assert [n for n in names if (source / n).read_bytes() != (installed / n).read_bytes()] == []


def test_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert convjax.__version__ == project["version"] == importlib.metadata.version("convjax")


@pytest.mark.parametrize("name", convjax.__all__)
def test_public_names_exist_and_are_documented(name):
    value = getattr(convjax, name)
    if inspect.ismodule(value) or callable(value):
        assert (inspect.getdoc(value) or "").strip()


def test_all_is_sorted_and_free_of_repetition():
    assert list(convjax.__all__) == sorted(set(convjax.__all__))


@pytest.mark.parametrize("name", MODULES)
def test_modules_say_who_lives_there(name):
    assert (importlib.import_module(name).__doc__ or "").strip()
