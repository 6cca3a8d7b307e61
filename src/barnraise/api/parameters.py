"""A user's module seen as one flat float32 vector: what a swarm agrees on. The module keeps its own tensors.

The vector holds the trainable parameters in the order of ``named_parameters``, then the persistent buffers of floating
point (running statistics), each once, however often it is tied. What is not in it stays each peer's own: parameters
with ``requires_grad=False``, counters, buffers that are not saved. Names are those of the user's module, whatever wraps
it (`torch.compile`, DDP, FSDP2), so that peers may wrap it differently.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from barnraise.api.ranks import Ranks
from barnraise.errors import ConfigError
from barnraise.link import messages

_WRAPPINGS = ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")

Float32 = NDArray[np.float32]


class Parameters:
    """The tensors of one module that take part."""

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        """Find them; nothing is moved or copied.

        Raises:
            ConfigError: there is nothing to train, or a parameter that cannot be averaged.
        """
        model = unwrapped(model)
        trainable = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
        buffers = list(_saved_buffers(model))
        if not trainable:
            raise ConfigError("the model has no parameter with requires_grad=True. Unfreeze what shall be trained.")
        for name, value in trainable:
            _check(name, value)
        self._ranks = ranks
        self._tensors = [value for _, value in [*trainable, *buffers]]
        self.layout = tuple(
            messages.Tensor(_plain(name), tuple(value.shape), number >= len(trainable))
            for number, (name, value) in enumerate([*trainable, *buffers])
        )
        self.size = sum(value.numel() for value in self._tensors)
        """Elements of the flat vector."""

    @property
    def device(self) -> torch.device:
        """Where the first of them lies."""
        return self._tensors[0].device

    @property
    def sharded(self) -> list[Tensor]:
        """Return those that lie on several ranks, in parts."""
        return [value for value in self._tensors if isinstance(value, DTensor)]

    @property
    def dtype(self) -> str:
        """What the first of them is stored in, as ``float32``."""
        return str(self._tensors[0].dtype).removeprefix("torch.")

    @property
    def digest(self) -> str:
        """Return BLAKE3 (hex) of names, shapes and kinds, which all peers of a run have in common."""
        return messages.layout_digest(self.layout)

    @torch.no_grad()
    def read(self) -> Float32:
        """Return a copy of the values, float32[d]. Of several ranks all must call this; only the first's is whole."""
        vector = np.empty(self.size, dtype=np.float32)
        for part, value in self._parts(vector):
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            if self._ranks.is_first:
                torch.from_numpy(part).copy_(whole.detach().reshape(-1))
        return vector

    @torch.no_grad()
    def write(self, vector: Float32 | None) -> Float32:
        """Set the tensors in place to the first rank's ``vector``, float32[d]; return what they took of it.

        That is ``vector`` rounded to each tensor's own type: the base to take differences from.
        """
        loaded = np.zeros(self.size, dtype=np.float32) if vector is None else vector.copy()
        for part, value in self._parts(loaded):
            given = torch.from_numpy(part)
            if isinstance(value, DTensor):  # scattered from the first rank of its mesh
                new = given.to(value.dtype).view(value.shape).to(value.to_local().device)
                value.copy_(distribute_tensor(new, value.device_mesh, value.placements))
            else:
                new = self._ranks.share(given).to(value.dtype).view(value.shape)
                value.copy_(new)
            given.copy_(new.reshape(-1))
        return loaded

    def _parts(self, vector: Float32) -> Iterator[tuple[Float32, Tensor]]:
        """Go through the tensors, each with its view of the vector."""
        start = 0
        for value in self._tensors:
            stop = start + value.numel()
            yield vector[start:stop], value
            start = stop


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the user's own module, out of `torch.compile` and DDP."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def _saved_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Return the buffers of floating point that the module itself would save."""
    saved = {id(value) for value in model.state_dict(keep_vars=True).values()}
    for name, value in model.named_buffers():
        if value.is_floating_point() and id(value) in saved:
            yield name, value


def _check(name: str, value: Tensor) -> None:
    if nn.parameter.is_lazy(value):
        raise ConfigError(f"parameter {name} has no shape yet. Send one batch through the model before you join.")
    if value.is_meta:
        raise ConfigError(f"parameter {name} is on the meta device. Materialise the model before you join.")
    if not value.is_floating_point():
        raise ConfigError(f"parameter {name} is {value.dtype}, which cannot be averaged. Freeze it or cast it.")


def _plain(name: str) -> str:
    for wrapping in _WRAPPINGS:
        name = name.replace(wrapping, "")
    return name
