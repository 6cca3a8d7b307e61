"""The strategies' steps and the round around them against what DiLoCo, Lookahead and plain SGD say."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from barnraise.aggregate.mean import weighted_mean
from barnraise.codec import grid, rounding
from barnraise.codec.grid import Float32
from barnraise.config import OuterConfig, RoundConfig, RunConfig
from barnraise.outer.diloco import CHUNK
from barnraise.outer.strategy import Strategy, strategy_of

EXPONENT = 24
DILOCO = RunConfig(strategy="diloco")
AVERAGING = [RunConfig(strategy="local_sgd"), RunConfig(strategy="fedavg"), RunConfig(strategy="synchronous")]
EVERY = [DILOCO, *AVERAGING]


def name_of(config: RunConfig) -> str:
    return config.strategy


def with_outer(lr: float, momentum: float, momentum_rounds: int = 0) -> RunConfig:
    return replace(DILOCO, outer=OuterConfig(lr=lr, momentum=momentum, momentum_rounds=momentum_rounds))


def gradient_of(theta: Float32, inputs: Float32, targets: Float32) -> Float32:
    """Return the gradient of the mean squared error of a linear model."""
    return (inputs.T @ (inputs @ theta - targets) / np.float32(len(targets))).astype(np.float32)


def outer_round(
    config: RunConfig,
    theta: Float32,
    momentum: Float32,
    updates: Sequence[Float32],
    residuals: Sequence[Float32],
    weights: Sequence[int] | None = None,
) -> None:
    """Do what a round does with its members' updates: grid, mean, step."""
    encoded = [np.empty(len(theta), np.int16) for _ in updates]
    for update, integers, residual in zip(updates, encoded, residuals, strict=True):
        wanted = update.copy()
        rounding.to_grid(wanted, residual, EXPONENT, integers)
        rounding.remainder(wanted, integers, EXPONENT, residual)
    aggregate, gradient = np.empty(len(theta), np.int16), np.empty_like(theta)
    weighted_mean(encoded, weights or [1] * len(updates), aggregate)
    grid.decode(aggregate, EXPONENT, gradient)
    strategy_of(config).step(config, 0, theta, momentum, gradient)


# ---- all of them -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", EVERY, ids=name_of)
def test_the_configurations_name_is_the_strategys(config: RunConfig) -> None:
    strategy: Strategy = strategy_of(config)
    assert strategy.name == config.strategy


@pytest.mark.parametrize(("config", "steps"), list(zip(EVERY, [40, 40, 40, 1], strict=True)), ids=str)
def test_only_synchronous_training_exchanges_after_every_step(config: RunConfig, steps: int) -> None:
    longer = replace(config, round=RoundConfig(steps=40))
    assert strategy_of(longer).steps(longer) == steps


def test_only_federated_averaging_starts_its_optimiser_afresh() -> None:
    assert [strategy_of(config).keeps_inner_state for config in EVERY] == [True, True, False, True]


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
@pytest.mark.parametrize("config", [with_outer(1.0, 0.0), *AVERAGING], ids=name_of)
def test_of_identical_workers_the_mean_is_the_update(config: RunConfig, workers: int) -> None:
    update = (np.random.default_rng(7).integers(-32767, 32768, 40) * 2.0**-EXPONENT).astype(np.float32)
    theta, momentum = np.zeros(40, np.float32), np.zeros(40, np.float32)
    residuals = [np.zeros(40, np.float32) for _ in range(workers)]
    outer_round(config, theta, momentum, [update] * workers, residuals)
    assert np.array_equal(theta, -update)


