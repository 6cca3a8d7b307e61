"""The trainer's state at a round's end, as safetensors on disk: whole or not there at all."""

import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from barnraise.errors import LocalError


def save(state: dict[str, Tensor], path: Path) -> None:
    """Write the tensors to ``path``; a crash at any moment leaves what was there or all of the new."""
    partial = path.with_name(path.name + ".partial")
    save_file({name: tensor.cpu().contiguous() for name, tensor in state.items()}, partial)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def load(path: Path) -> dict[str, Tensor]:
    """Read what `save` wrote.

    Raises:
        LocalError: the file is missing or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise LocalError(
            f"cannot read the snapshot {path}: {error}; remove it to start the inner optimiser's moments afresh"
        ) from error
