"""The flat vector that a file of parameters stands for, bit for bit, so that it can be compared with a hash; no torch.

What `barnraise export` writes of the built-in model is not what was trained, bit for bit: transformers wants the means
taken out of some tensors (`model.conversion`). So those lie beside it as they were, in `UNCENTRED_FILE`. Here both are
read: the vector is put together from the exact tensors, and what takes their place in the model's own file must be what
the conversion makes of them. Whatever else is in that file must be exactly what was trained; nothing may be there besides.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from barnraise.config import ModelConfig
from barnraise.errors import ConfigError
from barnraise.link.messages import Tensor, layout_digest
from barnraise.model.conversion import gains, layout, to_transformers
from barnraise.model.tensors import num_elements, read_tensors

UNCENTRED_FILE: Final = "uncentred.safetensors"
_SLACK: Final = 1e-12
"""Of a tensor's largest element: how far a mean in float64 may be off where it is summed up in another order."""

Array = NDArray[np.float32]


def uncentred(config: ModelConfig, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Return those tensors that the conversion for transformers changes, as they are."""
    converted = to_transformers(config, tensors)
    return {name: tensor for name, tensor in tensors.items() if not np.array_equal(tensor, converted[name])}


def layout_of(config: ModelConfig, described: bytes) -> tuple[Tensor, ...]:
    """Return which number of a run's flat vector belongs to which tensor.

    Args:
        config: the run's model.
        described: of a model of the user's own, msgpack of its `Tensor`; may come from anywhere.

    Raises:
        ConfigError: it is no layout, or not the one that the run was begun with.
    """
    if config.architecture == "lfm2":
        return layout(config)
    try:
        found = msgspec.msgpack.decode(described, type=tuple[Tensor, ...])
    except msgspec.DecodeError as error:
        raise ConfigError(
            f"names and shapes of the run's own model are not there ({error}). Export it from a peer that trained it."
        ) from error
    if config.layout and layout_digest(found) != config.layout:
        raise ConfigError("the names and shapes of the tensors are not those of the run's model. Export it again.")
    return found


def flat_of(path: Path, config: ModelConfig, described: bytes = b"") -> Array:
    """Return the flat vector, float32[d], that a file of parameters stands for.

    Args:
        path: safetensors, as `barnraise export` or `barnraise train` wrote them; or the bare vector, as a peer keeps it.
        config: the run's model; memory is bounded by its shape.
        described: names and shapes of a model of the user's own.

    Raises:
        ConfigError: the file cannot be read, has other tensors than the run's model, or was not made from the exact
            tensors beside it.
    """
    if path.suffix != ".safetensors":
        return _bare(path)
    named = layout_of(config, described)
    shapes = {tensor.name: tensor.shape for tensor in named}
    ones = gains(config) if config.architecture == "lfm2" else {}
    if ones and ones.keys() & _names(path):
        return _joined(named, _exact(path, config, shapes, ones))
    return _joined(named, read_tensors(path, shapes))


def _exact(
    path: Path, config: ModelConfig, shapes: Mapping[str, tuple[int, ...]], ones: Mapping[str, tuple[int, ...]]
) -> dict[str, Array]:
    """Return the exact tensors behind those in transformers' form."""
    beside = path.with_name(UNCENTRED_FILE)
    found = read_tensors(path, {**shapes, **ones})
    changed = read_tensors(beside, {name: shapes[name] for name in sorted(_names(beside) & shapes.keys())})
    exact = {name: changed.get(name, found[name]) for name in shapes}
    for name, expected in to_transformers(config, exact).items():
        slack = np.spacing(np.abs(expected)) + _SLACK * np.abs(expected).max(initial=0.0)
        close = np.abs(found[name] - expected) <= slack if name in changed else found[name] == expected
        if not close.all():
            raise ConfigError(
                f"{path}: {name} is not what was made of the run's parameters: the file was changed. Export it again."
            )
    return exact


def _joined(named: Sequence[Tensor], tensors: Mapping[str, Array]) -> Array:
    flat = np.empty(num_elements(named), np.float32)
    start = 0
    for tensor in named:
        part = tensors[tensor.name].reshape(-1)
        flat[start : start + len(part)] = part
        start += len(part)
    return flat


def _names(path: Path) -> set[str]:
    try:
        with safe_open(path, framework="numpy") as file:
            return set(file.keys())
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{path}: the parameters cannot be read ({error}). Save or fetch the file again.") from error


def _bare(path: Path) -> Array:
    try:
        return np.fromfile(path, dtype="<f4").astype(np.float32, copy=False)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}). Name the model's file.") from error
