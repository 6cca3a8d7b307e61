"""A learning rate that follows the step the swarm agreed on, whoever joined when; torch's scheduler underneath."""

from collections.abc import Callable

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from barnraise.config import InnerConfig
from barnraise.train.inner import lr_factor


class AgreedSchedule(LambdaLR):
    """Linear warm-up, then a cosine; a function of the agreed step alone, so it has no state to keep."""

    def __init__(
        self, optimizer: Optimizer, now: Callable[[], int], warmup_steps: int, total_steps: int, final_fraction: float
    ) -> None:
        """Set the learning rate to that of the step that ``now`` returns."""
        curve = InnerConfig(warmup_steps=warmup_steps, final_lr_fraction=final_fraction)
        self._factor: Callable[[], float] = lambda: lr_factor(now(), total_steps, curve)
        super().__init__(optimizer, lambda _: self._factor())

    def follow(self) -> None:
        """Set the learning rate to that of the agreed step; `step` does the same."""
        factor = self._factor()
        for group, highest in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(highest * factor)
            else:
                group["lr"] = highest * factor
        self._last_lr = [highest * factor for highest in self.base_lrs]
