"""A swarm in one process, for research: four peers fit a line, one of them now and then misses a round.

    python examples/coordinator.py

Rounds, codec, weighted mean, momentum, log and checkpoints are those of a real run, to the last bit.
"""

import numpy as np

from barnraise import Coordinator
from barnraise.config import RoundConfig, RunConfig

PEERS = ["ada", "bob", "eve", "zoe"]
TRUTH = np.array([3.0, -1.0, 2.0], np.float32)


def local_steps(theta: np.ndarray, samples: np.ndarray, lr: float = 0.05) -> np.ndarray:
    """Train on some samples and return the update: before minus after."""
    w = theta.copy()
    for number in samples:
        x = np.append(np.random.default_rng(number).normal(size=2), 1.0).astype(np.float32)
        w -= lr * 2 * x * (x @ w - x @ TRUTH)
    return theta - w


def main() -> None:
    coordinator = Coordinator(np.zeros(3, np.float32), PEERS, RunConfig(round=RoundConfig(rounds=8, steps=2)))
    while not coordinator.is_over:
        plan = coordinator.schedule_round()
        updates = {}
        for peer, slot in plan.slots.items():
            if peer == "zoe" and plan.round % 3 == 1:
                continue  # her samples come back to the others in the next round
            samples = np.concatenate([np.arange(part.first, part.first + part.count) for part in slot])
            updates[peer] = (local_steps(coordinator.theta, samples), len(samples))
        coordinator.aggregate_updates(updates)
        vertex = coordinator.create_checkpoint()
        error = float(np.abs(coordinator.theta - TRUTH).max())
        print(f"round {vertex.round}: {len(updates)} updates, error {error:.4f}, parameters {vertex.model.hex()[:12]}")


if __name__ == "__main__":
    main()
