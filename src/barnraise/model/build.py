"""Which module an architecture's name stands for; the user's own models are not made here."""

from torch import nn

from barnraise.config import ModelConfig, check_heads
from barnraise.errors import ConfigError
from barnraise.model.lfm2 import LFM2


def build(config: ModelConfig, seed: int) -> nn.Module:
    """Return the model with the first parameters that ``seed`` draws.

    Raises:
        ConfigError: the architecture is the user's own, or its heads cannot be rotated.
    """
    match config.architecture:
        case "lfm2":
            check_heads(config, "the model's shape")
            return LFM2(config, seed)
        case "custom":
            raise ConfigError(
                "model.architecture = custom: only the program that began the run has the model. "
                "Run that program, or begin a run with model.architecture = lfm2."
            )
