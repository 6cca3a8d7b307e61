"""The built-in model: a small LFM2 over bytes, and how its parameters look to other programs; it needs none of those.

No biases, because the gradient of a key's bias is exactly zero and Adam would amplify its rounding noise.

Layers take turns: LFM2's short convolution, which tells a byte of its neighbours, then attention with rotary positions
and normed queries and keys; each with a gated feed-forward. Tensors bear the names that transformers gives them.

LFM2's norms divide by the root mean square. `norm` takes the mean away first, since torch fuses that one on a CPU;
`model.conversion` makes up for it in the weights.
"""

from typing import Any, Final

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from barnraise.config import ModelConfig
from barnraise.model.initialise import uniform
from barnraise.model.layers import Embedding, Linear, drop, layer, norm
from barnraise.model.shape import NUM_TAPS, intermediate_size, is_convolution

ROPE_BASE: Final = 10_000.0
EPSILON: Final = 1e-5
"""What torch's ``layer_norm`` adds to the variance."""


class ShortConvolution(nn.Module):
    """A gated causal depth-wise convolution over the last ``NUM_TAPS`` positions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.conv = nn.Module()
        self.conv.weight = nn.Parameter(torch.empty(hidden, 1, NUM_TAPS))
        self.in_proj = Linear(hidden, 3 * hidden, bias=False)
        self.out_proj = Linear(hidden, hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map float32[batch, length, hidden] to the same shape; the rotation is not used."""
        gate_in, gate_out, value = self.in_proj(x).chunk(3, dim=-1)
        value = gate_in * value
        weight: Any = self.conv.weight
        taps = weight.squeeze(1).t().contiguous()
        mixed = value * taps[-1]
        for distance in range(1, min(NUM_TAPS, x.size(1))):
            mixed = mixed + F.pad(value[:, :-distance], (0, 0, distance, 0)) * taps[-1 - distance]
        return self.out_proj(gate_out * mixed)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Causal self-attention with normed queries and keys that are rotated by their position."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.num_heads = config.num_heads
        self.q_proj = Linear(hidden, hidden, bias=False)
        self.k_proj = Linear(hidden, hidden, bias=False)
        self.v_proj = Linear(hidden, hidden, bias=False)
        self.out_proj = Linear(hidden, hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map float32[batch, length, hidden] to the same shape.

        Args:
            cos: float32[length, head / 2], of each position's angles.
            sin: likewise.
        """
        batch, length, hidden = x.shape
        heads = (batch, length, self.num_heads, hidden // self.num_heads)
        query = _rotate(norm(self.q_proj(x).view(heads)).transpose(1, 2), cos, sin)
        key = _rotate(norm(self.k_proj(x).view(heads)).transpose(1, 2), cos, sin)
        value = self.v_proj(x).view(heads).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(query.to(value.dtype), key.to(value.dtype), value, is_causal=True)
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, length, hidden))  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """Three matrices: one gates, one carries, one leads back (SwiGLU, Shazeer 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.w1 = Linear(config.hidden_size, intermediate_size(config), bias=False)
        self.w3 = Linear(config.hidden_size, intermediate_size(config), bias=False)
        self.w2 = Linear(intermediate_size(config), config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map float32[batch, length, hidden] to the same shape."""
        return self.w2(F.silu(self.w1(x)) * self.w3(x))  # type: ignore[no-any-return]


class Block(nn.Module):
    """One layer: convolution or attention, then feed-forward, each added to the residual stream."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        self.config = config
        if is_convolution(index):
            self.conv = ShortConvolution(config)
        else:
            self.self_attn = Attention(config)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map float32[batch, length, hidden] to the same shape."""
        mix = self.conv if hasattr(self, "conv") else self.self_attn
        x = x + drop(self, mix(norm(x), cos, sin), self.config)
        return x + drop(self, self.feed_forward(norm(x)), self.config)


class Trunk(nn.Module):
    """Embedding and layers, under the name that transformers gives them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, index) for index in range(config.num_layers))


class LFM2(nn.Module):
    """Bytes in, logits of the next byte out."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig, seed: int) -> None:
        super().__init__()
        self.config = config
        self.model = Trunk(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        half = config.hidden_size // config.num_heads // 2
        frequencies = 1.0 / ROPE_BASE ** (torch.arange(half, dtype=torch.float32) / half)
        angles = torch.arange(config.max_seq_len, dtype=torch.float32)[:, None] * frequencies
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self._initialise(seed)

    def _initialise(self, seed: int) -> None:
        for name, parameter in self.named_parameters():
            drawn = uniform(seed, name, tuple(parameter.shape), _deviation(name, parameter.size(-1)))
            parameter.data.copy_(torch.from_numpy(drawn))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map int64[batch, length] to logits, float32[batch, length, vocab]."""
        length = tokens.size(1)
        x = drop(self, self.model.embed_tokens(tokens), self.config)
        for block in self.model.layers:
            x = layer(block, self.config, x, self.cos[:length], self.sin[:length])
        return self.lm_head(norm(x))  # type: ignore[no-any-return]


def layer_types(config: ModelConfig) -> list[str]:
    """Return what transformers calls the kind of each layer."""
    return ["conv" if is_convolution(index) else "full_attention" for index in range(config.num_layers)]


def transformers_config(config: ModelConfig) -> dict[str, object]:
    """Return what transformers' config.json says of this model."""
    return {
        "architectures": ["Lfm2ForCausalLM"],
        "model_type": "lfm2",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": intermediate_size(config),
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_heads,
        "layer_types": layer_types(config),
        "conv_L_cache": NUM_TAPS,
        "conv_bias": False,
        "block_auto_adjust_ff_dim": False,
        "max_position_embeddings": config.max_seq_len,
        "norm_eps": EPSILON,
        "rope_theta": ROPE_BASE,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_BASE},
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "torch_dtype": "float32",
    }


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate float32[batch, heads, length, head] by each position's angles (RoPE, Su et al. 2021)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _deviation(name: str, fan_in: int) -> float:
    """Return the standard deviation of a parameter's first values: every block begins as the identity."""
    if name.endswith(("out_proj.weight", "w2.weight", "lm_head.weight")):
        return 0.0
    return 0.5 if "embed_tokens" in name or "conv.conv" in name else float(fan_in**-0.5)
