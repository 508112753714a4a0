"""Weights of Keras 3 in our models, and ours in its models; whatever backend Keras runs on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from flax import nnx

from convjax.interop import layouts, matching
from convjax.interop.matching import Binding
from convjax.interop.names import Names, names_of


def load_keras(
    model: nnx.Module, keras_model: Any, *, names: str | Mapping[str, str] = "keras", head: bool = True
) -> None:
    """Fill `model` in place with weights of a Keras model.

    Args:
      model: a single layer, a `VGG`, `ResNet` or `MobileNetV2` of `convjax.models`, or any module with your own
        `names`; an abstract one (of `nnx.eval_shape`) too. Its dtypes and devices stay.
      keras_model: a Keras model or layer, built; or a dict of arrays by "layer/variable", such as "conv1_conv/kernel".
      names: "keras" for those of `keras.applications`; or a dict from our paths of layers or parameters to their names,
        those in nested models joined by "/". A single layer needs none.
      head: False leaves our classifier as it is and ignores theirs, for another number of classes, or for a model with
        `include_top=False`. VGG's are all three fully connected layers.

    Raises:
      ValueError: a tensor is missing, superfluous or of another shape; nothing is changed then. Or the network or
        `names` are not known.
      TypeError: `model` is no module, `keras_model` nothing of the above.

    Example:
      >>> import numpy as np
      >>> from flax import nnx
      >>> import convjax.nnx
      >>> from convjax.interop import load_keras
      >>> layer = convjax.nnx.DepthwiseConv(4, (3, 3), channel_multiplier=2, use_bias=False, rngs=nnx.Rngs(0))
      >>> load_keras(layer, {"kernel": np.ones((3, 3, 4, 2))})
      >>> layer.kernel.shape
      (3, 3, 1, 8)
    """
    tensors, bindings = _bind("load_keras", model, keras_model, names, head)
    matching.fill("load_keras", bindings, {name: np.asarray(tensor) for name, tensor in tensors.items()})


def to_keras(
    model: nnx.Module, keras_model: Any, *, names: str | Mapping[str, str] = "keras", head: bool = True
) -> None:
    """Fill `keras_model` in place with weights of `model`.

    Args:
      keras_model: a Keras model or layer, built.
      model, names: as in `load_keras`.
      head: False leaves both classifiers as they are.

    Raises:
      ValueError, TypeError: as `load_keras`; nothing is changed then.

    Example:
      >>> from flax import nnx
      >>> import convjax.nnx
      >>> from convjax.interop import to_keras
      >>> layer = convjax.nnx.Conv(4, 8, (3, 3), rngs=nnx.Rngs(0))
      >>> to_keras(layer, keras.layers.Conv2D(8, 3))  # doctest: +SKIP
    """
    where = "to_keras"
    if isinstance(keras_model, Mapping):
        raise TypeError(f"{where}: keras_model must be a Keras model or layer, got {type(keras_model).__name__}.")
    variables, bindings = _bind(where, model, keras_model, names, head)
    chosen = matching.match(where, bindings, {name: tuple(variable.shape) for name, variable in variables.items()})
    for binding, (name, layout) in zip(bindings, chosen, strict=True):
        variables[name].assign(binding.write(layout))


def _bind(
    where: str, model: Any, keras_model: Any, names: str | Mapping[str, str], head: bool
) -> tuple[dict[str, Any], list[Binding]]:
    """Their variables by name, and our parameters."""
    known = (
        names_of(where, model, names, ("keras",))
        if layouts.kind(layouts.KERAS, model) is None
        else Names({"": ""}, head=())
    )
    if isinstance(keras_model, Mapping):
        tensors = dict(keras_model)
    elif hasattr(keras_model, "weights"):
        tensors = dict(_variables(where, keras_model))
    else:
        raise TypeError(f"{where}: keras_model must be a Keras model or layer, got {type(keras_model).__name__}.")
    if not head:
        tensors = matching.without_head(tensors, known, "/")
    return tensors, matching.bind(where, model, layouts.KERAS, known, prefix="", separator="/", head=head)


def _variables(where: str, layer: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Weights of all layers: `layer/variable`, those in nested models `model/layer/variable`."""
    if not layer.built:
        raise ValueError(
            f"{where}: the Keras layer {layer.name!r} has no weights before it is built. Type keras_model.build(shape) "
            "with the shape of its input, None for the batch."
        )
    inner = getattr(layer, "layers", None)
    if inner is None:
        yield from ((prefix + variable.name, variable) for variable in layer.weights)
        return
    for each in inner:
        yield from _variables(where, each, f"{prefix}{each.name}/")
