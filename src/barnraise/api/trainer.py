"""A node for those who want nothing but to train: AdamW, cross-entropy, one call; what else can be said is `Node`'s."""

from typing import Any

from torch import nn
from torch.utils.data import Dataset

from barnraise.api.configs import NetworkConfig, TransformerConfig
from barnraise.api.node import LEARNING_RATE, SYNC_EVERY, Node, TrainResult


class Trainer:
    """Trains a model together with others.

    >>> trainer = Trainer(model, NetworkConfig(), learning_rate=0.01)
    >>> trainer.train(dataset, epochs=1, batch_size=16).samples
    80
    """

    def __init__(
        self,
        model: nn.Module | TransformerConfig,
        network: NetworkConfig | None = None,
        learning_rate: float = LEARNING_RATE,
    ) -> None:
        """Make a trainer; see `Node` for what the arguments mean."""
        self.node = Node(model, network, learning_rate=learning_rate, keep_replay=False)

    @property
    def model(self) -> nn.Module:
        """The model, with the parameters that were agreed last."""
        return self.node.model

    def train(
        self, dataset: Dataset[Any], epochs: int = 1, batch_size: int = 32, sync_every: int = SYNC_EVERY
    ) -> TrainResult:
        """Join, train until the run is over, and leave. See `Node.train`; raises what that does."""
        with self.node:
            return self.node.train(dataset, epochs, batch_size, sync_every)
