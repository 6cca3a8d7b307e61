"""Parts that a model is made of and that hold no parameters' first values; the model says what those are."""

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from barnraise.config import ModelConfig


def norm(x: Tensor) -> Tensor:
    """Return ``x`` with mean 0 and variance 1 along its last dimension.

    Without gain or bias. On a CPU torch fuses this and not ``rms_norm``: 0.6 ms against 2.1 for float32[8, 128, 128],
    forward and backward, and no difference in loss was seen (docs/LOG.md).
    """
    return F.layer_norm(x, (x.size(-1),))


class Linear(nn.Linear):
    """A matrix whose first values the model draws; torch would draw its own from a generator that differs by version."""

    def reset_parameters(self) -> None:
        """Leave the memory as it is."""


class Embedding(nn.Embedding):
    """A table whose first values the model draws."""

    def reset_parameters(self) -> None:
        """Leave the memory as it is."""


def drop(module: nn.Module, x: Tensor, config: ModelConfig) -> Tensor:
    """Set a random ``config.dropout`` of ``x`` to zero while training, and scale up the rest."""
    return F.dropout(x, config.dropout) if module.training and config.dropout else x


def layer(block: Callable[..., Tensor], config: ModelConfig, *inputs: Tensor) -> Tensor:
    """Return ``block(*inputs)``; with gradient checkpointing, what it keeps for the backward pass is its inputs."""
    if config.gradient_checkpointing and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False)  # type: ignore[no-any-return]
    return block(*inputs)
