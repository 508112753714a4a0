"""PyTorch, whose CPU convolutions are oneDNN's: channels-last where it has that layout, its best number of threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # or its idle threads spin into the next peer's time

import numpy as np
import torch

from benchmarks.layer import ROLES, Layer
from benchmarks.peers import Offer, Peer
from benchmarks.reference import Results
from benchmarks.timing import timed

WASTE = 1.02  # outputs computed over outputs needed up to which a one-sided padding is done on both sides, and cropped


def torch_peer(layer: Layer, mode: str, operands: Sequence[np.ndarray]) -> Offer:
    if reason := refusal(layer, mode):
        return reason
    forward = _forward(layer)
    x, w, ct = _native(layer, operands)
    wanted = ROLES[mode]
    if layer.vmap:
        run = _mapped(layer, mode, forward, x, w, ct)
    elif mode == "forward":
        run = lambda: (_without_graph(forward, x, w),)
    elif mode == "train":
        run = lambda: _train(forward, x.requires_grad_(), w.requires_grad_(), ct)
    else:  # the graph is kept, so that only its backward half is timed
        leaf = x if mode == "input_grad" else w
        out = forward(x.requires_grad_(mode == "input_grad"), w.requires_grad_(mode == "kernel_grad"))
        run = lambda: torch.autograd.grad(out, leaf, ct, retain_graph=True)

    def read(results: Sequence[Any]) -> Results:
        return {role: _canonical(layer, t, role) for role, t in zip(wanted, results, strict=True)}

    return Peer(run, read, {"threads": _best_threads(run)})


def refusal(layer: Layer, mode: str) -> str | None:
    """What PyTorch cannot say in one call."""
    spec = layer.spec
    if layer.vmap and mode in ("input_grad", "kernel_grad"):
        return "torch.func.vjp computes the forward pass as well: see train"
    if any(p < 0 for pair in spec.padding for p in pair):
        return "torch has no negative padding"
    if not is_transposed(layer):
        return None
    window, crop = spec.window(layer.case.rhs_shape), _crop(layer)
    extra = [hi - lo for lo, hi in spec.padding]
    if any(s > 1 for s in spec.strides) or any(p < 0 for p in crop) or min(extra) < 0 or spec.ndim > 3:
        return f"torch's conv_transpose has no padding {spec.padding} for a window of {window}"
    return None


def is_transposed(layer: Layer) -> bool:
    return any(d > 1 for d in layer.spec.lhs_dilation)


def _crop(layer: Layer) -> list[int]:
    """Torch's padding of a transposed convolution."""
    return [k - 1 - lo for k, (lo, _) in zip(layer.spec.window(layer.case.rhs_shape), layer.spec.padding, strict=True)]


def _forward(layer: Layer) -> Callable[[Any, Any], Any]:
    spec, n = layer.spec, layer.spec.ndim
    if is_transposed(layer):
        transposed = getattr(torch.nn.functional, f"conv_transpose{n}d")
        options: dict[str, Any] = dict(stride=spec.lhs_dilation, dilation=spec.rhs_dilation, groups=spec.feature_groups)
        options |= dict(padding=tuple(_crop(layer)), output_padding=tuple(hi - lo for lo, hi in spec.padding))
        return lambda x, w: transposed(x, w, **options)
    plain = getattr(torch.nn.functional, f"conv{n}d")
    options = dict(stride=spec.strides, dilation=spec.rhs_dilation, groups=spec.feature_groups)
    lo, hi = zip(*spec.padding, strict=True)
    if lo == hi:
        return lambda x, w: plain(x, w, padding=lo, **options)
    out = layer.case.out_shape[1:-1]
    both = spec.replace(padding=tuple((p, p) for p in lo)).out_shape(layer.case.lhs_shape, layer.case.rhs_shape)[1:-1]
    if all(a <= b <= a * WASTE for a, b in zip(out, both, strict=True)):
        inside = (slice(None), slice(None), *(slice(size) for size in out))
        return lambda x, w: plain(x, w, padding=lo, **options)[inside]
    ends = [p for pair in reversed(spec.padding) for p in pair]
    return lambda x, w: plain(torch.nn.functional.pad(x, ends), w, **options)


