"""The built-in models, what turns any torch module into one flat vector and back, and models in directories."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def load(directory: str | Path) -> "nn.Module":
    """Return the model that ``barnraise export`` wrote to a directory, ready to be used.

        model = barnraise.model.load("my-model")
        logits = model(torch.tensor([list(b"To be, or")]))

    Args:
        directory: config.json and model.safetensors are read; the files may come from anywhere.

    Returns:
        A module that maps int64[batch, length] to logits, float32[batch, length, vocab], in evaluation mode.

    Raises:
        ConfigError: it is no such directory, or of an architecture that is not built in.
    """
    from barnraise.model.pretrained import read

    return read(Path(directory)).eval()
