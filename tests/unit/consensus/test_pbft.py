"""The transition table of `pbft`, row by row; what it refuses; what a crash does not undo."""

import msgspec
import pytest

from barnraise.consensus.agreement import (
    MAX_VALUE_BYTES,
    Ballot,
    Broadcast,
    Decided,
    Judge,
    Persist,
    Scope,
    Send,
    decided,
)
from barnraise.consensus.pbft_kind import PBFT
from barnraise.consensus.pbft_messages import Fetch, PbftMessage, PbftRecord, Prepare, PrePrepare
from barnraise.errors import LocalError, PeerError
from barnraise.ids import PeerId
from barnraise.swarm.records import digest

from .pbft_cast import (
    SCOPE,
    Author,
    X,
    Y,
    change_all,
    decision_of,
    fetches,
    member,
    peers,
    prepare_all,
    record_of,
    said,
    sign_as,
    tell,
    verify,
)

NOTHING_HELD = b"\0"


# ---- the normal case ---------------------------------------------------------------------------------------------


def test_the_primary_persists_its_proposal_sends_it_and_judges_it() -> None:
    primary = member(0)
    assert primary.may_propose
    persisted, sent, judged = primary.propose(X)
    assert isinstance(persisted, Persist)
    assert sent == Broadcast(message=Author(0).pre_prepare(0, X))
    assert judged == Judge(view=0, value=X)
    assert not primary.may_propose
    assert primary.propose(Y) == []


def test_a_proposal_is_judged_and_a_vote_is_on_disk_before_it_is_sent() -> None:
    replica = member(1)
    assert tell(replica, Author(0).pre_prepare(0, X)) == [Judge(view=0, value=X)]
    persisted, sent = replica.approve(0)
    assert record_of([persisted]).vote == Author(1).prepare(0, X)
    assert sent == Broadcast(message=Author(1).prepare(0, X))
    assert replica.approve(0) == []


def test_a_quorum_of_prepares_is_on_disk_before_the_commit_is_sent() -> None:
    replica = member(1)
    tell(replica, Author(0).pre_prepare(0, X))
    replica.approve(0)
    assert prepare_all(replica, 0, X, 0) == []
    persisted, sent = prepare_all(replica, 0, X, 2)
    record = record_of([persisted])
    assert record.prepared == Author(0).pre_prepare(0, X)
    assert {name for name, _ in record.prepares} == {"peer-0", "peer-1", "peer-2"}
    assert sent == Broadcast(message=Author(1).commit(0, X))
    assert prepare_all(replica, 0, X, 3) == []


def test_a_quorum_of_commits_decides_whatever_our_view() -> None:
    replica = member(1)
    tell(replica, Author(0).pre_prepare(0, X))
    replica.suspect()
    assert tell(replica, Author(0).commit(0, X), Author(2).commit(0, X)) == []
    decision = decision_of(X, 0, 0, 2, 3)
    assert tell(replica, Author(3).commit(0, X)) == [decision]
    assert replica.decision == decision
    assert PBFT.holds(decision, SCOPE, peers(), verify)


def test_prepares_that_came_before_the_proposal_count() -> None:
    replica = member(1)
    prepare_all(replica, 0, X, 0, 2, 3)
    sent = said(tell(replica, Author(0).pre_prepare(0, X)))
    assert sent == [Author(1).commit(0, X)]


def test_commits_for_a_value_that_we_lack_make_us_fetch_it() -> None:
    replica = member(1)
    tell(replica, Author(0).pre_prepare(0, Y))
    asked = tell(replica, *(Author(place).commit(0, X) for place in (0, 2, 3)))
    assert fetches(asked) == [("peer-3", "value", 0, digest(X))]
    assert fetches(tell(replica, Author(2).commit(0, X))) == [("peer-2", "value", 0, digest(X))]
    assert replica.receive(PeerId("peer-2"), Author(0).pre_prepare(0, X)) == [decision_of(X, 0, 0, 2, 3)]


def test_what_comes_twice_costs_no_verification() -> None:
    calls: list[str] = []

    def count(peer: PeerId, context: str, message: bytes, signature: bytes) -> bool:
        calls.append(context)
        return verify(peer, context, message, signature)

    me = PeerId("peer-1")
    replica = PBFT.open(SCOPE, peers(), me, sign=lambda context, text: sign_as(me, context, text), verify=count)
    messages = (Author(0).pre_prepare(0, X), Author(2).prepare(0, X), Author(2).commit(0, X), Author(2).change(1))
    tell(replica, *messages)
    assert len(calls) == 4
    assert tell(replica, *messages) == []
    assert len(calls) == 4


