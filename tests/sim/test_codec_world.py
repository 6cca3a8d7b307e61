"""Whole runs in the simulated world with each codec: what decodes to the same is the same everywhere."""

import pytest

from barnraise.sim.drawn import simulate
from barnraise.sim.faults import Crash
from barnraise.sim.world import World
from barnraise.swarm import records
from barnraise.swarm.records import Cut, Result

ROUNDS = 3
CODECS = [
    "grid16",
    "int8",
    "int4",
    "int4s",
    "int2",
    "bf16",
    "topk:0.05+int8+zstd",
    "topk:0.1+int2",
    "powersgd:2",
    "randomk:0.1",
]
every_codec = pytest.mark.parametrize("codec", CODECS)


def results_of(world: World) -> list[Result]:
    events = [records.decode_event.decode(world.decided[height]) for height in sorted(world.decided)]
    return [event for event in events if isinstance(event, Result)]


@every_codec
@pytest.mark.parametrize("num_peers", [1, 2, 4])
def test_all_replicas_end_with_the_same_parameters(codec: str, num_peers: int) -> None:
    world = World(seed=1, num_peers=num_peers, rounds=ROUNDS, codec=codec)
    world.run()
    events = [records.decode_event.decode(value) for value in world.decided.values()]
    assert [len(event.contributions) for event in events if isinstance(event, Cut)] == [num_peers] * ROUNDS
    assert len({node.workspace.theta.tobytes() for node in world.nodes}) == 1


@pytest.mark.parametrize(
    ("codec", "seed"), [(codec, seed) for codec in CODECS for seed in range(60, 68 if codec == "int8" else 62)]
)
def test_a_run_outlives_the_faults_of_a_seed(codec: str, seed: int) -> None:
    world = simulate(seed, rounds=ROUNDS, codec=codec)
    assert world.is_waiting or all(node.member.state.is_over for node in world.nodes if node.alive)


@every_codec
def test_a_shards_owner_that_dies_half_way_through_telling_is_stood_in_for(codec: str) -> None:
    for nth in (4, 5, 6):
        world = World(seed=2, rounds=ROUNDS, codec=codec, faults=[Crash(peer=1, after="Transfer", round=1, nth=nth)])
        world.run()
        assert len({node.workspace.theta.tobytes() for node in world.nodes if node.alive}) == 1


def test_the_codec_makes_a_difference() -> None:
    roots = []
    for codec in CODECS:
        world = World(seed=1, rounds=ROUNDS, codec=codec)
        world.run()
        roots.append([result.theta_root for result in results_of(world)])
    assert len({root for found in roots for root in found}) == sum(len(found) for found in roots)
