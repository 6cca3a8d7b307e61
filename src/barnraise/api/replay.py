"""What it takes to train a round once more, and to see whether the same comes out; it looks at one node alone."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from barnraise.api.parameters import Parameters
from barnraise.api.ranks import Ranks
from barnraise.ids import EMPTY_DIGEST, Digest, short
from barnraise.swarm.workspace import root_of

Loss = Callable[[nn.Module, Any], Tensor]
"""``(model, batch) -> mean loss``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Validation:
    """Whether a computation holds, and why not."""

    is_valid: bool
    reason: str

    def __bool__(self) -> bool:
        return self.is_valid


@dataclass(frozen=True, kw_only=True, slots=True)
class _Moment:
    """All that a step of training depends on, copied."""

    model: dict[str, Tensor]
    is_training: bool
    optimizer: dict[str, Any]
    random: Tensor
    random_cuda: tuple[Tensor, ...]


class Replay:
    """A round as it was trained: the state before it, its batches, and what came out.

    Args:
        model: as it is before the first step.
        optimizer: likewise.
        loss: ``(model, batch) -> mean loss``.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, loss: Loss) -> None:
        self._model, self._optimizer, self._loss = model, optimizer, loss
        self._before = self._moment()
        self._batches: list[Any] = []
        self._after = EMPTY_DIGEST

    def add(self, batch: Any) -> None:
        """Note the batch of a step."""
        self._batches.append(batch)

    def finish(self) -> None:
        """Note what the round came to: the model as it is now."""
        self._after = self._digest()

    def compare(self) -> Validation:
        """Train the round again and tell whether the parameters have the same bits; everything is as before then."""
        now = self._moment()
        try:
            self._go_to(self._before)
            for batch in self._batches:
                train_step(self._model, self._optimizer, self._loss, batch)
            again = self._digest()
        finally:
            self._go_to(now)
        steps = len(self._batches)
        if again != self._after:
            return Validation(
                is_valid=False,
                reason=f"{steps} steps led to parameters {short(self._after)} and, once more, to {short(again)}",
            )
        return Validation(is_valid=True, reason=f"{steps} steps led to parameters {short(again)} twice")

    def _moment(self) -> _Moment:
        return _Moment(
            model={name: value.detach().clone() for name, value in self._model.state_dict().items()},
            is_training=self._model.training,
            optimizer=copy.deepcopy(self._optimizer.state_dict()),
            random=torch.get_rng_state(),
            random_cuda=tuple(torch.cuda.get_rng_state_all()) if torch.cuda.is_available() else (),
        )

    def _go_to(self, moment: _Moment) -> None:
        self._model.load_state_dict(moment.model)
        self._model.train(moment.is_training)
        self._optimizer.zero_grad()
        self._optimizer.load_state_dict(copy.deepcopy(moment.optimizer))  # else steps would write into our copy
        torch.set_rng_state(moment.random)
        if moment.random_cuda:
            torch.cuda.set_rng_state_all(list(moment.random_cuda))

    def _digest(self) -> Digest:
        return root_of(Parameters(self._model, Ranks()).read())


def train_step(model: nn.Module, optimizer: Optimizer, loss: Loss, batch: Any) -> Tensor:
    """Take one step of the optimiser and return the loss, detached."""
    model.train()
    value = loss(model, batch)
    value.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    optimizer.zero_grad()
    return value.detach()
