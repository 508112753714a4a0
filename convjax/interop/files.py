"""safetensors files. Files that are pickles can run any code when they are read, and are refused."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from convjax.interop.own import to_tensors

PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")


def save_safetensors(model: nnx.Module | Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a model, or arrays by name, to a safetensors file; an old one stays whole until the new one is complete.

    Args:
      model: a module, saved under our names (`to_tensors`), or a dict of arrays, such as `to_torch` gives.
      path: of the file.

    Raises:
      ValueError: the path's ending is that of a pickle.
      ImportError: the package `safetensors` is missing.
      OSError: the file cannot be written.

    Example:
      >>> import tempfile, numpy as np
      >>> from convjax.interop import load_safetensors, save_safetensors
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_safetensors({"weight": np.ones((2, 3), np.float32)}, f"{folder}/x.safetensors")
      ...     load_safetensors(f"{folder}/x.safetensors")["weight"].shape
      (2, 3)
    """
    numpy_flavour = _package()
    path = _checked("save_safetensors", path)
    tensors = to_tensors(model) if isinstance(model, nnx.Module) else model
    arrays = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        numpy_flavour.save_file(arrays, part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def load_safetensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read all tensors of a safetensors file.

    Args:
      path: of the file.

    Returns:
      a dict of numpy arrays; bfloat16 as the dtype of `ml_dtypes`, which is jax's.

    Raises:
      ValueError: the file is a pickle (.bin, .pt and the like), or no whole safetensors file.
      FileNotFoundError: there is no such file.
      ImportError: the package `safetensors` is missing.

    Example: see `save_safetensors`.
    """
    numpy_flavour = _package()
    path = _checked("load_safetensors", path)
    try:
        return numpy_flavour.load_file(path)
    except Exception as error:  # its own exception, whose place has changed between versions
        if not type(error).__name__.startswith("Safetensor"):
            raise
        raise ValueError(f"load_safetensors: {path} is not a whole safetensors file: {error}. Get it again.") from None


def _checked(where: str, path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if path.suffix.lower() in PICKLES:
        there = path.with_suffix(".safetensors").name
        raise ValueError(
            f"{where}: {path.name} has the ending of a pickle, which can run any code when it is read; only "
            "safetensors files are read and written. Where you trust it, convert it with torch:\n"
            f"  safetensors.torch.save_file(torch.load({path.name!r}, weights_only=True), {there!r})"
        )
    return path


def _package() -> Any:
    try:
        import safetensors.numpy
    except ImportError:
        raise ImportError("convjax.interop: safetensors files need a package. Type pip install safetensors.") from None
    return safetensors.numpy
