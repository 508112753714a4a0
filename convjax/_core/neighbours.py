"""What the formula of the cost model misses, learnt from how far it was off on similar problems.

The mean of a Gaussian process for each algorithm, on the logarithm of time over formula: a sum over the measured
problems of their similarity to this one times a weight that `python -m benchmarks.fit` finds. Far from everything
measured it is 0, and the formula stands, made longer by `CAUTION`: what is chosen is the least of many estimates, so
one that is too small for want of measurements would win too often. Source: Rasmussen and Williams, Gaussian Processes
for Machine Learning (2006), equations 2.25 and 4.17.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from convjax._core.geometry import Geometry

# Sizes e**2 = 7 times apart are a unit of distance, as is each yes against no; 1.4 and 2.8 chose as well.
UNIT = 2.0
# Logarithm by which an estimate with nothing similar measured is longer: formulas are off by factors of e**0.63, either
# way, on layers that they have not seen, and the mean of a log-normal variable is e**(0.63**2 / 2) times its median.
CAUTION = 0.2

Row = dict[str, Any]  # "sizes" of a measured problem, and its "weights" by algorithm


class Neighbours:
    """Measured problems, and what each says of the algorithms that were timed on it."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.places = np.array([place(row["sizes"]) for row in rows])
        self.names = sorted({name for row in rows for name in row["weights"]})
        self.weights = np.array([[row["weights"].get(name, 0.0) for name in self.names] for row in rows])
        self.timed = np.array([[name in row["weights"] for name in self.names] for row in rows])

    def corrections(self, geometry: Geometry) -> dict[str, float]:
        """By algorithm, the logarithm of the factor on the formula; nothing for those that were never timed."""
        if not self.names:
            return {}
        alike = similarity(place(sizes(geometry)), self.places)
        logs = alike @ self.weights + CAUTION * (1 - (alike[:, None] * self.timed).max(0) ** 2)
        return dict(zip(self.names, logs.tolist(), strict=True))


@functools.lru_cache(2**13)
def sizes(g: Geometry) -> tuple[int, ...]:
    """What makes problems alike: ten sizes, then five kinds. The window is the output's in a kernel gradient."""
    spec, window, positions, is_narrow = g.spec, g.taps, g.positions, g.dtype.itemsize == 2
    if g.is_kernel_gradient:
        window, positions = positions, window
    extents = (spec.strides, spec.lhs_dilation, spec.rhs_dilation)
    counts = (g.batch, g.features, g.outputs, spec.groups, window, positions, math.prod(g.lhs[1:-1]))
    kinds = (g.is_kernel_gradient, spec.batch_groups > 1, is_narrow, not is_narrow and g.dtype != np.float32)
    return (*counts, *map(math.prod, extents), spec.ndim, *map(int, kinds))


def place(found: Sequence[int]) -> np.ndarray:
    """Sizes as a point, whose distances say how alike problems are."""
    return np.array([*(math.log(max(1, size)) / UNIT for size in found[:10]), *found[10:]])


def similarity(here: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Matern's of order 3/2 to each place: 1 where that is the same, a half at 0.97 units."""
    distances = math.sqrt(3) * np.sqrt(np.square(places - here).sum(-1))
    return (1 + distances) * np.exp(-distances)
