"""The tensors of a flat vector by name, and as safetensors; numpy alone, for those who must not load torch."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from barnraise.errors import ConfigError, LocalError
from barnraise.link import messages


def num_elements(layout: Sequence[messages.Tensor]) -> int:
    """Return the length of the flat vector that holds these tensors."""
    return sum(math.prod(tensor.shape) for tensor in layout)


def by_name(layout: Sequence[messages.Tensor], theta: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """Return the tensors of a flat vector, float32[d], in their own shape, by name.

    Raises:
        LocalError: the vector is of another size than the layout.
    """
    sizes = [math.prod(tensor.shape) for tensor in layout]
    if theta.shape != (sum(sizes),):
        raise LocalError(f"theta has shape {theta.shape} and the layout {sum(sizes)} elements: another model's?")
    parts = np.split(theta, np.cumsum(sizes)[:-1])
    return {tensor.name: part.reshape(tensor.shape) for tensor, part in zip(layout, parts, strict=True)}


def save_tensors(tensors: Mapping[str, NDArray[np.float32]], path: Path) -> None:
    """Write tensors as safetensors, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    whole = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    save_file(whole, partial, metadata={"format": "pt"})  # transformers refuses a file that does not say so
    partial.replace(path)


def read_tensors(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[np.float32]]:
    """Read exactly these tensors from a safetensors file, which may come from anywhere.

    Nothing is read before names, shapes and types are compared, so memory is bounded by ``shapes``.

    Raises:
        ConfigError: the file is damaged, of another layout, or holds a value that is not finite.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            _check_layout(shapes, {name: file.get_slice(name) for name in file.keys()}, path)  # noqa: SIM118
            found = {name: file.get_tensor(name) for name in shapes}
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{path}: the parameters cannot be read ({error}). Save or fetch the file again.") from error
    for name, tensor in found.items():
        if not np.isfinite(tensor).all():
            raise ConfigError(f"{path}: {name} holds values that are not finite. Save or fetch the file again.")
    return found


def _check_layout(shapes: Mapping[str, tuple[int, ...]], slices: Mapping[str, Any], path: Path) -> None:
    expected = {name: (list(shape), "F32") for name, shape in shapes.items()}
    found = {name: (part.get_shape(), part.get_dtype()) for name, part in slices.items()}
    if found != expected:
        differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        name = differing[0][:200]
        raise ConfigError(
            f"{path}: {name} is {found.get(name, 'not there')} and should be {expected.get(name, 'not there')}, "
            f"as {len(differing) - 1} others are not as config.json says. Only float32 in one file is read."
        )
