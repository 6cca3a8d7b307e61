"""Worlds in which peers come and go while the run goes on, and come back without what they knew.

A failure names the seed: `barnraise.sim.world.simulate(seed, visits=True)` replays it.
"""

import pytest

from barnraise.sim.books import check_exactly_once, log_of
from barnraise.sim.drawn import simulate
from barnraise.sim.faults import Crash, Cutoff, Depart, Fault, Join
from barnraise.sim.world import Broken, World
from barnraise.swarm.ballots import Ballots
from barnraise.swarm.records import Cut, Regroup, Result, Void


def world_of(*faults: Fault, seed: int = 1, num_peers: int = 3, rounds: int = 4, **rules: float) -> World:
    """Return a world that has run, its samples counted."""
    world = World(seed=seed, num_peers=num_peers, rounds=rounds, faults=faults, **rules)  # type: ignore[arg-type]
    world.run()
    check_exactly_once(world)
    return world


def shares(world: World) -> list[list[str]]:
    """Return who contributed to each round."""
    last: list[list[str]] = []
    for event in log_of(world):
        if isinstance(event, Cut):
            cut = [entry.member for entry in event.contributions]
        elif isinstance(event, Result):
            last.append(cut)
    return last


def results(world: World) -> list[Result]:
    return [event for event in log_of(world) if isinstance(event, Result)]


SEEDS = [(size, seed) for size in (1, 2, 3, 4) for seed in range(15)]


@pytest.mark.parametrize(("num_peers", "seed"), SEEDS)
def test_a_run_outlives_the_visits_and_the_faults_of_a_seed(num_peers: int, seed: int) -> None:
    world = simulate(seed, num_peers=num_peers, rounds=3, visits=True)
    check_exactly_once(world)
    assert world.is_waiting or all(node.member.state.is_over for node in world.nodes if node.alive)


@pytest.mark.parametrize("seed", range(12))
def test_of_slots_that_were_not_finished_the_rest_comes_back_exactly_once(seed: int) -> None:
    world = simulate(seed, rounds=3, visits=seed % 2 == 1, seconds=1.0)
    check_exactly_once(world)
    used = [entry.samples for event in log_of(world) if isinstance(event, Cut) for entry in event.contributions]
    assert min(used) < 6


@pytest.mark.parametrize("is_hollow", [False, True], ids=["with tensors", "without"])
def test_who_joins_has_no_weight_in_its_first_round_and_counts_from_the_next(is_hollow: bool) -> None:
    world = world_of(Join(at_s=0.5, is_hollow=is_hollow), rounds=6)
    (joined,) = (number for number, result in enumerate(results(world)) if result.joined)
    assert results(world)[joined].joined == ("peer-3",)
    assert ["peer-3" in contributors for contributors in shares(world)] == [False] * (joined + 2) + [True] * (
        4 - joined
    )
    assert world.nodes[3].workspace.theta.tobytes() == world.nodes[0].workspace.theta.tobytes()


def test_peers_join_and_leave_ten_times_in_a_row_while_the_run_goes_on() -> None:
    faults: list[Fault] = []
    for number in range(10):
        faults += [
            Join(at_s=10.0 * number, is_hollow=number % 2 == 0),
            Depart(peer=2 + number, at_s=10.0 * number + 14.0),
        ]
    world = world_of(*faults, num_peers=2, rounds=40)
    visitors = [f"peer-{number}" for number in range(2, 12)]
    came = [peer for result in results(world) for peer in result.joined]
    went = [peer for result in results(world) for peer in result.left]
    assert sorted(came) == sorted(went) == sorted(visitors)
    assert all(came.index(peer) <= went.index(peer) + 1 for peer in visitors)
    assert [node.member.state.is_over for node in world.nodes[:2]] == [True, True]
    assert not any(node.alive for node in world.nodes[2:])
    assert any(set(contributors) - {"peer-0", "peer-1"} for contributors in shares(world))


def test_a_founder_leaves_with_a_rounds_result_and_the_others_go_on() -> None:
    world = world_of(Depart(peer=0, at_s=6.0), rounds=5)
    assert [result.left for result in results(world) if result.left] == [("peer-0",)]
    assert not world.nodes[0].alive
    assert world.nodes[1].member.state.is_over


