"""The default model: a small byte-level GPT without a single bias.

No biases, because the gradient of a key's bias is exactly zero and Adam would amplify its rounding noise; norms without
gain; queries and keys normed; squared ReLU; learned positions; each byte is embedded together with the three before it,
which saves a small model from spending its first layers on finding out who its neighbours are (docs/LOG.md).
"""

from collections.abc import Callable
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from barnraise.config import ModelConfig
from barnraise.model.initialise import uniform

NUM_TAPS: Final = 4
"""How many bytes, the newest included, an embedding is mixed from."""


def norm(x: Tensor) -> Tensor:
    """Return ``x`` with mean 0 and variance 1 along its last dimension.

    Without gain or bias. On a CPU torch fuses this and not ``rms_norm``: 0.6 ms against 2.1 for float32[8, 128, 128],
    forward and backward, and no difference in loss was seen (docs/LOG.md).
    """
    return F.layer_norm(x, (x.size(-1),))


class Linear(nn.Linear):
    """A matrix whose first values `GPT` draws; torch would draw its own from a generator that differs by version."""

    def reset_parameters(self) -> None:
        """Leave the memory as it is."""


class Embedding(nn.Embedding):
    """A table whose first values `GPT` draws."""

    def reset_parameters(self) -> None:
        """Leave the memory as it is."""


def drop(module: nn.Module, x: Tensor, config: ModelConfig) -> Tensor:
    """Set a random ``config.dropout`` of ``x`` to zero while training, and scale up the rest."""
    return F.dropout(x, config.dropout) if module.training and config.dropout else x


def layer(block: Callable[..., Tensor], config: ModelConfig, *inputs: Tensor) -> Tensor:
    """Return ``block(*inputs)``; with gradient checkpointing, what it keeps for the backward pass is its inputs."""
    if config.gradient_checkpointing and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False)  # type: ignore[no-any-return]
    return block(*inputs)


class Attention(nn.Module):
    """Causal self-attention with normed queries and keys."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.query = Linear(config.hidden_size, config.hidden_size, bias=False)
        self.key = Linear(config.hidden_size, config.hidden_size, bias=False)
        self.value = Linear(config.hidden_size, config.hidden_size, bias=False)
        self.out = Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map float32[batch, length, hidden] to the same shape."""
        batch, length, hidden = x.shape
        heads = (batch, length, self.num_heads, hidden // self.num_heads)
        query = norm(self.query(x).view(heads)).transpose(1, 2)
        key = norm(self.key(x).view(heads)).transpose(1, 2)
        value = self.value(x).view(heads).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, hidden))  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """Two matrices around a squared ReLU (Primer, So et al. 2021)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = Linear(config.hidden_size, 4 * config.hidden_size, bias=False)
        self.down = Linear(4 * config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map float32[batch, length, hidden] to the same shape."""
        active = F.relu(self.up(x))
        # A product, since square() goes through pow, whose gradient is twice as slow on a CPU.
        return self.down(active * active)  # type: ignore[no-any-return]


class Block(nn.Module):
    """One layer: attention, then feed-forward, each added to the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor) -> Tensor:
        """Map float32[batch, length, hidden] to the same shape."""
        x = x + drop(self, self.attention(norm(x)), self.config)
        return x + drop(self, self.feed_forward(norm(x)), self.config)


class NeighbourEmbedding(nn.Module):
    """Byte embeddings mixed with those of the bytes before: a causal depth-wise convolution (Primer, So et al. 2021)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.table = Embedding(config.vocab_size, config.hidden_size)
        self.taps = Embedding(NUM_TAPS, config.hidden_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map int64[batch, length] to float32[batch, length, hidden]; before the first byte there is zero."""
        embedded = self.table(tokens)
        mixed = embedded * self.taps.weight[0]
        for distance in range(1, min(NUM_TAPS, tokens.size(1))):
            mixed = mixed + F.pad(embedded[:, :-distance], (0, 0, distance, 0)) * self.taps.weight[distance]
        return mixed  # type: ignore[no-any-return]


class GPT(nn.Module):
    """Bytes in, logits of the next byte out."""

    def __init__(self, config: ModelConfig, seed: int) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = NeighbourEmbedding(config)
        self.position_embedding = Embedding(config.max_seq_len, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.head = Linear(config.hidden_size, config.vocab_size, bias=False)
        self._initialise(seed)

    def _initialise(self, seed: int) -> None:
        for name, parameter in self.named_parameters():
            drawn = uniform(seed, name, tuple(parameter.shape), _deviation(name, parameter.size(-1)))
            parameter.data.copy_(torch.from_numpy(drawn))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map int64[batch, length] to logits, float32[batch, length, vocab]."""
        x = norm(self.token_embedding(tokens) + self.position_embedding.weight[: tokens.size(1)])
        x = drop(self, x, self.config)
        for block in self.blocks:
            x = layer(block, self.config, x)
        return self.head(norm(x))  # type: ignore[no-any-return]


def num_parameters(config: ModelConfig) -> int:
    """Return how many numbers a `GPT` of this shape has, without making one."""
    outside = 2 * config.vocab_size + NUM_TAPS + config.max_seq_len
    return config.hidden_size * (outside + 12 * config.hidden_size * config.num_layers)


def _deviation(name: str, fan_in: int) -> float:
    """Return the standard deviation of a parameter's first values.

    Matrices that write to the residual stream, and the head, start at zero: every block begins as the identity and
    the first loss is that of a uniform guess.
    """
    if name.endswith(("out.weight", "down.weight", "head.weight")):
        return 0.0
    if name.startswith("position_embedding"):
        return 0.05
    return 0.5 if "embedding" in name else float(fan_in**-0.5)


def loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy in nats per token, float32, of int64[batch, length] inputs and targets."""
    logits = model(inputs).float()
    return F.cross_entropy(logits.view(-1, logits.size(-1)), targets.reshape(-1))
