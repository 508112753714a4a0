"""Settings that must precede the first use of jax: the CPU, as eight devices. Workers of pytest-xdist load this too."""

import collections
import os
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


# What `--share K/N` shares out, as most of what tests take is compilation: the parameter sets of a function that has so
# many, every N-th from the K-th on, and whole programs, whose parts are tested in every share, by number.
MANY = 8
WHOLE_PROGRAMS = {"test_benchmarks": 1, "test_demo": 1, "test_notebooks": 1, "test_examples": 2}


def pytest_addoption(parser):
    parser.addoption("--share", metavar="K/N", help="one of N parts of the tests, to run each on another interpreter")


def pytest_collection_modifyitems(config, items):
    if share := config.getoption("--share"):
        k, n = map(int, share.split("/"))
        others = set(elsewhere(items, k, n))
        items[:] = [item for item in items if item not in others]
        config.hook.pytest_deselected(items=list(others))


def elsewhere(items, k, n):
    """Tests of the other shares."""
    sets = collections.defaultdict(list)
    for item in items:
        sets[item.nodeid.partition("[")[0]].append(item)
        for name, number in WHOLE_PROGRAMS.items():
            if item.path.name.startswith(name) and (number - k) % n:
                yield item
    for several in sets.values():
        if len(several) >= MANY and not several[0].path.name.startswith(tuple(WHOLE_PROGRAMS)):
            yield from (item for i, item in enumerate(several, 1) if (i - k) % n)


@pytest.fixture(autouse=True)
def small_problems_stand_for_large_ones(request, monkeypatch):
    if not request.module.__name__.rpartition(".")[2].startswith(AS_USERS_HAVE_IT):
        monkeypatch.setattr(choose, "WORTHWHILE_MS", 0.0)


@pytest.fixture(autouse=True, scope="module")
def nothing_compiled_is_kept():
    """Else thousands of programs stay in memory, 5 GB a worker and more, which nothing calls again."""
    yield
    jax.clear_caches()
