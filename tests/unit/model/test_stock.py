"""The stock architecture: causal, born with the same bits everywhere, and LFM2's own tensors on the way out."""

import math

import blake3
import numpy as np
import pytest
import torch

from barnraise.config import ModelConfig
from barnraise.errors import ConfigError
from barnraise.model.build import build, num_parameters
from barnraise.model.flat import by_name, flatten
from barnraise.model.gpt import loss
from barnraise.model.initialise import uniform
from barnraise.model.stock import Stock, from_stock, gains, to_stock

GOLDEN_DIGEST = "c15c02bba00817d89aaac9a615d64a182becf38c3b80a827b9d5cdc86da3bb9f"
LOCAL = ModelConfig(architecture="stock")
TINY = ModelConfig(architecture="stock", hidden_size=16, num_layers=3, num_heads=2, max_seq_len=12)


def drawn(config: ModelConfig = TINY) -> Stock:
    """Return a model without the zeros that it begins with."""
    model = Stock(config, 1)
    flat = flatten(model)
    flat.load(uniform(2, "all", (flat.values.numel(),), 0.3))
    return model


def test_initial_parameters_are_golden() -> None:
    theta = flatten(Stock(LOCAL, 1)).numpy()
    assert 800_000 < len(theta) < 900_000
    assert blake3.blake3(theta.astype("<f4").tobytes()).hexdigest() == GOLDEN_DIGEST


@pytest.mark.parametrize("config", [LOCAL, TINY])
def test_size_is_known_without_a_model(config: ModelConfig) -> None:
    assert num_parameters(config) == flatten(build(config, 1)).values.numel()


def test_first_loss_is_that_of_a_uniform_guess() -> None:
    tokens = torch.arange(24).view(2, 12)
    assert loss(Stock(TINY, 1), tokens, tokens).item() == pytest.approx(math.log(256), abs=1e-6)


@pytest.mark.parametrize("changed", range(12))
def test_no_position_sees_a_later_one(changed: int) -> None:
    model = drawn()
    tokens = torch.arange(12).view(1, 12)
    other = tokens.clone()
    other[0, changed] = 200
    differs = (model(tokens) - model(other)).abs().amax(dim=(0, 2)) > 1e-6
    assert differs.tolist() == [position >= changed for position in range(12)]


@pytest.mark.parametrize("length", [1, 2, 3, 4, 12])
def test_a_shorter_context_is_the_beginning_of_a_longer_one(length: int) -> None:
    model, tokens = drawn(), torch.arange(12).view(1, 12)
    torch.testing.assert_close(model(tokens[:, :length]), model(tokens)[:, :length])


def test_every_parameter_gets_a_gradient_once_the_first_zeros_have_moved() -> None:
    model = drawn()
    flat = flatten(model)
    loss(model, torch.arange(12).view(1, 12), torch.arange(12).view(1, 12)).backward()  # type: ignore[no-untyped-call]
    assert [name for name, (_, gradient) in flat.views().items() if not gradient.any()] == []


def test_what_comes_back_computes_the_same() -> None:
    model, other = drawn(), Stock(TINY, 3)
    flat = flatten(model)
    back = from_stock(TINY, to_stock(TINY, by_name(flat.layout, flat.numpy())))
    flatten(other).load(np.concatenate([back[tensor.name].reshape(-1) for tensor in flat.layout]))
    tokens = torch.arange(24).view(2, 12)
    torch.testing.assert_close(other(tokens), model(tokens), atol=1e-5, rtol=1e-5)


def test_what_ours_could_not_compute_is_refused() -> None:
    flat = flatten(drawn())
    plain = by_name(flat.layout, flat.numpy())
    ones = {name: np.ones(shape, np.float32) for name, shape in gains(TINY).items()}
    with pytest.raises(ValueError, match=r"the mean of what .* is not 0"):
        from_stock(TINY, plain | ones)
    tensors = to_stock(TINY, plain)
    tensors["model.embedding_norm.weight"] = tensors["model.embedding_norm.weight"] * np.float32(1.01)
    with pytest.raises(ValueError, match="gains other than 1"):
        from_stock(TINY, tensors)


def test_heads_that_cannot_be_rotated_are_named() -> None:
    with pytest.raises(ConfigError, match="rotates pairs"):
        build(ModelConfig(architecture="stock", hidden_size=9, num_heads=3), 1)


def test_a_model_of_the_users_own_is_not_built() -> None:
    for order in (
        lambda: build(ModelConfig(architecture="custom"), 1),
        lambda: num_parameters(ModelConfig(architecture="custom")),
    ):
        with pytest.raises(ConfigError, match=r"model\.architecture = custom"):
            order()
