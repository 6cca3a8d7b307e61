"""The optimiser of the local steps: SGD, AdamW, or Muon inside the blocks with AdamW for the rest; its learning rate."""

import math
from typing import Final

import torch
from torch import Tensor

from barnraise.config import InnerConfig
from barnraise.errors import BarnraiseError, LocalError
from barnraise.model.flat import Flat
from barnraise.train.muon import Muon

_EPSILON: Final = 1e-8
_OUTSIDE_BLOCKS: Final = ("embed", "head")


class Diverged(BarnraiseError):
    """A loss or a gradient is not finite; nothing of the step was applied."""


def lr_factor(step: int, total_steps: int, config: InnerConfig) -> float:
    """Return the share of the learning rate at a step counted from 0: linear warm-up, then a cosine down.

    Steps past ``total_steps`` stay at ``final_lr_fraction``.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = min(1.0, (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps))
    return config.final_lr_fraction + (1.0 - config.final_lr_fraction) * 0.5 * (1.0 + math.cos(math.pi * progress))


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019) over (value, gradient) views."""

    def __init__(self, tensors: dict[str, tuple[Tensor, Tensor]], config: InnerConfig) -> None:
        self._tensors = tensors
        self._betas = config.betas
        self._weight_decay = config.weight_decay
        self._num_steps = torch.zeros(1, dtype=torch.int64)
        self._means = {name: torch.zeros_like(value) for name, (value, _) in tensors.items()}
        self._squares = {name: torch.zeros_like(value) for name, (value, _) in tensors.items()}

    def step(self, lr: float) -> None:
        """Apply one step."""
        beta_1, beta_2 = self._betas
        self._num_steps += 1
        num_steps = int(self._num_steps)
        mean_share, square_share = 1 - beta_1**num_steps, 1 - beta_2**num_steps
        for name, (value, gradient) in self._tensors.items():
            mean = self._means[name].lerp_(gradient, 1 - beta_1)
            square = self._squares[name].mul_(beta_2).addcmul_(gradient, gradient, value=1 - beta_2)
            if value.dim() >= 2:
                value.mul_(1 - lr * self._weight_decay)
            value.addcdiv_(mean, square.div(square_share).sqrt_().add_(_EPSILON), value=-lr / mean_share)

    def state(self) -> dict[str, Tensor]:
        """Return both moments of each tensor and the step count; writing to them is writing to the state."""
        moments = {f"adamw.mean.{name}": value for name, value in self._means.items()}
        moments |= {f"adamw.square.{name}": value for name, value in self._squares.items()}
        return moments | {"adamw.num_steps": self._num_steps}


class SGD:
    """Plain gradient descent over (value, gradient) views; it remembers nothing."""

    def __init__(self, tensors: dict[str, tuple[Tensor, Tensor]], config: InnerConfig) -> None:
        self._tensors = tensors
        self._weight_decay = config.weight_decay

    def step(self, lr: float) -> None:
        """Apply one step."""
        for value, gradient in self._tensors.values():
            if value.dim() >= 2:
                value.mul_(1 - lr * self._weight_decay)
            value.sub_(gradient, alpha=lr)

    def state(self) -> dict[str, Tensor]:
        """Return nothing."""
        return {}


class Inner:
    """What one local step does after ``backward``: check, clip, apply."""

    def __init__(self, flat: Flat, config: InnerConfig) -> None:
        self._flat = flat
        self._config = config
        matrices = {name: view for name, view in flat.views().items() if _wants_muon(name, view[0], config)}
        others = {name: view for name, view in flat.views().items() if name not in matrices}
        self._muon = Muon(matrices, config.muon_momentum)
        self._others = SGD(others, config) if config.optimizer == "sgd" else AdamW(others, config)

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """Apply the gradients at ``factor`` times the learning rate.

        Raises:
            Diverged: the gradient's norm is not finite.
        """
        norm = float(self._flat.gradients.norm())
        if not math.isfinite(norm):
            raise Diverged(f"the gradient's norm is {norm}; lower inner.lr ({self._config.lr}) or inner.muon_lr")
        if norm > self._config.clip_norm > 0:
            self._flat.gradients.mul_(self._config.clip_norm / norm)
        self._muon.step(self._config.muon_lr * factor)
        self._others.step(self._config.lr * factor)

    def state(self) -> dict[str, Tensor]:
        """Return every tensor of the optimiser's state by name; writing to them is writing to the state."""
        return self._muon.state() | self._others.state()

    @torch.no_grad()
    def reset(self) -> None:
        """Forget everything, as before the first step."""
        for tensor in self.state().values():
            tensor.zero_()

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state` returned.

        Raises:
            LocalError: it is the state of another model or optimiser.
        """
        own = self.state()
        expected = {name: (tensor.shape, tensor.dtype) for name, tensor in own.items()}
        if expected != {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()}:
            raise LocalError("the snapshot is of another model or optimiser; remove it to start its moments afresh")
        for name, tensor in own.items():
            tensor.copy_(state[name])


def _wants_muon(name: str, value: Tensor, config: InnerConfig) -> bool:
    outside = any(part in name for part in _OUTSIDE_BLOCKS)
    return config.optimizer == "muon" and value.dim() == 2 and not outside
