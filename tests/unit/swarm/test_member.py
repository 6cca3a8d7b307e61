"""One member's machine among others: rounds, who waits for whom, what may be claimed."""

from dataclasses import replace
from typing import Any

import pytest

from barnraise.config import DataConfig
from barnraise.errors import PeerError
from barnraise.swarm import effects, records
from barnraise.swarm.adopt import adopt
from barnraise.swarm.records import Cut, Regroup, Result
from barnraise.swarm.round import Phase
from barnraise.swarm.state import MAX_SAMPLES

from .room import (
    ASKED,
    CATCH_UP_S,
    GRACE_S,
    TICK_S,
    TIMEOUT_S,
    A,
    B,
    C,
    D,
    Room,
    config_of,
    first_state,
    kinds,
    room_of,
    verify,
)


def test_three_members_go_through_rounds() -> None:
    room = room_of(A, B, C)
    for number in range(3):
        room.train()
        assert {member.state.round for member in room.members.values()} == {number + 1}
    assert kinds(room.log) == [Cut, Result] * 3
    assert [len(event.contributions) for event in room.log if isinstance(event, Cut)] == [3] * 3


def test_every_entry_of_the_log_is_what_was_signed() -> None:
    room = room_of(A, B)
    room.train()
    assert [records.decode_event.decode(decision.value) for decision in room.decisions] == room.log


# ---- enough members -----------------------------------------------------------------------------------------------


def test_one_founder_waits_until_there_are_as_many_as_the_rules_want() -> None:
    room = room_of(A, min_peers=3)
    room.wait(1.0)
    assert room.members[A].phase is Phase.SHORT
    assert room.reports(A, "peer.waiting") == [{"reason": "1 of at least 3 members are here"}]
    assert not any(isinstance(effect, effects.Train) for effect in room.done[A])

    room.enter(B)
    room.wait(2.0)
    assert room.members[A].phase is Phase.SHORT
    assert room.reports(A, "peer.waiting")[-1] == {"reason": "2 of at least 3 members are here"}
    room.enter(C)
    room.wait(2.0)
    assert kinds(room.log) == [Regroup, Regroup]
    assert {member.phase for member in room.members.values()} == {Phase.TRAIN}
    assert all(member.state.counting == (A, B, C) for member in room.members.values())
    assert all(isinstance(room.done[peer][-1], effects.Train | effects.Broadcast) for peer in (A, B, C))
    assert room.reports(A, "peer.waiting")[-1] == {"reason": "enough members are back"}

    room.train()
    assert kinds(room.log) == [Regroup, Regroup, Cut, Result]
    assert room.members[A].state.total_samples == 3 * ASKED


def short_of_one() -> Room:
    """Return a room of three, who must be three, of whom one died during the second round."""
    room = room_of(A, B, C, min_peers=3)
    room.train()
    room.die(C)
    room.train(A, B)
    room.wait(TIMEOUT_S + 2 * GRACE_S)
    return room


def test_when_one_of_too_few_dies_the_others_wait_and_say_so() -> None:
    room = short_of_one()
    assert kinds(room.log) == [Cut, Result]
    assert room.reports(A, "peer.waiting")[-1] == {"reason": "2 of at least 3 members are here"}


def test_a_newcomer_takes_the_place_of_one_that_died() -> None:
    room = short_of_one()
    room.enter(D, state=room.members[A].state)
    room.wait(3.0)
    (regroup,) = (event for event in room.log if isinstance(event, Regroup))
    assert (regroup.joined, regroup.left) == ((D,), (C,))
    room.train()
    assert {member.state.round for member in room.members.values()} == {2}
    assert room.members[D].state.peers == (A, B, D)


def test_the_same_peer_may_take_its_place_again() -> None:
    room = short_of_one()
    room.enter(C, state=adopt(first_state(room.config), room.decisions, verify).state, recent=room.decisions)
    room.wait(1.0)
    room.train(C)
    assert kinds(room.log) == [Cut, Result] * 2
    assert room.reports(A, "peer.waiting")[-1] == {"reason": "enough members are back"}


def test_newcomers_go_on_with_a_round_whose_samples_all_died() -> None:
    """Who joined with the last result was given nothing in this round, and everybody else is gone."""
    room = room_of(A)
    for peer in (B, C):
        room.enter(peer)
    room.wait(2.0)
    room.train(A)
    room.wait(CATCH_UP_S)
    assert room.members[B].state.peers == (A, B, C)
    assert room.members[B].state.counting == (A,)
    room.die(A)
    room.wait(TIMEOUT_S + 60.0)
    (regroup,) = (event for event in room.log if isinstance(event, Regroup))
    assert (regroup.joined, regroup.left) == ((), (A,))
    assert room.members[C].state.counting == (B, C)
    room.train()
    assert room.members[B].state.round == 2
    assert room.members[B].state.total_samples == 3 * ASKED


def test_a_regroup_waits_while_somebody_with_samples_may_still_finish() -> None:
    room = room_of(A)
    for peer in (B, C):
        room.enter(peer)
    room.wait(2.0)
    room.train(A)
    room.wait(TIMEOUT_S * 3)
    assert kinds(room.log) == [Cut, Result]
    assert room.members[A].phase is Phase.TRAIN


# ---- what a round's members may claim -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "samples", "is_taken"),
    [
        pytest.param({"seconds": 5.0}, ASKED, True, id="all"),
        pytest.param({"seconds": 5.0}, 1, True, id="one"),
        pytest.param({"seconds": 5.0}, 0, False, id="none"),
        pytest.param({"seconds": 5.0}, -1, False, id="less than none"),
        pytest.param({"seconds": 5.0}, ASKED + 1, False, id="more than all"),
        pytest.param({}, ASKED - 1, False, id="not all, without a time limit"),
        pytest.param({"kind": "own"}, 1, True, id="own data, one"),
        pytest.param({"kind": "own"}, MAX_SAMPLES, True, id="own data, as many as there may be"),
        pytest.param({"kind": "own"}, MAX_SAMPLES + 1, False, id="own data, one too many"),
        pytest.param({"kind": "own"}, 0, False, id="own data, none"),
    ],
)
def test_a_commitment_claims_what_the_run_allows(changes: dict[str, Any], samples: int, is_taken: bool) -> None:
    config = config_of(A, B)
    if "kind" in changes:
        config = replace(config, data=DataConfig(kind="own"))
    else:
        config = replace(config, round=replace(config.round, **changes))
    room = Room(config)
    for peer in (A, B):
        room.enter(peer)
    room.wait(TICK_S)
    if not is_taken:
        with pytest.raises(PeerError, match=f"claims {samples} samples"):
            room.train(B, samples=samples)
        return
    room.train(B, samples=samples)
    room.train(A)
    (cut,) = (event for event in room.log if isinstance(event, Cut))
    assert [entry.samples for entry in cut.contributions] == [ASKED, samples]
