"""What results are compared with: direct sums in float64 where they are quick enough, else float64 spectra.

Where neither can be had, lax's result stands in, and the record says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from scipy import signal

from benchmarks.layer import ROLES, Layer
from convjax.testing import direct_conv, direct_grads, widest

# Seconds a multiply-add of `convjax.testing`'s sums, measured on one core: (forward, both gradients). Products with a
# side of one are numpy's slow ones.
WIDE, NARROW = (1e-10, 6e-10), (2e-8, 3e-7)
LOOP = 2e-5  # seconds a tap of a group
PATIENCE = 4.0  # seconds that a reference may take

Results = dict[str, np.ndarray]  # by role, in canonical order of axes, examples first


def reference(layer: Layer, mode: str, operands: Sequence[np.ndarray]) -> tuple[str, Results] | None:
    """The name of the reference and what a mode should give, or None where none is affordable."""
    if oracle_seconds(layer, mode) <= PATIENCE:
        return "oracle", oracle(layer, mode, operands)
    if is_channelwise(layer):
        return "float64 spectra", spectral(layer, mode, [widest(a) for a in operands], signal.fftconvolve)
    return None


def oracle_seconds(layer: Layer, mode: str) -> float:
    forward, gradients = NARROW if 1 in layer.case.rhs_shape[-2:] else WIDE
    loops = layer.spec.groups * int(np.prod(layer.case.rhs_shape[:-2])) * layer.examples
    rate = forward * (mode in ("forward", "train")) + gradients * (mode != "forward")
    return layer.products("forward", inserted_zeros=True) * rate + loops * LOOP * len(ROLES[mode])


def oracle(layer: Layer, mode: str, operands: Sequence[np.ndarray]) -> Results:
    """Direct sums in float64, example by example."""
    x, w, ct = (layer.channels_last(a, role) for a, role in zip(operands, ("lhs", "rhs", "out"), strict=True))

    def one(x: np.ndarray, w: np.ndarray, ct: np.ndarray) -> Results:
        results = {"out": direct_conv(x, w, layer.spec)} if "out" in ROLES[mode] else {}
        if mode != "forward":
            results["lhs"], results["rhs"] = direct_grads(x, w, ct, layer.spec)
        return {role: results[role] for role in ROLES[mode]}

    if layer.vmap is None:
        return one(x, w, ct)
    each = [one(x[i], w[i] if layer.vmap == "kernels" else w, ct[i]) for i in range(layer.examples)]
    return {role: np.stack([results[role] for results in each]) for role in ROLES[mode]}


# --- spectra ----------------------------------------------------------------------------------------------------------


def is_channelwise(layer: Layer) -> bool:
    """Whether each channel has one filter of its own and nothing crops, so that filters of signals compute it."""
    case, spec = layer.case, layer.spec
    one_filter = spec.feature_groups == case.lhs_shape[-1] == case.rhs_shape[-1]
    return layer.vmap is None and one_filter and all(p >= 0 for pair in spec.padding for p in pair)


def spectral(layer: Layer, mode: str, operands: Sequence[np.ndarray], convolve: Callable[..., Any]) -> Results:
    """The problem by filters of signals, `scipy.signal.fftconvolve` or one with its arguments, in the operands' dtype.

    The gradient in the input is the full convolution of the cotangent with the kernel; that in the kernel the valid
    correlation of the input with the cotangent.
    """
    spec = layer.spec
    x, w, ct = (layer.channels_last(a, role) for a, role in zip(operands, ("lhs", "rhs", "out"), strict=True))
    axes = tuple(range(1, spec.ndim + 1))
    dilated = _dilate(x, spec.lhs_dilation)
    padded = np.pad(dilated, ((0, 0), *spec.padding, (0, 0)))
    inside = tuple(slice(lo, lo + size) for (lo, _), size in zip(spec.padding, dilated.shape[1:-1], strict=True))
    kernel = _dilate(np.moveaxis(w, -2, 0), spec.rhs_dilation)  # (1, *window, C)
    every = lambda steps: (slice(None), *(slice(None, None, step) for step in steps))
    results: Results = {}
    if "out" in ROLES[mode]:
        results["out"] = convolve(padded, np.flip(kernel, axes), mode="valid", axes=axes)[every(spec.strides)]
    if mode == "forward":
        return results
    # One cotangent for each place that the kernel fits, those that the stride skips being nought.
    room = [p - k + 1 for p, k in zip(padded.shape[1:-1], kernel.shape[1:-1], strict=True)]
    places = np.zeros((ct.shape[0], *room, ct.shape[-1]), ct.dtype)
    places[every(spec.strides)] = ct
    if "lhs" in ROLES[mode]:
        full = convolve(places, kernel, mode="full", axes=axes)
        results["lhs"] = full[(slice(None), *inside)][every(spec.lhs_dilation)]
    if "rhs" in ROLES[mode]:
        taps = convolve(padded, np.flip(places, axes), mode="valid", axes=axes).sum(0, keepdims=True)
        results["rhs"] = np.moveaxis(taps[every(spec.rhs_dilation)], 0, -2)
    return results


def _dilate(a: np.ndarray, steps: Sequence[int]) -> np.ndarray:
    """`a (N, *space, C)` with zeros between its neighbours."""
    space = [(size - 1) * step + 1 for size, step in zip(a.shape[1:-1], steps, strict=True)]
    dilated = np.zeros((a.shape[0], *space, a.shape[-1]), a.dtype)
    dilated[(slice(None), *(slice(None, None, step) for step in steps))] = a
    return dilated


# --- errors -----------------------------------------------------------------------------------------------------------


def relative_error(actual: Results, expected: Results) -> float:
    """The largest difference of any result, relative to the largest element of what it should be; NaN counts as inf."""
    worst = 0.0
    for role, value in expected.items():
        if actual[role].shape != value.shape:
            raise ValueError(f"{role} has shape {actual[role].shape}, expected {value.shape}")
        difference = np.max(np.abs(widest(actual[role]) - widest(value)))
        worst = max(worst, float(difference / np.max(np.abs(value))) if np.isfinite(difference) else float("inf"))
    return worst


def largest_error(dtype: str) -> float:
    """Relative error from which on a result is wrong, and its time worthless: far beyond what rounding explains."""
    return 5e-2 if dtype in ("bfloat16", "float16") else 1e-3


def on_host(arrays: Any) -> list[np.ndarray]:
    return [np.asarray(a) for a in jax.tree.leaves(arrays)]
