"""Which module an architecture's name stands for; the user's own models are not made here."""

from torch import nn

from barnraise.config import ModelConfig
from barnraise.errors import ConfigError
from barnraise.model import gpt, stock


def build(config: ModelConfig, seed: int) -> nn.Module:
    """Return the model with the first parameters that ``seed`` draws.

    Raises:
        ConfigError: the architecture is the user's own, or its heads cannot be rotated.
    """
    match config.architecture:
        case "gpt":
            return gpt.GPT(config, seed)
        case "stock":
            if config.hidden_size // config.num_heads % 2:
                raise ConfigError(
                    f"model.hidden_size = {config.hidden_size} over model.num_heads = {config.num_heads} is odd, and the "
                    "stock architecture rotates pairs. Change one of them, or choose model.architecture = gpt."
                )
            return stock.Stock(config, seed)
        case "custom":
            raise ConfigError(
                "model.architecture = custom: only the program that began the run has the model. "
                "Run that program, or choose gpt or stock."
            )


def num_parameters(config: ModelConfig) -> int:
    """Return how many numbers `build` would draw, without drawing them. Raises `ConfigError` for the user's own."""
    match config.architecture:
        case "gpt":
            return gpt.num_parameters(config)
        case "stock":
            return stock.num_parameters(config)
        case "custom":
            raise ConfigError("model.architecture = custom: only the program that began the run knows its size.")