# ---- changing the view -------------------------------------------------------------------------------------------


def test_suspicion_is_a_promise_and_goes_one_view_at_a_time() -> None:
    replica = member(2)
    persisted, sent = replica.suspect()
    assert record_of([persisted]).change == Author(2).change(1)
    assert sent == Broadcast(message=Author(2).change(1))
    assert replica.view == 0, "nobody has come along yet"
    assert replica.suspect() == []
    change_all(replica, 1, 0, 1)
    assert replica.view == 1
    assert said(replica.suspect()) == [Author(2).change(2)]


def test_suspicion_passes_over_primaries_that_are_down() -> None:
    replica = member(3)
    assert said(replica.suspect(frozenset(peers()[1:3]))) == [Author(3).change(3)]
    assert replica.leader == "peer-3"


def test_suspicion_ends_where_everybody_is_down() -> None:
    assert said(member(3).suspect(frozenset(peers()))) == [Author(3).change(4)]


def test_nothing_is_voted_for_in_a_view_that_was_given_up() -> None:
    replica = member(1)
    tell(replica, Author(0).pre_prepare(0, X))
    replica.suspect()
    assert replica.approve(0) == []
    assert prepare_all(replica, 0, X, 0, 2, 3) == [], "no commit either"
    assert tell(replica, Author(0).pre_prepare(0, X)) == []


def test_f_plus_one_members_ahead_draw_the_rest_along_to_where_one_honest_member_is() -> None:
    replica = member(0)
    assert tell(replica, Author(1).change(900)) == []
    assert said(tell(replica, Author(2).change(3))) == [Author(0).change(3)]


def test_the_new_primary_may_propose_once_a_quorum_has_come() -> None:
    primary = member(1)
    primary.suspect()
    change_all(primary, 1, 0)
    assert not primary.may_propose
    change_all(primary, 1, 2)
    assert primary.may_propose
    assert primary.bound_value == b""
    assert Author(1).pre_prepare(1, Y) in said(primary.propose(Y))


def test_a_new_view_is_believed_once_a_quorum_has_come_and_asked_about_until_then() -> None:
    replica = member(2)
    replica.suspect()
    asked = tell(replica, Author(1).pre_prepare(1, X))
    assert fetches(asked) == [("peer-1", "changes", 1, b"")]
    message = said(asked)[0]
    assert isinstance(message, Fetch)
    assert message.held == bytes([0b100]), "its own"
    assert change_all(replica, 1, 0) == []
    assert change_all(replica, 1, 3) == [Judge(view=1, value=X)]


def test_the_primary_passes_on_the_view_changes_that_somebody_lacks_once_until_it_repeats_itself() -> None:
    primary = member(1)
    primary.suspect()
    change_all(primary, 1, 0, 3)
    primary.propose(X)
    wanted = Fetch(height=7, view=1, what="changes", value=b"", held=bytes([0b100]))
    answer = primary.receive(PeerId("peer-2"), wanted)
    assert {message.member for message in said(answer) if not isinstance(message, Decided)} <= {
        "peer-0",
        "peer-1",
        "peer-3",
    }
    assert len(answer) == 2, "the rest of a quorum"
    assert primary.receive(PeerId("peer-2"), wanted) == []
    primary.repeat()
    assert primary.receive(PeerId("peer-2"), wanted) == answer


def certified(place: int) -> tuple[PbftRecord, list[Ballot]]:
    """Return the record of a member that has a certificate for X in view 0 and went on to view 1."""
    replica = member(place)
    tell(replica, Author(0).pre_prepare(0, X))
    prepare_all(replica, 0, X, 0, 1, 2, 3)
    effects = replica.suspect()
    return record_of(effects), said(effects)


def test_a_certificate_binds_the_new_primary_and_needs_no_judgement() -> None:
    _, (change,) = certified(3)
    assert change == Author(3).change(1, 0, X)
    replica = member(2)
    replica.suspect()
    change_all(replica, 1, 0)
    assert tell(replica, Author(3).change(1, 0, X)) == []
    prepare_all(replica, 0, X, 0, 2, 3)
    assert said(tell(replica, Author(1).pre_prepare(1, X, 0))) == [Author(2).prepare(1, X)]


