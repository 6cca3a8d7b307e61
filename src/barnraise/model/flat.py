"""A module's parameters and gradients as two flat float32 vectors that the module itself computes with.

`flatten` moves every parameter into one vector and leaves views of it in the module, so that loading theta, taking the
update and clipping are each one operation. The order is that of ``named_parameters``, which is the layout a run agrees on.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn

from barnraise.errors import ConfigError, LocalError
from barnraise.link import messages


def layout(model: nn.Module) -> tuple[messages.Tensor, ...]:
    """Return name and shape of each parameter, in the order of the flat vector."""
    return tuple(messages.Tensor(name, tuple(value.shape)) for name, value in model.named_parameters())


@dataclass(frozen=True, kw_only=True, slots=True)
class Flat:
    """The vectors behind a module; writing to them is writing to its parameters."""

    layout: tuple[messages.Tensor, ...]
    values: Tensor
    """float32[d] on the module's device."""
    gradients: Tensor
    """float32[d]; ``backward`` adds to it, so clear it before."""

    def views(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return each parameter's value and gradient, in their own shape, by name."""
        sizes = [int(np.prod(tensor.shape)) for tensor in self.layout]
        pairs = zip(torch.split(self.values, sizes), torch.split(self.gradients, sizes), strict=True)
        return {
            tensor.name: (value.view(tensor.shape), gradient.view(tensor.shape))
            for tensor, (value, gradient) in zip(self.layout, pairs, strict=True)
        }

    def load(self, theta: NDArray[np.float32]) -> None:
        """Set the parameters to ``theta``, float32[d].

        Raises:
            LocalError: it has another size.
        """
        if theta.shape != tuple(self.values.shape):
            raise LocalError(
                f"theta has shape {theta.shape} and the model {tuple(self.values.shape)}: another model's?"
            )
        self.values.copy_(torch.from_numpy(np.array(theta, dtype=np.float32)))

    def numpy(self) -> NDArray[np.float32]:
        """Return a copy of the parameters, float32[d]."""
        copy: NDArray[np.float32] = self.values.cpu().numpy().copy()
        return copy


def flatten(model: nn.Module) -> Flat:
    """Move the model's parameters and gradients into two flat vectors and make them views of those.

    Raises:
        LocalError: a parameter is not float32; cast the model first.
    """
    named = list(model.named_parameters())
    for name, parameter in named:
        if parameter.dtype != torch.float32:
            raise LocalError(f"parameter {name} is {parameter.dtype}; only float32 is trained: cast the model first")
    with torch.no_grad():
        values = torch.cat([parameter.reshape(-1) for _, parameter in named])
    flat = Flat(layout=layout(model), values=values, gradients=torch.zeros_like(values))
    views = flat.views()
    for name, parameter in named:
        parameter.data, parameter.grad = views[name]
    return flat


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
