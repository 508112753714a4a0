"""Settings that must precede the first use of jax: the CPU, as eight devices. Workers of pytest-xdist load this too."""

import os
import tempfile

FLAGS = (
    "--xla_force_host_platform_device_count=8",
    # Compilation is what takes the time of these tests. Less of it on LLVM's side; XLA's own passes all run.
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
)

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["CONVJAX_CACHE_DIR"] = tempfile.mkdtemp(prefix="convjax-tests-")  # what a user measured decides nothing here
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS]).strip()

import jax

jax.config.update("jax_platforms", "cpu")  # where a plugin has imported jax already
