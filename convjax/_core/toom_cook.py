"""Toom-Cook: products of short polynomials from their values at points, the matrices of Winograd's minimal filtering.

Source: Lavin and Gray, arXiv:1509.09308; Barabasz et al., arXiv:1803.10986, for the points.
"""

from __future__ import annotations

import functools
import math
from fractions import Fraction

import numpy as np

POINTS = tuple(Fraction(p) for p in ("0", "1", "-1", "2", "-2", "1/2", "-1/2", "4", "-4", "1/4", "-1/4"))


@functools.cache
def transforms(m: int, r: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """B^T, G and A^T of F(m, r): `A^T @ ((G @ kernel) * (B^T @ data))` are m outputs of r taps on m + r - 1 data.

    The product of two polynomials, of r and of m coefficients, is known from its values at m + r - 2 points and its
    leading coefficient (the point at infinity) by Lagrange's formula; transposed, this is a correlation. Denominators
    go to the kernel. Exact in fractions, rounded once.
    """
    count = m + r - 1
    points = POINTS[: count - 1]
    rows_b, rows_g, columns_a = [], [], []
    for i, point in enumerate(points):
        others = points[:i] + points[i + 1 :]
        denominator = math.prod((point - other for other in others), start=Fraction(1))
        rows_b.append([*polynomial(others), Fraction(0)])
        rows_g.append([point**j / denominator for j in range(r)])
        columns_a.append([point**j for j in range(m)])
    rows_b.append(polynomial(points))
    rows_g.append([Fraction(j == r - 1) for j in range(r)])
    columns_a.append([Fraction(j == m - 1) for j in range(m)])
    as_array = lambda rows: np.array([[float(value) for value in row] for row in rows])
    return as_array(rows_b), as_array(rows_g), as_array(columns_a).T


def polynomial(roots: tuple[Fraction, ...]) -> list[Fraction]:
    """Coefficients of `prod(x - root)`, the constant first."""
    coefficients = [Fraction(1)]
    for root in roots:
        coefficients = [
            a - root * b for a, b in zip([Fraction(0), *coefficients], [*coefficients, Fraction(0)], strict=True)
        ]
    return coefficients
