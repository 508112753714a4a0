"""Our own names: a model as a flat dict of arrays, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from convjax.interop import matching
from convjax.interop.matching import OWN, Binding


def to_tensors(model: nnx.Module) -> dict[str, np.ndarray]:
    """Parameters and running statistics of `model` by path, such as "stages.0.1.convs.0.conv.kernel".

    Args:
      model: any module of Flax; it is not changed.

    Returns:
      a dict of numpy arrays in our layouts and dtypes.

    Raises:
      TypeError: `model` is no module.

    Example:
      >>> from flax import nnx
      >>> import convjax.nnx
      >>> from convjax.interop import to_tensors
      >>> layer = convjax.nnx.Conv(3, 8, (3, 3), rngs=nnx.Rngs(0))
      >>> {name: tensor.shape for name, tensor in to_tensors(layer).items()}
      {'bias': (8,), 'kernel': (3, 3, 3, 8)}
    """
    found = matching.variables("to_tensors", model)
    return {matching.dotted(path): np.asarray(found[path].get_value()) for path in sorted(found, key=matching.dotted)}


def load_tensors(model: nnx.Module, tensors: Mapping[str, Any]) -> None:
    """Fill `model` in place with what `to_tensors` of such a model gave.

    Args:
      model: any module of Flax, an abstract one (of `nnx.eval_shape`) too; its dtypes and devices stay.
      tensors: arrays by path, such as `load_safetensors` reads.

    Raises:
      ValueError: a tensor is missing, superfluous or of another shape; nothing is changed then.
      TypeError: `model` is no module.

    Example:
      >>> from flax import nnx
      >>> from convjax.interop import load_tensors, to_tensors
      >>> from convjax.models import create
      >>> model = create("lenet5")
      >>> other = nnx.eval_shape(lambda: create("lenet5"))
      >>> load_tensors(other, to_tensors(model))
      >>> bool((other.head.kernel[...] == model.head.kernel[...]).all())
      True
    """
    bindings = []
    for path, variable in matching.variables("load_tensors", model).items():
        name = matching.dotted(path)
        bindings.append(Binding(name, variable, None, ((name, OWN),)))
    matching.fill("load_tensors", bindings, {name: np.asarray(tensor) for name, tensor in tensors.items()})