def test_a_proposal_that_hides_a_certificate_is_not_voted_for() -> None:
    replica = member(2)
    replica.suspect()
    tell(replica, Author(1).change(1), Author(3).change(1, 0, X))
    asked = tell(replica, Author(1).pre_prepare(1, Y))
    assert fetches(asked) == [("peer-1", "changes", 1, b"")], "two of three claims allow it"
    assert replica.approve(1) == []


def test_a_proposal_that_names_a_certificate_for_another_value_is_not_voted_for() -> None:
    replica = member(2)
    replica.suspect()
    tell(replica, Author(1).change(1), Author(3).change(1, 0, X))
    prepare_all(replica, 0, X, 0, 2, 3)
    asked = tell(replica, Author(1).pre_prepare(1, Y, 0))
    assert fetches(asked) == [("peer-1", "prepares", 0, digest(Y))]


def test_the_primary_fetches_a_certificate_that_is_claimed_and_is_bound_by_it() -> None:
    primary, holder = member(1), member(3)
    tell(holder, Author(0).pre_prepare(0, X))
    prepare_all(holder, 0, X, 0, 2, 3)
    (change,) = said(holder.suspect())
    primary.suspect()
    asked = primary.receive(PeerId("peer-3"), change)
    assert fetches(asked) == [("peer-3", "prepares", 0, digest(X)), ("peer-3", "value", 0, digest(X))]
    change_all(primary, 1, 2)
    assert not primary.may_propose, "a claim is not covered"
    for question in said(asked):
        for message in said(holder.receive(PeerId("peer-1"), question)):
            primary.receive(PeerId("peer-3"), message)
    assert primary.may_propose
    assert primary.bound_value == X
    assert said(primary.propose(Y)) == [Author(1).pre_prepare(1, X, 0), Author(1).prepare(1, X)]


def test_a_claim_without_a_certificate_does_not_hold_the_primary_up() -> None:
    primary = member(1)
    primary.suspect()
    tell(primary, Author(3).change(1, 0, X), Author(2).change(1))
    assert not primary.may_propose
    assert fetches(tell(primary, Author(3).change(1, 0, X))), "asked again when it is claimed again"
    change_all(primary, 1, 0)
    assert primary.may_propose
    assert primary.bound_value == b""


def test_a_liar_that_claims_this_to_some_and_that_to_others_does_not_hold_the_proof_up() -> None:
    replica = member(2)
    replica.suspect()
    tell(replica, Author(3).change(1, 0, X), Author(1).change(1))
    assert fetches(tell(replica, Author(1).pre_prepare(1, Y)))
    assert replica.receive(PeerId("peer-1"), Author(3).change(1)) == [Judge(view=1, value=Y)]
    assert [piece.member for piece in replica.evidence] == ["peer-3"]


def test_a_liar_far_ahead_still_justifies_the_view_that_it_promised() -> None:
    replica = member(2)
    replica.suspect()
    tell(replica, Author(3).change(99, 98, X), Author(1).change(1))
    assert fetches(tell(replica, Author(1).pre_prepare(1, Y)))
    assert replica.receive(PeerId("peer-1"), Author(3).change(1)) == [Judge(view=1, value=Y)]


def test_who_lags_prepares_in_the_view_that_it_comes_to() -> None:
    replica = member(3)
    tell(replica, Author(1).pre_prepare(1, X))
    prepare_all(replica, 1, X, 0, 1, 2)
    assert tell(replica, Author(0).change(1)) == []
    assert said(tell(replica, Author(1).change(1)))[:2] == [Author(3).change(1), Author(3).commit(1, X)]


# ---- what was decided --------------------------------------------------------------------------------------------


def test_who_knows_the_decision_tells_it_to_who_changes_its_view() -> None:
    replica = member(1)
    replica.receive(PeerId("peer-2"), decided(SCOPE.height, decision_of(X, 0, 0, 2, 3)))
    told = [Send(to=PeerId("peer-3"), message=decided(SCOPE.height, decision_of(X, 0, 0, 2, 3)))]
    assert tell(replica, Author(3).change(1)) == told
    assert tell(replica, Author(3).change(1)) == []
    assert replica.repeat() == [told[0].message]
    assert replica.suspect() == replica.propose(Y) == replica.approve(0) == []
    assert tell(replica, Author(0).pre_prepare(0, Y)) == []
    assert replica.receive(PeerId("peer-2"), decided(SCOPE.height, decision_of(Y, 0, 0, 2, 3))) == []