def test_the_only_founder_may_leave_a_run_that_others_have_joined() -> None:
    world = world_of(Join(at_s=0.5), Join(at_s=1.0), Depart(peer=0, at_s=12.0), num_peers=1, rounds=6)
    assert ("peer-0",) in [result.left for result in results(world)]
    assert [node.member.state.is_over for node in world.nodes[1:]] == [True, True]


def test_where_all_leave_the_run_stops_and_its_members_stay_members() -> None:
    world = world_of(*(Depart(peer=number, at_s=3.0) for number in range(3)), rounds=50)
    assert not any(node.alive for node in world.nodes)
    assert {node.member.state.round for node in world.nodes} == {1}
    assert all(node.member.state.peers == ("peer-0", "peer-1", "peer-2") for node in world.nodes)
    assert not any(result.left for result in results(world))


@pytest.mark.parametrize(
    ("after", "nth", "has_cut"), [("Broadcast", 7, False), ("Append", 1, True)], ids=["before its cut", "after it"]
)
def test_newcomers_go_on_when_all_who_hold_samples_of_the_round_have_died(after: str, nth: int, has_cut: bool) -> None:
    """They are the majority, and were given nothing yet: the round is begun anew, by them."""
    crash = Crash(peer=0, after=after, round=1, nth=nth)
    world = world_of(Join(at_s=0.5), Join(at_s=0.6), crash, num_peers=1, rounds=4)
    regroups = [event for event in log_of(world) if isinstance(event, Regroup)]
    assert [(event.round, event.joined, event.left) for event in regroups] == [(1, (), ("peer-0",))]
    assert any(isinstance(event, Void) for event in log_of(world)) is has_cut
    assert shares(world) == [["peer-0"]] + [["peer-1", "peer-2"]] * 3
    assert not world.is_waiting


def test_newcomers_that_were_told_nothing_before_everybody_died_wait() -> None:
    """The only checkpoint behind the result that let them in died with its owner: they may not go on without it."""
    world = world_of(Join(at_s=0.5), Join(at_s=0.6), Crash(peer=0, after="Train", round=1), num_peers=1)
    assert world.is_waiting
    assert len(results(world)) == 1


def test_one_founder_begins_once_there_are_as_many_as_the_rules_want() -> None:
    world = world_of(Join(at_s=5.0), Join(at_s=20.0, is_hollow=True), num_peers=1, rounds=3, min_peers=3)
    assert any(isinstance(event, Regroup) for event in log_of(world))
    assert shares(world) == [["peer-0", "peer-1", "peer-2"]] * 3


@pytest.mark.parametrize("after", ["PersistBallot", "Append", "Commit", "Transfer"])
@pytest.mark.parametrize("peer", [0, 2], ids=["the coordinator", "another"])
def test_a_member_that_has_lost_its_disk_comes_back_and_takes_part(peer: int, after: str) -> None:
    crash = Crash(peer=peer, after=after, round=1, restart_after_s=8.0, loses_disk=True)
    world = world_of(crash, rounds=9)
    assert f"peer-{peer}" in shares(world)[-1]
    assert len({node.workspace.theta.tobytes() for node in world.nodes}) == 1


AMNESIA = (
    Crash(peer=1, after="Step", round=1, nth=1, restart_after_s=0.7, loses_disk=True),
    Cutoff(one=0, other=2, at_s=8.8, for_s=15.7),
    Cutoff(one=0, other=1, at_s=11.4, for_s=12.7),
)
"""Peer 1 agrees with 0, forgets it, and finds itself alone with 2, which knows nothing of it either."""


def test_who_has_lost_its_disk_does_not_vote_again_on_what_it_voted_on() -> None:
    world_of(*AMNESIA, seed=3, rounds=3)


def test_a_second_vote_of_who_has_lost_its_disk_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ballots, "abstain", lambda *anything: None)
    with pytest.raises(Broken, match="two values were decided"):
        world_of(*AMNESIA, seed=3, rounds=3)
