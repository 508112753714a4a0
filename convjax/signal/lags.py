"""Which lags the outputs of a correlation belong to."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Int

from convjax._core import arguments
from convjax.signal.operands import MODES, named


def correlation_lags(in1_len: int, in2_len: int, mode: str = "full") -> Int[Array, " lags"]:
    """Lags of the outputs of a 1-D `correlate`, in samples: by how much `in2` stands to the right of `in1`.

    As in SciPy, with "same", an odd `in1_len` and an even `in2_len` they are by one larger than what `correlate`
    centres on.

    Args:
      in1_len: length of its first input.
      in2_len: length of its second input.
      mode: as in `correlate`.

    Returns:
      one integer for each output.

    Raises:
      ValueError: a mode that is not known; a negative length.
      TypeError: a length that is not a static integer.

    Example:
      >>> from convjax.signal import correlation_lags
      >>> correlation_lags(3, 2)
      Array([-1,  0,  1,  2], dtype=int32)

    Source: Rabiner and Gold, Theory and application of digital signal processing, 1975, section 6.20.
    """
    where = "correlation_lags"
    mode = named(where, "mode", mode, MODES)
    m = arguments.integer(where, "in1_len", in1_len, minimum=0)
    n = arguments.integer(where, "in2_len", in2_len, minimum=0)
    lags = np.arange(1 - n, m)
    if mode == "same":
        first = len(lags) // 2 - m // 2
        lags = lags[first : first + m]
    elif mode == "valid":
        lags = np.arange(min(m - n, 0), max(m - n, 0) + 1)
    return jnp.asarray(lags)
