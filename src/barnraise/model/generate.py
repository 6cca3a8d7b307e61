"""Text from a model, one byte at a time, by its own seeded random numbers."""

import torch
from torch import nn


@torch.inference_mode()
def generate(
    model: nn.Module,
    prompt: bytes,
    num_bytes: int,
    *,
    context: int,
    seed: int = 1,
    temperature: float = 0.8,
    top_k: int = 40,
) -> bytes:
    """Continue ``prompt`` by ``num_bytes`` bytes.

    Args:
        model: maps int64[1, length] to logits, float32[1, length, 256].
        prompt: at least one byte.
        num_bytes: how many to add.
        context: bytes that the model can look back on.
        seed: of the draws; the global generator is left alone.
        temperature: 0 always takes the likeliest byte.
        top_k: only the likeliest ``top_k`` bytes are drawn from.

    Raises:
        ValueError: the prompt is empty, or temperature or top_k is out of range.
    """
    if not prompt or temperature < 0 or top_k < 1:
        raise ValueError(f"prompt {prompt!r}, temperature {temperature}, top_k {top_k}: need a byte, >= 0 and >= 1")
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    text = bytearray(prompt)
    for _ in range(num_bytes):
        tokens = torch.tensor([list(text[-context:])], dtype=torch.int64, device=device)
        likeliest = model(tokens)[0, -1].float().cpu().topk(min(top_k, 256))
        if temperature == 0:
            choice = 0
        else:
            weights = torch.softmax(likeliest.values / temperature, dim=0)
            choice = int(torch.multinomial(weights, 1, generator=generator))
        text.append(int(likeliest.indices[choice]))
    return bytes(text)