def _native(layer: Layer, operands: Sequence[np.ndarray]) -> tuple[Any, Any, Any]:
    """Operands as torch has them: (N, C, *space) and (O, I, *k), or (I, O, *k) flipped for a transposed one."""
    n = layer.spec.ndim
    memory = {2: torch.channels_last, 3: torch.channels_last_3d}.get(n, torch.contiguous_format)
    if layer.layout == "channels_first":
        memory = torch.contiguous_format
    x, w, ct = (layer.channels_last(a, role) for a, role in zip(operands, ("lhs", "rhs", "out"), strict=True))
    arrays = (np.moveaxis(x, -1, -1 - n), _kernel_to_torch(layer, w), np.moveaxis(ct, -1, -1 - n))
    tensors = (_tensor(a) for a in arrays)
    x, w, ct = (t if layer.vmap else t.contiguous(memory_format=memory) for t in tensors)
    return x, w, ct


def _tensor(array: np.ndarray) -> Any:
    array = np.ascontiguousarray(array)
    if array.dtype.name == "bfloat16":  # numpy's is not torch's, but the bits are
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _kernel_to_torch(layer: Layer, w: np.ndarray) -> np.ndarray:
    """`(*k, I / groups, O)` to torch's order, examples first."""
    n = layer.spec.ndim
    if not is_transposed(layer):
        return np.moveaxis(w, (-1, -2), (-2 - n, -1 - n))
    w = np.flip(w, tuple(range(w.ndim - 2 - n, w.ndim - 2)))
    w = w.reshape(*w.shape[:-1], layer.spec.feature_groups, -1)  # (*k, I / groups, groups, O / groups)
    w = np.moveaxis(w, (-2, -3, -1), (-3 - n, -2 - n, -1 - n))
    lead = w.ndim - 3 - n
    return w.reshape(*w.shape[:lead], -1, *w.shape[lead + 2 :])


def _kernel_from_torch(layer: Layer, w: np.ndarray) -> np.ndarray:
    n = layer.spec.ndim
    if not is_transposed(layer):
        return np.moveaxis(w, (-2 - n, -1 - n), (-1, -2))
    lead = w.ndim - 2 - n
    w = w.reshape(*w.shape[:lead], layer.spec.feature_groups, -1, *w.shape[lead + 1 :])
    w = np.moveaxis(w, (-3 - n, -2 - n, -1 - n), (-2, -3, -1))
    return np.flip(w.reshape(*w.shape[:-2], -1), tuple(range(lead, lead + n)))


def _canonical(layer: Layer, tensor: Any, role: str) -> np.ndarray:
    array = tensor.detach().float().numpy()
    return _kernel_from_torch(layer, array) if role == "rhs" else np.moveaxis(array, -1 - layer.spec.ndim, -1)


def _without_graph(forward: Callable[[Any, Any], Any], x: Any, w: Any) -> Any:
    with torch.no_grad():
        return forward(x, w)


def _train(forward: Callable[[Any, Any], Any], x: Any, w: Any, ct: Any) -> tuple[Any, ...]:
    out = forward(x, w)
    return out, *torch.autograd.grad(out, (x, w), ct)


def _mapped(layer: Layer, mode: str, forward: Callable[[Any, Any], Any], x: Any, w: Any, ct: Any) -> Callable[[], Any]:
    """Over examples, by torch's own vmap."""

    def one(x: Any, w: Any, ct: Any) -> tuple[Any, ...]:
        if mode == "forward":
            return (forward(x, w),)
        out, pullback = torch.func.vjp(forward, x, w)
        return out, *pullback(ct)

    every = torch.func.vmap(one, in_dims=layer.axes)
    return lambda: _without_graph(lambda x, w: every(x, w, ct), x, w)


def _best_threads(run: Callable[[], Any]) -> int:
    """Set and return the number of threads that is fastest here: all cores or half of them, after a warm-up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(cores)
    if timed(run)[1] > 1.0 or cores == 1:  # long calls use what they get
        return cores
    seconds = {}
    for threads in (max(1, cores // 2), cores):
        torch.set_num_threads(threads)
        seconds[threads] = min(timed(run)[1] for _ in range(3))
    best = min(seconds, key=lambda threads: seconds[threads])
    torch.set_num_threads(best)
    return best
