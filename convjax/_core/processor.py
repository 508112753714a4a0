"""What kind of processor this is, as far as it decides how fast algorithms are: JAX calls every CPU "cpu"."""

from __future__ import annotations

import functools
import os
import platform
import re
from pathlib import Path

# Instruction sets by their flag in /proc/cpuinfo, widest vectors first. One name can stand for several: what the makers
# of virtual machines call "AMD EPYC" has AVX-512 in one and not in another, and the best algorithms differ.
VECTORS = {"avx512f": "AVX-512", "avx2": "AVX2", "sve": "SVE", "asimd": "NEON"}


def kind() -> str:
    """Model, vector instructions and number of cores."""
    return ", ".join(filter(None, (model(), vectors(), f"{os.cpu_count()} cores")))


@functools.cache
def model() -> str:
    return _found(r"^model name\s*:\s*(.+)$") or platform.processor() or platform.machine()


@functools.cache
def vectors() -> str:
    """The widest vector instructions; empty where the system does not tell."""
    flags = _found(r"^(?:flags|Features)\s*:\s*(.+)$").split()
    return next((name for flag, name in VECTORS.items() if flag in flags), "")


def _found(pattern: str) -> str:
    match = re.search(pattern, _cpuinfo(), re.MULTILINE)
    return match.group(1).strip() if match else ""


@functools.cache
def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return ""
