"""The coordinator of scripts makes the rounds of a run: the same bits, the same log, the same refusals."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import reduce

import numpy as np
import pytest

from barnraise.api import coordinator as module
from barnraise.api.coordinator import Coordinator
from barnraise.codec.grid import Float32
from barnraise.config import DataConfig, InnerConfig, RoundConfig, RunConfig
from barnraise.errors import ConfigError
from barnraise.sim.node import BLOCKS, SIZE, update_of
from barnraise.sim.world import World
from barnraise.swarm import records
from barnraise.swarm.slots import Segment
from barnraise.swarm.state import apply, genesis
from barnraise.swarm.workspace import root_of

CONFIG = RunConfig(inner=InnerConfig(batch_size=2), round=RoundConfig(rounds=4, steps=3, codec="grid16"))
PEERS = ("ada", "bob", "eve")
SAMPLES = 6


def theta_of(size: int = SIZE) -> Float32:
    return np.arange(size, dtype=np.float32) / np.float32(size)


def coordinator_of(config: RunConfig = CONFIG, peers: Sequence[str] = PEERS) -> Coordinator:
    return Coordinator(theta_of(), peers, config, blocks=BLOCKS)


def updates_of(
    coordinator: Coordinator, slots: dict[str, tuple[Segment, ...]] | None = None
) -> dict[str, tuple[Float32, int]]:
    """Train as the simulated world does."""
    slots = dict(coordinator.schedule_round().slots) if slots is None else slots
    return {
        peer: (update_of(coordinator.theta, slot), sum(part.count for part in slot)) for peer, slot in slots.items()
    }


@pytest.mark.parametrize("codec", ["grid16", "int8", "int2", "topk:0.1+int8+zstd", "powersgd:2"])
def test_a_scripted_run_has_the_parameters_of_a_simulated_one_bit_for_bit(codec: str) -> None:
    world = World(seed=3, num_peers=4, rounds=4, codec=codec)
    world.run()
    there = world.nodes[0]
    coordinator = coordinator_of(world.config, [f"peer-{index}" for index in range(4)])
    while not coordinator.is_over:
        coordinator.aggregate_updates(updates_of(coordinator))
        coordinator.create_checkpoint()
    assert coordinator.theta.tobytes() == there.workspace.theta.tobytes()
    assert coordinator.residual("peer-0").tobytes() == there.workspace.residual.tobytes()
    mine, theirs = coordinator.state, there.member.state
    for name in ("theta_root", "momentum_root", "exponents", "cursor", "requeued", "total_samples", "round", "epoch"):
        assert getattr(mine, name) == getattr(theirs, name), name


def test_the_log_folds_to_the_state_and_the_checkpoints_form_a_chain() -> None:
    coordinator = coordinator_of()
    founded = coordinator.state
    for _ in range(3):
        coordinator.aggregate_updates(updates_of(coordinator))
        vertex = coordinator.create_checkpoint()
        assert vertex is coordinator.vertices[-1]
        assert records.vertex_id(vertex) == coordinator.state.vertex
        assert vertex.model == root_of(coordinator.theta)
    zeros = np.zeros(SIZE, np.float32)
    config = dataclasses.replace(CONFIG, founders=PEERS)
    assert founded == genesis(config, len(BLOCKS), root_of(theta_of()), root_of(zeros))
    assert reduce(apply, coordinator.log, founded) == coordinator.state
    ids = [founded.vertex, *(records.vertex_id(vertex) for vertex in coordinator.vertices)]
    assert [vertex.parents for vertex in coordinator.vertices] == [(parent,) for parent in ids[:-1]]


def test_the_aggregate_is_the_mean_by_samples_to_the_grids_precision() -> None:
    config = dataclasses.replace(CONFIG, data=DataConfig(kind="own"))
    coordinator = coordinator_of(config)
    rng = np.random.default_rng(1)
    brought = {peer: rng.normal(0, 0.01, SIZE).astype(np.float32) for peer in PEERS}
    weights = {"ada": 1, "bob": 5, "eve": 2}
    found = coordinator.aggregate_updates({peer: (brought[peer], weights[peer]) for peer in PEERS})
    expected = sum(brought[peer].astype(np.float64) * weights[peer] for peer in PEERS) / 8
    assert np.abs(found - expected).max() <= 2.0**-16
    assert np.abs(found - expected).max() > 0


def test_nothing_is_agreed_before_the_checkpoint() -> None:
    coordinator = coordinator_of()
    before, state = coordinator.theta.copy(), coordinator.state
    doubled = {peer: (2 * update, n) for peer, (update, n) in updates_of(coordinator).items()}
    coordinator.aggregate_updates(doubled)
    assert (coordinator.theta == before).all()
    assert coordinator.state is state
    coordinator.aggregate_updates(updates_of(coordinator))  # the first try leaves no trace
    coordinator.create_checkpoint()
    once = coordinator_of()
    once.aggregate_updates(updates_of(once))
    once.create_checkpoint()
    assert coordinator.theta.tobytes() == once.theta.tobytes()
    assert coordinator.residual("eve").tobytes() == once.residual("eve").tobytes()


def test_who_missed_a_round_keeps_its_residual_and_its_samples_come_back() -> None:
    coordinator = coordinator_of()
    coordinator.aggregate_updates(updates_of(coordinator))
    coordinator.create_checkpoint()
    kept, missed = coordinator.residual("eve").copy(), coordinator.schedule_round().slots["eve"]
    updates = updates_of(coordinator)
    del updates["eve"]
    coordinator.aggregate_updates(updates)
    coordinator.create_checkpoint()
    assert coordinator.residual("eve").tobytes() == kept.tobytes()
    assert coordinator.state.requeued == missed
    assert coordinator.schedule_round().slots["ada"] == missed
    assert [member.missed for member in coordinator.state.members] == [0, 0, 1]


def test_members_come_and_go_at_a_checkpoint() -> None:
    coordinator = coordinator_of()
    coordinator.aggregate_updates(updates_of(coordinator))
    coordinator.create_checkpoint(joined=["zoe"], left=["bob"])
    assert coordinator.state.peers == ("ada", "eve", "zoe")
    assert set(coordinator.schedule_round().slots) == {"ada", "eve"}  # who has just come has no weight yet
    coordinator.aggregate_updates(updates_of(coordinator))
    coordinator.create_checkpoint()
    assert set(coordinator.schedule_round().slots) == {"ada", "eve", "zoe"}


def test_losses_are_the_checkpoints_figures() -> None:
    coordinator = coordinator_of()
    coordinator.aggregate_updates(updates_of(coordinator), losses={"ada": 1.0, "bob": 2.0, "eve": 6.0})
    assert coordinator.create_checkpoint(time=7).train_loss == 3 * records.MICRO
    assert coordinator.vertices[-1].time == 7


def test_theta_is_not_to_be_written_and_the_users_vector_is_not_touched() -> None:
    theta = theta_of()
    coordinator = Coordinator(theta, PEERS, CONFIG)
    with pytest.raises(ValueError, match="read-only"):
        coordinator.theta[0] = 1
    updates = updates_of(coordinator)
    before = {peer: update.copy() for peer, (update, _) in updates.items()}
    coordinator.aggregate_updates(updates)
    coordinator.create_checkpoint()
    assert (theta == theta_of()).all()
    assert all((updates[peer][0] == before[peer]).all() for peer in PEERS)


def test_what_a_run_would_not_take_is_refused() -> None:
    coordinator = coordinator_of()
    updates = updates_of(coordinator)
    good, samples = updates["ada"]
    bad = good.copy()
    bad[3] = np.nan
    with pytest.raises(ConfigError, match="'mallory' has no part"):
        coordinator.aggregate_updates({**updates, "mallory": (good, samples)})
    with pytest.raises(ConfigError, match="'ada' is not 200 finite"):
        coordinator.aggregate_updates({**updates, "ada": (bad, samples)})
    with pytest.raises(ConfigError, match="'ada' is not 200 finite"):
        coordinator.aggregate_updates({**updates, "ada": (good[:-1], samples)})
    with pytest.raises(ConfigError, match="7 samples and was given 6"):
        coordinator.aggregate_updates({**updates, "ada": (good, 7)})
    with pytest.raises(ConfigError, match="no quorum"):
        coordinator.aggregate_updates({"ada": (good, samples)})
    with pytest.raises(ConfigError, match="Call aggregate_updates first"):
        coordinator.create_checkpoint()
    coordinator.aggregate_updates(updates)
    with pytest.raises(ConfigError, match="nobody would be left"):
        coordinator.create_checkpoint(left=PEERS)
    assert coordinator.create_checkpoint().round == 1


def test_a_coordinator_needs_a_vector_and_peers() -> None:
    with pytest.raises(ConfigError, match="one finite vector"):
        Coordinator(np.zeros((2, 2), np.float32), PEERS)
    with pytest.raises(ConfigError, match="one finite vector"):
        Coordinator(np.full(3, np.inf, np.float32), PEERS)
    with pytest.raises(ConfigError, match="none twice"):
        Coordinator(theta_of(), ["ada", "ada"])
    with pytest.raises(ConfigError, match="at least one"):
        Coordinator(theta_of(), [])


def test_rounds_end_and_wait_for_enough_members() -> None:
    config = dataclasses.replace(CONFIG, round=RoundConfig(rounds=1, steps=3, min_peers=3, codec="grid16"))
    with pytest.raises(ConfigError, match="min_peers is 3"):
        coordinator_of(config, ["ada", "bob"]).schedule_round()
    coordinator = coordinator_of(config)
    coordinator.aggregate_updates(updates_of(coordinator))
    coordinator.create_checkpoint()
    with pytest.raises(ConfigError, match="all 1 rounds are over"):
        coordinator.schedule_round()


def test_the_example_in_the_docstring_does_what_it_says(run_docstring: Callable[..., None]) -> None:
    run_docstring(module.Coordinator, np=np, Coordinator=Coordinator, config=CONFIG)