# ---- averaging -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [with_outer(1.0, 0.0), AVERAGING[-1]], ids=name_of)
def test_one_inner_step_of_sgd_and_an_outer_rate_of_one_is_large_batch_sgd(config: RunConfig) -> None:
    generator = np.random.default_rng(5)
    inputs = generator.normal(size=(4, 16, 6)).astype(np.float32)  # workers, samples, features
    targets = generator.normal(size=(4, 16)).astype(np.float32)
    theta, momentum, rate = np.zeros(6, np.float32), np.zeros(6, np.float32), np.float32(1e-3)
    large_batch = theta.copy()
    residuals = [np.zeros(6, np.float32) for _ in range(4)]
    for _ in range(20):
        updates = [rate * gradient_of(theta, x, y) for x, y in zip(inputs, targets, strict=True)]
        outer_round(config, theta, momentum, updates, residuals)
        large_batch -= rate * gradient_of(large_batch, inputs.reshape(64, 6), targets.reshape(64))
    assert np.abs(large_batch).max() > 1e-3
    assert np.abs(theta - large_batch).max() < 1e-6


@pytest.mark.parametrize("config", AVERAGING, ids=name_of)
def test_averaging_leads_to_the_mean_of_the_members_parameters_by_their_samples(config: RunConfig) -> None:
    unit = np.float32(2.0**-EXPONENT)
    theta = np.array([0.5, -0.25], np.float32)
    members = [theta + unit * np.array(offset, np.float32) for offset in ([8, -80], [-16, 0], [400, 4000])]
    updates, residuals = [theta - w for w in members], [np.zeros(2, np.float32) for _ in members]
    momentum = np.array([5.0, 5.0], np.float32)
    outer_round(config, theta, momentum, updates, residuals, weights=[1, 2, 1])
    assert theta.tolist() == [0.5 + unit * 94, -0.25 + unit * 980]  # (8 - 2 * 16 + 400) / 4, (-80 + 4000) / 4
    assert momentum.tolist() == [5.0, 5.0]


@pytest.mark.parametrize("config", AVERAGING, ids=name_of)
def test_averaging_does_not_know_the_rates_of_diloco(config: RunConfig) -> None:
    other = replace(config, outer=OuterConfig(lr=0.1, momentum=0.9, momentum_rounds=3))
    theta, momentum = np.array([1.0, 2.0], np.float32), np.zeros(2, np.float32)
    strategy_of(other).step(other, 1, theta, momentum, np.array([0.5, -0.5], np.float32))
    assert (theta.tolist(), momentum.tolist()) == ([0.5, 2.5], [0.0, 0.0])


# ---- DiLoCo ----------------------------------------------------------------------------------------------------------


def test_one_worker_without_momentum_is_lookahead() -> None:
    # Zhang et al. 2019, arXiv 1907.08610, algorithm 1: slow <- slow + alpha (fast - slow).
    generator = np.random.default_rng(6)
    inputs, targets = generator.normal(size=(16, 6)).astype(np.float32), generator.normal(size=16).astype(np.float32)
    alpha, rate = np.float32(0.5), np.float32(2e-4)
    theta, momentum, residual = np.zeros(6, np.float32), np.zeros(6, np.float32), np.zeros(6, np.float32)
    slow = theta.copy()
    for _ in range(10):
        fast, fast_of_slow = theta.copy(), slow.copy()
        for _ in range(5):
            fast -= rate * gradient_of(fast, inputs, targets)
            fast_of_slow -= rate * gradient_of(fast_of_slow, inputs, targets)
        outer_round(with_outer(0.5, 0.0), theta, momentum, [theta - fast], [residual])
        slow += alpha * (fast_of_slow - slow)
    assert np.abs(slow).max() > 1e-3
    assert np.abs(theta - slow).max() < 1e-6


GRADIENTS = [0.5, -0.25, 0.125, 1.0, 0.0, -0.75]
GOLDEN = [0.335, 0.384, 0.10435, -1.398585, -2.1212265, -1.77410385]
"""By hand, at lr 0.7 and momentum 0.9: v = 0.5, 0.2, 0.305, 1.2745, 1.14705, 0.282345."""
GOLDEN_RAMP = [0.545, 0.699, 0.5044, -0.92199, -1.575741, -1.1666169]
"""By hand, at lr 0.7 and momentum 0.3, 0.6, 0.9, 0.9, ...: v = 0.5, 0.05, 0.17, 1.153, 1.0377, 0.18393."""


