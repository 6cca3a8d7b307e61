"""What a user's loop remembers between rounds, as safetensors on disk: optimiser, random numbers, and what else was named.

Anything that `state_dict` returns is a tree of dicts, lists and tuples over tensors, numbers and text. The tensors
become the file's, the rest its metadata, as JSON; nothing is pickled, so that a damaged or foreign file is an error and
never code.
"""

import json
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from barnraise.errors import ConfigError, LocalError

_TENSOR: Final = "tensor"
_SHARD: Final = "shard"
_TREE: Final = "tree"


class Stateful(Protocol):
    """An optimiser, a scheduler, a gradient scaler: whatever can say what it remembers."""

    def state_dict(self) -> dict[str, Any]:
        """Return all of it."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Take it up again."""
        ...


def save(parts: Sequence[Stateful], path: Path) -> None:
    """Write the state of ``parts`` and of the random generators; a crash leaves what was there or all of the new.

    Raises:
        ConfigError: a part remembers something that is neither a tensor nor plain data.
    """
    tensors: dict[str, Tensor] = {}
    tree = _encode({"parts": [part.state_dict() for part in parts], "random": _random_state()}, tensors, "state")
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial, metadata={_TREE: json.dumps(tree)})
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def load(parts: Sequence[Stateful], path: Path, sharded: Sequence[Tensor] = ()) -> None:
    """Bring ``parts`` and the random generators back to what `save` wrote.

    Args:
        parts: the same, in the same order.
        path: the file.
        sharded: parameters that lie on several ranks; a state of a shard's shape is laid out like them.

    Raises:
        LocalError: the file is missing, damaged, or of other parts.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tree = json.loads((file.metadata() or {})[_TREE])
            state = _decode(tree, {name: file.get_tensor(name) for name in file.keys()}, _layouts(sharded))  # noqa: SIM118
        states, generators = state["parts"], state["random"]
        for part, found in zip(parts, states, strict=True):
            part.load_state_dict(found)
        _set_random_state(generators)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, IndexError) as error:
        raise LocalError(
            f"cannot take up the loop's state from {path}: {type(error).__name__}: {error}. Join with the same "
            "optimizer and the same stateful objects, or remove the file to begin with fresh ones."
        ) from error


def _encode(value: object, tensors: dict[str, Tensor], where: str) -> Any:
    """Return ``value`` as JSON; tensors go into ``tensors`` and leave their name."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case DTensor():
            return {_SHARD: _put(value.to_local(), tensors), "shape": list(value.shape)}
        case Tensor():
            return {_TENSOR: _put(value, tensors)}
        case np.ndarray():
            return {"array": _put(torch.from_numpy(value.astype(np.int64)), tensors), "dtype": str(value.dtype)}
        case np.generic():
            return value.item()
        case Mapping():
            items = [[key, _encode(item, tensors, f"{where}[{key!r}]")] for key, item in value.items()]
            if not all(isinstance(key, str | int) for key, _ in items):
                raise ConfigError(f"{where} has keys that are neither text nor whole numbers; it cannot be kept.")
            return {"dict": items}
        case list() | tuple():
            items = [_encode(item, tensors, f"{where}[{number}]") for number, item in enumerate(value)]
            return {"list" if isinstance(value, list) else "tuple": items}
        case _:
            raise ConfigError(
                f"{where} is a {type(value).__name__}, which cannot be kept between rounds. Leave that object out of "
                "`stateful`, or give it a state_dict of tensors and plain data."
            )


def _put(tensor: Tensor, tensors: dict[str, Tensor]) -> str:
    name = str(len(tensors))
    tensors[name] = tensor.detach().cpu().clone().contiguous()
    return name


_Layouts = Mapping[tuple[tuple[int, ...], tuple[int, ...]], DTensor]


def _layouts(sharded: Sequence[Tensor]) -> _Layouts:
    """Return a parameter for each pair of whole and local shape: what else has both lies as it does."""
    return {
        (tuple(value.shape), tuple(value.to_local().shape)): value for value in sharded if isinstance(value, DTensor)
    }


def _decode(tree: Any, tensors: Mapping[str, Tensor], layouts: _Layouts) -> Any:
    if not isinstance(tree, dict):
        return tree
    match next(iter(tree)):
        case "dict":
            return {key: _decode(item, tensors, layouts) for key, item in tree["dict"]}
        case "list":
            return [_decode(item, tensors, layouts) for item in tree["list"]]
        case "tuple":
            return tuple(_decode(item, tensors, layouts) for item in tree["tuple"])
        case "array":
            return tensors[tree["array"]].numpy().astype(tree["dtype"])
        case "tensor":
            return tensors[tree[_TENSOR]]
        case "shard":
            local = tensors[tree[_SHARD]]
            like = layouts[tuple(tree["shape"]), tuple(local.shape)]
            return DTensor.from_local(
                local.to(like.to_local().device),
                like.device_mesh,
                like.placements,
                shape=like.shape,
                stride=like.stride(),
            )
        case kind:
            raise ValueError(f"{kind!r} is nothing that this version keeps")


def _random_state() -> dict[str, Any]:
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.random.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def _set_random_state(state: Mapping[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.random.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])
