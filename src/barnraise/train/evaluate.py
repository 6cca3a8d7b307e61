"""The loss of a model on the validation text, in nats and in bits per byte."""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import nn

from barnraise.data.samples import num_validation_windows, validation_batch

_BATCH_TOKENS: Final = 2048
"""Activations of a batch then stay in a core's cache: a quarter less time than 8192 on the default model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """A sum over predicted bytes and how many there were."""

    nats: float
    tokens: int

    @property
    def bits_per_byte(self) -> float:
        """Return the mean cost of a byte; one token is one byte."""
        return self.nats / self.tokens / math.log(2.0)


@torch.no_grad()
def evaluate(
    model: nn.Module, text: NDArray[np.uint8], length: int, first: int = 0, count: int | None = None
) -> Measured:
    """Measure the model on windows of the validation text.

    Args:
        model: maps int64[n, length] to logits, float32[n, length, vocab].
        text: uint8[m].
        length: bytes of context; each window starts afresh, so its first bytes are guessed from little.
        first: number of the first window.
        count: how many, past the end from the beginning again; None: as many as there are.
    """
    was_training = model.training
    model.eval()  # without dropout
    try:
        return _evaluate(model, text, length, first, count)
    finally:
        model.train(was_training)


def _evaluate(model: nn.Module, text: NDArray[np.uint8], length: int, first: int, count: int | None) -> Measured:
    count = num_validation_windows(len(text), length) if count is None else count
    device = next(model.parameters()).device
    nats, size = 0.0, max(1, _BATCH_TOKENS // length)
    for start in range(first, first + count, size):
        windows = np.arange(start, min(start + size, first + count))
        parts = validation_batch(text, windows, length)
        x, y = (torch.from_numpy(part.astype(np.int64)).to(device) for part in parts)
        logits = model(x).float()
        nats += float(F.cross_entropy(logits.view(-1, logits.size(-1)), y.reshape(-1), reduction="sum"))
    return Measured(nats=nats, tokens=count * length)
