"""Kernels for NVIDIA Hopper GPUs, written in Pallas' Mosaic GPU dialect: TMA copies, warpgroups, f32 accumulation.

`hopper` says where they run, `tiles` which limits a block has, `registers` how a warpgroup holds a tile; each of the
others is one kernel. Pallas is imported when a kernel is traced, as most installations never need it.
"""
