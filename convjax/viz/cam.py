"""Grad-CAM: which parts of an image speak for a class."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float
from matplotlib.figure import Figure

from convjax._core import arguments
from convjax.viz._canvas import finish, new_figure, read


def grad_cam_map(
    features: Callable[[Array], Array],
    head: Callable[[Array], Array],
    image: Float[Array, "*batch h w c"],
    *,
    target: int | None = None,
) -> Float[Array, "*batch h w"]:
    """Weigh the feature maps of a layer by how much each raises the score of a class, and keep what raises it.

    Args:
      features: the network up to a convolutional layer: `image` to `(*batch, fh, fw, C)`.
      head: the rest of it, to the scores before the softmax, `(*batch, classes)`.
      image: `(*batch, H, W, C)`, as `features` takes it.
      target: class; None is the one with the highest score, for each image.

    Returns:
      `(*batch, H, W)`, at least 0 and in the units of the score: enlarged linearly to the size of the image.

    Raises:
      ValueError: shapes are not as above, there is no such class. TypeError: `features` or `head` is not callable.

    Example:
      >>> import jax.numpy as jnp
      >>> from convjax import viz
      >>> image = jnp.zeros((8, 8, 1)).at[2, 2].set(1.0)
      >>> cam = viz.grad_cam_map(lambda x: x[::2, ::2], lambda a: a.sum((0, 1)), image, target=0)
      >>> cam.shape, bool(cam[2, 2] > cam[6, 6])
      ((8, 8), True)

    Source: Selvaraju et al., Grad-CAM, arXiv:1610.02391, equations 1 and 2.
    """
    where = "grad_cam_map"
    for name, value in (("features", features), ("head", head)):
        if not callable(value):
            raise TypeError(f"{where}: {name} must be a function of one array, got {type(value).__name__}.")
    image = arguments.array(where, "image", image)
    maps = features(image)
    batch = image.shape[:-3]
    if image.ndim < 3 or maps.ndim != image.ndim or maps.shape[:-3] != batch:
        raise ValueError(
            f"{where}: image of shape {image.shape} has features of shape {maps.shape}; both must be (*batch, height, "
            "width, channels). Type a features that returns the maps of a convolutional layer."
        )
    scores, pullback = jax.vjp(head, maps)
    if scores.shape[:-1] != batch:
        raise ValueError(f"{where}: head returned shape {scores.shape}. Type one that returns {(*batch, 'classes')}.")
    if target is None:
        chosen = jax.nn.one_hot(scores.argmax(-1), scores.shape[-1], dtype=scores.dtype)
    else:
        target = arguments.integer(where, "target", target, minimum=0)
        if target >= scores.shape[-1]:
            raise ValueError(
                f"{where}: target={target}, but head returns {scores.shape[-1]} scores. Type one of these."
            )
        chosen = jnp.zeros_like(scores).at[..., target].set(1)
    (slope,) = pullback(chosen)
    weight = slope.mean((-3, -2), keepdims=True)
    cam = jax.nn.relu((weight * maps).sum(-1))
    return jax.image.resize(cam, (*batch, *image.shape[-3:-1]), "linear")


def grad_cam(
    features: Callable[[Array], Array],
    head: Callable[[Array], Array],
    image: Float[Array, "*one h w c"],
    *,
    target: int | None = None,
    figure: Any = None,
) -> Figure:
    """Draw an image, and the same under the heat of what speaks for a class.

    Args:
      features, head, target: as `grad_cam_map`.
      image: `(H, W, C)`, or with axes of size 1 before; drawn grey for one channel, in colours for three, and scaled to
        its own range.
      figure: a matplotlib figure or subfigure to draw on; a new one if None.

    Returns:
      the figure.

    Raises:
      ValueError, TypeError: as `grad_cam_map`; several images.

    Example:
      >>> import jax.numpy as jnp
      >>> from convjax import viz
      >>> image = jnp.eye(8)[..., None]
      >>> len(viz.grad_cam(lambda x: x[::2, ::2], lambda a: a.sum((0, 1)), image).axes)  # with the scale
      3

    Source: Selvaraju et al., Grad-CAM, arXiv:1610.02391, figure 1.
    """
    where = "grad_cam"
    if math.prod(np.shape(image)[:-3]) != 1:
        raise ValueError(f"{where}: image of shape {np.shape(image)} is a batch. Type one of them, image[:1].")
    cam = np.asarray(grad_cam_map(features, head, image, target=target), np.float64).reshape(np.shape(image)[-3:-1])
    pixels = read(where, "image", jnp.reshape(image, np.shape(image)[-3:]), one="H W C")
    low, high = pixels.min(), pixels.max()
    pixels = (pixels - low) / (high - low if high > low else 1)
    if pixels.shape[-1] != 3:
        pixels = pixels.mean(-1, keepdims=True).repeat(3, -1)
    figure = new_figure(where, figure, 3.9)
    axes = figure.subplots(1, 2)
    for ax, title in zip(axes, ("image", "what speaks for the class"), strict=True):
        ax.imshow(pixels, interpolation="nearest")
        ax.set(title=title, xlabel="column")
    axes[0].set_ylabel("row")
    heat = axes[1].imshow(cam, cmap="viridis", vmin=0, vmax=cam.max() or 1, alpha=0.6, interpolation="bilinear")
    figure.colorbar(heat, ax=axes[1], label="gradient-weighted activation").solids.set(alpha=1)
    finish(figure.axes)
    return figure
