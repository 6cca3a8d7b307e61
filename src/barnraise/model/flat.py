"""A module's parameters and gradients as two flat float32 vectors that the module itself computes with.

`flatten` moves every parameter into one vector and leaves views of it in the module, so that loading theta, taking the
update and clipping are each one operation. The order is that of ``named_parameters``, which is the layout a run agrees on.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from barnraise.errors import LocalError
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
