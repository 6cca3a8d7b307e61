"""Petitions: heard from anybody, forged, replayed, piece by piece; what comes of them is what was signed for."""

import contextlib
from collections.abc import Sequence
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from barnraise.consensus.agreement import MAX_VALUE_BYTES, Decision
from barnraise.errors import LocalError, PeerError
from barnraise.identity import PUBLIC_IDENTITY_BYTES, SIGNATURE_BYTES, Identity, PublicIdentity
from barnraise.ids import EMPTY_DIGEST, PeerId
from barnraise.net.seam import MAX_MESSAGE_BYTES
from barnraise.sim.node import sign, verify
from barnraise.swarm import petitions, records
from barnraise.swarm.adopt import adopt
from barnraise.swarm.certification import RECOVERY_CONTEXT, certifies
from barnraise.swarm.petitions import PETITION_CONTEXT, Petition, Pool, Voucher
from barnraise.swarm.records import Change, Readmit, Revoke, Rotate, Upgrade
from barnraise.swarm.state import State, apply, genesis

from .entries import CONFIG, EVERYBODY, cut_of, first_state, recover_of, round_of

A, B, C, D, E, F = EVERYBODY
SENDER = PeerId("sender")
ROTATE = Rotate(old=A, new=F)
UPGRADE = Upgrade(number=1, version=2, rules=(("outer.lr", "0.5"),))
SPEAKS = dict.fromkeys(EVERYBODY, records.NEWEST)


def voucher_of(body: bytes, signer: str) -> Voucher:
    peer = PeerId(signer)
    return petitions.signed(body, peer, b"", lambda context, message: sign(peer, context, message))


def petition_of(state: State, change: Change, signers: Sequence[str]) -> Petition:
    body = petitions.wish_of(state.run, change)
    return Petition(body=body, vouchers=tuple(voucher_of(body, signer) for signer in signers))


def recovery_of(state: State, members: Sequence[str], signers: Sequence[str]) -> Petition:
    body = petitions.recovery_of(state, members)
    return Petition(body=body, vouchers=tuple(voucher_of(body, signer) for signer in signers))


def heard(state: State, *heard: Petition) -> Pool:
    pool = Pool()
    for petition in heard:
        pool.receive(state, SENDER, petition, verify)
    return pool


# ---- what comes of a petition --------------------------------------------------------------------------------------


def test_a_change_that_enough_have_signed_is_proposed_agreed_and_forgotten() -> None:
    state = first_state()
    pool = heard(state, petition_of(state, ROTATE, [A, F]))
    event = pool.due(state, SPEAKS)
    assert event is not None
    assert petitions.is_sealed(event, verify)
    after = apply(state, event)
    pool.settle(after)
    assert (len(pool), pool.due(after, SPEAKS)) == (0, None)
    assert round_of(after).peers == (F, B, C)


def test_operators_sign_the_same_thing_apart_from_each_other() -> None:
    state = first_state()
    pool = heard(state, petition_of(state, UPGRADE, [A]))
    assert pool.due(state, SPEAKS) is None
    assert pool.receive(state, SENDER, petition_of(state, UPGRADE, [C]), verify)
    assert len(pool) == 1
    event = pool.due(state, SPEAKS)
    assert event is not None
    assert [seal.signer for seal in event.seals] == [A, C]


def test_an_entry_holds_no_more_signatures_than_it_takes() -> None:
    state = first_state()
    event = heard(state, petition_of(state, UPGRADE, [C, B, A])).due(state, SPEAKS)
    assert event is not None
    assert [seal.signer for seal in event.seals] == [A, B]
    state = round_of(apply(state, event))
    event = heard(state, petition_of(state, Revoke(peer=C), [A, B, C])).due(state, SPEAKS)
    assert event is not None
    assert [seal.signer for seal in event.seals] == [C]


def test_nothing_is_proposed_behind_a_cut() -> None:
    state = first_state()
    pool = heard(state, petition_of(state, ROTATE, [A, F]))
    assert pool.due(apply(state, cut_of(state, [A, B])), SPEAKS) is None


@pytest.mark.parametrize(("speaking", "is_due"), [([], False), ([A], False), ([B, C], True), ([A, B, C], True)])
def test_an_upgrade_waits_until_a_quorum_reads_its_records(speaking: list[PeerId], is_due: bool) -> None:
    state = first_state()
    pool = heard(state, petition_of(state, UPGRADE, [A, B]))
    assert (pool.due(state, dict.fromkeys(speaking, 2)) is not None) == is_due


