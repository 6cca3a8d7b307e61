"""Petitions among members: heard by one, proposed by the leader, agreed by all, in force from the next round on."""

from collections.abc import Sequence

import pytest

from barnraise.errors import PeerError
from barnraise.ids import PeerId
from barnraise.swarm import petitions
from barnraise.swarm.petitions import Petition, Voucher
from barnraise.swarm.records import Amend, Change, Cut, Recover, Result, Revoke, Rotate, Upgrade
from barnraise.swarm.state import State

from .room import TIMEOUT_S, A, B, C, Room, kinds, room_of, sign

NEW = PeerId("new")


def petition_of(body: bytes, signers: Sequence[str]) -> Petition:
    def voucher_of(signer: str) -> Voucher:
        peer = PeerId(signer)
        return petitions.signed(body, peer, b"", lambda context, message: sign(peer, context, message))

    return Petition(body=body, vouchers=tuple(map(voucher_of, signers)))


def change_of(state: State, change: Change, signers: Sequence[str]) -> Petition:
    return petition_of(petitions.wish_of(state.run, change), signers)


def hand_in(room: Room, peer: PeerId, petition: Petition) -> None:
    room.say(peer, room.members[peer].petition(room.now, petition))


@pytest.mark.parametrize("first", [A, B, C])
def test_a_change_is_agreed_whoever_hears_of_it_first_and_holds_from_the_next_round_on(first: PeerId) -> None:
    room = room_of(A, B, C)
    state = room.members[A].state
    hand_in(room, first, change_of(state, Upgrade(number=1, version=2, rules=(("outer.lr", "0.5"),)), [A, C]))
    room.wait(5)
    assert kinds(room.log) == [Amend]
    room.train()
    assert kinds(room.log) == [Amend, Cut, Result]
    assert {member.state.config.outer.lr for member in room.members.values()} == {0.5}
    room.train()
    assert kinds(room.log)[3:] == [Cut, Result]
    assert {event.version for event in room.log[3:]} == {2}


def test_two_operators_ask_on_two_machines() -> None:
    room = room_of(A, B, C)
    state, revoke = room.members[A].state, Revoke(peer=C)
    hand_in(room, A, change_of(state, revoke, [A]))
    assert kinds(room.log) == []
    hand_in(room, B, change_of(state, revoke, [B]))
    room.wait(5)
    room.train()
    assert kinds(room.log) == [Amend, Cut, Result]
    assert room.members[A].state.peers == (A, B)
    room.train(A, B)
    assert kinds(room.log)[3:] == [Cut, Result]


def test_who_was_away_hears_of_it_when_it_is_back() -> None:
    room = room_of(A, B, C)
    state = room.members[A].state
    room.die(B)
    hand_in(room, A, change_of(state, Revoke(peer=C), [A]))
    room.enter(B, state=state)
    hand_in(room, B, change_of(state, Revoke(peer=C), [B]))
    room.wait(5)
    assert kinds(room.log) == [Amend]


def test_a_member_goes_on_as_another() -> None:
    room = room_of(A, B, C)
    state = room.members[A].state
    hand_in(room, A, change_of(state, Rotate(old=A, new=NEW), [A, NEW]))
    room.wait(5)
    room.train()
    assert room.members[B].state.peers == (NEW, B, C)


def test_a_place_is_kept_while_its_peer_starts_again_with_the_new_key() -> None:
    room = room_of(A, B, C)
    hand_in(room, A, change_of(room.members[A].state, Rotate(old=A, new=NEW), [A, NEW]))
    room.wait(5)
    room.train()
    room.die(A)
    for _ in range(2):
        room.train(B, C)
        room.wait(2 * TIMEOUT_S)
    assert room.members[B].state.peers == (NEW, B, C)
    room.enter(NEW, state=room.members[B].state)
    room.train()
    assert NEW in room.members[B].state.contributors


def test_a_forged_petition_is_its_senders_fault() -> None:
    room = room_of(A, B, C)
    petition = change_of(room.members[A].state, Revoke(peer=C), [C])
    forged = Petition(body=petition.body, vouchers=(Voucher(C, b"forged", b""),))
    with pytest.raises(PeerError, match="does not hold"):
        room.members[A].receive(room.now, B, forged)


def test_the_one_who_is_left_goes_on_when_the_operators_say_so() -> None:
    room = room_of(A, B, C)
    room.train()
    for peer in (A, B):
        room.die(peer)
    room.wait(2 * TIMEOUT_S)
    state = room.members[C].state
    before = len(room.log)
    hand_in(room, C, petition_of(petitions.recovery_of(state, [C]), [A]))
    assert len(room.log) == before
    hand_in(room, C, petition_of(petitions.recovery_of(state, [C]), [B]))
    assert kinds(room.log)[before:] == [Recover]
    assert room.members[C].state.peers == (C,)
    room.train()
    assert kinds(room.log)[before + 1 :] == [Cut, Result]


def test_who_missed_a_recovery_is_told_of_it() -> None:
    room = room_of(A, B, C)
    room.train()
    state = room.members[C].state
    for peer in (A, B):
        room.die(peer)
    hand_in(room, C, petition_of(petitions.recovery_of(state, [B, C]), [A, B]))
    assert kinds(room.log)[-1] is Recover
    room.enter(B, state=state)
    room.wait(10)
    assert room.members[B].state.peers == (B, C)
    room.train()
    assert kinds(room.log)[-2:] == [Cut, Result]