def test_anybody_may_tell_a_decision_since_it_proves_itself() -> None:
    replica = member(1)
    assert replica.receive(PeerId("stranger"), decided(SCOPE.height, decision_of(X, 5, 0, 2, 3))) == [
        decision_of(X, 5, 0, 2, 3)
    ]


def test_an_onlooker_learns_and_says_nothing() -> None:
    onlooker = member(9)
    assert not onlooker.may_propose
    assert tell(onlooker, Author(0).pre_prepare(0, X)) == []
    assert onlooker.approve(0) == onlooker.suspect() == onlooker.repeat() == []
    assert prepare_all(onlooker, 0, X, 0, 1, 2) == []
    assert change_all(onlooker, 1, 1, 2, 3) == []
    assert tell(onlooker, *(Author(place).commit(0, X) for place in (0, 1, 2))) == [decision_of(X, 0, 0, 1, 2)]


def test_a_decision_can_be_checked_from_its_votes_alone() -> None:
    sound = decision_of(X, 0, 0, 1, 2)
    assert PBFT.holds(sound, SCOPE, peers(), verify)
    assert not PBFT.holds(sound, SCOPE, peers(7), verify), "five of seven are needed"
    assert not PBFT.holds(sound, Scope(run=b"run", epoch=4, height=7), peers(), verify)
    assert not PBFT.holds(sound, Scope(run=b"another", epoch=3, height=7), peers(), verify)
    assert not PBFT.holds(sound, Scope(run=b"run", epoch=3, height=8), peers(), verify)
    assert not PBFT.holds(decision_of(X, 0, 0, 1), SCOPE, peers(), verify)
    assert not PBFT.holds(decision_of(X, 0, 0, 1, 1), SCOPE, peers(), verify)
    assert not PBFT.holds(decision_of(X, 0, 0, 1, 2, 8), SCOPE, peers(), verify)
    assert not PBFT.holds(decision_of(X, 0), SCOPE, (), verify)


# ---- what is refused ---------------------------------------------------------------------------------------------

FORGED = msgspec.structs.replace(Author(2).prepare(0, X), member="peer-3")
ELSEWHERE = Author(2, Scope(run=b"run", epoch=4, height=7))


@pytest.mark.parametrize(
    ("sender", "message", "why"),
    [
        ("stranger", Author(2).prepare(0, X), "none of the 4 members"),
        ("stranger", Fetch(height=7, view=0, what="value", value=b"", held=b""), "none of the 4 members"),
        ("peer-2", Author(8).prepare(0, X), "no member"),
        ("peer-2", Author(8).change(1), "no member"),
        ("peer-2", FORGED, "peer-3 has not signed"),
        ("peer-2", ELSEWHERE.prepare(0, X), "has not signed"),
        ("peer-2", ELSEWHERE.commit(0, X), "has not signed"),
        ("peer-2", ELSEWHERE.change(1), "has not signed"),
        ("peer-0", msgspec.structs.replace(Author(0).pre_prepare(0, X), value=Y), "has not signed"),
        ("peer-2", msgspec.structs.replace(Author(2).prepare(0, X), view=1), "has not signed"),
        ("peer-2", msgspec.structs.replace(Author(2).prepare(0, X), value=b"short"), "no digest"),
        ("peer-2", Author(2).pre_prepare(0, X), "cannot be"),
        ("peer-0", Author(0).pre_prepare(0, X, 0), "cannot be"),
        ("peer-1", Author(1).pre_prepare(1, X, 1), "cannot be"),
        ("peer-0", Author(0).pre_prepare(0, bytes(MAX_VALUE_BYTES + 1)), "32768 are the most"),
        ("peer-2", Author(2).change(0), "cannot be"),
        ("peer-2", Author(2).change(3, 3, X), "cannot be"),
        ("peer-2", msgspec.structs.replace(Author(2).change(3, 1, X), prepared=b""), "claiming no digest"),
        ("peer-2", msgspec.structs.replace(Author(2).change(3), prepared=digest(X)), "claiming no digest"),
        ("peer-2", decided(SCOPE.height, decision_of(X, 0, 0, 1)), "not a quorum's"),
        ("peer-2", decided(SCOPE.height, decision_of(X, 0, 0, 1, 1)), "not a quorum's"),
        ("peer-2", decided(SCOPE.height, decision_of(X, 0, 0, 1, 2, 3, 0)), "with 5 votes"),
        ("peer-2", Decided(height=7, view=0, value=bytes(MAX_VALUE_BYTES + 1), votes=()), "32769 bytes"),
        ("peer-2", Ballot(height=7, view=0), "another protocol"),
    ],
)
def test_what_no_honest_member_sends_is_refused_and_changes_nothing(sender: str, message: Ballot, why: str) -> None:
    replica = member(1)
    with pytest.raises(PeerError, match=why) as caught:
        replica.receive(PeerId(sender), message)
    assert caught.value.peer == sender
    assert (replica.num_held, replica.view, replica.decision, replica.evidence) == (0, 0, None, [])


