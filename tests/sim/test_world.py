"""Whole runs in the simulated world: without faults, with drawn ones, with a crash at every point.

A failure names the seed: `barnraise.sim.world.simulate(seed)` replays it.
"""

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import pytest

from barnraise.consensus import pbft_messages
from barnraise.consensus.agreement import Decision
from barnraise.ids import PeerId
from barnraise.sim.books import check_exactly_once, log_of
from barnraise.sim.drawn import simulate
from barnraise.sim.faults import CRASH_POINTS, Crash, Cutoff, Fault, Pause
from barnraise.sim.node import Node
from barnraise.sim.world import Broken, World
from barnraise.swarm import records
from barnraise.swarm import round as rounds
from barnraise.swarm.effects import Commit, Effect
from barnraise.swarm.member import Member
from barnraise.swarm.messages import Message
from barnraise.swarm.records import Cut, Result
from barnraise.swarm.round import Stepped
from barnraise.swarm.slots import Assignment, Segment
from barnraise.swarm.state import follow

ROUNDS = 3


def world_of(*faults: Fault, seed: int = 1, num_peers: int = 4, rounds: int = ROUNDS) -> World:
    return World(seed=seed, num_peers=num_peers, rounds=rounds, faults=faults)


def check(world: World) -> None:
    """Every sample was trained on once or waits, and the run is over, or waits rightly."""
    check_exactly_once(world)
    assert all(node.member.state.is_over for node in world.nodes if node.alive) or world.is_waiting


class Overheard(World):
    """One member's forged votes reach the others, too early, whenever anybody says anything."""

    def _hear(self, sender: Node, to: Node, message: Message) -> list[Effect]:
        forged = pbft_messages.Commit(
            height=to.member.state.height + 1, view=0, member=self.nodes[-1].peer, value=bytes(32), signature=b"forged"
        )
        if to is not self.nodes[-1]:
            self._event(to, lambda: to.member.receive(self.now, self.nodes[-1].peer, forged))
        return super()._hear(sender, to, message)


def test_a_forged_vote_that_was_kept_takes_nothing_with_it_when_it_is_refused() -> None:
    world = Overheard(seed=5, num_peers=4, profile="open")
    world.run()
    assert [len(node.disk.log) for node in world.nodes] == [len(world.decided)] * 4


@pytest.mark.parametrize("num_peers", [1, 2, 3, 4, 5, 8])
def test_without_faults_everybody_contributes_to_every_round(num_peers: int) -> None:
    world = world_of(num_peers=num_peers)
    world.run()
    log = log_of(world)
    assert [type(event) for event in log] == [Cut, Result] * ROUNDS
    assert all(len(event.contributions) == num_peers for event in log if isinstance(event, Cut))
    check(world)


SEEDS = [(4, seed) for seed in range(60)] + [(size, seed) for size in (2, 3, 5) for seed in range(8)]


@pytest.mark.parametrize(("num_peers", "seed"), SEEDS)
def test_a_run_outlives_the_faults_of_a_seed(num_peers: int, seed: int) -> None:
    check(simulate(seed, num_peers=num_peers, rounds=ROUNDS))


@pytest.mark.parametrize("restart_after_s", [None, 4.0], ids=["for good", "for four seconds"])
@pytest.mark.parametrize("peer", [0, 2], ids=["the coordinator", "another"])
@pytest.mark.parametrize("after", CRASH_POINTS)
def test_a_crash_at_any_point_is_survived(after: str, peer: int, restart_after_s: float | None) -> None:
    for nth in (1, 3):
        world = world_of(Crash(peer=peer, after=after, round=1, nth=nth, restart_after_s=restart_after_s))
        world.run()
        check(world)


def test_the_two_juniors_of_three_go_on_without_the_most_senior() -> None:
    world = world_of(Crash(peer=0, after="Train", round=1), num_peers=3)
    world.run()
    assert world.nodes[1].member.state.peers == (PeerId("peer-1"), PeerId("peer-2"))


