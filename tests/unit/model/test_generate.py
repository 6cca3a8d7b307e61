"""Sampling: repeatable, within its limits, and faithful to a model whose answer is known."""

import pytest
import torch
from torch import Tensor, nn

from barnraise.model.generate import generate


class Successor(nn.Module):
    """Is nearly sure that the next byte is the last one plus 1; has seen at most ``longest`` bytes at once."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.longest = 0

    def forward(self, tokens: Tensor) -> Tensor:
        self.longest = max(self.longest, tokens.size(1))
        return self.scale * nn.functional.one_hot((tokens + 1) % 256, 256).float()


def test_zero_temperature_takes_the_likeliest() -> None:
    assert generate(Successor(), b"a", 5, context=8, temperature=0) == b"abcdef"


def test_context_is_never_longer_than_the_model_allows() -> None:
    model = Successor()
    generate(model, b"abcdefgh", 5, context=4)
    assert model.longest == 4


def test_the_seed_decides_and_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    texts = [generate(Successor(), b"a", 30, context=8, seed=seed, temperature=5.0) for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(1), expected)
    assert texts[0] == texts[1] != texts[2]


def test_top_k_of_one_leaves_no_choice() -> None:
    assert generate(Successor(), b"a", 5, context=8, temperature=9.0, top_k=1) == b"abcdef"


@pytest.mark.parametrize(("prompt", "temperature", "top_k"), [(b"", 1.0, 4), (b"a", -1.0, 4), (b"a", 1.0, 0)])
def test_bad_arguments_are_named(prompt: bytes, temperature: float, top_k: int) -> None:
    with pytest.raises(ValueError, match="need a byte"):
        generate(Successor(), prompt, 1, context=8, temperature=temperature, top_k=top_k)
