"""Weights of torch in our models, and ours under torch's names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from convjax.interop import layouts, matching
from convjax.interop.files import load_safetensors
from convjax.interop.names import Names, names_of

IMPLEMENTATIONS = ("transformers", "torchvision")
IGNORED = "num_batches_tracked"  # torch counts steps in each batch norm; Flax does not


def load_torch(
    model: nnx.Module, weights: Any, *, names: str | Mapping[str, str] = "transformers", head: bool = True
) -> None:
    """Fill `model` in place with weights of a torch model.

    Args:
      model: a single layer, a `ResNet`, `ConvNeXt` or `MobileNetV2` of `convjax.models`, or any module with your own
        `names`; an abstract one (of `nnx.eval_shape`) too. Its dtypes and devices stay.
      weights: a torch module, a state dict (of tensors or arrays), or the path of a safetensors file.
      names: whose names these are, "transformers" (Hugging Face) or "torchvision" (ResNet); or a dict from our paths of
        layers or parameters to theirs. A single layer needs none.
      head: False leaves our classifier as it is and ignores theirs, for another number of classes, or for weights that
        have none.

    Raises:
      ValueError: a tensor is missing, superfluous or of another shape; nothing is changed then. Or the network or
        `names` are not known, or the file is a pickle.
      TypeError: `model` is no module, `weights` nothing of the above.

    Example:
      >>> import numpy as np
      >>> from flax import nnx
      >>> import convjax.nnx
      >>> from convjax.interop import load_torch
      >>> layer = convjax.nnx.Conv(3, 8, (5, 5), rngs=nnx.Rngs(0))
      >>> load_torch(layer, {"weight": np.ones((8, 3, 5, 5)), "bias": np.zeros(8)})
      >>> layer.kernel.shape
      (5, 5, 3, 8)
    """
    where = "load_torch"
    tensors = {name: _array(where, name, x) for name, x in _state(where, weights).items() if not name.endswith(IGNORED)}
    known = _names(where, model, names)
    prefix = known.prefix if any(name.startswith(known.prefix) for name in tensors) else ""
    if not head:
        tensors = matching.without_head(tensors, known, ".")
    bindings = matching.bind(where, model, layouts.TORCH, known, prefix=prefix, separator=".", head=head)
    matching.fill(where, bindings, tensors)


def to_torch(
    model: nnx.Module, *, names: str | Mapping[str, str] = "transformers", head: bool = True
) -> dict[str, np.ndarray]:
    """Weights of `model` in torch's layouts, under torch's names.

    Args:
      model, names: as in `load_torch`.
      head: False leaves the classifier out, and names the rest as the network without it does (`ResNetModel`).

    Returns:
      a dict of numpy arrays in our dtypes; `torch_model.load_state_dict({name: torch.tensor(x) for name, x in
      result.items()})` takes all of it.

    Raises:
      ValueError: the network or `names` are not known.
      TypeError: `model` is no module.

    Example:
      >>> from flax import nnx
      >>> import convjax.nnx
      >>> from convjax.interop import to_torch
      >>> layer = convjax.nnx.Conv(4, 8, (3, 3), feature_group_count=4, use_bias=False, rngs=nnx.Rngs(0))
      >>> {name: tensor.shape for name, tensor in to_torch(layer).items()}
      {'weight': (8, 1, 3, 3)}
    """
    known = _names("to_torch", model, names)
    prefix = known.prefix if head else ""
    bindings = matching.bind("to_torch", model, layouts.TORCH, known, prefix=prefix, separator=".", head=head)
    return dict(binding.tensor() for binding in bindings)


def _names(where: str, model: Any, names: str | Mapping[str, str]) -> Names:
    if layouts.kind(layouts.TORCH, model) is not None:
        return Names({"": ""}, head=())
    return names_of(where, model, names, IMPLEMENTATIONS)


def _state(where: str, weights: Any) -> Mapping[str, Any]:
    if isinstance(weights, str | os.PathLike):
        return load_safetensors(Path(weights))
    if hasattr(weights, "state_dict"):
        return weights.state_dict()
    if isinstance(weights, Mapping):
        return weights
    raise TypeError(
        f"{where}: weights must be a torch module, a state dict or the path of a safetensors file, got "
        f"{type(weights).__name__}."
    )


def _array(where: str, name: str, tensor: Any) -> np.ndarray:
    """numpy's view of a tensor; torch has none for bfloat16, whose values float32 holds exactly."""
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu()
        return (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
    if not hasattr(tensor, "shape"):
        raise TypeError(f"{where}: weights[{name!r}] must be a tensor or an array, got {type(tensor).__name__}.")
    return np.asarray(tensor)
