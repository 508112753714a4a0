"""A layer or a whole network on an image that is larger than memory, tile by tile, as if it were on the whole."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from convjax._core import arguments
from convjax._tiling import plan
from convjax._tiling.growth import Trace, along
from convjax._tiling.plan import Tile
from convjax.functional import Ints

Progress = bool | Callable[[int, int], Any]


def tiled_apply(
    fn: Callable[[Array], Array],
    image: Any,
    *,
    receptive_field: Any,
    tile: Ints,
    align: Ints | None = None,
    out: Any = None,
    progress: Progress = False,
) -> Any:
    """Apply `fn` to an image in tiles: what `fn(image)` is, up to rounding, in the memory that `fn` takes for a tile.

    `fn` is anything whose outputs see a bounded part of the image, the same wherever they are: a layer or a
    convolutional network of any strides and paddings, downsampling, upsampling, or a U-Net. Neighbouring tiles overlap
    by the receptive field, and what an inner edge spoils is dropped; at the ends of the image padding is as in the
    whole. All tiles have one shape, for which `fn` is compiled once. They begin at multiples of a period, and differ in
    size from the image by multiples of it, so that all strides inside meet the same pixels, and SAME pads alike.

    Not for `fn` what sees the whole image, which is refused where it is a reduction (global pooling, squeeze and
    excitation, instance norm, batch norm in training mode) and cannot be told elsewhere (attention, coordinates,
    circular padding, unbounded offsets of a deformable convolution). Nor can a receptive field that is too small.

    Args:
      fn: takes `(*batch, *space, C)` and returns one array `(*batch, *out, C_out)`. It is compiled at each call of
        `tiled_apply`, unless it comes from `jax.jit`.
      image: `(*batch, *space, C)`, anything with `shape`, `dtype` and slicing: numpy, a `numpy.memmap`, an HDF5 or Zarr
        array. Only tiles are read, and go to the device.
      receptive_field: how many pixels of the image an output sees along each spatial axis. One int is for an image with
        one batch axis; a sequence, by its length, says how many axes are spatial. Or an object with the attributes
        `size`, `stride` and `start` (an entry for each axis, numbers or fractions): output j sees inputs from
        `j * stride + start`, `size` of them. Tiles then overlap by `size` instead of nearly twice that.
      tile: the largest spatial size that `fn` is given, one int for all axes or one each. An axis of at most this size
        is not cut.
      align: the period, one int for all axes or one each: a multiple of the strides that follow one another, 2**depth
        for a U-Net. None finds it from the shapes inside `fn`.
      out: where results are written, such as a `numpy.memmap`, of the shape of the result. A numpy array is made if
        None.
      progress: True draws a bar with tqdm; a function is called with the tiles that are done, and all of them.

    Returns:
      `out`, or a numpy array of the shape and dtype of `fn(image)`.

    Raises:
      ValueError: a tile too small for the receptive field, with the smallest that does; shapes inside `fn` that do not
        grow by whole steps with `align`; a reduction over the image; an output that does not grow with it; a stride
        other than that of `fn`; `out` of another shape.
      TypeError: `fn` is not callable or returns something other than an array; `image` is traced; `out` is of a dtype
        that the result cannot be written to.
      ImportError: `progress=True` without tqdm.

    Example:
      >>> import jax.numpy as jnp, numpy as np, convjax
      >>> from convjax.tiled import tiled_apply
      >>> image = np.random.default_rng(0).random((1, 300, 200, 3), np.float32)
      >>> fn = lambda x: convjax.conv(x, jnp.ones((5, 5, 3, 4)), stride=2)
      >>> y = tiled_apply(fn, image, receptive_field=5, tile=64)
      >>> y.shape, bool(np.allclose(y, fn(image), rtol=1e-4))
      ((1, 150, 100, 4), True)

    Source: Ronneberger, Fischer and Brox, U-Net, arXiv:1505.04597, section 2 (the overlap-tile strategy).
    """
    where = "tiled_apply"
    if not callable(fn):
        raise TypeError(f"{where}: fn is {fn!r}, which is not callable. Type a function of the image.")
    image, dtype = _read_image(where, image)
    reaches = plan.read_field(where, receptive_field, image.ndim - 2)
    ndim = len(reaches)
    if ndim < 1 or image.ndim < ndim + 1:
        raise ValueError(
            f"{where}: image has shape {image.shape}, but must be (*batch, *space, C) with {max(ndim, 1)} spatial "
            "axes, as receptive_field says. Type one receptive field for each spatial axis, and channels last."
        )
    sizes = arguments.per_axis(where, "tile", tile, ndim, minimum=1)
    aligns = (None,) * ndim if align is None else arguments.per_axis(where, "align", align, ndim, minimum=1)
    batch, space = image.shape[: -ndim - 1], image.shape[-ndim - 1 : -1]

    def trace(space: Sequence[int]) -> Trace:
        # a new function: what JAX remembers of fn itself may be of other parameters, or of training mode
        return Trace.of(lambda x: fn(x), jax.ShapeDtypeStruct((*batch, *space, image.shape[-1]), dtype))

    base = trace(space)
    result = _check_result(where, base.out, image.ndim)
    axes = []
    for axis, (size, reach) in enumerate(zip(space, reaches, strict=True)):
        rank = len(batch) + axis
        if size <= sizes[axis]:
            axes.append(plan.whole(size, result.shape[rank]))
            continue
        longer = lambda more, axis=axis: trace([n + more * (i == axis) for i, n in enumerate(space)])
        growth = along(where, axis, aligns[axis], base, longer, rank)
        axes.append(plan.cut(where, axis, size, result.shape[rank], sizes[axis], growth, reach))
    out = np.empty(result.shape, result.dtype) if out is None else _check_out(where, out, result, image)
    tiles = list(itertools.product(*axes))
    _check_tile(where, trace([t.read[1] - t.read[0] for t in tiles[0]]).out, result, tiles[0])
    run = fn if isinstance(fn, jax.stages.Wrapped) else jax.jit(lambda x: fn(x))
    crop = lambda part: np.asarray(image[_at(t.read for t in part)], dtype)
    computed = ((part, run(jnp.asarray(crop(part)))) for part in tiles)
    for done, (part, y) in enumerate(_shown(where, progress, _ahead(computed), len(tiles)), 1):
        out[_at(t.write for t in part)] = np.asarray(y)[_at(t.take for t in part)]
        if callable(progress):
            progress(done, len(tiles))
    return out


def _read_image(where: str, image: Any) -> tuple[Any, Any]:
    """Something to slice, and the dtype that JAX computes it in."""
    if isinstance(image, jax.core.Tracer):
        raise TypeError(
            f"{where}: image is traced, but tiles are read by Python, one after another. Call tiled_apply outside of "
            "jit, grad and vmap."
        )
    if isinstance(image, Array) or not all(hasattr(image, name) for name in ("shape", "dtype", "ndim")):
        image = np.asarray(image)
    dtype = np.dtype(image.dtype)
    if not jnp.issubdtype(dtype, jnp.number):
        raise TypeError(f"{where}: image must hold numbers, got dtype {dtype}. Type image.astype(np.float32).")
    return image, jax.dtypes.canonicalize_dtype(dtype.newbyteorder("="))


def _check_result(where: str, result: Any, ndim: int) -> jax.ShapeDtypeStruct:
    if not isinstance(result, jax.ShapeDtypeStruct) or len(result.shape) != ndim:
        got = jax.tree.map(lambda leaf: leaf.shape, result)
        raise TypeError(
            f"{where}: fn must return one array of {ndim} axes, (*batch, *out, C_out), as the image has them, but "
            f"returns {got}. Type a function that returns the one to be kept."
        )
    return result


def _check_out(where: str, out: Any, result: jax.ShapeDtypeStruct, image: Any) -> Any:
    if tuple(out.shape) != result.shape:
        raise ValueError(f"{where}: out has shape {tuple(out.shape)}, but fn gives {result.shape}. Type out of that.")
    if not np.can_cast(result.dtype, out.dtype, "same_kind"):
        raise TypeError(
            f"{where}: out is {out.dtype}, but fn gives {result.dtype}. Type out of dtype {result.dtype}, or "
            "convert in fn."
        )
    if isinstance(out, np.ndarray) and isinstance(image, np.ndarray) and np.may_share_memory(out, image):
        raise ValueError(f"{where}: out lies where image does, which later tiles still read. Type another array.")
    return out


def _check_tile(where: str, part: Any, result: jax.ShapeDtypeStruct, tile: Sequence[Tile]) -> None:
    """The first tile ends where its outputs do; all others have its shape."""
    expected = [t.outputs for t in tile]
    given = part.shape[-len(tile) - 1 : -1]
    if list(given) != expected:
        raise ValueError(
            f"{where}: fn gives {given} outputs for a tile of {tuple(t.read[1] for t in tile)}, but {tuple(expected)} "
            f"of {result.shape} were to be expected of it. Type a larger tile; fn treats small images in another way."
        )


def _at(intervals: Iterable[tuple[int, int]]) -> Any:
    """Index of a part of an array `(*batch, *space, C)`."""
    return (..., *(slice(*interval) for interval in intervals), slice(None))


def _ahead(items: Iterator[Any]) -> Iterator[Any]:
    """One item is begun before the last one is done with: the device computes while results are written."""
    previous: list[Any] = []
    for item in items:
        yield from previous
        previous = [item]
    yield from previous


def _shown(where: str, progress: Any, items: Iterator[Any], total: int) -> Iterator[Any]:
    """The items, with a bar if asked for."""
    if callable(progress) or not arguments.flag(where, "progress", progress):
        return items
    try:
        from tqdm.auto import tqdm
    except ImportError:
        raise ImportError(
            f"{where}: progress=True draws with tqdm, which is not installed. Type pip install tqdm, or "
            "progress=lambda done, total: print(done, total)."
        ) from None
    return tqdm(items, total=total, unit="tile")
