"""The built-in model's parameters for transformers and back: names, shapes and arithmetic; no torch.

LFM2's norms divide by the root mean square; ours take the mean away first. Both are the same for a vector whose mean is
zero, and what is added to the residual stream can be made so by weights alone: `to_transformers` takes the mean out of
every matrix that writes to the stream and out of each head's queries and keys, and writes gains of one. The logits stay
the same but for rounding (Ashkboos et al. 2024, arXiv 2401.15024, section 3.2).
"""

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from barnraise.config import ModelConfig
from barnraise.link.messages import Tensor
from barnraise.model.shape import NUM_TAPS, intermediate_size, is_convolution

_CENTRED: Final = 1e-3
"""Largest mean, relative to the deviation, that counts as none."""

Array = NDArray[np.float32]


def layout(config: ModelConfig) -> tuple[Tensor, ...]:
    """Return names and shapes of a `barnraise.model.lfm2.LFM2` of this shape, in the order of the flat vector."""
    hidden, inner = config.hidden_size, intermediate_size(config)
    found = [Tensor("model.embed_tokens.weight", (config.vocab_size, hidden))]
    for index in range(config.num_layers):
        prefix = f"model.layers.{index}."
        if is_convolution(index):
            found.append(Tensor(prefix + "conv.conv.weight", (hidden, 1, NUM_TAPS)))
            found.append(Tensor(prefix + "conv.in_proj.weight", (3 * hidden, hidden)))
            found.append(Tensor(prefix + "conv.out_proj.weight", (hidden, hidden)))
        else:
            letters = ("q_proj", "k_proj", "v_proj", "out_proj")
            found += [Tensor(f"{prefix}self_attn.{letter}.weight", (hidden, hidden)) for letter in letters]
        found += [Tensor(f"{prefix}feed_forward.{name}.weight", (inner, hidden)) for name in ("w1", "w3")]
        found.append(Tensor(prefix + "feed_forward.w2.weight", (hidden, inner)))
    return (*found, Tensor("lm_head.weight", (config.vocab_size, hidden)))


def gains(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the norms' gains, which are all one and which an `LFM2` does without."""
    hidden, head = (config.hidden_size,), (config.hidden_size // config.num_heads,)
    found: dict[str, tuple[int, ...]] = {"model.embedding_norm.weight": hidden}
    for index in range(config.num_layers):
        prefix = f"model.layers.{index}."
        found |= {prefix + "operator_norm.weight": hidden, prefix + "ffn_norm.weight": hidden}
        if not is_convolution(index):
            found |= {prefix + f"self_attn.{letter}_layernorm.weight": head for letter in "qk"}
    return found


def to_transformers(config: ModelConfig, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Return the tensors that make transformers' model compute what ours does."""
    centred = {name: _centred(name, tensor, config) for name, tensor in tensors.items()}
    return centred | {name: np.ones(shape, np.float32) for name, shape in gains(config).items()}


def from_transformers(config: ModelConfig, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Return our parameters from what `to_transformers` returned.

    Raises:
        ValueError: a gain is not one or a mean is not zero: ours would compute something else.
    """
    for name in gains(config):
        if not np.allclose(tensors[name], 1.0, rtol=0.0, atol=1e-6):
            raise ValueError(f"{name} holds gains other than 1")
    ours = {name: tensor for name, tensor in tensors.items() if name not in gains(config)}
    for name, tensor in ours.items():
        if np.abs(_centred(name, tensor, config) - tensor).max() > _CENTRED * tensor.std():
            raise ValueError(f"the mean of what {name} gives is not 0")
    return ours


def _centred(name: str, tensor: Array, config: ModelConfig) -> Array:
    """Return a tensor without the mean of its outputs, where a norm follows that would take it away."""
    exact = tensor.astype(np.float64)
    if name.endswith(("out_proj.weight", "w2.weight")):
        exact -= exact.mean(axis=0)
    elif name.endswith("embed_tokens.weight"):
        exact -= exact.mean(axis=1, keepdims=True)
    elif name.endswith(("q_proj.weight", "k_proj.weight")):
        heads = exact.reshape(config.num_heads, -1, config.hidden_size)
        exact = (heads - heads.mean(axis=1, keepdims=True)).reshape(exact.shape)
    return exact.astype(np.float32)
