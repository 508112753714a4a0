"""Kernels as sums of few products of 1-D kernels, which take the sum of their lengths in place of the product."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Inexact

from convjax._core import arguments
from convjax.filters.weigh import number


class Separable(NamedTuple):
    """A kernel as a sum of `rank` products: `sum_r factors[0][r, i] factors[1][r, j] ...`.

    `convolve` and `correlate` take it in the place of a kernel.

    Attributes:
      factors: one array of shape `(rank, k)` for each axis of the kernel.
    """

    factors: tuple[Inexact[Array, "rank k"], ...]

    @property
    def rank(self) -> int:
        """Number of products."""
        return self.factors[0].shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the kernel."""
        return tuple(f.shape[1] for f in self.factors)

    def kernel(self) -> Inexact[Array, "*k"]:
        """The kernel itself."""
        letters = "abcdefghijklmnopq"[: len(self.factors)]
        terms = ",".join(f"r{letter}" for letter in letters)
        return jnp.einsum(f"{terms}->{letters}", *self.factors, precision="highest")


def separate(kernel: Inexact[Array, "*k"], *, rank: int | None = None, tolerance: float = 1e-6) -> Separable:
    """Find the low-rank form of a kernel.

    For two axes, the best of its rank (by the singular values); for more, axis by axis in the same way, with products
    that are orthogonal to each other, though there may be fewer.

    Args:
      kernel: one axis or more; known when the program is traced.
      rank: how many products to keep at most.
      tolerance: what the products left out may amount to, in Euclidean norm, relative to the kernel's.

    Returns:
      the fewest products within the tolerance, the largest first, in the dtype of the kernel (the default float for
      integers).

    Raises:
      ValueError: an empty kernel, or one without axes; a rank below 1; a negative tolerance.
      TypeError: a traced kernel; something is not a number.

    Example:
      >>> import jax.numpy as jnp
      >>> from convjax.filters import separate
      >>> separate(jnp.array([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]])).rank
      1

    Source: Eckart and Young, The approximation of one matrix by another of lower rank, Psychometrika 1, 1936.
    """
    where = "separate"
    arguments.static(where, "kernel", kernel)
    kernel = arguments.array(where, "kernel", kernel)
    if kernel.ndim == 0 or kernel.size == 0:
        raise ValueError(f"{where}: kernel of shape {kernel.shape} has no weights. Type an array with some.")
    most = kernel.size if rank is None else arguments.integer(where, "rank", rank, minimum=1)
    tolerance = number(where, "tolerance", tolerance)
    if tolerance < 0:
        raise ValueError(f"{where}: tolerance must not be negative, got {tolerance}. Type tolerance=0.0 for all.")
    dtype = jnp.result_type(kernel, float) if jnp.issubdtype(kernel.dtype, jnp.integer) else kernel.dtype
    exact = np.asarray(kernel).astype(np.result_type(np.complex128 if jnp.iscomplexobj(kernel) else np.float64))
    terms = sorted(_terms(exact), key=lambda term: -term[0])
    left = np.sqrt(np.cumsum(np.square([0.0, *(weight for weight, _ in terms[::-1])])))[::-1]  # after none, one, ...
    enough = int(np.argmax(left <= tolerance * left[0]))
    kept = terms[: max(1, min(enough, most))]
    share = 1 / kernel.ndim
    return Separable(
        tuple(
            jnp.asarray(np.stack([weight**share * vectors[i] for weight, vectors in kept]), dtype)
            for i in range(kernel.ndim)
        )
    )


def _terms(kernel: np.ndarray) -> list[tuple[float, tuple[Any, ...]]]:
    """Orthogonal products of unit vectors, each with its weight, that sum to the kernel."""
    if kernel.ndim == 1:
        norm = float(np.linalg.norm(kernel))
        return [(norm, (kernel / norm if norm else kernel,))]
    u, s, vh = np.linalg.svd(kernel.reshape(len(kernel), -1), full_matrices=False)
    return [
        (float(s[r]) * weight, (u[:, r], *vectors))
        for r in range(len(s))
        for weight, vectors in _terms(vh[r].reshape(kernel.shape[1:]))
    ]
