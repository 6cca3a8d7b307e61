"""Worlds in which more than one peer loses its memory at once."""

from functools import cache

import pytest

from barnraise.sim.faults import Crash
from barnraise.sim.world import World
from barnraise.swarm import records
from barnraise.swarm.records import Result

ROUNDS = 4


def test_a_round_goes_on_when_nobody_alive_holds_a_commitment_of_its_cut() -> None:
    """The third's commitment was in two memories that are gone: the cut is voided and taken without it."""
    faults = (
        Crash(peer=2, after="Append", round=1),
        Crash(peer=1, after="Append", round=1, restart_after_s=20.0),
        Crash(peer=0, after="PersistBallot", round=1, nth=3, restart_after_s=20.0),
    )
    world = World(seed=1, num_peers=3, rounds=3, faults=faults)
    world.run()
    assert not world.is_waiting
    assert [node.member.state.round for node in world.nodes if node.alive] == [3, 3]


class PowerCut(World):
    """All peers crash at one moment, and all come back a little later."""

    def __init__(self, *, at_s: float, num_peers: int) -> None:
        super().__init__(seed=1, num_peers=num_peers, rounds=ROUNDS)
        self._later(at_s, self._cut)

    def _cut(self) -> None:
        for node in self.nodes:
            self._crash(node, Crash(peer=node.index, after="", round=-1, restart_after_s=3.0))


def checkpoints_of(world: World) -> list[tuple[bytes, bytes, bytes]]:
    events = [records.decode_event.decode(world.decided[height]) for height in sorted(world.decided)]
    return [(e.theta_root, e.momentum_root, e.aggregate_root) for e in events if isinstance(e, Result)]


@cache
def undisturbed(num_peers: int) -> tuple[float, list[tuple[bytes, bytes, bytes]], list[bytes]]:
    world = World(seed=1, num_peers=num_peers, rounds=ROUNDS)
    world.run()
    return world.now, checkpoints_of(world), [node.workspace.theta.tobytes() for node in world.nodes]


@pytest.mark.parametrize("moment", range(1, 12))
@pytest.mark.parametrize("num_peers", [1, 2, 3])
def test_a_run_that_was_cut_off_entirely_goes_on_bit_for_bit(num_peers: int, moment: int) -> None:
    took_s, checkpoints, parameters = undisturbed(num_peers)
    world = PowerCut(at_s=took_s * moment / 12, num_peers=num_peers)
    world.run()
    assert world.now > took_s
    assert checkpoints_of(world) == checkpoints
    assert [node.workspace.theta.tobytes() for node in world.nodes] == parameters
