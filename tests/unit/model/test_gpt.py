"""The default model: no biases, causal, born with the same bits everywhere."""

import math

import blake3
import numpy as np
import pytest
import torch

from barnraise.config import ModelConfig
from barnraise.model.flat import flatten
from barnraise.model.gpt import GPT, loss, num_parameters
from barnraise.model.initialise import uniform

GOLDEN_DIGEST = "b70bd0bcafb3a92ee6ce4fe147fd27707eecc990be33931baef4718087419ddd"
TINY = ModelConfig(hidden_size=16, num_layers=2, num_heads=2, max_seq_len=12)


def test_local_preset_is_of_the_promised_size_and_has_no_bias() -> None:
    names = {name: parameter.numel() for name, parameter in GPT(ModelConfig(), 1).named_parameters()}
    assert 800_000 < sum(names.values()) < 900_000
    assert not [name for name in names if "bias" in name]


def test_size_is_known_without_a_model() -> None:
    for config in (ModelConfig(), TINY):
        assert num_parameters(config) == flatten(GPT(config, 1)).values.numel()


def test_initial_parameters_are_golden() -> None:
    theta = flatten(GPT(ModelConfig(), 1)).numpy()
    assert theta.dtype == np.float32
    assert blake3.blake3(theta.astype("<f4").tobytes()).hexdigest() == GOLDEN_DIGEST


def test_seed_and_name_choose_the_draw() -> None:
    draws = [uniform(seed, name, (4, 5), 1.0) for seed in (1, 2) for name in ("a", "b")]
    assert len({draw.tobytes() for draw in draws}) == 4


def test_draw_has_the_deviation_asked_for() -> None:
    draw = uniform(1, "a", (200, 500), 0.25)
    assert draw.std() == pytest.approx(0.25, rel=0.01)
    assert abs(draw.mean()) < 0.005
    assert np.abs(draw).max() <= 0.25 * math.sqrt(3)


def test_first_loss_is_that_of_a_uniform_guess() -> None:
    tokens = torch.arange(24).view(2, 12)
    assert loss(GPT(TINY, 1), tokens, tokens).item() == pytest.approx(math.log(256), abs=1e-6)


@pytest.mark.parametrize("changed", range(12))
def test_no_position_sees_a_later_one(changed: int) -> None:
    model = GPT(TINY, 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(uniform(2, name, tuple(parameter.shape), 0.2)))
    tokens = torch.arange(12).view(1, 12)
    other = tokens.clone()
    other[0, changed] = 200
    differs = (model(tokens) - model(other)).abs().amax(dim=(0, 2)) > 1e-6
    assert differs.tolist() == [position >= changed for position in range(12)]


@pytest.mark.parametrize("length", [1, 2, 3, 4, 12])
def test_shorter_contexts_than_the_longest_will_do(length: int) -> None:
    assert GPT(TINY, 1)(torch.zeros((3, length), dtype=torch.int64)).shape == (3, length, 256)


def test_every_parameter_gets_a_gradient_once_the_first_zeros_have_moved() -> None:
    model = GPT(TINY, 1)
    flat = flatten(model)
    flat.load(uniform(3, "all", (flat.values.numel(),), 0.2))
    loss(model, torch.arange(12).view(1, 12), torch.arange(12).view(1, 12)).backward()  # type: ignore[no-untyped-call]
    assert [name for name, (_, gradient) in flat.views().items() if not gradient.any()] == []