def test_who_comes_back_is_let_in_by_operators_who_hear_of_it_from_the_newcomer() -> None:
    state = round_of(apply(first_state(), _amend(first_state(), Revoke(peer=A), [A])))
    change = Readmit(lost=A, new=F)
    pool = heard(state, petition_of(state, change, [F, B]), petition_of(state, change, [C]))
    event = pool.due(state, SPEAKS)
    assert event is not None
    assert round_of(apply(state, event)).peers == (F, B, C)


def _amend(state: State, change: Change, signers: Sequence[str]) -> records.Amend:
    event = heard(state, petition_of(state, change, signers)).due(state, SPEAKS)
    assert event is not None
    return event


# ---- what is not taken ---------------------------------------------------------------------------------------------


def test_a_forged_signature_is_refused_and_what_held_before_is_kept() -> None:
    state = first_state()
    good, forged = petition_of(state, UPGRADE, [A]), petition_of(state, UPGRADE, [B])
    bad = replace_vouchers(forged, (Voucher(B, sign(C, PETITION_CONTEXT, forged.body), b""),))
    pool = heard(state, good)
    for petition in (bad, replace_vouchers(bad, (*good.vouchers, *bad.vouchers))):
        with pytest.raises(PeerError, match="does not hold"):
            pool.receive(state, SENDER, petition, verify)
    assert pool.said() == [good]


def replace_vouchers(petition: Petition, vouchers: Sequence[Voucher]) -> Petition:
    return msgspec.structs.replace(petition, vouchers=tuple(vouchers))


def test_a_signature_for_something_else_does_not_count() -> None:
    """Neither as a vote for a recovery, nor under another body, nor in another run."""
    state = first_state()
    body = petitions.wish_of(state.run, UPGRADE)
    for context, signed in (
        (RECOVERY_CONTEXT, body),
        (PETITION_CONTEXT, petitions.wish_of(state.run, Revoke(peer=C))),
        ("barnraise 1 vote", body),
    ):
        petition = Petition(body=body, vouchers=(Voucher(A, sign(A, context, signed), b""),))
        with pytest.raises(PeerError, match="does not hold"):
            heard(state, petition)


def test_another_runs_petition_is_refused() -> None:
    other = genesis(replace(CONFIG, seed=2), 2, EMPTY_DIGEST, EMPTY_DIGEST)
    assert other.run != first_state().run
    with pytest.raises(PeerError, match="of run"):
        heard(first_state(), petition_of(other, UPGRADE, [A, B]))
    event = _amend(other, UPGRADE, [A, B])
    assert not petitions.is_sealed(msgspec.structs.replace(event, run=first_state().run), verify)


def test_what_was_done_is_not_done_again() -> None:
    state = first_state()
    for change, signers in ((ROTATE, [A, F]), (UPGRADE, [B, C]), (Revoke(peer=B), [B])):
        petition = petition_of(state, change, signers)
        after = round_of(apply(state, _amend(state, change, signers)))
        pool = Pool()
        assert not pool.receive(after, SENDER, petition, verify)
        assert (len(pool), pool.due(after, SPEAKS)) == (0, None)


def test_what_was_heard_before_is_not_passed_on_again() -> None:
    state = first_state()
    pool, petition = Pool(), petition_of(state, ROTATE, [A, F])
    assert pool.receive(state, SENDER, petition, verify)
    assert not pool.receive(state, SENDER, petition, verify)


def test_a_known_signature_is_not_verified_again() -> None:
    state = first_state()
    asked: list[PeerId] = []

    def counted(peer: PeerId, context: str, message: bytes, signature: bytes) -> bool:
        asked.append(peer)
        return verify(peer, context, message, signature)

    pool = Pool()
    for _ in range(3):
        pool.receive(state, SENDER, petition_of(state, ROTATE, [A, F]), counted)
    assert asked == [A, F]


@pytest.mark.parametrize("signers", [[D], [A, D], [B]])
def test_a_signature_of_whose_word_does_not_count_is_refused(signers: list[str]) -> None:
    state = first_state()
    with pytest.raises(PeerError, match="does not count"):
        heard(state, petition_of(state, ROTATE, signers))


