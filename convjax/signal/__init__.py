"""Convolution and correlation with SciPy's names, arguments, results and errors, on the primitive of all of convjax.

They jit, vmap and differentiate. What differs from SciPy:

- Dtypes are JAX's: floating inputs keep theirs (16-bit ones are summed in float32), two dtypes meet by JAX's promotion,
  and 64-bit ones need `jax_enable_x64`. Integers in `fftconvolve` and `oaconvolve` give the default float.
- Integers and bools in `convolve` and `correlate` are exact, whatever the `method`: a transform takes part only where
  rounding back is proved right from dtypes and sizes. As in SciPy the result has the inputs' dtype and wraps around.
- `method` and the sizes are read when the function is traced. Nothing warns about NaN, which a transform spreads.
- Sizes may be symbols of `jax.export`: of axes that are not convolved always, of the others where sums are direct.
- `convolve2d` and `correlate2d` take transforms for large kernels, and any number of axes by `jax.vmap`.

Files: `operands` reads arguments, `part` computes a part of the full convolution, `method` decides how, `border`
continues images; `convolution`, `planar`, `lags` and `choose` are what people call.
"""

from convjax.signal.choose import choose_conv_method
from convjax.signal.convolution import convolve, correlate, fftconvolve, oaconvolve
from convjax.signal.lags import correlation_lags
from convjax.signal.planar import convolve2d, correlate2d

__all__ = [
    "choose_conv_method",
    "convolve",
    "convolve2d",
    "correlate",
    "correlate2d",
    "correlation_lags",
    "fftconvolve",
    "oaconvolve",
]
