"""Settings that must precede the first use of jax: the CPU, as eight devices. Workers of pytest-xdist load this too."""

import os

DEVICES = "--xla_force_host_platform_device_count=8"

os.environ["JAX_PLATFORMS"] = "cpu"
if DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}".strip()

import jax

jax.config.update("jax_platforms", "cpu")  # where a plugin has imported jax already
