"""Direct summation or transforms: which takes less time, and for integers whether transforms may be taken at all."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from convjax._core.spec import is_symbolic
from convjax.signal.part import Part, convolve_part

# Nanoseconds: of a product in direct summation, of one signal and of images or several signals; of an element of a
# transform and doubling of its length; of what transforms take at least. Measured on 2 cores of an EPYC with float32,
# 1e3 to 1e6 elements by 30 to 1000 in one dimension, 64 to 2048 by 7 to 64 squared in two, 32 by 5 cubed in three.
SIGNAL_PRODUCT_NS, PRODUCT_NS, TRANSFORM_NS, CALL_NS = 0.3, 0.05, 0.2, 5e4
# Rounding errors of three transforms, each time the logarithm of the length, relative to the product of the operands'
# Euclidean norms: at most 7 each, and one product (Higham, Accuracy and stability of numerical algorithms, 2nd edition,
# theorem 24.2).
ROUNDINGS = 24


def by_size(wanted: Part, dtype: Any) -> str:
    """The method of `convolve_part` that is expected to be fastest and allowed."""
    if not wanted.has_length or exact_float(wanted, dtype) is None:
        return "direct"
    shapes = [[1 if is_symbolic([n]) else n for n in s] for s in (wanted.shape1, wanted.shape2, wanted.out_shape)]
    planes = [math.prod(n for a, n in enumerate(shape) if a not in wanted.axes) for shape in shapes]
    points = math.prod(wanted.full)
    transforms = TRANSFORM_NS * sum(planes) * points * math.log2(max(points, 2)) + CALL_NS
    each = SIGNAL_PRODUCT_NS if len(wanted.axes) == 1 and sum(planes) == 3 else PRODUCT_NS
    products = each * math.prod(shapes[-1]) * wanted.taps
    return "blocks" if transforms < products else "direct"


def exact_float(wanted: Part, dtype: Any) -> Any:
    """A float dtype whose transforms give the right result: `dtype` itself if inexact, else one that rounds back."""
    if jnp.issubdtype(dtype, jnp.inexact):
        return dtype
    largest = 1 if is_bool(dtype) else max(int(jnp.iinfo(dtype).max), -int(jnp.iinfo(dtype).min))
    points = math.prod(wanted.full)
    norms = [largest * math.sqrt(math.prod(shape[a] for a in wanted.axes)) for shape in (wanted.shape1, wanted.shape2)]
    for candidate in (np.float32, np.float64):
        error = ROUNDINGS * float(np.finfo(candidate).eps) / 2 * math.log2(max(points, 2)) * math.prod(norms)
        if error < 0.25 and jax.dtypes.canonicalize_dtype(candidate) == candidate:
            return np.dtype(candidate)
    return None


def is_bool(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.bool_)


def apply(in1: Array, in2: Array, wanted: Part, method: str) -> Array:
    """`convolve_part` in the operands' dtype: integers wrap around, bools say whether any product is true."""
    dtype = in1.dtype
    if jnp.issubdtype(dtype, jnp.inexact):
        return convolve_part(in1, in2, wanted, method)
    through = exact_float(wanted, dtype) if wanted.has_length else None
    if method == "direct" or through is None:
        through, method = (np.int32 if is_bool(dtype) or jnp.iinfo(dtype).bits < 32 else dtype), "direct"
    y = convolve_part(in1.astype(through), in2.astype(through), wanted, method)
    if jnp.issubdtype(through, jnp.inexact):
        y = jnp.round(y).astype(np.int64 if through == np.float64 else np.int32)
    return y != 0 if is_bool(dtype) else y.astype(dtype)
