"""A callback that takes a `lightning.Trainer` into a swarm; the Trainer keeps its loop.

trainer = Trainer(max_epochs=3, callbacks=[SwarmCallback(sync_every=50)])
trainer.fit(module, loader)
"""

from typing import Any

from barnraise.api.swarm import Swarm, join
from barnraise.errors import ConfigError

try:
    from lightning.pytorch import Callback
except ImportError as error:
    raise ConfigError("lightning is not installed: pip install 'barnraise[lightning]'") from error


class SwarmCallback(Callback):
    """Joins when training begins, counts each optimiser step, stops the Trainer when the run is over."""

    def __init__(self, **options: Any) -> None:
        """Take the options of `barnraise.join`."""
        self.options = options
        self.swarm: Swarm | None = None
        self._steps = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Join with the module and its optimiser, and load what the swarm agrees on."""
        if len(trainer.optimizers) != 1:
            raise ConfigError(f"the module has {len(trainer.optimizers)} optimizers; a swarm trains with one.")
        self._steps = trainer.global_step
        self.swarm = join(pl_module, trainer.optimizers[0], **self.options)
        self.swarm.start()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the step, if the batch ended one."""
        if self.swarm is None or trainer.global_step == self._steps:
            return
        self._steps = trainer.global_step
        self.swarm.step(outputs["loss"] if isinstance(outputs, dict) else outputs)
        trainer.should_stop |= self.swarm.is_over

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Leave the run; the module has its last parameters."""
        if self.swarm is not None:
            self.swarm.leave()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave at once."""
        if self.swarm is not None:
            self.swarm.abort()
