"""Compile GPU programs for an H200 that is not there, and read the compiler's reports: run by `benchmarks.aot_gpu`.

    python -m benchmarks.aot_gpu_compile 0 3 5     one line of JSON for each number in `aot_gpu_cases.PROGRAMS`

Needs the CUDA plugin of JAX, ptxas and nvdisasm as Python packages, and neither a GPU nor a driver. Mosaic GPU writes
what ptxas says and the machine code into a folder where its `MOSAIC_GPU_DUMP` variables say so.
"""

from __future__ import annotations

import json
import os
import re
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

DUMP = Path(tempfile.mkdtemp(prefix="convjax-aot-gpu-"))
SETTINGS = {
    "JAX_PLATFORMS": "",  # the CPU, and the CUDA plugin for its compiler
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
    "MOSAIC_GPU_CUDA_ROOT": f"{sysconfig.get_paths()['purelib']}/nvidia/cu13",
    "MOSAIC_GPU_DUMP_TO": str(DUMP),
    **{f"MOSAIC_GPU_DUMP_{what}": "1" for what in ("PTXAS", "RESOURCES", "SASS")},
}

# As the device describes itself (NVIDIA, H200 datasheet; CUDA C++ programming guide, compute capability 9.0).
H200 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000 l2_cache_size: 62914560 device_memory_size: 150000000000
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 12 patch: 0 }
device_description_str: "NVIDIA H200"
"""

# Matrix products, copies by TMA, multiply-adds, transcendentals, shared and global loads, and registers in memory.
COUNTED = (
    "HGMMA",
    "UTMALDG",
    "UTMASTG",
    "FFMA",
    "MUFU",
    "LDS",
    "LDSM",
    "STS",
    "STSM",
    "LD",
    "LDG",
    "STG",
    "LDL",
    "STL",
)
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P[\dT]+\s+)?([A-Z][A-Z0-9_]*)")
BESIDE = re.compile(r"^ *(?:ROOT )?\S+ = \S+ (copy|transpose|fusion|pad|concatenate|slice)\(", re.MULTILINE)


def main(numbers: Sequence[int]) -> None:
    os.environ.update(SETTINGS)
    import jax
    import jax.experimental.mosaic.gpu  # which reads the settings
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    from benchmarks.aot_gpu_cases import PROGRAMS

    topology = topologies.get_topology_desc(topology_name="h200", platform="cuda", topology="1x1x1", target_config=H200)
    sharding = SingleDeviceSharding(topology.devices[0])
    for number in numbers:
        try:
            function, shapes = PROGRAMS[number].make()
            jitted = jax.jit(function, in_shardings=sharding, out_shardings=sharding)
            report = compiled(lambda: jitted.trace(*shapes).lower(lowering_platforms=("cuda",)).compile())  # noqa: B023
        except Exception as error:  # the others go on
            report = {"failed": f"{type(error).__name__}: {str(error).strip()[:400]}"}
        print(json.dumps({"number": number} | report), flush=True)


def compiled(compile_: Callable[[], Any]) -> dict[str, Any]:
    """The compiler's figures of one program."""
    for path in DUMP.iterdir():
        path.unlink()
    start = time.perf_counter()
    executable = compile_()
    seconds = time.perf_counter() - start
    beside = Counter(BESIDE.findall(executable.as_text()))
    return {
        "compile_s": round(seconds, 2),
        "temp_bytes": executable.memory_analysis().temp_size_in_bytes,
        "beside": dict(sorted(beside.items())),
        "kernels": [kernel(path) for path in sorted(DUMP.glob("*.ptxas"))],
    }


def kernel(path: Path) -> dict[str, Any]:
    """What ptxas and the machine code say of one kernel."""
    said = path.read_text()
    number = lambda pattern, text: max((int(n) for n in re.findall(pattern, text)), default=0)
    resources = path.with_suffix(".resources.txt")
    code = next(path.parent.glob(f"{path.stem}.sass*")).read_text()
    instructions = Counter(INSTRUCTION.findall(code))
    return {
        "registers": number(r"Used (\d+) reg", said),
        "spilled_bytes": number(r"(\d+) bytes spill stores", said),
        "shared_bytes": number(r"smem_scratch_bytes=(\d+)", resources.read_text() if resources.exists() else ""),
        "warnings": sorted(set(re.findall(r"\((C\d+)\)", said))),
        "instructions": instructions.total(),
        "counts": {name: instructions[name] for name in COUNTED if instructions[name]},
    }


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]])
