"""A module's parameters and gradients as two flat float32 vectors that the module itself computes with.

`flatten` moves every parameter into one vector and leaves views of it in the module, so that loading theta, taking the
update and clipping are each one operation. The order is that of ``named_parameters``, which is the layout a run agrees on.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from barnraise.errors import LocalError
from barnraise.link import messages

MAX_HEADER_BYTES: Final = 100_000_000
"""safetensors' own limit on its header, named here because the file may come from elsewhere."""


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


def save_parameters(flat: Flat, path: Path) -> None:
    """Write the parameters as safetensors, whole or not at all."""
    tensors = {name: value.cpu().clone() for name, (value, _) in flat.views().items()}
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial)
    partial.replace(path)


def load_parameters(flat: Flat, path: Path) -> None:
    """Read what `save_parameters` wrote, or anybody else's file of the same layout.

    Nothing is read before names, shapes and types are compared, and nothing is changed unless all of it is finite.

    Raises:
        LocalError: the file is damaged, of another layout, or holds a value that is not finite.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            _check_layout(flat, {name: file.get_slice(name) for name in file.keys()}, path)  # noqa: SIM118
            parts = [file.get_tensor(tensor.name).reshape(-1) for tensor in flat.layout]
    except (SafetensorError, OSError) as error:
        raise LocalError(f"cannot read the parameters in {path}: {error}") from error
    theta = np.concatenate(parts)
    if not np.isfinite(theta).all():
        raise LocalError(f"{path} holds parameters that are not finite: fetch or save it again")
    flat.load(theta)


def _check_layout(flat: Flat, slices: dict[str, object], path: Path) -> None:
    expected = {tensor.name: (list(tensor.shape), "F32") for tensor in flat.layout}
    found = {name: (part.get_shape(), part.get_dtype()) for name, part in slices.items()}  # type: ignore[attr-defined]
    if found != expected:
        differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise LocalError(
            f"{path} holds another model: it differs in {', '.join(differing[:3])}; check the run's config"
        )
