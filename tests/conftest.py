"""Settings that must precede the first use of jax: the CPU, as eight devices. Workers of pytest-xdist load this too."""

import collections
import os
import sys
import tempfile

FLAGS = (
    "--xla_force_host_platform_device_count=8",
    # Compilation is what takes the time of these tests. Less of it on LLVM's side; XLA's own passes all run.
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
)

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["CONVJAX_TUNE"] = "off"  # what was measured on this machine decides nothing here
os.environ["CONVJAX_CACHE_DIR"] = tempfile.mkdtemp(prefix="convjax-tests-")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS]).strip()

import jax

jax.config.update("jax_platforms", "cpu")  # where a plugin has imported jax already
import pytest

from convjax._core import choose

# Layers and networks are many small programs, and what serves them is tested elsewhere: as users have it, quick to
# compile. Everywhere else small problems stand for large ones, so that `auto` takes what it would take for those.
AS_USERS_HAVE_IT = (
    "test_examples",
    "test_flax",
    "test_initializers",
    "test_interop",
    "test_linen",
    "test_models",
    "test_nnx",
    "test_tiled",
    "test_variant_layers",
)


# Whole programs that take minutes: what they call is tested on every interpreter, they themselves on one.
ON_PYTHON_3_11 = ("test_benchmarks", "test_notebooks")
ON_NEWER_PYTHON = ("test_examples",)


# A function with so many sets of parameters is shared out.
MANY = 8


def pytest_addoption(parser):
    parser.addoption(
        "--share",
        metavar="K/N",
        help=f"of functions with {MANY} sets of parameters or more, only every N-th set from the K-th on; all others "
        "whole. Continuous integration gives each interpreter a share: what most tests take is compilation.",
    )


def pytest_collection_modifyitems(config, items):
    if share := config.getoption("--share"):
        left_out = beyond_the_share(items, *map(int, share.split("/")))
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=list(left_out))
    elsewhere = ON_PYTHON_3_11 if sys.version_info >= (3, 12) else ON_NEWER_PYTHON
    reason = "takes long, and runs on " + ("Python 3.11" if sys.version_info >= (3, 12) else "newer interpreters")
    for item in items:
        if item.path.name.startswith(elsewhere) and item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason=f"{reason}: what it calls is tested on all"))


def beyond_the_share(items, k, n):
    sets = collections.defaultdict(list)
    for item in items:
        sets[item.nodeid.partition("[")[0]].append(item)
    many = [several for several in sets.values() if len(several) >= MANY]
    return {item for several in many for i, item in enumerate(several, 1) if i % n != k % n}


@pytest.fixture(autouse=True)
def small_problems_stand_for_large_ones(request, monkeypatch):
    if not request.module.__name__.rpartition(".")[2].startswith(AS_USERS_HAVE_IT):
        monkeypatch.setattr(choose, "WORTHWHILE_MS", 0.0)


@pytest.fixture(autouse=True, scope="module")
def nothing_compiled_is_kept():
    """Else thousands of programs stay in memory, 5 GB a worker and more, which nothing calls again."""
    yield
    jax.clear_caches()