def test_what_is_merely_late_or_of_another_height_is_left_aside() -> None:
    replica = member(3)
    change_all(replica, 9, 0, 1, 2)
    held = replica.num_held
    assert tell(replica, Author(0).prepare(1, X), Author(0).commit(20, X), Author(1).pre_prepare(5, X)) == []
    assert tell(replica, Author(0).change(4)) == []
    assert replica.receive(PeerId("peer-0"), msgspec.structs.replace(Author(0).prepare(9, X), height=8)) == []
    assert replica.receive(PeerId("peer-0"), Fetch(height=7, view=3, what="commits", value=digest(X), held=b"")) == []
    assert replica.num_held == held


def test_a_value_that_is_too_large_is_our_own_mistake() -> None:
    with pytest.raises(LocalError, match="32768 are the most"):
        member(0).propose(bytes(MAX_VALUE_BYTES + 1))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Author(0).pre_prepare(0, X), Author(0).pre_prepare(0, Y)),
        (Author(2).prepare(0, X), Author(2).prepare(0, Y)),
        (Author(2).commit(0, X), Author(2).commit(0, Y)),
        (Author(2).change(1), Author(2).change(1, 0, X)),
    ],
)
def test_two_statements_about_one_view_are_kept_as_evidence_and_do_no_harm(first: Prepare, second: Prepare) -> None:
    replica = member(1)
    tell(replica, first)
    held = replica.num_held
    assert tell(replica, second, second) == []
    assert replica.num_held == held
    (piece,) = replica.evidence
    assert piece.member == first.member
    assert piece.first[0] != piece.second[0]
    assert all(verify(piece.member, piece.context, *statement) for statement in (piece.first, piece.second))


# ---- crashes -----------------------------------------------------------------------------------------------------


def test_a_primary_that_crashed_says_the_same_again_and_nothing_else() -> None:
    primary = member(0)
    record = record_of(primary.propose(X))
    again = member(0, record=record)
    assert again.repeat() == [Author(0).pre_prepare(0, X)]
    assert again.may_propose
    assert again.bound_value == X
    assert again.propose(Y) == [Broadcast(message=Author(0).pre_prepare(0, X)), Judge(view=0, value=X)]
    assert said(again.approve(0)) == [Author(0).prepare(0, X)]


def test_a_member_that_crashed_votes_for_nothing_else_in_that_view() -> None:
    replica = member(1)
    tell(replica, Author(0).pre_prepare(0, X))
    again = member(1, record=record_of(replica.approve(0)))
    assert again.repeat() == [Author(1).prepare(0, X)]
    assert tell(again, Author(0).pre_prepare(0, Y)) == []
    assert again.approve(0) == []
    assert said(prepare_all(again, 0, X, 0, 2)) == [Author(1).commit(0, X)], "the value was on disk"


def test_a_certificate_outlives_a_crash() -> None:
    replica = member(1)
    tell(replica, Author(0).pre_prepare(0, X))
    again = member(1, record=record_of(prepare_all(replica, 0, X, 0, 2, 3)))
    assert again.repeat() == [Author(1).commit(0, X)]
    assert said(again.suspect()) == [Author(1).change(1, 0, X)]
    wanted = Fetch(height=7, view=0, what="prepares", value=digest(X), held=NOTHING_HELD)
    assert len(again.receive(PeerId("peer-2"), wanted)) == 3
    wanted = Fetch(height=7, view=0, what="value", value=digest(X), held=NOTHING_HELD)
    assert said(again.receive(PeerId("peer-2"), wanted)) == [Author(0).pre_prepare(0, X)]


