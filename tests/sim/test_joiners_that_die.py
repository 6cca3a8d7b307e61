"""Newcomers that all crash together take no quorum with them: never more come in at once than can be done without."""

import pytest

from barnraise.sim.faults import Crash, Fault, Join
from barnraise.sim.world import World
from barnraise.swarm import records
from barnraise.swarm.records import Result

ROUNDS = 6


def joined(world: World) -> list[tuple[str, ...]]:
    events = [records.decode_event.decode(value) for _, value in sorted(world.decided.items())]
    return [event.joined for event in events if isinstance(event, Result) and event.joined]


@pytest.mark.parametrize(("founders", "visitors"), [(2, 3), (2, 4), (3, 4)])
def test_newcomers_that_crash_together_do_not_stop_the_founders(founders: int, visitors: int) -> None:
    came: list[Fault] = [Join(at_s=1.0 + number / 10) for number in range(visitors)]
    first = min(len(names) for names in joined(finished(founders, came))[:1])
    assert first == min(founders, visitors), "more came in at once than can be done without"
    entered = next(number for number, names in enumerate(results(finished(founders, came))) if names)
    died: list[Fault] = [
        Crash(peer=founders + number, after="Train", round=entered + 1, nth=1, restart_after_s=None)
        for number in range(visitors)
    ]
    died += [
        Crash(peer=founders + number, after="Broadcast", round=entered + 1, nth=nth, restart_after_s=None)
        for number in range(visitors)
        for nth in (1, 2)
    ]
    world = finished(founders, [*came, *died])
    assert not world.is_waiting
    assert all(node.member.state.round == ROUNDS for node in world.nodes[:founders])


def finished(founders: int, faults: list[Fault]) -> World:
    world = World(seed=1, num_peers=founders, rounds=ROUNDS, faults=faults)
    world.run()
    return world


def results(world: World) -> list[tuple[str, ...]]:
    events = [records.decode_event.decode(value) for _, value in sorted(world.decided.items())]
    return [event.joined for event in events if isinstance(event, Result)]
