"""The built-in model: no biases, causal, born with the same bits everywhere, and LFM2's own tensors on the way out."""

import math

import blake3
import numpy as np
import pytest
import torch

from barnraise.config import PRESETS, ModelConfig
from barnraise.errors import ConfigError
from barnraise.model.build import build
from barnraise.model.conversion import from_transformers, gains, layout, to_transformers
from barnraise.model.flat import flatten
from barnraise.model.flat import layout as layout_of
from barnraise.model.initialise import uniform
from barnraise.model.lfm2 import LFM2
from barnraise.model.loss import loss
from barnraise.model.shape import num_parameters
from barnraise.model.tensors import by_name

GOLDEN_DIGEST = "c15c02bba00817d89aaac9a615d64a182becf38c3b80a827b9d5cdc86da3bb9f"
LOCAL = PRESETS["local"]
TINY = ModelConfig(hidden_size=16, num_layers=3, num_heads=2, max_seq_len=12)


def drawn(config: ModelConfig = TINY) -> LFM2:
    """Return a model without the zeros that it begins with."""
    model = LFM2(config, 1)
    flat = flatten(model)
    flat.load(uniform(2, "all", (flat.values.numel(),), 0.3))
    return model


def test_initial_parameters_are_golden() -> None:
    theta = flatten(LFM2(LOCAL, 1)).numpy()
    assert theta.dtype == np.float32
    assert blake3.blake3(theta.astype("<f4").tobytes()).hexdigest() == GOLDEN_DIGEST


def test_local_preset_is_of_the_promised_size_and_has_no_bias() -> None:
    names = {name: parameter.numel() for name, parameter in LFM2(LOCAL, 1).named_parameters()}
    assert 800_000 < sum(names.values()) < 900_000
    assert not [name for name in names if "bias" in name]


@pytest.mark.parametrize("config", [TINY, *PRESETS.values()], ids=["tiny", *PRESETS])
def test_size_is_known_without_a_model(config: ModelConfig) -> None:
    with torch.device("meta"):
        made = Shapeless(config, 1)
    assert num_parameters(config) == sum(parameter.numel() for parameter in made.parameters())


class Shapeless(LFM2):
    """Draws nothing, so that a model of any size can be made without its memory."""

    def _initialise(self, seed: int) -> None:
        pass


def test_first_loss_is_that_of_a_uniform_guess() -> None:
    tokens = torch.arange(24).view(2, 12)
    assert loss(LFM2(TINY, 1), tokens, tokens).item() == pytest.approx(math.log(256), abs=1e-6)


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
    model, other = drawn(), LFM2(TINY, 3)
    flat = flatten(model)
    back = from_transformers(TINY, to_transformers(TINY, by_name(flat.layout, flat.numpy())))
    flatten(other).load(np.concatenate([back[tensor.name].reshape(-1) for tensor in flat.layout]))
    tokens = torch.arange(24).view(2, 12)
    torch.testing.assert_close(other(tokens), model(tokens), atol=1e-5, rtol=1e-5)


def test_what_ours_could_not_compute_is_refused() -> None:
    flat = flatten(drawn())
    plain = by_name(flat.layout, flat.numpy())
    ones = {name: np.ones(shape, np.float32) for name, shape in gains(TINY).items()}
    with pytest.raises(ValueError, match=r"the mean of what .* is not 0"):
        from_transformers(TINY, plain | ones)
    tensors = to_transformers(TINY, plain)
    tensors["model.embedding_norm.weight"] = tensors["model.embedding_norm.weight"] * np.float32(1.01)
    with pytest.raises(ValueError, match="gains other than 1"):
        from_transformers(TINY, tensors)


@pytest.mark.parametrize(("width", "said"), [(9, "is odd, and positions rotate pairs"), (10, "is not a multiple of")])
def test_heads_that_cannot_be_rotated_are_named(width: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build(ModelConfig(hidden_size=width, num_heads=3), 1)


def test_a_model_of_the_users_own_is_not_built() -> None:
    with pytest.raises(ConfigError, match=r"model\.architecture = custom"):
        build(ModelConfig(architecture="custom"), 1)


@pytest.mark.parametrize("config", [TINY, LOCAL, PRESETS["small"]])
def test_the_layout_is_known_without_making_the_model(config: ModelConfig) -> None:
    assert layout(config) == layout_of(LFM2(config, 1))