def test_a_promise_outlives_a_crash_with_the_very_claim_that_was_made() -> None:
    record, (change,) = certified(3)
    again = member(3, record=record)
    assert again.repeat() == [change]
    assert tell(again, Author(0).pre_prepare(0, X)) == []
    assert again.suspect() == [], "others have to be heard again first"
    change_all(again, 1, 1, 2)
    assert (again.view, again.leader) == (1, "peer-1")


def test_a_vote_in_a_later_view_outlives_a_crash_with_its_view() -> None:
    replica = member(2)
    replica.suspect()
    change_all(replica, 1, 0, 1)
    tell(replica, Author(1).pre_prepare(1, X))
    again = member(2, record=record_of(replica.approve(1)))
    assert again.view == 1
    assert again.repeat() == [Author(2).change(1), Author(2).prepare(1, X)]


def test_the_record_of_another_height_says_nothing() -> None:
    record = record_of(member(0).propose(X))
    fresh = PBFT.open(
        Scope(run=b"run", epoch=3, height=8),
        peers(),
        PeerId("peer-0"),
        sign=lambda context, message: sign_as(PeerId("peer-0"), context, message),
        verify=verify,
        record=record,
    )
    assert fresh.may_propose
    assert fresh.bound_value == b""


def test_a_record_survives_its_encoding() -> None:
    record, _ = certified(3)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(record), type=PbftRecord) == record


# ---- sizes -------------------------------------------------------------------------------------------------------

SEAL = bytes(3373)
NAMES = tuple(PeerId("12D3KooW" + f"{place:044d}") for place in range(100))


def sealed(place: int) -> list[PbftMessage]:
    """Return one message of each kind that a member of a hundred may send, as large as they get."""
    replica = PBFT.open(SCOPE, NAMES, NAMES[place], sign=lambda _context, _message: SEAL, verify=lambda *_: True)
    value, name = bytes(MAX_VALUE_BYTES), digest(bytes(MAX_VALUE_BYTES))
    votes = tuple((peer, SEAL) for peer in NAMES[:67])
    replica.receive(NAMES[1], Decided(height=7, view=1 << 40, value=value, votes=votes))
    told = replica.repeat()[0]
    assert isinstance(told, Decided)
    change = Author(2).change(1 << 40, 1, X)
    proposal = PrePrepare(height=7, view=1 << 40, member=NAMES[0], value=value, prepared_view=1 << 39, signature=SEAL)
    prepare = Prepare(height=7, view=1 << 40, member=NAMES[0], value=name, signature=SEAL)
    fetch = Fetch(height=7, view=1 << 40, what="prepares", value=name, held=bytes(13))
    return [told, msgspec.structs.replace(change, member=NAMES[0], signature=SEAL), proposal, prepare, fetch]


def test_every_message_of_a_hundred_members_fits_in_a_control_message() -> None:
    messages = sealed(0)
    assert max(len(msgspec.msgpack.encode(message)) for message in messages) < 64 * 1024
    assert max(len(msgspec.msgpack.encode(message)) for message in messages if not hasattr(message, "votes")) < 37_000
    told = messages[0]
    assert isinstance(told, Decided)
    assert told.votes == (), "the votes come one by one"
    for message in messages:
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=PbftMessage) == message


def test_a_decision_of_a_hundred_is_told_vote_by_vote() -> None:
    knows = PBFT.open(SCOPE, NAMES, NAMES[0], sign=lambda *_: SEAL, verify=lambda *_: True)
    votes = tuple((peer, SEAL) for peer in NAMES[:67])
    (decision,) = knows.receive(NAMES[1], Decided(height=7, view=60, value=X, votes=votes))
    lags = PBFT.open(SCOPE, NAMES, NAMES[99], sign=lambda *_: SEAL, verify=lambda *_: True)
    (asked,) = lags.receive(NAMES[0], knows.repeat()[0])
    assert isinstance(asked, Send)
    answers = said(knows.receive(NAMES[99], asked.message))
    assert len(answers) == 68
    found = [effect for answer in answers for effect in lags.receive(NAMES[0], answer)]
    assert found[-1] == decision
    assert lags.receive(NAMES[0], answers[0]) == []
