"""A member that has lost its tensors, or its memory, and comes back among the others."""

from barnraise.consensus.raft_messages import RaftRecord
from barnraise.ids import PeerId
from barnraise.swarm import effects
from barnraise.swarm.donors import SHUN_S
from barnraise.swarm.messages import Status
from barnraise.swarm.records import Cut
from barnraise.swarm.round import Phase

from .room import GRACE_S, TIMEOUT_S, A, B, C, Room, config_of, room_of

# ---- without tensors ----------------------------------------------------------------------------------------------


def catch_ups(room: Room, peer: PeerId) -> list[effects.CatchUp]:
    return [effect for effect in room.done[peer] if isinstance(effect, effects.CatchUp)]


def test_who_has_no_tensors_fetches_them_at_equal_height_before_anything_else() -> None:
    room = room_of(A, B, hands_over=False)
    hollow = room.enter(C, is_hollow=True)
    room.wait(2.0)
    (asked,) = catch_ups(room, C)
    assert (asked.height, hollow.phase) == (0, Phase.BEHIND)
    assert {(status.is_hollow, status.wants_in) for status in room.said(C, Status)} == {(True, False)}
    assert not any(isinstance(effect, effects.Train) for effect in room.done[C])
    room.train(A, B)
    assert room.log[1].joined == ()  # type: ignore[union-attr]
    state = room.members[A].state
    room.say(C, hollow.caught_up(room.now, state))
    newest = room.said(C, Status)[-1]
    assert (newest.is_hollow, newest.wants_in, newest.height) == (False, True, 2)
    room.train(A, B)
    assert room.log[3].joined == (C,)  # type: ignore[union-attr]


def test_a_founder_without_tensors_does_not_train_before_it_has_them() -> None:
    room = Room(config_of(A, B), hands_over=False)
    room.enter(A, is_hollow=True)
    room.enter(B)
    room.wait(2.0)
    assert [asked.donor for asked in catch_ups(room, A)] == [B]
    assert not any(isinstance(effect, effects.Train) for effect in room.done[A])
    room.say(A, room.members[A].caught_up(room.now, room.members[A].state))
    room.wait(1.0)
    room.train()
    assert [len(event.contributions) for event in room.log if isinstance(event, Cut)] == [2]


def test_who_has_no_tensors_itself_is_nobodys_donor() -> None:
    room = Room(config_of(A, B))
    room.enter(A, is_hollow=True)
    room.enter(B, is_hollow=True)
    room.wait(5.0)
    assert not catch_ups(room, A)
    assert not catch_ups(room, B)
    assert room.members[A].presence.donors() == ()


def test_a_donor_that_does_not_deliver_is_not_asked_again_soon() -> None:
    room = room_of(A, B, hands_over=False)
    hollow = room.enter(C, is_hollow=True)
    donors = []
    for _ in range(2):
        room.wait(1.0)
        donors.append(catch_ups(room, C)[-1].donor)
        room.say(C, hollow.catch_up_failed(room.now))
    room.wait(1.0)
    assert sorted(donors) == [A, B]
    assert len(catch_ups(room, C)) == 2
    room.wait(SHUN_S)
    assert len(catch_ups(room, C)) > 2


def test_who_has_no_tensors_yet_may_leave_and_what_comes_after_that_does_not_bring_it_back() -> None:
    room = room_of(A, B, hands_over=False)
    hollow = room.enter(C, is_hollow=True)
    room.wait(1.0)
    room.say(C, hollow.leave(room.now))
    assert len(room.finished(C)) == 1
    assert hollow.caught_up(room.now, room.members[A].state) == []
    assert hollow.catch_up_failed(room.now) == []
    room.wait(2.0)
    assert hollow.phase is Phase.OVER
    assert len(room.finished(C)) == 1


# ---- without memory -----------------------------------------------------------------------------------------------


def amnesiac() -> Room:
    """Return a room of three after two rounds, of whom the last has come back with an empty disk."""
    room = room_of(A, B, C)
    room.train()
    room.train()
    room.die(C)
    room.done[C] = []
    room.enter(C, is_fresh=True)
    return room


def test_who_has_lost_its_memory_casts_no_vote_on_what_may_be_decided_already() -> None:
    room = amnesiac()
    room.wait(1.0)
    assert room.members[C].state.height <= 4
    room.say(C, room.members[C].caught_up(room.now, room.members[A].state))
    room.train()
    assert 4 not in room.votes(C)
    assert room.members[A].state.height == 6
    room.train()
    room.train()
    assert room.votes(C)
    assert min(room.votes(C)) > 4
    assert not [record for record in ballots(room, C) if record.height <= 4]


def ballots(room: Room, peer: PeerId) -> list[RaftRecord]:
    return [effect.record for effect in room.done[peer] if isinstance(effect, effects.PersistBallot)]


def test_a_fresh_founder_that_hears_of_no_height_votes() -> None:
    room = Room(config_of(A, B, C))
    for peer in (A, B, C):
        room.enter(peer, is_fresh=True)
    room.wait(1.0)
    room.train()
    assert all(0 in room.votes(peer) for peer in (B, C))


def test_where_nothing_is_decided_without_it_it_votes_after_a_while() -> None:
    """Of three members one is gone for good: the other and the one without memory must do."""
    room = amnesiac()
    room.say(C, room.members[C].caught_up(room.now, room.members[A].state))
    room.die(B)
    room.train()
    room.wait(TIMEOUT_S - 3.0)
    assert room.members[A].state.height == 4
    room.wait(GRACE_S + 10.0)
    assert room.members[A].state.height >= 6
    assert room.members[C].state.height >= 6