def test_strangers_cannot_fill_the_pool() -> None:
    state = round_of(apply(first_state(), _amend(first_state(), Revoke(peer=A), [A])))
    pool = Pool()
    for number in range(50):
        stranger = f"stranger-{number}"
        assert not pool.receive(state, SENDER, petition_of(state, Readmit(lost=A, new=stranger), [stranger]), verify)
    assert len(pool) == 0


def test_members_cannot_fill_the_pool_either() -> None:
    state = round_of(first_state(), joined=[D])
    pool = Pool()
    for number in range(50):
        for peer in (A, D):
            pool.receive(state, SENDER, petition_of(state, Rotate(old=peer, new=f"{peer}-{number}"), [peer]), verify)
    assert len(pool) == petitions.MAX_PER_OPERATOR + 1


def test_only_keys_of_those_whose_word_counts_are_remembered() -> None:
    state = first_state()
    met: list[PeerId] = []
    pool = Pool(lambda peer, keys: met.append(peer))
    with pytest.raises(PeerError):
        pool.receive(state, SENDER, petition_of(state, ROTATE, [D]), verify)
    pool.receive(state, SENDER, petition_of(state, ROTATE, [F, A]), verify)
    assert met == [A, F]


@pytest.mark.parametrize(
    "body", [b"", b"\x91" * 4096, b"\x93\xa4Wish\x01\x02", records.encode(cut_of(first_state(), [A]))]
)
def test_a_malformed_body_is_refused(body: bytes) -> None:
    with pytest.raises(PeerError, match="malformed"):
        heard(first_state(), Petition(body=body, vouchers=(Voucher(A, b"s", b""),)))


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_hostile_bytes_are_a_petition_or_a_decode_error_and_never_more(data: st.DataObject) -> None:
    state = first_state()
    seed = bytearray(petitions.encode(petition_of(state, ROTATE, [A, F])))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(seed)))
        seed[place : place + data.draw(st.integers(0, 6))] = data.draw(st.binary(max_size=6))
    pool = Pool()
    with contextlib.suppress(msgspec.DecodeError, PeerError):
        pool.receive(state, SENDER, petitions.decode_petition.decode(bytes(seed)), verify)
    event = pool.due(state, SPEAKS)
    assert event is None or event.change == ROTATE


def test_a_proposal_with_a_signature_that_does_not_hold_is_not_approved() -> None:
    state = first_state()
    event = _amend(state, UPGRADE, [A, B])
    forged = msgspec.structs.replace(event.seals[0], signature=event.seals[1].signature)
    for changed in (
        msgspec.structs.replace(event, seals=(forged, event.seals[1])),
        msgspec.structs.replace(event, change=Upgrade(number=1, version=2, rules=(("outer.lr", "0.6"),))),
    ):
        assert not petitions.is_sealed(changed, verify)


# ---- going on without the lost -------------------------------------------------------------------------------------


def test_a_recovery_is_decided_by_most_of_the_operators() -> None:
    state = round_of(first_state())
    pool = heard(state, recovery_of(state, [C, F], [A]))
    assert pool.recovery(state) is None
    assert pool.due(state, SPEAKS) is None
    pool.receive(state, SENDER, recovery_of(state, [C, F], [C]), verify)
    decision = pool.recovery(state)
    assert decision is not None
    assert certifies(state, decision, verify)
    adopted = adopt(state, [decision], verify)
    assert adopted.state.peers == (C, F)
    assert [vertex.parents for vertex in adopted.vertices] == [(state.vertex,)]
    pool.settle(adopted.state)
    assert (len(pool), pool.recovery(adopted.state)) == (0, None)


def test_two_recoveries_do_not_add_up() -> None:
    state = round_of(first_state())
    pool = heard(state, recovery_of(state, [C, F], [A]), recovery_of(state, [C, E], [B]))
    assert (len(pool), pool.recovery(state)) == (2, None)


def test_a_recovery_is_of_one_place_in_the_log() -> None:
    state = round_of(first_state())
    pool = heard(state, recovery_of(state, [C, F], [A, B]))
    decision = pool.recovery(state)
    assert decision is not None
    for elsewhere in (first_state(), apply(state, cut_of(state, [A, B])), round_of(state)):
        assert pool.recovery(elsewhere) is None
        assert not certifies(elsewhere, decision, verify)
        with pytest.raises(LocalError):
            adopt(elsewhere, [decision], verify)


def recovered(state: State, voters: Sequence[str], context: str = RECOVERY_CONTEXT) -> Decision:
    value = records.encode(recover_of(state, [C, F]))
    return Decision(value=value, view=0, votes=tuple((peer, sign(PeerId(peer), context, value)) for peer in voters))


