"""A response cut into parts as long as a block, each applied to the spectrum of the block that many blocks ago.

Each block is transformed once, together with the one before it (overlap-save), and its spectrum goes down a delay
line; the sum over parts is taken in the frequency domain, and transformed back once. All blocks cost the same.
Where one channel goes to each output, that sum is one of products, frequencies side by side. Where channels mix, it is
a real matrix product for each frequency, of the last spectra of all channels with the parts of all responses, which are
kept in this order from the start: 512 taps of 64 to 64 channels in blocks of 64 take 1.1 ms a block on two cores, in
float32, and 5.3 ms where one complex `einsum` takes spectra whose frequencies are last; directly 2.1 ms.
Error: that of the FFT, relative to the largest output. Source: Gardner, Efficient convolution without input-output
delay, JAES 43(3), 1995; uniform partitions as in Wefers, Partitioned convolution algorithms for real-time
auralization, 2014, chapter 5.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from convjax._core.spectrum import fast_length

# What an operation of these matrix products costs, in those of the direct sum. Measured on two cores, float32, 64 to
# 48,000 taps, 2 to 128 channels, blocks of 16 to 512: parts take 0.1 to 0.8 of the direct time wherever this says so.
MIXED = 4


class DelayLine(NamedTuple):
    """The last block, `(*batch, block, C)`, and the spectra of those before.

    They are complex `(parts - 1, *batch, C, 1, F)` where one channel goes to each output; else real
    `(F, groups, *batch, 2, parts - 1, C // groups)`, real and imaginary part side by side.
    """

    block: Array
    spectra: Array


def parts(taps: int, block: int) -> int:
    return -(-taps // block)


def is_cheaper(taps: int, block: int, per_group: int, features: int, groups: int) -> bool:
    """Whether a block takes less than a direct sum, in real operations: 8 a complex one, 2.5 n log2(n) an FFT."""
    if taps <= block:  # one part: any algorithm of a whole convolution serves
        return False
    n, pairs = fast_length(2 * block), per_group * features
    transforms = 2.5 * n * math.log2(n) * (per_group * groups + features)
    product = 8 if per_group == 1 else 8 * MIXED
    return transforms + product * parts(taps, block) * (n // 2 + 1) * pairs < 2 * taps * block * pairs


def response(kernel: Array, block: int, groups: int) -> Array:
    """Spectra of the parts of `kernel (k, I, O)`, whose last tap is now.

    Complex `(parts, groups, O // groups, F)` for `I == 1`, else real `(F, groups, parts, I, 2, O // groups)`.
    """
    taps, per_group, features = kernel.shape
    count = parts(taps, block)
    lags = jnp.pad(kernel[::-1], ((0, count * block - taps), (0, 0), (0, 0)))
    lags = lags.reshape(count, block, per_group, groups, features // groups)
    if per_group == 1:
        return _forward(jnp.moveaxis(lags[:, :, 0], 1, -1), block)
    spectra = _forward(jnp.moveaxis(lags, 1, -1), block)  # (parts, I, groups, O // groups, F)
    return jnp.stack([spectra.real, spectra.imag]).transpose(5, 3, 1, 2, 0, 4)


def state(batch: tuple[int, ...], block: int, channels: int, spectra: Array, dtype: Any) -> DelayLine:
    """Shapes and dtypes of a state; `spectra` as `response` gives them."""
    if spectra.ndim == 4:
        count, groups, _, frequencies = spectra.shape
        line: tuple[int, ...] = (count - 1, *batch, groups, 1, frequencies)
    else:
        frequencies, groups, count, per_group, _, _ = spectra.shape
        line = (frequencies, groups, *batch, 2, count - 1, per_group)
    return DelayLine(
        jax.ShapeDtypeStruct((*batch, block, channels), dtype),  # type: ignore[arg-type]
        jax.ShapeDtypeStruct(line, spectra.dtype),  # type: ignore[arg-type]
    )


def advance(spectra: Array, state: DelayLine, x: Array) -> tuple[DelayLine, Array]:
    """The outputs at one block `x (*batch, block, C)`."""
    block, groups = x.shape[-2], spectra.shape[1]
    both = jnp.moveaxis(jnp.concatenate([state.block, x], axis=-2), -2, -1)
    now = _forward(both.reshape(*both.shape[:-2], groups, x.shape[-1] // groups, 2 * block), block)
    line, total = (_products if spectra.ndim == 4 else _matrices)(now, state.spectra, spectra)
    y = _backward(total, block, x.dtype)[..., block : 2 * block]
    y = jnp.moveaxis(y.reshape(*x.shape[:-2], math.prod(y.shape[-3:-1]), block), -1, -2)
    return DelayLine(x, line), y.astype(x.dtype)


def _products(now: Array, before: Array, spectra: Array) -> tuple[Array, Array]:
    """The line after `now (*batch, groups, 1, F)`, and the sum over parts, `(*batch, groups, O // groups, F)`."""
    line = jnp.concatenate([now[None], before])
    weights = spectra.reshape(len(line), *(1,) * (now.ndim - 3), *spectra.shape[1:])
    return line[:-1], (line * weights).sum(0)


def _matrices(now: Array, before: Array, spectra: Array) -> tuple[Array, Array]:
    """The same of `now (*batch, groups, I, F)`, as one real matrix product for each frequency and group."""
    newest = jnp.moveaxis(jnp.stack([now.real, now.imag], axis=-3), (-1, -4), (0, 1))  # (F, groups, *batch, 2, I)
    line = jnp.concatenate([newest[..., None, :], before], axis=-2)
    rows = line.reshape(*line.shape[:2], math.prod(line.shape[2:-2]), math.prod(line.shape[-2:]))
    columns = spectra.reshape(*spectra.shape[:2], rows.shape[-1], -1)
    y = lax.dot_general(rows, columns, (((3,), (2,)), ((0, 1), (0, 1))), precision=lax.Precision.HIGHEST)
    y = y.reshape(*line.shape[:-2], 2, spectra.shape[-1])
    real = y[..., 0, 0, :] - y[..., 1, 1, :]
    imaginary = y[..., 0, 1, :] + y[..., 1, 0, :]
    return line[..., :-1, :], jnp.moveaxis(lax.complex(real, imaginary), (0, 1), (-1, -3))


def _forward(x: Array, block: int) -> Array:
    """Spectrum of the last axis. A length of two blocks or more leaves the last of them free of what wraps around."""
    if jnp.iscomplexobj(x):
        return jnp.fft.fft(x, fast_length(2 * block))
    return jnp.fft.rfft(x.astype(jnp.promote_types(x.dtype, jnp.float32)), fast_length(2 * block))


def _backward(y: Array, block: int, dtype: Any) -> Array:
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return jnp.fft.ifft(y)
    return jnp.fft.irfft(y, fast_length(2 * block))
