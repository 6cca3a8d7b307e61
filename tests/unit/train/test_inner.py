"""The local optimiser against plain references, its learning rate against golden values, its state across a restart."""

import math

import pytest
import torch
from torch import Tensor, nn

from barnraise.config import InnerConfig, ModelConfig
from barnraise.errors import LocalError
from barnraise.model.flat import Flat, flatten
from barnraise.model.lfm2 import LFM2
from barnraise.train.inner import SGD, AdamW, Diverged, Inner, lr_factor
from barnraise.train.muon import Muon, orthogonalise

TINY = ModelConfig(hidden_size=16, num_layers=2, num_heads=2, max_seq_len=12)


def plain_newton_schulz(matrix: Tensor) -> Tensor:
    """The published algorithm, for one matrix."""
    x: Tensor = matrix.T if matrix.size(0) > matrix.size(1) else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if matrix.size(0) > matrix.size(1) else x


def seeded(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(8, 8), (4, 16), (1, 5)])
def test_batched_newton_schulz_matches_the_plain_one(shape: tuple[int, int]) -> None:
    matrices = seeded(3, *shape)
    for found, matrix in zip(orthogonalise(matrices), matrices, strict=True):
        torch.testing.assert_close(found, plain_newton_schulz(matrix))


def test_singular_values_come_near_one() -> None:
    singular = torch.linalg.svdvals(orthogonalise(seeded(4, 32, 64)))
    assert singular.min() > 0.6
    assert singular.max() < 1.3


def test_a_zero_gradient_moves_nothing() -> None:
    assert not orthogonalise(torch.zeros(2, 4, 4)).any()


def test_muon_matches_a_plain_reference_over_several_steps() -> None:
    shapes = {"a": (6, 6), "b": (6, 6), "wide": (4, 12), "tall": (12, 4)}
    tensors = {name: (seeded(*shape, seed=2), torch.zeros(shape)) for name, shape in shapes.items()}
    expected = {name: value.clone() for name, (value, _) in tensors.items()}
    momenta = {name: torch.zeros(shape) for name, shape in shapes.items()}
    muon = Muon(tensors, momentum=0.95)
    for step in range(4):
        for index, (name, (_, gradient)) in enumerate(tensors.items()):
            gradient.copy_(seeded(*shapes[name], seed=10 * step + index))
            momenta[name] = 0.95 * momenta[name] + 0.05 * gradient
            update = plain_newton_schulz(0.05 * gradient + 0.95 * momenta[name])
            expected[name] -= 0.02 * max(1, shapes[name][0] / shapes[name][1]) ** 0.5 * update
        muon.step(0.02)
    for name, (value, _) in tensors.items():
        torch.testing.assert_close(value, expected[name])


