"""Checkpoints of a training run, by orbax: the last three, each whole or not there at all.

A checkpoint is written beside the others under a temporary name and renamed when complete, so that a killed process or
a full disk costs at most the steps since the last one. What is left of an unfinished one is removed at the next start.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from examples.image_folder import CannotTrain

KEPT = 3


class Checkpoints:
    """The checkpoints in one folder, a sub-folder a step.

    Raises:
      CannotTrain: the folder cannot be made, or belongs to a run with another recipe.
    """

    def __init__(self, folder: Path, recipe: dict[str, Any]):
        self.folder = folder.absolute()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _claim(self.folder / "recipe.json", recipe)
            self.manager = ocp.CheckpointManager(
                self.folder,
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=KEPT,
                    cleanup_tmp_directories=True,
                    # The next step reuses the memory of the state, so that it must be written before that starts.
                    enable_async_checkpointing=False,
                ),
            )
        except OSError as error:
            raise CannotTrain(f"{self.folder}: cannot be written to ({error}). Name another folder: --out.") from error

    @property
    def last(self) -> int | None:
        """The last step that was saved."""
        return self.manager.latest_step()

    def save(self, step: int, state: Any, history: dict[str, Any]) -> None:
        """Write a checkpoint, and remove the oldest beyond `KEPT`.

        Raises:
          CannotTrain: it could not be written; the earlier ones are as they were.
        """
        if step == self.last:
            return
        items = ocp.args.Composite(state=ocp.args.StandardSave(_named(state)), history=ocp.args.JsonSave(history))
        before = self.last
        try:
            self.manager.save(step, args=items)
        except (OSError, RuntimeError, ValueError) as error:  # tensorstore reports a full disk as a ValueError
            kept = "nothing was saved before" if before is None else f"step {before} is safe"
            raise CannotTrain(
                f"{self.folder}: the checkpoint of step {step} could not be written, {kept} ({_brief(error)}). "
                "Make room, or move the folder and name its new place by --out, then run the same again."
            ) from error

    def restore(self, like: Any) -> tuple[int, Any, dict[str, Any]]:
        """Step, state and history of the last checkpoint.

        Args:
          like: a state with the structure, shapes and shardings to restore to.

        Raises:
          CannotTrain: it cannot be read.
        """
        step = self.last
        names = _named(like)
        shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for name, x in names.items()}
        items = ocp.args.Composite(state=ocp.args.StandardRestore(shapes), history=ocp.args.JsonRestore())
        try:
            found = self.manager.restore(step, args=items)
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise CannotTrain(
                f"{self.folder / str(step)}: cannot be restored ({_brief(error)}). Remove it to go on from the "
                "checkpoint before it."
            ) from error
        leaves, tree = jax.tree.flatten(like)
        arrays = [
            jax.random.wrap_key_data(found.state[name], impl=jax.random.key_impl(leaf))
            if _is_key(leaf)
            else found.state[name]
            for name, leaf in zip(names, leaves, strict=True)
        ]
        return int(step or 0), jax.tree.unflatten(tree, arrays), found.history

    def close(self) -> None:
        self.manager.close()


def write_json(file: Path, value: Any) -> None:
    """Write a file as a whole or not at all."""
    unfinished = file.with_name(f".{file.name}.unfinished")
    unfinished.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(unfinished, file)


def _claim(file: Path, recipe: dict[str, Any]) -> None:
    """Note what this folder's run is, or refuse another one: resuming with other numbers would be neither of both."""
    recipe = json.loads(json.dumps(recipe))
    if not file.exists():
        write_json(file, recipe)
        return
    saved = json.loads(file.read_text())
    differing = [name for name in recipe.keys() | saved.keys() if recipe.get(name) != saved.get(name)]
    if differing:
        list_of = ", ".join(f"{name} {saved.get(name)!r} (now {recipe.get(name)!r})" for name in sorted(differing))
        raise CannotTrain(
            f"{file.parent}: holds a run with {list_of}. Run with the same to go on with it, remove the folder, or "
            "name another: --out."
        )


def _named(state: Any) -> dict[str, jax.Array]:
    """Leaves by their place in the tree; random keys as the integers that they are."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return {_place(path): jax.random.key_data(leaf) if _is_key(leaf) else leaf for path, leaf in leaves}


def _place(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _is_key(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def _brief(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