@pytest.mark.parametrize("voters", [[], [A], [A, A], [D, E, F], [A, D, E]])
def test_a_recovery_without_most_of_the_operators_is_certified_by_nobody(voters: list[str]) -> None:
    state = round_of(first_state())
    assert not certifies(state, recovered(state, voters), verify)
    with pytest.raises(LocalError, match="no quorum"):
        adopt(state, [recovered(state, voters)], verify)


def test_members_votes_and_forged_ones_recover_nothing() -> None:
    state = round_of(first_state())
    good = recovered(state, [A, B])
    assert certifies(state, good, verify)
    assert not certifies(state, recovered(state, [A, B, C], PETITION_CONTEXT), verify)
    assert not certifies(state, replace(good, votes=((A, good.votes[1][1]), (B, good.votes[0][1]))), verify)
    statement = state.scope.statement(0, good.digest)
    for context in ("barnraise 1 vote", "barnraise 1 commit"):
        votes = tuple((peer, sign(peer, context, statement)) for peer in state.peers)
        assert not certifies(state, replace(good, votes=votes), verify)


def test_an_operators_signature_certifies_nothing_but_a_recovery() -> None:
    state = first_state()
    value = records.encode(cut_of(state, [A, B]))
    votes = tuple((peer, sign(peer, RECOVERY_CONTEXT, value)) for peer in (A, B, C))
    assert not certifies(state, Decision(value=value, view=0, votes=votes), verify)


def test_what_is_no_entry_is_not_certified() -> None:
    assert not certifies(first_state(), Decision(value=b"\xc1", view=0, votes=()), verify)


# ---- real keys -----------------------------------------------------------------------------------------------------


def test_a_rotation_with_real_keys_needs_nobody_to_have_met_the_new_one() -> None:
    old, new = Identity.generate(), Identity.generate()
    config = replace(CONFIG, founders=(old.peer_id, B, C))
    state = genesis(config, 2, EMPTY_DIGEST, EMPTY_DIGEST)
    body = petitions.wish_of(state.run, Rotate(old=old.peer_id, new=new.peer_id))
    vouchers = [petitions.signed(body, key.peer_id, key.public.encode(), key.sign) for key in (new, old)]
    known: dict[PeerId, PublicIdentity] = {}

    def introduce(peer: PeerId, keys: bytes) -> None:
        identity = PublicIdentity.decode(keys)
        assert identity.peer_id == peer
        known[peer] = identity

    def holds(peer: PeerId, context: str, message: bytes, signature: bytes) -> bool:
        return peer in known and known[peer].verify(context, message, signature)

    pool = Pool(introduce)
    pieces = petitions.in_messages(body, vouchers)
    assert [pool.receive(state, SENDER, piece, holds) for piece in pieces] == [True]
    event = pool.due(state, {})
    assert event is not None
    assert petitions.is_sealed(event, holds)
    assert new.peer_id in round_of(apply(state, event)).peers


def test_the_longest_petition_and_the_longest_entry_fit_what_carries_them() -> None:
    body, keys, signature = bytes(petitions.MAX_BODY_BYTES), bytes(PUBLIC_IDENTITY_BYTES), bytes(SIGNATURE_BYTES)
    vouchers = [Voucher(f"{number:052}", signature, keys) for number in range(13)]
    pieces = petitions.in_messages(body, vouchers)
    assert max(len(petitions.encode(piece)) for piece in pieces) < MAX_MESSAGE_BYTES
    assert [voucher for piece in pieces for voucher in piece.vouchers] == vouchers
    assert petitions.MAX_BODY_BYTES < MAX_VALUE_BYTES


def test_an_entry_that_as_many_operators_as_there_can_be_sign_fits_an_agreement() -> None:
    operators = tuple(f"{number:052}" for number in range(13))
    state = genesis(replace(CONFIG, operators=operators), 2, EMPTY_DIGEST, EMPTY_DIGEST)
    for change, signers in ((Revoke(peer=C), operators), (UPGRADE, operators)):
        event = _amend(state, change, signers)
        assert len(event.seals) == 7
        padded = tuple(msgspec.structs.replace(seal, signature=bytes(SIGNATURE_BYTES)) for seal in event.seals)
        assert len(records.encode(msgspec.structs.replace(event, seals=padded))) < MAX_VALUE_BYTES
