"""Who is measured: convjax under each algorithm, lax, PyTorch (oneDNN), SciPy's filters, and an FFT as one writes it.

A peer is built with its operands in the layout that it likes; only its computation is timed. One that cannot take part
returns the reason instead.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft
from jax import Array, lax
from scipy import signal

from benchmarks.layer import ROLES, Layer
from benchmarks.reference import Results, is_channelwise, on_host, spectral
from benchmarks.timing import Run
from convjax._core.bridge import lax_params
from convjax._core.choose import decide, why_not
from convjax._core.collect import convolutions
from convjax._core.primitive import convolve_ordered

Conv = Callable[[Any, Any], Any]


@dataclasses.dataclass(frozen=True)
class Peer:
    """A computation ready to be timed.

    Attributes:
      run: computes and waits for the result.
      read: what `run` returned, by role and in canonical order of axes.
      facts: what else is known of it, such as the seconds that its compilation took.
    """

    run: Run
    read: Callable[[Any], Results]
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)


Offer = Peer | str  # a peer, or the reason why there is none

# --- JAX --------------------------------------------------------------------------------------------------------------


def program(layer: Layer, mode: str, conv: Conv) -> Callable[[Any, Any, Any], tuple[Any, ...]]:
    """What is computed from input, kernel and cotangent: a tuple with an entry for each role of the mode."""

    def train(x: Any, w: Any, ct: Any) -> tuple[Any, ...]:
        out, pullback = jax.vjp(conv, x, w)
        return out, *pullback(ct)

    one = {
        "forward": lambda x, w, ct: (conv(x, w),),
        "input_grad": lambda x, w, ct: jax.linear_transpose(lambda x: conv(x, w), x)(ct),
        "kernel_grad": lambda x, w, ct: jax.linear_transpose(lambda w: conv(x, w), w)(ct),
        "train": train,
    }[mode]
    return jax.vmap(one, in_axes=layer.axes) if layer.vmap else one


# What a program says of its source: names, and tables of files and functions.
ORIGIN = r", metadata={[^}]*}|^HloModule .*$|^(FileNames|FunctionNames|StackFrames|FileLocations)\n(.+\n)*"


def fingerprint(program: str) -> str:
    """The same for programs that do the same, whatever their operations are called and wherever they come from."""
    names: dict[str, str] = {}
    program = re.sub(ORIGIN, "", program, flags=re.MULTILINE)
    program = re.sub(r"\b[\w.-]+: (?=\(?\w+\[)", "", program)  # parameters, where a computation begins
    program = re.sub(r"%[\w.-]+", lambda found: names.setdefault(found[0], f"%{len(names)}"), program)
    return hashlib.sha1(program.encode()).hexdigest()[:12]


def jax_peer(layer: Layer, mode: str, operands: Sequence[np.ndarray], conv: Conv) -> Peer:
    arrays = [jnp.asarray(a) for a in operands]
    start = time.perf_counter()
    lowered = jax.jit(program(layer, mode, conv)).lower(*arrays)
    traced = time.perf_counter()
    compiled = lowered.compile()
    facts: dict[str, Any] = {"trace_s": traced - start, "compile_s": time.perf_counter() - traced}
    facts["program"] = fingerprint(compiled.as_text() or "")
    memory = compiled.memory_analysis()
    if memory is not None:
        facts["temp_bytes"] = memory.temp_size_in_bytes

    def read(results: Any) -> Results:
        named = zip(ROLES[mode], on_host(results), strict=True)
        return {role: layer.channels_last(a, role) for role, a in named}

    return Peer(lambda: jax.block_until_ready(compiled(*arrays)), read, facts)


def lax_peer(layer: Layer, mode: str, operands: Sequence[np.ndarray]) -> Peer:
    params = lax_params(layer.spec) | dict(dimension_numbers=layer.numbers)
    return jax_peer(layer, mode, operands, lambda x, w: lax.conv_general_dilated(x, w, **params))


def convjax_peer(layer: Layer, mode: str, operands: Sequence[np.ndarray], algorithm: str) -> Offer:
    """convjax with `algorithm` for the problems of the mode that it can serve."""
    wanted = {
        "forward": (f"{algorithm}?", "auto", "auto"),
        "input_grad": ("auto", f"{algorithm}?", "auto"),
        "kernel_grad": ("auto", "auto", f"{algorithm}?"),
        "train": (f"{algorithm}?",) * 3,
    }[mode]
    spec = layer.spec if algorithm == "auto" else layer.spec.replace(algorithms=wanted)
    conv = lambda x, w: convolve_ordered(x, w, layer.numbers, spec)
    platform = jax.default_backend().replace("gpu", "cuda")
    found = convolutions(jax.make_jaxpr(program(layer, mode, conv))(*operands).jaxpr)
    problems = [(g.spec, *g.operands) for g, _ in found]
    if algorithm != "auto":
        reasons = [why_not(algorithm, *problem, platform) for problem in problems]
        if None not in reasons:
            return f"cannot serve: {reasons[0]}"
    peer = jax_peer(layer, mode, operands, conv)
    peer.facts["served_by"] = [decide(*problem, platform)[0] for problem in problems]
    return peer


# --- signal processing ------------------------------------------------------------------------------------------------

NOT_A_FILTER = "not one float32 filter for each channel, without stride and dilation"


def is_filter(layer: Layer) -> bool:
    spec = layer.spec
    steps = (*spec.strides, *spec.lhs_dilation, *spec.rhs_dilation)
    return is_channelwise(layer) and layer.dtype == "float32" and all(step == 1 for step in steps)


def scipy_peer(layer: Layer, mode: str, operands: Sequence[np.ndarray]) -> Offer:
    """`scipy.signal.oaconvolve`, overlap-add with the block length that its cost formula likes."""
    if not is_filter(layer):
        return NOT_A_FILTER
    return Peer(lambda: spectral(layer, mode, operands, signal.oaconvolve), lambda results: results)


def rfft_peer(layer: Layer, mode: str, operands: Sequence[np.ndarray]) -> Offer:
    """`jnp.fft.rfftn` over the whole padded input, as one writes it by hand; JAX differentiates it."""
    if not is_filter(layer):
        return NOT_A_FILTER
    spec, axes = layer.spec, tuple(range(1, layer.spec.ndim + 1))
    out_space = spec.out_space(layer.case.lhs_shape, layer.case.rhs_shape)
    lengths = [scipy.fft.next_fast_len(n, real=True) for n in spec.padded_space(layer.case.lhs_shape)]

    def conv(x: Array, w: Array) -> Array:
        if layer.layout == "channels_first":
            x, w = jnp.moveaxis(x, 1, -1), jnp.moveaxis(w, (1, 0), (-2, -1))
        padded = jnp.pad(x, ((0, 0), *spec.padding, (0, 0)))
        spectrum = jnp.fft.rfftn(padded, lengths, axes) * jnp.conj(jnp.fft.rfftn(jnp.moveaxis(w, -2, 0), lengths, axes))
        out = jnp.fft.irfftn(spectrum, lengths, axes)[(slice(None), *(slice(n) for n in out_space))]
        return jnp.moveaxis(out, -1, 1) if layer.layout == "channels_first" else out

    return jax_peer(layer, mode, operands, conv)


# --- what would take too long -----------------------------------------------------------------------------------------

# Multiply-adds a second of direct summation, generously: the README's 3x3 64->64 layer runs at 9e10, its 1-D depthwise
# layer with 1024 taps at 1.7e9, in lax as in PyTorch.
WIDE_RATE, NARROW_RATE = 5e10, 1.5e9  # narrow: one channel a group
TRANSFORMS = ("auto", "fft", "overlap_add", "scipy", "rfft")  # their cost does not grow with the kernel


def too_slow(name: str, layer: Layer, mode: str, limit_s: float) -> str | None:
    """The reason to leave a direct sum out, where it would take more than `limit_s` for one call."""
    if name in TRANSFORMS or jax.default_backend() != "cpu":
        return None
    products = layer.products(mode, inserted_zeros=name in ("lax", "xla"))
    rate = NARROW_RATE if layer.case.rhs_shape[-2] == 1 else WIDE_RATE
    seconds = products / rate
    if seconds <= limit_s:
        return None
    return f"about {seconds:.0f} s a call: {products:.1e} multiply-adds at {rate:.1e} a second"


def offer(name: str, layer: Layer, mode: str, operands: Sequence[np.ndarray], limit_s: float) -> Offer:
    """The peer of that name, an algorithm of convjax or one of `PEERS`, or the reason why it does not take part."""
    if reason := too_slow(name, layer, mode, limit_s):
        return reason
    return PEERS[name](layer, mode, operands) if name in PEERS else convjax_peer(layer, mode, operands, name)


def torch_peer(layer: Layer, mode: str, operands: Sequence[np.ndarray]) -> Offer:
    from benchmarks.torch_peer import torch_peer  # PyTorch is not needed to measure without it

    return torch_peer(layer, mode, operands)


PEERS: dict[str, Callable[[Layer, str, Sequence[np.ndarray]], Offer]] = {
    "lax": lax_peer,
    "torch": torch_peer,
    "scipy": scipy_peer,
    "rfft": rfft_peer,
}
