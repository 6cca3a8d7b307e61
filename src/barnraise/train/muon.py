"""Muon: momentum whose matrices are made orthogonal before they are applied, several of one shape at a time.

Keller Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024
(https://kellerjordan.github.io/posts/muon/).
"""

from typing import Final

import torch
from torch import Tensor

_COEFFICIENTS: Final = (3.4445, -4.7750, 2.0315)
_EPSILON: Final = 1e-7
NUM_ITERATIONS: Final = 5


def orthogonalise(matrices: Tensor, iterations: int = NUM_ITERATIONS) -> Tensor:
    """Move each matrix's singular values near 1 by a quintic Newton-Schulz iteration.

    Args:
        matrices: float32[n, rows, columns] with rows <= columns.
        iterations: 5 bring singular values into about [0.7, 1.2].

    Returns:
        float32[n, rows, columns].
    """
    a, b, c = _COEFFICIENTS
    x: Tensor = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + _EPSILON)
    for _ in range(iterations):
        gram = torch.bmm(x, x.mT)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x


class Muon:
    """The optimiser of a set of matrices, given as (value, gradient) views into a flat vector."""

    def __init__(self, matrices: dict[str, tuple[Tensor, Tensor]], momentum: float) -> None:
        self._momentum = momentum
        self._groups: dict[str, list[tuple[Tensor, Tensor, float]]] = {}
        for value, gradient in matrices.values():
            rows, columns = value.shape
            scale = max(1.0, rows / columns) ** 0.5
            # Wide and transposed tall matrices share a batch: the Gram matrix is then the smaller of the two.
            wide = (value, gradient, scale) if rows <= columns else (value.mT, gradient.mT, scale)
            key = f"{min(rows, columns)}x{max(rows, columns)}"
            self._groups.setdefault(key, []).append(wide)
        self._momenta = {
            key: torch.stack([torch.zeros_like(gradient) for _, gradient, _ in group])
            for key, group in self._groups.items()
        }

    def step(self, lr: float) -> None:
        """Apply one step; a matrix of more rows than columns moves ``sqrt(rows / columns)`` times as far."""
        for key, group in self._groups.items():
            gradients = torch.stack([gradient for _, gradient, _ in group])
            momentum = self._momenta[key].lerp_(gradients, 1 - self._momentum)
            updates = orthogonalise(gradients.lerp_(momentum, self._momentum))
            for (value, _, scale), update in zip(group, updates, strict=True):
                value.sub_(update, alpha=lr * scale)

    def state(self) -> dict[str, Tensor]:
        """Return the momenta, one tensor per shape; writing to them is writing to the state."""
        return {f"muon.momentum.{key}": momentum for key, momentum in self._momenta.items()}
