"""What one member says to harm another: whoever says it is to blame, and nothing else comes of it."""

from dataclasses import replace

import msgspec
import pytest

from barnraise.errors import PeerError
from barnraise.swarm import round as rounds
from barnraise.swarm.messages import Commit, Status
from barnraise.swarm.presence import Presence
from barnraise.swarm.records import Signed
from barnraise.swarm.round import MAX_TIME, Stepped

from .room import TIMEOUT_S, A, B, C, D, Room, config_of, digest_of, room_of


def forged_commitment() -> Commit:
    """Return what B would commit to in the first round, signed by nobody."""
    room = room_of(A, B, C)
    room.train(B)
    ours = next(message for message in room.said(B, Commit))
    assert isinstance(ours, Commit)
    return msgspec.structs.replace(ours, commitment=Signed(ours.commitment.record, b"forged"))


def test_who_sends_a_bad_commitment_in_anothers_name_is_to_blame() -> None:
    member = room_of(A, B, C).members[A]
    with pytest.raises(PeerError, match=f"in the name of {B}") as refused:
        member.receive(1.0, C, forged_commitment())
    assert refused.value.peer == C


def test_a_shard_of_a_plan_with_more_of_them_is_of_no_use() -> None:
    room = room_of(A, B, C)
    member = room.members[A]
    assert member.update_arrived(1.0, 0, B, 3, digest_of("a leaf")) == []
    assert not member.work.updates_arrived
    room.train()
    assert member.state.round == 1


@pytest.mark.parametrize("time", [-1, MAX_TIME + 1, 1 << 63])
def test_a_result_of_a_time_that_no_calendar_has_is_not_agreed_to(time: int) -> None:
    room = room_of(A, B, C)
    room.train(A, B)
    state, work = room.members[A].state, room.members[A].work
    room.train(C)
    stepped = Stepped(
        round=0,
        attempt=0,
        aggregate_root=digest_of("aggregate"),
        theta_root=digest_of("theta"),
        momentum_root=digest_of("momentum"),
        exponents=state.exponents,
        unix_time=1,
    )
    cut = rounds.build_cut(state, work, [A, B, C])
    after = rounds.apply(state, cut)
    proposed = rounds.build_result(after, work, stepped, joined=(), left=())
    assert rounds.is_valid_result(after, work, stepped, proposed)
    wrong = msgspec.structs.replace(proposed, time=time)
    assert not rounds.is_valid_result(after, work, stepped, wrong)


def test_one_that_claims_to_be_far_ahead_keeps_nobody_from_voting() -> None:
    room = Room(replace(config_of(A, B, C, D), profile="open"))
    for peer in (A, B, C):
        room.enter(peer, is_fresh=True)
    room.train()
    for height in range(100, 130):
        for peer in (A, B, C):
            room.say(peer, room.members[peer].receive(room.now, D, Status(height=height, round=0, wants_in=False)))
        room.wait(1.0)
    assert room.members[A].state.round > 0


def test_a_height_is_believed_once_so_many_tell_of_it_or_of_a_greater_one() -> None:
    presence = Presence(me=A, timeout_s=TIMEOUT_S, started_at=0.0)
    for peer, height in ((B, 3), (C, 9), (D, 5)):
        presence.note(peer, height=height, wants_in=False, wants_out=False, is_hollow=False)
    assert [presence.told_height((A, B, C, D), count) for count in (1, 2, 3, 4)] == [9, 5, 3, -1]
