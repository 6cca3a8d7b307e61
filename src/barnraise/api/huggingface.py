"""A callback that takes a `transformers.Trainer` into a swarm; the Trainer keeps its loop.

trainer = Trainer(model, arguments, train_dataset=texts, callbacks=[SwarmCallback(sync_every=50)])
trainer.train()
"""

from typing import Any

from torch import Tensor, nn

from barnraise.api.swarm import Swarm, join
from barnraise.errors import ConfigError

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise ConfigError("transformers is not installed: pip install 'barnraise[hf]'") from error


class SwarmCallback(TrainerCallback):
    """Joins when training begins, counts each optimiser step, stops the Trainer when the run is over."""

    def __init__(self, **options: Any) -> None:
        """Take the options of `barnraise.join`."""
        self.options = options
        self.swarm: Swarm | None = None
        self._loss: Tensor | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Join with the Trainer's model and optimiser, and load what the swarm agrees on."""
        self.options.setdefault("batch_size", args.train_batch_size * args.gradient_accumulation_steps)
        self.swarm = join(kwargs["model"], kwargs["optimizer"], **self.options)
        self.swarm.start()
        self._hook = kwargs["model"].register_forward_hook(self._see)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Count the step."""
        if self.swarm is not None:
            self.swarm.step(self._loss)
            control.should_training_stop |= self.swarm.is_over

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the run; the model has its last parameters."""
        if self.swarm is not None:
            self._hook.remove()
            self.swarm.leave()

    def _see(self, model: nn.Module, inputs: Any, output: Any) -> None:
        self._loss = getattr(output, "loss", None)
