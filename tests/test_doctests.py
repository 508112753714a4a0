"""Every example in a public docstring, and every Python block of README and docs, runs and prints what it says."""

from __future__ import annotations

import contextlib
import doctest
import importlib
import inspect
import io
import pkgutil
import re
from pathlib import Path

import jax
import pytest

import convjax
from convjax import analysis, filters, functional, lax, signal, viz
from convjax._core import algorithms

MODULES = ["convjax", *(m.name for m in pkgutil.walk_packages(convjax.__path__, "convjax."))]
EXAMPLES = {
    test.name: test
    for module in MODULES
    for test in doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(module))
    if test.examples
}
PROJECT = Path(__file__).parent.parent
PAGES = [page for page in ("README.md", "docs/index.md", "docs/extending.md") if (PROJECT / page).exists()]


@pytest.mark.parametrize("name", EXAMPLES)
def test_docstring(name):
    out = io.StringIO()
    result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(EXAMPLES[name], out=out.write)
    assert result.attempted
    assert not result.failed, out.getvalue()


def public_functions():
    for module in (convjax, analysis, lax, signal, filters, viz):
        for name in module.__all__:
            value = getattr(module, name)
            if callable(value) and not inspect.isclass(value):
                yield f"{module.__name__}.{name}", value


@pytest.mark.parametrize(("name", "function"), list(public_functions()), ids=lambda v: v if isinstance(v, str) else "")
def test_every_public_function_has_an_example(name, function):
    assert f"{function.__module__}.{function.__qualname__}" in EXAMPLES


@pytest.mark.parametrize("name", [n for n in convjax.__all__ if inspect.isfunction(getattr(functional, n, None))])
def test_every_docstring_says_what_comes_in_out_and_wrong(name):
    doc = getattr(convjax, name).__doc__
    for section in ("Args:", "Returns:", "Raises:", "Example:", "Source:"):
        assert section in doc, f"{name}: {section}"


# Without the checkout, beside which pages lie, there are none.
@pytest.mark.parametrize("page", PAGES)
def test_python_blocks(page, monkeypatch):
    handles, accelerate = [], convjax.accelerate

    def recording():
        handles.append(accelerate())
        return handles[-1]

    monkeypatch.setattr(convjax, "accelerate", recording)
    before = dict(algorithms.ALGORITHMS)
    blocks = re.findall(r"^```python\n(.*?)^```", (PROJECT / page).read_text(), re.DOTALL | re.MULTILINE)
    assert blocks
    namespace: dict[str, object] = {}
    try:
        for block in blocks:
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(block, page, "exec"), namespace)
            for expected in re.findall(r"^print\(.*\)\s+# (.*)$", block, re.MULTILINE):
                assert expected in out.getvalue()
    finally:
        for handle in handles:
            handle.restore()
        for name in set(algorithms.ALGORITHMS) - set(before):  # a page may add one
            del algorithms.ALGORITHMS[name]
    jax.block_until_ready([v for v in namespace.values() if isinstance(v, jax.Array)])
