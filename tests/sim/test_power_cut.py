"""Worlds in which more than one peer loses its memory at once."""

from barnraise.sim.faults import Crash
from barnraise.sim.world import World


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
