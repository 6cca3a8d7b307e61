"""What follows from a model's shape by arithmetic alone: widths, kinds of layers, sizes. It knows nothing of torch."""

from typing import Final

from barnraise.config import ModelConfig

NUM_TAPS: Final = 4
"""Over how many positions, its own included, a short convolution reaches."""


def intermediate_size(config: ModelConfig) -> int:
    """Return the width of the feed-forward: 8/3 of the stream's, as three matrices then weigh as much as two of 4."""
    return -(-config.hidden_size // 3) * 8


def is_convolution(index: int) -> bool:
    """Tell which kind a layer is: in turns was as good as any order of both kinds that was tried (docs/LOG.md)."""
    return index % 2 == 0


def num_parameters(config: ModelConfig) -> int:
    """Return how many numbers a `barnraise.model.lfm2.LFM2` of this shape has, without making one."""
    matrices = 4 * config.hidden_size + 3 * intermediate_size(config)
    taps = NUM_TAPS * sum(map(is_convolution, range(config.num_layers)))
    return config.hidden_size * (2 * config.vocab_size + taps + config.num_layers * matrices)
