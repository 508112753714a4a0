"""`python -m convjax`, as a user types it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import convjax
from convjax.__main__ import app
from convjax._core import cache


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CONVJAX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "300")
    cache.forget()
    yield tmp_path
    cache.forget()


def run(*args):
    return CliRunner().invoke(app, list(args))


def test_without_a_command_it_tells_them():
    text = run().output
    assert all(command in text for command in ("explain", "bench", "tune", "devices"))


def test_explain(capsys):
    result = run("explain", "2x9x8x6", "3,3,6,4", "--stride", "2", "--platform", "cpu")
    assert result.exit_code == 0
    expected = str(convjax.explain((2, 9, 8, 6), (3, 3, 6, 4), stride=2, platform="cpu"))
    assert expected in result.output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("explain", "2xninex8x6", "3x3x6x4"), "is not sizes"),
        (("explain", "2x9x8x6", "3x3x5x4"), "channels"),
        (("explain", "2x9x8x6", "3x3x6x4", "--platform", "abacus"), "platform"),
        (("bench", "2x9x8x6", "3x3x6x4", "--padding", "SOME"), "padding"),
        (("tune", "no such script.py"), "does not exist"),
    ],
)
def test_what_is_typed_wrong_is_a_message(args, message):
    result = run(*args)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_bench_times_all_three_problems():
    result = run("bench", "1x9x8x4", "3x3x1x4", "--groups", "4", "--padding", "1", "--all")
    assert result.exit_code == 0, result.output
    for word in ("forward, auto:", "input_grad, auto:", "kernel_grad, auto:", "taps", "xla", "GFLOP/s"):
        assert word in result.output


def test_devices():
    result = run("devices")
    assert result.exit_code == 0, result.output
    assert "cores" in result.output
    assert "CONVJAX_TUNE=" in result.output


SCRIPT = """
import sys, jax, jax.numpy as jnp, helper
x, w = jnp.ones((1, 9, 8, 4)), jnp.ones((3, 3, 4, 3))
y = jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
print("arguments", sys.argv[1:], float(y[0, 4, 4, 0]), helper.NAME)
"""


def test_tune_runs_a_script_with_its_arguments_and_remembers(own_folder):
    (own_folder / "script.py").write_text(SCRIPT)
    (own_folder / "helper.py").write_text("NAME = 'beside the script'\n")
    done = subprocess.run(
        [sys.executable, "-m", "convjax", "tune", "script.py", "--epochs", "3"],
        cwd=own_folder,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "arguments ['--epochs', '3'] 36.0 beside the script" in done.stdout
    assert "input 1x9x8x4; kernel 3x3x4x3" in done.stdout
    (table,) = (own_folder / "cache").glob("*.json")
    assert "input 1x9x8x4; kernel 3x3x4x3" in table.read_text()
