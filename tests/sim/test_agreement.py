"""Agreement in thousands of simulated worlds, the defects that they notice, and what they can be trusted for.

A failure names the command that replays it. Every block of seeds is a test of its own, so that they spread over cores.
"""

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from barnraise.consensus.agreement import Decision
from barnraise.consensus.protocols import protocol_of
from barnraise.ids import PeerId
from barnraise.sim.agreement import Trial, simulate
from barnraise.sim.campaign import Plan, explore
from barnraise.sim.mutants import MUTANTS
from barnraise.sim.schedules import Habit, Treason, draw, num_faulty
from barnraise.sim.stage import Stage
from barnraise.sim.witness import Violation, num_held

BLOCK = 250
NUM_AT_FOUR = 10_000
NUM_AT_SEVEN = 3_000
PINNED = {
    "small-quorum": (0, 1, 2),
    "forgotten-certificate": (202, 494, 704),
    "no-view-in-the-vote": (0, 1, 2),
    "votes-twice": (11, 18, 35),
    "counts-repetitions": (0, 2, 3),
    "unsynced-vote": (1110,),
    "unjustified-new-view": (362, 711),
    "believed-certificate": (362, 711),
    "ignored-claim": (202, 711),
    "unprepared-commit": (0, 4, 11),
    "commit-in-an-old-view": (119, 503, 618),
    "unchecked-signature": (8, 12, 14),
    "disk-not-read": (12, 13, 15),
    "second-proposal": (22, 26, 78),
    "unjudged-value": (0, 1, 2),
    "unanswered-question": (2, 35, 36),
    "unbounded-memory": (142,),
}
"""Seeds that show each defect at seven members."""


def check(plan: Plan, seeds: range) -> None:
    found = explore(plan, seeds)
    assert found.schedules == len(seeds)
    assert not found.failures, "\n".join(f"{failure.what}: {failure.command}" for failure in found.failures)


@pytest.mark.parametrize("first", range(0, NUM_AT_FOUR, BLOCK))
def test_four_members_keep_every_promise(first: int) -> None:
    check(Plan(peers=4), range(first, first + BLOCK))


@pytest.mark.parametrize("first", range(0, NUM_AT_SEVEN, BLOCK // 2))
def test_seven_members_keep_every_promise(first: int) -> None:
    check(Plan(peers=7), range(first, first + BLOCK // 2))


@pytest.mark.parametrize("size", [5, 6, 10, 13])
def test_other_committees_keep_every_promise(size: int) -> None:
    check(Plan(peers=size), range(40))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_machines_that_crash_and_do_not_lie_keep_every_promise(size: int) -> None:
    check(Plan(peers=size, protocol="raft"), range(300))


# ---- the trials can fail ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MUTANTS)
def test_a_defect_is_noticed(name: str) -> None:
    """`barnraise simulate --mutants` finds seeds anew, should a change of the trials make these miss."""
    plan = Plan(peers=7, mutant=name)
    assert any(explore(plan, range(seed, seed + 1)).failures for seed in PINNED[name])


@pytest.mark.parametrize("size", [4, 7])
def test_one_traitor_more_than_can_be_borne_breaks_agreement(size: int) -> None:
    told = (explore(Plan(peers=size, traitors=num_faulty(size) + 1), range(seed, seed + 1)) for seed in range(200))
    assert any("two values are decided" in failure.what for found in told for failure in found.failures)


@pytest.mark.parametrize("size", [4, 7])
def test_as_many_traitors_as_can_be_borne_break_nothing(size: int) -> None:
    check(Plan(peers=size, traitors=num_faulty(size)), range(40))


# ---- the trials are what they say ---------------------------------------------------------------------------------


def story(seed: int) -> list[str]:
    told: list[str] = []
    simulate(seed, 7, protocol_of("pbft"), tell=told.append)
    return told


@pytest.mark.parametrize("seed", [3, 11])
def test_the_same_seed_gives_the_same_trial(seed: int) -> None:
    assert story(seed) == story(seed)
    assert story(seed) != story(seed + 1)


def test_a_trial_does_not_depend_on_the_order_of_a_set() -> None:
    program = (
        "from barnraise.consensus.protocols import protocol_of; from barnraise.sim.agreement import simulate;"
        "print([simulate(seed, 7, protocol_of('pbft')) for seed in range(30)])"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(told) == 1


def test_schedules_have_everything_that_can_go_wrong() -> None:
    schedules = [draw(seed, 7) for seed in range(300)]
    assert {habit for schedule in schedules for treason in schedule.treasons for habit in treason.habits} == set(Habit)
    assert all(len(schedule.treasons) <= 2 for schedule in schedules)
    for what in ("splits", "holes", "crashes", "loss", "duplication", "straggling", "contention", "num_spares"):
        assert {bool(getattr(schedule, what)) for schedule in schedules} == {True, False}, what
    assert {schedule.num_heights for schedule in schedules} == {1, 2, 3}


def test_those_that_trust_each_other_meet_no_liar() -> None:
    schedules = [draw(seed, 5, trusts_members=True) for seed in range(100)]
    assert all(treason.is_silent for schedule in schedules for treason in schedule.treasons)
    assert {len(schedule.treasons) for schedule in schedules} == {0, 2}


def test_members_change_between_heights() -> None:
    told = [text for seed in range(30) for text in story(seed)]
    assert any("comes back" in text for text in told)
    assert any("decides height 2" in text for text in told)


def test_a_world_without_a_quorum_is_seen_to_make_no_progress() -> None:
    silent = tuple(Treason(member=member, habits=frozenset({Habit.SILENT}), camp=frozenset()) for member in (0, 3))
    dead = replace(draw(0, 4), treasons=silent, num_heights=1)
    with pytest.raises(Violation, match="no decision by everybody"):
        Trial(dead, protocol_of("pbft")).run()


def test_a_machine_that_falls_over_is_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    def fall(*_: object) -> None:
        raise KeyError("missing")

    monkeypatch.setattr("barnraise.consensus.pbft.Pbft._on_vote", fall)
    with pytest.raises(Violation, match="fell over: KeyError"):
        simulate(0, 4, protocol_of("pbft"))


def test_a_decision_that_its_own_kind_disowns_is_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("barnraise.consensus.pbft_kind.PbftKind.holds", lambda *_: False)
    with pytest.raises(Violation, match="votes that do not hold"):
        simulate(0, 4, protocol_of("pbft"))


def test_votes_are_counted_a_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kind that lets everything pass is not believed."""
    monkeypatch.setattr("barnraise.consensus.pbft_kind.PbftKind.holds", lambda *_: True)
    stage = Stage(draw(0, 4), protocol_of("pbft"), None)
    decision = Decision(value=b"value", view=0, votes=tuple((peer, b"made up") for peer in stage.peers))
    with pytest.raises(Violation, match="0 votes that hold"):
        stage.witness.decided(stage.peers[0], decision, stage.scopes[0], stage.committees[0])


def test_what_is_held_is_counted_in_nested_containers() -> None:
    machine = MUTANTS["votes-twice"].kind.open(
        Stage(draw(0, 4), protocol_of("pbft"), None).scopes[0],
        [PeerId(f"peer-{index}") for index in range(4)],
        PeerId("peer-1"),
        sign=lambda context, message: b"",
        verify=lambda *_: True,
    )
    before = num_held(machine)
    machine._book.own(3).proposals[b"name"] = None  # type: ignore[assignment]
    assert num_held(machine) >= before + 2
