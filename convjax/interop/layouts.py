"""The one table of layouts: for each kind of layer the name and the axes of its tensors elsewhere, and the way back.

Ours: convolution `(*k, I / g, O)`, transposed convolution `(*k, I / g, O)` or, with `transpose_kernel`,
`(*k, O / g, I)`, linear `(I, O)`. A layout reads an array of theirs as ours and writes ours as theirs; `layer` is ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax import nnx

Transform = Callable[[np.ndarray, Any], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Layout:
    """A tensor of a foreign layer: its name there, the way to ours and back, and which layers of ours can have it."""

    name: str
    read: Transform = lambda array, layer: array
    write: Transform = lambda array, layer: array
    serves: Callable[[Any], bool] = lambda layer: True

    def shape(self, shape: tuple[int, ...], layer: Any) -> tuple[int, ...]:
        """Shape there of what has `shape` here."""
        return self.write(np.broadcast_to(np.int8(0), shape), layer).shape


def _first_axes_last(array: np.ndarray, layer: Any) -> np.ndarray:
    return np.moveaxis(array, (0, 1), (-1, -2))


def _last_axes_first(array: np.ndarray, layer: Any) -> np.ndarray:
    return np.moveaxis(array, (-1, -2), (0, 1))


def _swapped(array: np.ndarray, layer: Any) -> np.ndarray:
    return array.swapaxes(-1, -2)


def _flipped(array: np.ndarray) -> np.ndarray:
    """All spatial axes backwards: a transposed convolution that is no gradient reads its kernel from the other end."""
    return np.flip(array, tuple(range(array.ndim - 2)))


def _read_transposed(array: np.ndarray, layer: Any) -> np.ndarray:
    """From `(*k, O / g, I)`, the kernel of the forward convolution."""
    if layer.transpose_kernel:
        return array
    *k, outputs, inputs = array.shape
    groups = getattr(layer, "feature_group_count", 1)
    split = array.reshape(*k, outputs, groups, inputs // groups)
    return _flipped(np.moveaxis(split, -1, -3).swapaxes(-1, -2).reshape(*k, inputs // groups, groups * outputs))


def _write_transposed(array: np.ndarray, layer: Any) -> np.ndarray:
    if layer.transpose_kernel:
        return array
    *k, inputs, outputs = array.shape
    groups = getattr(layer, "feature_group_count", 1)
    split = _flipped(array).reshape(*k, inputs, groups, outputs // groups)
    return np.moveaxis(split, -1, -3).swapaxes(-1, -2).reshape(*k, outputs // groups, groups * inputs)


def _read_depthwise(array: np.ndarray, layer: Any) -> np.ndarray:
    *k, channels, multiplier = array.shape
    return array.reshape(*k, 1, channels * multiplier)


def _write_depthwise(array: np.ndarray, layer: Any) -> np.ndarray:
    *k, _, outputs = array.shape
    return array.reshape(*k, layer.in_features, outputs // layer.in_features)


def _is_depthwise(layer: Any) -> bool:
    return layer.feature_group_count == layer.in_features


def _read_torch_transposed(array: np.ndarray, layer: Any) -> np.ndarray:
    return _read_transposed(_first_axes_last(array, layer), layer)


def _write_torch_transposed(array: np.ndarray, layer: Any) -> np.ndarray:
    return _last_axes_first(_write_transposed(array, layer), layer)


# Our attribute of a layer: what can be its tensor elsewhere, the usual one first. The first that is there with a shape
# that fits is taken. Subclasses are served as their base.
Table = Mapping[type, Mapping[str, tuple[Layout, ...]]]

TORCH: Table = {
    nnx.Conv: {
        "kernel": (Layout("weight", _first_axes_last, _last_axes_first),),  # (O, I/g, *k)
        "bias": (Layout("bias"),),
    },
    nnx.ConvTranspose: {
        "kernel": (Layout("weight", _read_torch_transposed, _write_torch_transposed),),  # (I, O/g, *k)
        "bias": (Layout("bias"),),
    },
    nnx.Linear: {"kernel": (Layout("weight", _swapped, _swapped),), "bias": (Layout("bias"),)},  # (O, I)
    nnx.BatchNorm: {
        "scale": (Layout("weight"),),
        "bias": (Layout("bias"),),
        "mean": (Layout("running_mean"),),
        "var": (Layout("running_var"),),
    },
    nnx.LayerNorm: {"scale": (Layout("weight"),), "bias": (Layout("bias"),)},
    nnx.GroupNorm: {"scale": (Layout("weight"),), "bias": (Layout("bias"),)},
    nnx.Embed: {"embedding": (Layout("weight"),)},
}

KERAS: Table = {
    nnx.Conv: {
        "kernel": (
            Layout("kernel"),  # (*k, I/g, O)
            Layout("kernel", _read_depthwise, _write_depthwise, _is_depthwise),  # DepthwiseConv: (*k, C, M)
            Layout("depthwise_kernel", _read_depthwise, _write_depthwise, _is_depthwise),  # SeparableConv
            Layout("pointwise_kernel"),
        ),
        "bias": (Layout("bias"),),
    },
    nnx.ConvTranspose: {
        "kernel": (Layout("kernel", _read_transposed, _write_transposed),),  # (*k, O, I)
        "bias": (Layout("bias"),),
    },
    nnx.Linear: {"kernel": (Layout("kernel"),), "bias": (Layout("bias"),)},  # (I, O)
    nnx.BatchNorm: {
        "scale": (Layout("gamma"),),
        "bias": (Layout("beta"),),
        "mean": (Layout("moving_mean"),),
        "var": (Layout("moving_variance"),),
    },
    nnx.LayerNorm: {"scale": (Layout("gamma"),), "bias": (Layout("beta"),)},
    nnx.GroupNorm: {"scale": (Layout("gamma"),), "bias": (Layout("beta"),)},
    nnx.Embed: {"embedding": (Layout("embeddings"),)},
}


def kind(table: Table, layer: Any) -> Mapping[str, tuple[Layout, ...]] | None:
    """Tensors of a layer of ours; None where the table does not know its kind."""
    return next((tensors for base, tensors in table.items() if isinstance(layer, base)), None)
