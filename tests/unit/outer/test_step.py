"""The outer step and the round around it against what DiLoCo, Lookahead and plain SGD say (arXiv 2311.08105)."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from barnraise.aggregate.mean import weighted_mean
from barnraise.codec import grid
from barnraise.codec.grid import Float32
from barnraise.config import OuterConfig
from barnraise.outer.step import CHUNK, step

EXPONENT = 24
PLAIN_AVERAGE = OuterConfig(optimizer="nesterov", lr=1.0, momentum=0.0)


def gradient_of(theta: Float32, inputs: Float32, targets: Float32) -> Float32:
    """Return the gradient of the mean squared error of a linear model."""
    return (inputs.T @ (inputs @ theta - targets) / np.float32(len(targets))).astype(np.float32)


def outer_round(
    config: OuterConfig, theta: Float32, momentum: Float32, updates: Sequence[Float32], residuals: Sequence[Float32]
) -> None:
    """Do what a round does with its members' updates: grid, mean, step."""
    blocks, exponents = ((0, len(theta)),), (EXPONENT,)
    encoded = [np.empty(len(theta), np.int16) for _ in updates]
    for update, integers, residual in zip(updates, encoded, residuals, strict=True):
        grid.encode(update.copy(), blocks, exponents, integers, residual)
    aggregate, gradient = np.empty(len(theta), np.int16), np.empty_like(theta)
    weighted_mean(encoded, [1] * len(updates), aggregate)
    grid.decode(aggregate, blocks, exponents, gradient)
    step(config, theta, momentum, gradient)


def test_one_inner_step_of_sgd_and_an_outer_rate_of_one_is_large_batch_sgd() -> None:
    generator = np.random.default_rng(5)
    inputs = generator.normal(size=(4, 16, 6)).astype(np.float32)  # workers, samples, features
    targets = generator.normal(size=(4, 16)).astype(np.float32)
    theta, momentum, rate = np.zeros(6, np.float32), np.zeros(6, np.float32), np.float32(1e-3)
    large_batch = theta.copy()
    residuals = [np.zeros(6, np.float32) for _ in range(4)]
    for _ in range(20):
        updates = [rate * gradient_of(theta, x, y) for x, y in zip(inputs, targets, strict=True)]
        outer_round(PLAIN_AVERAGE, theta, momentum, updates, residuals)
        large_batch -= rate * gradient_of(large_batch, inputs.reshape(64, 6), targets.reshape(64))
    assert np.abs(large_batch).max() > 1e-3
    assert np.abs(theta - large_batch).max() < 1e-6


def test_one_worker_without_momentum_is_lookahead() -> None:
    # Zhang et al. 2019, arXiv 1907.08610, algorithm 1: slow <- slow + alpha (fast - slow).
    generator = np.random.default_rng(6)
    inputs, targets = generator.normal(size=(16, 6)).astype(np.float32), generator.normal(size=16).astype(np.float32)
    alpha, rate = np.float32(0.5), np.float32(2e-4)
    theta, momentum, residual = np.zeros(6, np.float32), np.zeros(6, np.float32), np.zeros(6, np.float32)
    slow = theta.copy()
    config = OuterConfig(optimizer="nesterov", lr=0.5, momentum=0.0)
    for _ in range(10):
        fast, fast_of_slow = theta.copy(), slow.copy()
        for _ in range(5):
            fast -= rate * gradient_of(fast, inputs, targets)
            fast_of_slow -= rate * gradient_of(fast_of_slow, inputs, targets)
        outer_round(config, theta, momentum, [theta - fast], [residual])
        slow += alpha * (fast_of_slow - slow)
    assert np.abs(slow).max() > 1e-3
    assert np.abs(theta - slow).max() < 1e-6


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_of_identical_workers_the_mean_is_the_update(workers: int) -> None:
    update = (np.random.default_rng(7).integers(-32767, 32768, 40) * 2.0**-EXPONENT).astype(np.float32)
    theta, momentum = np.zeros(40, np.float32), np.zeros(40, np.float32)
    residuals = [np.zeros(40, np.float32) for _ in range(workers)]
    outer_round(PLAIN_AVERAGE, theta, momentum, [update] * workers, residuals)
    assert np.array_equal(theta, -update)


GRADIENTS = [0.5, -0.25, 0.125, 1.0, 0.0, -0.75]
GOLDEN = [0.335, 0.384, 0.10435, -1.398585, -2.1212265, -1.77410385]
"""By hand, at lr 0.7 and momentum 0.9: v = 0.5, 0.2, 0.305, 1.2745, 1.14705, 0.282345."""


def reference(lr: float, momentum: float, kind: type[np.floating]) -> list[float]:
    """Return theta after each round, written out from v <- m v + g; theta <- theta - lr (g + m v)."""
    theta, velocity, rate, decay = kind(1.0), kind(0.0), kind(lr), kind(momentum)
    path = []
    for value in GRADIENTS:
        velocity = decay * velocity + kind(value)
        theta = theta - rate * (kind(value) + decay * velocity)
        path.append(float(theta))
    return path


def path_of(config: OuterConfig) -> list[float]:
    theta, momentum = np.ones(1, np.float32), np.zeros(1, np.float32)
    path = []
    for value in GRADIENTS:
        step(config, theta, momentum, np.full(1, value, np.float32))
        path.append(float(theta[0]))
    return path


@pytest.mark.parametrize(("lr", "momentum"), [(0.9, 0.3), (0.7, 0.9), (1.0, 0.0)])
def test_six_rounds_equal_the_formula_bit_for_bit(lr: float, momentum: float) -> None:
    path = path_of(OuterConfig(lr=lr, momentum=momentum))
    assert path == reference(lr, momentum, np.float32)
    assert path == pytest.approx(reference(lr, momentum, np.float64), abs=1e-6)


def test_six_rounds_equal_the_sequence_worked_out_by_hand() -> None:
    assert path_of(OuterConfig(lr=0.7, momentum=0.9)) == pytest.approx(GOLDEN, abs=1e-6)


@pytest.mark.parametrize(("lr", "momentum"), [(0.9, 0.3), (0.7, 0.9)])
def test_six_rounds_equal_torch(lr: float, momentum: float) -> None:
    theta = torch.ones(1)
    optimiser = torch.optim.SGD([theta], lr=lr, momentum=momentum, nesterov=True)
    path = []
    for value in GRADIENTS:
        theta.grad = torch.full((1,), value)
        optimiser.step()
        path.append(theta.item())
    assert path_of(OuterConfig(lr=lr, momentum=momentum)) == pytest.approx(path, abs=1e-6)


def test_averaging_takes_the_mean_and_leaves_the_momentum_alone() -> None:
    theta, momentum = np.array([1.0, 2.0], np.float32), np.array([5.0, 5.0], np.float32)
    step(OuterConfig(optimizer="average", lr=1.0), theta, momentum, np.array([0.5, -0.5], np.float32))
    assert theta.tolist() == [0.5, 2.5]
    assert momentum.tolist() == [5.0, 5.0]


def test_chunks_change_nothing() -> None:
    generator = np.random.default_rng(8)
    theta, momentum, gradient = (generator.normal(size=CHUNK + 3).astype(np.float32) for _ in range(3))
    expected = [part.copy() for part in (theta, momentum, gradient)]
    step(OuterConfig(), theta, momentum, gradient)
    for place in (0, CHUNK - 1, CHUNK, CHUNK + 2):
        alone = [part[place : place + 1].copy() for part in expected]
        step(OuterConfig(), *alone)
        assert (theta[place], momentum[place]) == (alone[0][0], alone[1][0])
