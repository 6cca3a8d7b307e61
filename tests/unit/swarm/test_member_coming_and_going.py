"""A member among others: newcomers, who leaves, and what a pause is."""

from barnraise.swarm.effects import Finish
from barnraise.swarm.messages import Status
from barnraise.swarm.records import Cut, Result

from .room import CATCH_UP_S, A, B, C, room_of


def test_a_newcomer_has_no_weight_in_its_first_round_and_counts_from_the_next() -> None:
    room = room_of(A, B)
    room.enter(C)
    room.wait(2.0)
    shares = []
    for _ in range(3):
        room.train()
        room.wait(CATCH_UP_S)
        (cut,) = (event for event in room.log[-2:-1] if isinstance(event, Cut))
        shares.append(tuple(entry.member for entry in cut.contributions))
    assert shares == [(A, B), (A, B), (A, B, C)]
    assert room.log[1].joined == (C,)  # type: ignore[union-attr]  # a result


def test_who_wants_out_is_let_go_with_the_rounds_result() -> None:
    room = room_of(A, B, C)
    room.say(B, room.members[B].leave(room.now))
    assert not room.finished(B)
    room.train()
    assert [event.left for event in room.log if isinstance(event, Result)] == [(B,)]
    assert room.finished(B) == [
        Finish(is_over=False, reason="left the run; the others go on, and joining again is possible at any time")
    ]
    assert room.members[A].state.peers == (A, C)
    room.train(A, C)
    assert room.members[C].state.round == 2
    assert len(room.finished(B)) == 1


def test_the_leader_may_leave_as_well() -> None:
    room = room_of(A, B, C)
    room.say(A, room.members[A].leave(room.now))
    room.train()
    assert room.log[-1].left == (A,)  # type: ignore[union-attr]
    assert room.finished(A)
    room.train(B, C)
    assert room.members[B].state.round == 2


def test_where_all_want_out_nobody_is_let_go_and_the_run_can_be_resumed() -> None:
    room = room_of(A, B, C)
    for peer in (A, B, C):
        room.say(peer, room.members[peer].leave(room.now))
    room.train()
    assert room.log[-1].left == ()  # type: ignore[union-attr]
    assert all(
        room.finished(peer)
        == [Finish(is_over=False, reason="stopped; still a member, so start it again to go on where it was")]
        for peer in (A, B, C)
    )
    assert room.members[A].state.peers == (A, B, C)


def test_a_pause_changes_no_membership_and_ends_after_the_round_that_was_named() -> None:
    room = room_of(A, B)
    for peer in (A, B):
        room.say(peer, room.members[peer].leave(room.now, after_round=1))
    room.train()
    assert not room.finished(A)
    room.train()
    assert [room.members[peer].state.round for peer in (A, B)] == [2, 2]
    assert [len(room.finished(peer)) for peer in (A, B)] == [1, 1]
    assert [event.left for event in room.log if isinstance(event, Result)] == [(), ()]
    assert not any(status.wants_out for status in room.said(A, Status))


def test_who_is_no_member_leaves_at_once_and_wants_in_no_more() -> None:
    room = room_of(A, B)
    room.enter(C)
    room.say(C, room.members[C].leave(room.now))
    assert [finish.is_over for finish in room.finished(C)] == [False]
    room.wait(2.0)
    room.train()
    assert room.members[A].state.peers == (A, B)


def test_who_waits_for_more_members_leaves_at_once() -> None:
    room = room_of(A, min_peers=3)
    room.say(A, room.members[A].leave(room.now))
    assert len(room.finished(A)) == 1


def test_who_waits_for_a_quorum_leaves_at_once() -> None:
    room = room_of(A, B, C)
    room.die(A)
    room.die(B)
    room.wait(2.0)
    assert room.reports(C, "peer.waiting")
    room.say(C, room.members[C].leave(room.now))
    assert len(room.finished(C)) == 1


def test_who_has_left_votes_no_more() -> None:
    room = room_of(A, B, C)
    room.say(B, room.members[B].leave(room.now))
    room.train()
    before = room.votes(B)
    room.train(A, C)
    room.wait(5.0)
    assert room.votes(B) == before
    assert len(room.log) == 4


def test_a_second_wish_to_leave_changes_nothing() -> None:
    room = room_of(A, B)
    room.say(B, room.members[B].leave(room.now))
    room.train()
    room.say(B, room.members[B].leave(room.now))
    assert len(room.finished(B)) == 1