def test_adamw_matches_torch() -> None:
    config = InnerConfig(lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    value, gradient = seeded(5, 7), torch.zeros(5, 7)
    parameter = nn.Parameter(value.clone())
    reference = torch.optim.AdamW([parameter], lr=0.01, betas=(0.9, 0.95), weight_decay=0.1, foreach=False)
    own = AdamW({"a": (value, gradient)}, config)
    for step in range(6):
        gradient.copy_(seeded(5, 7, seed=step))
        parameter.grad = gradient.clone()
        own.step(0.01)
        reference.step()
    torch.testing.assert_close(value, parameter.detach())


def test_sgd_matches_torch_and_remembers_nothing() -> None:
    value, gradient = seeded(5, 7), torch.zeros(5, 7)
    parameter = nn.Parameter(value.clone())
    reference = torch.optim.SGD([parameter], lr=0.1, weight_decay=0.01, foreach=False)
    own = SGD({"a": (value, gradient)}, InnerConfig(weight_decay=0.01))
    for step in range(4):
        gradient.copy_(seeded(5, 7, seed=step))
        parameter.grad = gradient.clone()
        own.step(0.1)
        reference.step()
    torch.testing.assert_close(value, parameter.detach())
    assert own.state() == {}


def test_sgd_moves_against_the_gradient_by_the_learning_rate() -> None:
    flat = flatten(LFM2(TINY, 1))
    inner = Inner(flat, InnerConfig(optimizer="sgd", lr=0.5, clip_norm=0.0))
    before = flat.values.clone()
    flat.gradients.copy_(seeded(flat.gradients.numel()))
    inner.step(0.1)
    torch.testing.assert_close(flat.values, before - 0.05 * flat.gradients)
    assert inner.state() == {}


def test_schedule_is_golden() -> None:
    config = InnerConfig(warmup_steps=4, final_lr_fraction=0.1)
    factors = [lr_factor(step, 104, config) for step in (0, 1, 3, 4, 29, 54, 79, 104, 500)]
    cosine = [0.1 + 0.9 * (0.5 + 0.5 * math.cos(math.pi * share)) for share in (0.0, 0.25, 0.5, 0.75, 1.0, 1.0)]
    assert factors == pytest.approx([0.25, 0.5, 1.0, *cosine])
    assert factors[5] == pytest.approx(0.55)


def test_schedule_without_warm_up_or_steps_stays_in_range() -> None:
    assert lr_factor(0, 0, InnerConfig(warmup_steps=0)) == 1.0
    assert lr_factor(5, 3, InnerConfig(warmup_steps=2, final_lr_fraction=0.3)) == pytest.approx(0.3)


def small(optimizer: str = "muon", clip_norm: float = 1.0) -> tuple[Flat, Inner]:
    flat = flatten(LFM2(TINY, 1))
    config = InnerConfig(optimizer=optimizer, clip_norm=clip_norm)  # type: ignore[arg-type]
    return flat, Inner(flat, config)


def steps(flat: Flat, inner: Inner, seeds: range) -> Tensor:
    for seed in seeds:
        flat.gradients.copy_(seeded(flat.gradients.numel(), seed=seed))
        inner.step(1.0)
    return flat.values.clone()


def test_muon_takes_the_matrices_inside_blocks_and_nothing_else() -> None:
    _, inner = small()
    by_adamw = {name.removeprefix("adamw.mean.") for name in inner.state() if name.startswith("adamw.mean")}
    assert by_adamw == {"model.embed_tokens.weight", "lm_head.weight", "model.layers.0.conv.conv.weight"}
    num_matrices = 2 + 4 + 2 * 3  # of the convolution, the attention and each layer's feed-forward
    assert sum(tensor.size(0) for name, tensor in inner.state().items() if "muon" in name) == num_matrices
    _, plain = small("adamw")
    assert not [name for name in plain.state() if "muon" in name]


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_state_carries_over_bit_for_bit(optimizer: str) -> None:
    flat, inner = small(optimizer)
    steps(flat, inner, range(3))
    saved = {name: tensor.clone() for name, tensor in inner.state().items()}
    middle = flat.numpy()
    straight = steps(flat, inner, range(3, 6))

    other, fresh = small(optimizer)
    other.load(middle)
    fresh.load_state(saved)
    assert torch.equal(steps(other, fresh, range(3, 6)), straight)

    flat.load(middle)
    inner.reset()
    assert not torch.equal(steps(flat, inner, range(3, 6)), straight)


@pytest.mark.parametrize("change", ["missing", "shape", "type"])
def test_state_of_another_model_is_refused(change: str) -> None:
    _, inner = small()
    state = {name: tensor.clone() for name, tensor in inner.state().items()}
    name = "adamw.mean.lm_head.weight"
    if change == "missing":
        del state[name]
    else:
        state[name] = torch.zeros(3) if change == "shape" else state[name].double()
    with pytest.raises(LocalError, match="another model or optimiser"):
        inner.load_state(state)


def test_clipping_bounds_the_norm_and_zero_turns_it_off() -> None:
    for clip_norm, expected in ((0.5, 0.5), (0.0, 30.0), (100.0, 30.0)):
        flat, inner = small(clip_norm=clip_norm)
        flat.gradients.fill_(30.0 / flat.gradients.numel() ** 0.5)
        inner.step(0.0)
        assert flat.gradients.norm().item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_stops_before_anything_moves(value: float) -> None:
    flat, inner = small()
    before = flat.values.clone()
    flat.gradients[7] = value
    with pytest.raises(Diverged, match=r"norm is (nan|inf); lower inner\.lr"):
        inner.step(1.0)
    assert torch.equal(flat.values, before)
    assert not any(tensor.any() for tensor in inner.state().values())