def test_a_paused_peer_is_left_out_catches_up_and_ends_with_the_same_checkpoint() -> None:
    world = world_of(Pause(peer=1, at_s=4.0, for_s=40.0), rounds=6)
    world.run()
    members = [{c.member for c in event.contributions} for event in log_of(world) if isinstance(event, Cut)]
    assert any("peer-1" not in contributors for contributors in members)
    check(world)


def test_a_broken_link_between_two_peers_is_survived() -> None:
    world = world_of(*(Cutoff(one=1, other=2, at_s=float(at), for_s=2.0) for at in range(2, 20, 3)))
    world.run()
    check(world)


def test_half_of_the_peers_without_the_senior_waits_and_decides_nothing() -> None:
    apart = [Cutoff(one=one, other=other, at_s=0.0, for_s=5000.0) for one, other in ((0, 2), (0, 3), (1, 2), (1, 3))]
    world = World(seed=1, num_peers=4, rounds=ROUNDS, faults=apart, horizon_s=500.0)
    with pytest.raises(Broken, match="no progress"):
        world.run()
    assert world.nodes[0].member.state.is_over
    assert world.nodes[2].member.state.height == 0


@pytest.mark.parametrize("seed", [3, 11])
def test_the_same_seed_gives_the_same_world(seed: int) -> None:
    one, other = simulate(seed), simulate(seed)
    assert one.decided == other.decided
    assert one.now == other.now


def test_another_seed_gives_another_world() -> None:
    assert simulate(3).now != simulate(4).now


# ---- the simulator can fail ---------------------------------------------------------------------------------------


def is_any_half(members: Sequence[PeerId], present: Collection[PeerId]) -> bool:
    return 2 * sum(member in present for member in members) >= len(members)


def test_agreement_by_any_half_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module in list(sys.modules.items()):
        if name.startswith("barnraise.") and hasattr(module, "is_quorum"):
            monkeypatch.setattr(module, "is_quorum", is_any_half)
    apart = [Cutoff(one=one, other=other, at_s=0.0, for_s=90.0) for one, other in ((0, 2), (0, 3), (1, 2), (1, 3))]
    with pytest.raises(Broken, match="two values were decided"):
        world_of(*apart).run()


class Hasty(Member):
    """Takes its own step for agreed."""

    def stepped(self, now: float, stepped: Stepped) -> list[Effect]:
        hasty = list[Effect]()
        if self.me == "peer-1" and self.state.cut is not None:
            mine = rounds.build_result(self.state, self.work, replace(stepped, unix_time=0), joined=(), left=())
            after, vertex = follow(self.state, mine)
            assert vertex is not None
            decision = Decision(value=records.encode(mine), view=0, votes=())
            height = self.state.height
            hasty.append(
                Commit(height=height, event=mine, decision=decision, state=after, vertex=vertex, contributed=True)
            )
        return hasty + super().stepped(now, stepped)


def test_a_commit_without_a_decision_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("barnraise.sim.node.Member", Hasty)
    with pytest.raises(Broken, match="two values were decided"):
        world_of().run()


def test_a_peer_that_holds_other_parameters_than_agreed_is_caught() -> None:
    world = world_of()
    world.run()
    world.nodes[2].workspace.theta = world.nodes[2].workspace.theta + 1
    with pytest.raises(Broken, match="peer 2 holds other parameters"):
        world.run()


def test_samples_that_are_lost_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(assigned: Assignment, used: Mapping[str, int]) -> tuple[Segment, ...]:
        return assigned.requeued

    monkeypatch.setattr(Assignment, "rest", lose)
    world = world_of(Crash(peer=1, after="Train", round=1))
    world.run()
    with pytest.raises(Broken, match="not every sample"):
        check_exactly_once(world)


def test_samples_that_are_trained_on_twice_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def forget(assigned: Assignment, used: Mapping[str, int]) -> tuple[Segment, ...]:
        return rest(assigned, {})

    rest = Assignment.rest
    monkeypatch.setattr(Assignment, "rest", forget)
    world = world_of()
    world.run()
    with pytest.raises(Broken, match="not every sample"):
        check_exactly_once(world)
