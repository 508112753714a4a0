"""Pallas kernels for TPUs, one a file, each an algorithm as in `convjax._core.algorithms`.

`supports`, `work` and `run` as there; `run` also takes what follows the convolution (`bias`, `residual`, `activation`)
and `interpret=True`, which runs the kernel on a CPU with race detection and memory that is NaN until written. What they
share: `tiles` (sizes and limits), `stage` (blocks of the input with their border of zeros), `finish` (the epilogue).
No TPU was ever at hand: the evidence is interpret mode and the static figures of `benchmarks.aot_tpu`.
"""
