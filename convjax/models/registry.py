"""Networks by name."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

from convjax._core import arguments
from convjax.models import convnext, dcgan, lenet, mobilenet, resnet, textcnn, unet, vgg, wavenet
from convjax.models.blocks import Network

FAMILIES: Mapping[str, Mapping[str, Callable[..., Network]]] = {
    "convnext": convnext.VARIANTS,
    "dcgan": dcgan.VARIANTS,
    "lenet": lenet.VARIANTS,
    "mobilenet": mobilenet.VARIANTS,
    "resnet": resnet.VARIANTS,
    "textcnn": textcnn.VARIANTS,
    "unet": unet.VARIANTS,
    "vgg": vgg.VARIANTS,
    "wavenet": wavenet.VARIANTS,
}


def list_models(family: str | None = None) -> list[str]:
    """Names that `create` knows, sorted.

    Args:
      family: only those of one family: convnext, dcgan, lenet, mobilenet, resnet, textcnn, unet, vgg or wavenet.

    Returns:
      a list of names.

    Raises:
      ValueError: an unknown family.

    Example:
      >>> from convjax.models import list_models
      >>> list_models("convnext")
      ['convnext_base', 'convnext_large', 'convnext_small', 'convnext_tiny']
    """
    if family is not None:
        return sorted(FAMILIES[arguments.choice("list_models", "family", family, tuple(FAMILIES))])
    return sorted(name for variants in FAMILIES.values() for name in variants)


def create(name: str, *, rngs: nnx.Rngs | None = None, **options: Any) -> Network:
    """Build a network by its name, with new random weights.

    Args:
      name: one of `list_models()`.
      rngs: keys for the initial weights and for dropout; `nnx.Rngs(0)` unless given.
      options: of the network's class, such as `num_classes`, `in_channels`, `dtype`; they win over the variant's.

    Returns:
      the network, in training mode as every new one of Flax.

    Raises:
      ValueError: an unknown name, with the closest ones; what the network's class refuses.
      TypeError: an option that the network's class does not have.

    Example:
      >>> from convjax.models import create
      >>> model = create("lenet5", num_classes=26)
      >>> model.head.out_features
      26
    """
    known = {key: variant for variants in FAMILIES.values() for key, variant in variants.items()}
    if name not in known:
        near = difflib.get_close_matches(str(name).lower(), known, n=3, cutoff=0.4)
        hint = f"Did you mean {' or '.join(map(repr, near))}?" if near else "Type one of list_models()."
        raise ValueError(f"create: name={name!r} is not known. {hint}")
    return known[name](rngs=nnx.Rngs(0) if rngs is None else rngs, **options)


def parameter_count(model: nnx.Module) -> int:
    """Number of trained parameters; batch statistics are none.

    Args:
      model: any module of Flax; an abstract one, of `nnx.eval_shape`, takes no memory.

    Returns:
      the sum of the sizes of all `nnx.Param`.

    Example:
      >>> from flax import nnx
      >>> from convjax.models import create, parameter_count
      >>> parameter_count(nnx.eval_shape(lambda: create("resnet50")))
      25557032
    """
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
