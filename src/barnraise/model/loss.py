"""What training makes smaller: the cross-entropy of the next token. Evaluation sums it by itself (`train.evaluate`)."""

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


def loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy in nats per token, float32, of int64[batch, length] inputs and targets."""
    logits = model(inputs).float()
    return F.cross_entropy(logits.view(-1, logits.size(-1)), targets.reshape(-1))
