"""Measurements on disk: written whole, shared between processes, ignored with one warning where they are no use."""

from __future__ import annotations

import json
import multiprocessing
import os
import warnings

import numpy as np
import pytest

from convjax._core import cache
from convjax._core.geometry import Geometry
from convjax.testing import CASES

KIND = "A device, of some kind (40 GB)"
TIMES = {"taps": 0.5, "xla": 9.0}


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CONVJAX_CACHE_DIR", str(tmp_path))
    cache.forget()
    yield tmp_path
    cache.forget()


def write(folder, content):
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / cache.file_name(KIND)).write_text(text, encoding="utf-8")


def table(**changes):
    return {"format": cache.FORMAT, "device": KIND, "versions": {cache.VERSION: {"a problem": TIMES}}} | changes


def test_what_is_remembered_is_found_again(own_folder):
    path = cache.remember(KIND, {"a problem": TIMES})
    assert path.parent == own_folder
    assert cache.lookup(KIND, "a problem") == (TIMES, "yours")
    cache.forget()  # as a new process
    assert cache.lookup(KIND, "a problem") == (TIMES, "yours")
    assert cache.lookup(KIND, "another") == ({}, "")
    assert cache.lookup("another kind", "a problem") == ({}, "")
    assert list(cache.entries(KIND)) == [("a problem", TIMES, "yours")]


def test_the_file_is_plain_json_that_says_what_it_is():
    content = json.loads(cache.remember(KIND, {"a problem": TIMES}).read_text())
    assert content == table()


def test_no_file_is_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cache.lookup(KIND, "a problem") == ({}, "")


BROKEN = {
    "not JSON": "{",
    "empty": "",
    "a list": [],
    "no versions": {"format": cache.FORMAT, "device": KIND},
    "versions of the wrong type": table(versions=7),
    "another format": table(format=99),
    "another device": table(device="another"),
    "another version": table(versions={"jaxlib 0.0.1, revision 1": {"a problem": TIMES}}),
    "an entry that is no times": table(versions={cache.VERSION: {"a problem": 3}}),
    "an unknown algorithm": table(versions={cache.VERSION: {"a problem": {"magic": 1.0}}}),
    "a time that is no number": table(versions={cache.VERSION: {"a problem": {"xla": "fast"}}}),
    "a negative time": table(versions={cache.VERSION: {"a problem": {"xla": -1.0}}}),
    "a time that is not finite": json.dumps(table(versions={cache.VERSION: {"a problem": {"xla": float("nan")}}})),
    "no times": table(versions={cache.VERSION: {"a problem": {}}}),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_what_is_no_use_is_ignored_with_one_warning(own_folder, content):
    write(own_folder, content)
    with pytest.warns(UserWarning, match="convjax ignores"):
        assert cache.lookup(KIND, "a problem") == ({}, "")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cache.lookup(KIND, "a problem") == ({}, "")


def test_bytes_that_are_no_text_are_ignored_too(own_folder):
    (own_folder / cache.file_name(KIND)).write_bytes(b"\xff\xfe\x00\x80")
    with pytest.warns(UserWarning, match="convjax ignores"):
        assert cache.lookup(KIND, "a problem") == ({}, "")


def test_a_sound_entry_beside_a_broken_one_is_kept(own_folder):
    write(own_folder, table(versions={cache.VERSION: {"a problem": TIMES, "broken": 3}}))
    with pytest.warns(UserWarning, match="1 entries"):
        assert cache.lookup(KIND, "a problem") == (TIMES, "yours")


def test_a_broken_file_is_replaced_by_what_is_measured(own_folder):
    write(own_folder, "{")
    with pytest.warns(UserWarning, match="convjax ignores"):
        path = cache.remember(KIND, {"a problem": TIMES})
    assert json.loads(path.read_text()) == table()


def test_other_versions_and_what_others_wrote_stay(own_folder):
    cache.lookup(KIND, "a problem")  # read while there was nothing
    old = {"jaxlib 0.0.1, revision 1": {"a problem": {"xla": 3.0}}}
    write(own_folder, table(versions=old | {cache.VERSION: {"of another process": TIMES}}))
    content = json.loads(cache.remember(KIND, {"mine": TIMES}).read_text())
    assert content["versions"] == old | {cache.VERSION: {"of another process": TIMES, "mine": TIMES}}


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch):
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("CONVJAX_CACHE_DIR", str(tmp_path / "a file" / "below"))
    with pytest.warns(UserWarning, match="could not save"):
        cache.remember(KIND, {"a problem": TIMES})
    assert cache.lookup(KIND, "a problem") == (TIMES, "yours")  # for this process


def _remember_many(folder, first):
    os.environ["CONVJAX_CACHE_DIR"] = str(folder)
    for i in range(first, first + 10):
        cache.remember(KIND, {f"problem {i}": TIMES})


def test_processes_that_write_at_once_lose_nothing(own_folder):
    processes = [
        multiprocessing.get_context("spawn").Process(target=_remember_many, args=(own_folder, first))
        for first in (0, 10)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert {key for key, *_ in cache.entries(KIND)} == {f"problem {i}" for i in range(20)}
    assert not list(own_folder.glob("*.tmp"))


def test_keys_tell_problems_apart():
    keys = {}
    for c in CASES:
        for dtype in (np.float32, np.float16):
            key = cache.problem_key(Geometry(c.spec, c.lhs_shape, c.rhs_shape, np.dtype(dtype)))
            assert key not in keys, (c, keys[key])
            keys[key] = c
    c = CASES[0]
    of = lambda spec: cache.problem_key(Geometry(spec, c.lhs_shape, c.rhs_shape, np.dtype(np.float32)))
    assert of(c.spec) == of(c.spec.replace(algorithms=("taps", "auto", "auto")))  # whose wish it is does not matter
    assert of(c.spec) == of(c.spec.replace(preferred_element_type=np.dtype(np.float32)))
    assert of(c.spec) != of(c.spec.replace(preferred_element_type=np.dtype(np.float64)))
    assert of(c.spec) != of(c.using("taps"))  # the highest precision


def test_what_ships_is_sound_and_says_nothing_on_other_versions(monkeypatch):
    files = [f for f in (cache.resources.files("convjax._core") / "tables").iterdir() if f.name.endswith(".json")]
    assert files
    for file in files:
        content = json.loads(file.read_text())
        assert file.name == cache.file_name(content["device"])
        for version, entries in content["versions"].items():
            monkeypatch.setattr(cache, "VERSION", version)
            cache.forget()
            assert cache.shipped(content["device"]) == entries
            assert all(cache._is_sound(times) for times in entries.values())
        monkeypatch.setattr(cache, "VERSION", "another")
        cache.forget()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert cache.shipped(content["device"]) == {}


def test_a_shipped_table_is_used_where_the_user_has_none(own_folder, monkeypatch, tmp_path_factory):
    package = tmp_path_factory.mktemp("package")
    (package / "tables").mkdir()
    (package / "tables" / cache.file_name(KIND)).write_text(json.dumps(table()))
    monkeypatch.setattr(cache.resources, "files", lambda _: package)
    assert cache.lookup(KIND, "a problem") == (TIMES, "shipped")
    cache.remember(KIND, {"a problem": {"xla": 1.0}})
    assert cache.lookup(KIND, "a problem") == ({"xla": 1.0}, "yours")