def reference(lr: float, momentum: float, kind: type[np.floating]) -> list[float]:
    """Return theta after each round, written out from v <- m v + g; theta <- theta - lr (g + m v)."""
    theta, velocity, rate, decay = kind(1.0), kind(0.0), kind(lr), kind(momentum)
    path = []
    for value in GRADIENTS:
        velocity = decay * velocity + kind(value)
        theta = theta - rate * (kind(value) + decay * velocity)
        path.append(float(theta))
    return path


def path_of(config: RunConfig) -> list[float]:
    theta, momentum = np.ones(1, np.float32), np.zeros(1, np.float32)
    path = []
    for round_, value in enumerate(GRADIENTS):
        strategy_of(config).step(config, round_, theta, momentum, np.full(1, value, np.float32))
        path.append(float(theta[0]))
    return path


@pytest.mark.parametrize(("lr", "momentum"), [(0.9, 0.3), (0.7, 0.9), (1.0, 0.0)])
def test_six_rounds_equal_the_formula_bit_for_bit(lr: float, momentum: float) -> None:
    path = path_of(with_outer(lr, momentum))
    assert path == reference(lr, momentum, np.float32)
    assert path == pytest.approx(reference(lr, momentum, np.float64), abs=1e-6)


def test_six_rounds_equal_the_sequence_worked_out_by_hand() -> None:
    assert path_of(with_outer(0.7, 0.9)) == pytest.approx(GOLDEN, abs=1e-6)


@pytest.mark.parametrize(("lr", "momentum"), [(0.9, 0.3), (0.7, 0.9)])
def test_six_rounds_equal_torch(lr: float, momentum: float) -> None:
    theta = torch.ones(1)
    optimiser = torch.optim.SGD([theta], lr=lr, momentum=momentum, nesterov=True)
    path = []
    for value in GRADIENTS:
        theta.grad = torch.full((1,), value)
        optimiser.step()
        path.append(theta.item())
    assert path_of(with_outer(lr, momentum)) == pytest.approx(path, abs=1e-6)


def test_a_held_momentum_has_no_part_in_a_step_and_comes_back_as_it_was() -> None:
    config = with_outer(0.7, 0.9)
    theta, momentum = np.ones(CHUNK + 1, np.float32), np.full(CHUNK + 1, 2.0, np.float32)
    gradient = np.full(CHUNK + 1, 0.25, np.float32)
    strategy_of(config).step(config, 0, theta, momentum, gradient, holds_momentum=True)
    assert (theta == np.float32(1.0) - np.float32(0.7) * np.float32(0.25)).all()
    assert (momentum == 2.0).all()


def test_the_momentum_rises_over_the_first_rounds() -> None:
    assert path_of(with_outer(0.7, 0.9, momentum_rounds=3)) == pytest.approx(GOLDEN_RAMP, abs=1e-6)


@pytest.mark.parametrize("momentum", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("rounds", [1, 3, 7, 1 << 20])
def test_after_the_ramp_the_momentum_is_the_configured_one_to_the_bit(momentum: float, rounds: int) -> None:
    ramped, plain = with_outer(0.9, momentum, momentum_rounds=rounds), with_outer(0.9, momentum)
    for round_ in (rounds - 1, rounds, rounds + 5):
        one, other = (np.array([0.1], np.float32) for _ in range(2))
        vectors = [np.array([value], np.float32) for value in (0.7, 0.3, 0.7, 0.3)]
        strategy_of(ramped).step(ramped, round_, one, vectors[0], vectors[1])
        strategy_of(plain).step(plain, round_, other, vectors[2], vectors[3])
        assert one.tobytes() == other.tobytes()


def test_chunks_change_nothing() -> None:
    generator = np.random.default_rng(8)
    theta, momentum, gradient = (generator.normal(size=CHUNK + 3).astype(np.float32) for _ in range(3))
    expected = [part.copy() for part in (theta, momentum, gradient)]
    strategy_of(DILOCO).step(DILOCO, 0, theta, momentum, gradient)
    for place in (0, CHUNK - 1, CHUNK, CHUNK + 2):
        alone = [part[place : place + 1].copy() for part in expected]
        strategy_of(DILOCO).step(DILOCO, 0, *alone)
        assert (theta[place], momentum[place]) == (alone[0][0], alone[1][0])
