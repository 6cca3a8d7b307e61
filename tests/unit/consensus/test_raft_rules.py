"""Raft's transitions one by one: what is said, what is on disk before it, who is waited for, and what is refused."""

from typing import Any

import msgspec
import pytest

from barnraise.consensus.agreement import (
    MAX_VALUE_BYTES,
    Ballot,
    Broadcast,
    Decided,
    Decision,
    Effect,
    Judge,
    Persist,
    Scope,
    Send,
    decided,
)
from barnraise.consensus.raft import Raft, Role
from barnraise.consensus.raft_kind import RAFT
from barnraise.consensus.raft_messages import (
    VOTE_CONTEXT,
    Ack,
    Append,
    PreVote,
    PreVoteReply,
    RaftMessage,
    RaftRecord,
    RequestVote,
    VoteReply,
)
from barnraise.errors import PeerError
from barnraise.ids import PeerId
from barnraise.swarm.records import digest

HEIGHT, EPOCH = 7, 2
SCOPE = Scope(run=b"run", epoch=EPOCH, height=HEIGHT)
A, B, C, D, E = MEMBERS = tuple(PeerId(f"peer-{letter}") for letter in "abcde")


def sign_as(peer: PeerId, context: str, message: bytes) -> bytes:
    return digest(f"{peer} {context} ".encode() + message)


def verify(peer: PeerId, context: str, message: bytes, signature: bytes) -> bool:
    return signature == sign_as(peer, context, message)


def member(me: PeerId, members: tuple[PeerId, ...] = MEMBERS[:3], record: RaftRecord | None = None) -> Raft:
    def sign(context: str, message: bytes) -> bytes:
        return sign_as(me, context, message)

    return RAFT.open(SCOPE, members, me, sign=sign, verify=verify, record=record)


def record_of(**changes: Any) -> RaftRecord:
    known = RaftRecord(height=HEIGHT, epoch=EPOCH, term=0, vote=A, leads=False, entry_term=-1, entry=b"")
    return msgspec.structs.replace(known, **changes)


def append(value: bytes, term: int = 0) -> Append:
    return Append(height=HEIGHT, view=term, value=value)


def ack(peer: PeerId, value: bytes, term: int = 0, scope: Scope = SCOPE) -> Ack:
    signature = sign_as(peer, VOTE_CONTEXT, scope.statement(term, digest(value)))
    return Ack(height=HEIGHT, view=term, value=digest(value), signature=signature)


def pre_vote(term: int, entry_term: int = -1) -> PreVote:
    return PreVote(height=HEIGHT, view=term, entry_term=entry_term)


def request(term: int, entry_term: int = -1) -> RequestVote:
    return RequestVote(height=HEIGHT, view=term, entry_term=entry_term)


def may_stand(term: int, *, granted: bool = True) -> PreVoteReply:
    return PreVoteReply(height=HEIGHT, view=term, granted=granted)


def vote(term: int, *, granted: bool = True) -> VoteReply:
    return VoteReply(height=HEIGHT, view=term, granted=granted)


def decision_of(*voters: PeerId, value: bytes = b"value", term: int = 0) -> Decision:
    return Decision(value=value, view=term, votes=tuple((voter, ack(voter, value, term).signature) for voter in voters))


def leader_of_term_1(me: PeerId = B, *, entry: bytes = b"") -> Raft:
    """Return a member that was elected, by the vote of the third."""
    known = record_of(entry_term=0, entry=entry) if entry else None
    raft = member(me, record=known)
    raft.suspect()
    raft.receive(C, may_stand(1))
    raft.receive(C, vote(1))
    assert raft.role is Role.LEADER
    return raft


# ---- entries ------------------------------------------------------------------------------------------------------


def test_what_is_proposed_is_in_the_slot_on_disk_before_anybody_hears_of_it() -> None:
    raft = member(A)
    assert raft.may_propose
    assert raft.propose(b"value") == [
        Persist(record=record_of(leads=True, entry_term=0, entry=b"value")),
        Broadcast(message=append(b"value")),
        Broadcast(message=ack(A, b"value")),
    ]
    assert not raft.may_propose
    assert raft.propose(b"other") == []


def test_an_entry_is_judged_then_on_disk_then_acknowledged() -> None:
    raft = member(B)
    assert raft.receive(A, append(b"value")) == [Judge(view=0, value=b"value")]
    assert raft.receive(A, append(b"value")) == []
    assert raft.approve(0) == [
        Persist(record=record_of(entry_term=0, entry=b"value")),
        Broadcast(message=ack(B, b"value")),
    ]
    assert raft.approve(0) == []


def test_a_quorum_of_acknowledgements_decides_at_everybody() -> None:
    raft = member(C)
    raft.receive(A, append(b"value"))
    assert raft.receive(B, ack(B, b"value")) == []
    assert raft.receive(A, ack(A, b"value")) == [decision_of(A, B)]
    assert raft.decision == decision_of(A, B)
    assert raft.repeat() == [decided(HEIGHT, decision_of(A, B))]
    assert raft.receive(A, append(b"value")) == []
    assert raft.suspect() == []


def test_acknowledgements_that_come_before_the_entry_count_when_it_does() -> None:
    raft = member(C)
    raft.receive(A, ack(A, b"value"))
    raft.receive(B, ack(B, b"value"))
    assert raft.receive(A, append(b"value")) == [decision_of(A, B)]


def test_acknowledgements_of_two_terms_are_not_counted_together() -> None:
    raft = member(C)
    raft.receive(A, append(b"value"))
    raft.receive(A, ack(A, b"value"))
    assert raft.receive(B, ack(B, b"value", 1)) == []
    assert raft.receive(A, ack(A, b"value", 1)) == [
        Persist(record=record_of(term=1, vote="")),
        decision_of(A, B, term=1),
    ]


def test_a_member_that_is_a_quorum_decides_by_itself() -> None:
    alone = member(A, MEMBERS[:1])
    assert alone.propose(b"value")[-1] == decision_of(A)
    senior = member(A, MEMBERS[:2])
    assert senior.propose(b"value")[-1] == decision_of(A)
    junior = member(B, MEMBERS[:2])
    junior.receive(A, append(b"value"))
    assert not any(isinstance(effect, Decision) for effect in junior.approve(0))


def test_an_onlooker_learns_and_says_nothing() -> None:
    onlooker = member(PeerId("onlooker"))
    messages: list[tuple[PeerId, Ballot]] = [
        (B, pre_vote(1)),
        (B, request(1)),
        (B, append(b"", 1)),
        (A, append(b"value")),
        (B, may_stand(2)),
        (B, vote(3)),
    ]
    assert [onlooker.receive(sender, message) for sender, message in messages] == [[]] * len(messages)
    assert onlooker.receive(B, append(b"value", 1)) == [Judge(view=1, value=b"value")]
    assert onlooker.approve(1) == onlooker.suspect() == []
    assert onlooker.repeat() == []
    onlooker.receive(B, ack(B, b"value", 1))
    assert onlooker.receive(C, ack(C, b"value", 1)) == [decision_of(B, C, term=1)]


def test_a_decision_can_be_checked_from_its_votes_alone_whoever_tells_it() -> None:
    assert RAFT.holds(decision_of(A, C), SCOPE, MEMBERS[:3], verify)
    assert not RAFT.holds(decision_of(A, C), Scope(run=b"run", epoch=EPOCH, height=HEIGHT + 1), MEMBERS[:3], verify)
    assert not RAFT.holds(decision_of(A, C), Scope(run=b"run", epoch=EPOCH + 1, height=HEIGHT), MEMBERS[:3], verify)
    assert not RAFT.holds(decision_of(A, A, PeerId("stranger")), SCOPE, MEMBERS[:3], verify)
    late = member(B)
    assert late.receive(PeerId("stranger"), decided(HEIGHT, decision_of(A, C))) == [decision_of(A, C)]


# ---- elections ----------------------------------------------------------------------------------------------------


def test_an_election_step_by_step() -> None:
    raft = member(B)
    assert raft.suspect() == [Broadcast(message=pre_vote(1))]
    assert (raft.role, raft.view, raft.leader) == (Role.ASKING, 0, B)
    assert raft.repeat() == [pre_vote(1)]
    assert raft.receive(C, may_stand(1)) == [
        Persist(record=record_of(term=1, vote=B)),
        Broadcast(message=request(1)),
    ]
    assert raft.repeat() == [request(1)]
    assert raft.receive(C, vote(1)) == [
        Persist(record=record_of(term=1, vote=B, leads=True)),
        Broadcast(message=append(b"", 1)),
    ]
    assert raft.repeat() == [append(b"", 1)]
    assert (raft.role, raft.may_propose, raft.bound_value) == (Role.LEADER, True, b"")


def test_a_new_leader_proposes_what_is_in_its_slot_under_its_own_term() -> None:
    raft = leader_of_term_1(entry=b"older")
    assert raft.bound_value == b"older"
    assert raft.propose(b"newer") == [
        Persist(record=record_of(term=1, vote=B, leads=True, entry_term=1, entry=b"older")),
        Broadcast(message=append(b"older", 1)),
        Broadcast(message=ack(B, b"older", 1)),
    ]


def test_what_is_in_our_slot_is_acknowledged_again_without_being_judged_again() -> None:
    raft = member(C, record=record_of(entry_term=0, entry=b"older"))
    effects = raft.receive(B, append(b"older", 1))
    assert Broadcast(message=ack(C, b"older", 1)) in effects
    assert not any(isinstance(effect, Judge) for effect in effects)


def test_who_trusts_its_leader_lets_nobody_stand_until_it_comes_to_doubt() -> None:
    raft = member(C)
    assert raft.receive(B, pre_vote(1)) == []
    assert raft.suspect() == [Send(to=B, message=may_stand(1))]
    assert raft.leader == B
    assert raft.receive(B, pre_vote(1)) == [Send(to=B, message=may_stand(1))]
    assert raft.view == 0


def test_a_member_that_was_cut_off_pushes_no_term_up_when_it_returns() -> None:
    lost = member(C)
    for _ in range(20):
        lost.suspect()
    assert (lost.view, lost.repeat()) == (0, [pre_vote(1)])
    leader, other = member(A), member(B)
    other.receive(A, append(b"value"))
    assert leader.receive(C, lost.repeat()[0]) == other.receive(C, lost.repeat()[0]) == []
    assert (leader.view, other.view) == (0, 0)
    assert lost.receive(A, append(b"value")) == [Judge(view=0, value=b"value")]
    assert (lost.role, lost.leader) == (Role.FOLLOWER, A)


def test_a_vote_is_given_once_a_term_on_disk_first_and_repeated_to_whom_it_was_given() -> None:
    raft = member(C)
    granted = Send(to=B, message=vote(1))
    assert raft.receive(B, request(1)) == [Persist(record=record_of(term=1, vote=B)), granted]
    assert raft.receive(A, request(1)) == [Send(to=A, message=vote(1, granted=False))]
    assert raft.receive(B, request(1)) == [granted]
    again = member(C, record=record_of(term=1, vote=B))
    assert again.receive(A, request(1)) == [Send(to=A, message=vote(1, granted=False))]


def test_an_older_log_gets_no_vote_and_may_not_stand() -> None:
    raft = member(C, record=record_of(entry_term=0, entry=b"value"))
    raft.suspect()
    assert raft.receive(A, pre_vote(1)) == []
    refused = raft.receive(A, request(1))
    assert refused == [
        Persist(record=record_of(term=1, vote="", entry_term=0, entry=b"value")),
        Send(to=A, message=vote(1, granted=False)),
    ]
    assert raft.receive(B, request(1, 0))[-1] == Send(to=B, message=vote(1))


def test_a_vote_of_another_term_and_one_that_nobody_asked_for_do_not_count() -> None:
    raft = member(B)
    raft.suspect()
    raft.receive(C, vote(0))
    assert raft.receive(C, may_stand(3)) == []
    raft.receive(C, may_stand(1))
    assert raft.receive(C, vote(0)) == []
    assert raft.receive(C, may_stand(1)) == []
    assert raft.role is Role.CANDIDATE


# ---- terms --------------------------------------------------------------------------------------------------------


def test_a_leader_that_was_passed_over_is_refused_and_steps_down() -> None:
    follower = member(C)
    follower.receive(B, append(b"", 1))
    refusal = vote(1, granted=False)
    assert follower.receive(A, append(b"value")) == [Send(to=A, message=refusal)]
    assert follower.approve(0) == []
    old = member(A)
    assert old.receive(C, refusal) == [Persist(record=record_of(term=1, vote=""))]
    assert (old.role, old.may_propose, old.propose(b"value")) == (Role.FOLLOWER, False, [])


def test_what_was_up_for_a_vote_in_an_older_term_is_not_acknowledged_any_more() -> None:
    raft = member(C)
    raft.receive(A, append(b"value"))
    raft.receive(B, request(1))
    assert raft.approve(0) == []


def test_who_asks_in_an_old_term_is_told_the_new_one_and_asks_again() -> None:
    raft = member(C, record=record_of(term=4, vote=A))
    refusal = may_stand(4, granted=False)
    assert raft.receive(B, pre_vote(2)) == [Send(to=B, message=refusal)]
    assert raft.receive(B, request(2)) == [Send(to=B, message=vote(4, granted=False))]
    asking = member(B)
    asking.suspect()
    assert asking.receive(C, refusal) == [Persist(record=record_of(term=4, vote="")), Broadcast(message=pre_vote(5))]
    assert asking.receive(C, refusal) == []


def test_a_second_leader_of_one_term_is_not_heard() -> None:
    raft = member(A)
    raft.receive(B, append(b"", 1))
    assert raft.receive(C, append(b"value", 1)) == []
    leader = leader_of_term_1()
    assert leader.receive(C, append(b"value", 1)) == []
    assert leader.may_propose


def test_a_candidate_follows_who_was_elected_instead() -> None:
    raft = member(B, MEMBERS)
    raft.suspect()
    for voter in (C, D):
        raft.receive(voter, may_stand(1))
    assert raft.role is Role.CANDIDATE
    assert raft.receive(C, append(b"value", 1)) == [Judge(view=1, value=b"value")]
    assert (raft.role, raft.leader) == (Role.FOLLOWER, C)


def test_a_term_lives_on_at_the_next_height_and_its_leader_goes_on() -> None:
    before = record_of(height=HEIGHT - 1, term=3, vote=B, entry_term=3, entry=b"older")
    leader = member(B, record=msgspec.structs.replace(before, leads=True))
    assert (leader.view, leader.may_propose, leader.bound_value) == (3, True, b"")
    follower = member(C, record=before)
    assert (follower.view, follower.leader, follower.repeat()) == (3, B, [])
    assert follower.receive(A, append(b"value")) == [Send(to=A, message=vote(3, granted=False))]
    assert follower.receive(B, append(b"value", 3)) == [Judge(view=3, value=b"value")]


def test_terms_begin_anew_with_the_members() -> None:
    before = record_of(epoch=EPOCH - 1, term=3, vote=B, leads=True, entry_term=3, entry=b"older")
    assert (member(B, record=before).view, member(B, record=before).may_propose) == (0, False)
    assert member(A, record=before).may_propose


def test_a_restarted_leader_goes_on_with_what_it_had_proposed_and_with_nothing_else() -> None:
    on_disk = record_of(leads=True, entry_term=0, entry=b"value")
    said = [Persist(record=on_disk), Broadcast(message=append(b"value")), Broadcast(message=ack(A, b"value"))]
    raft = member(A, record=on_disk)
    assert raft.repeat() == [ack(A, b"value")]
    assert (raft.may_propose, raft.bound_value) == (True, b"value")
    assert raft.propose(b"other") == said
    senior = member(A, MEMBERS[:2], record=on_disk)
    assert senior.propose(b"") == [*said, decision_of(A)]


def test_a_restarted_candidate_has_voted_and_may_stand_again_in_the_next_term() -> None:
    raft = member(B, record=record_of(term=1, vote=B))
    assert raft.receive(C, request(1)) == [Send(to=C, message=vote(1, granted=False))]
    assert not raft.may_propose
    raft.suspect(frozenset({A, C}))
    assert raft.repeat() == [pre_vote(2)]


def test_a_decision_of_a_newer_term_ends_an_older_leader() -> None:
    raft = member(A)
    told = raft.receive(B, decided(HEIGHT, decision_of(B, C, term=2)))
    assert told == [Persist(record=record_of(term=2, vote="")), decision_of(B, C, term=2)]


# ---- whose turn it is ---------------------------------------------------------------------------------------------


def test_the_more_senior_stand_first_and_each_is_given_up_in_turn() -> None:
    raft = member(D, MEMBERS)
    waited_for: list[PeerId] = [raft.leader]
    said: list[Effect] = []
    for _ in range(6):
        said += raft.suspect()
        waited_for.append(raft.leader)
    assert waited_for == [A, B, C, D, E, A, B]
    assert said == [Broadcast(message=pre_vote(1))]


def test_nobody_waits_for_who_is_down() -> None:
    raft = member(D, MEMBERS)
    assert raft.suspect(frozenset({A, B, C})) == [Broadcast(message=pre_vote(1))]


def test_who_was_to_stand_without_the_entry_in_our_slot_is_given_up_at_once() -> None:
    raft = member(C, record=record_of(entry_term=0, entry=b"value"))
    raft.suspect()
    assert raft.leader == B
    assert raft.receive(B, pre_vote(1)) == [Broadcast(message=pre_vote(1, 0))]
    assert raft.leader == C


def test_after_a_split_vote_the_most_senior_candidate_tries_again_and_the_other_waits() -> None:
    senior, junior = member(B, MEMBERS), member(C, MEMBERS)
    for raft in (senior, junior):
        raft.suspect(frozenset({A}) if raft is senior else frozenset({A, B}))
        for voter in (D, E):
            raft.receive(voter, may_stand(1))
        assert raft.role is Role.CANDIDATE
    assert senior.suspect(frozenset({A})) == [Broadcast(message=pre_vote(2))]
    assert junior.suspect(frozenset({A})) == []
    assert junior.leader == B


def test_a_leader_that_is_overdue_in_its_own_eyes_lets_others_stand_and_leads_on_until_one_does() -> None:
    raft = member(A)
    raft.suspect()
    assert raft.receive(B, pre_vote(1)) == [Send(to=B, message=may_stand(1))]
    assert raft.may_propose


# ---- what cannot be -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sender", "message", "words"),
    [
        (B, append(b"value"), "leads term 0"),
        (A, append(bytes(MAX_VALUE_BYTES + 1)), "32768 are allowed"),
        (A, ack(B, b"value"), "signed no acknowledgement"),
        (A, ack(A, b"value", scope=Scope(run=b"run", epoch=EPOCH + 1, height=HEIGHT)), "signed no acknowledgement"),
        (A, pre_vote(1, 1), "entry of term 1"),
        (A, request(1, 7), "entry of term 7"),
        (A, request(1, -2), "entry of term -2"),
        (A, decided(HEIGHT, decision_of(A)), "do not bear out"),
        (A, Decided(height=HEIGHT, view=1, value=b"value", votes=decision_of(A, B).votes), "do not bear out"),
    ],
)
def test_what_no_member_says_is_refused_and_changes_nothing(sender: PeerId, message: Ballot, words: str) -> None:
    raft = member(C)
    with pytest.raises(PeerError, match=words):
        raft.receive(sender, message)
    assert (raft.view, raft.decision, raft.leader, raft.repeat()) == (0, None, A, [])


def test_strangers_are_not_heard() -> None:
    raft = member(C)
    raft.suspect()
    messages = [append(b"value", 1), ack(A, b"value"), pre_vote(1), request(1), may_stand(1), vote(9)]
    assert [raft.receive(PeerId("stranger"), message) for message in messages] == [[]] * len(messages)


def test_memory_is_bounded_however_much_a_member_says() -> None:
    raft = member(B)
    for number in range(1, 2000):
        value = f"value {number}".encode()
        for message in (ack(C, value, number), pre_vote(number), request(number), append(value, number)):
            raft.receive(C, message)
    held = (raft._acks, raft._asked, raft._granted, raft._given_up, raft._names)
    assert sum(len(kept) for kept in held) <= 3 * len(raft.members)


@pytest.mark.parametrize(
    "changes",
    [
        {"tag": "raft.Append", "fields": [bytes(MAX_VALUE_BYTES + 1)]},
        {"tag": "raft.Ack", "fields": [b"short", b"s"]},
        {"tag": "raft.Ack", "fields": [bytes(32), bytes(5000)]},
        {"tag": "raft.PreVote", "fields": [-2]},
        {"tag": "raft.RequestVote", "fields": [2**41]},
        {"tag": "raft.VoteReply", "fields": [1]},
        {"tag": "raft.PreVoteReply", "fields": [True, True]},
    ],
)
def test_malformed_messages_are_refused_where_they_are_decoded(changes: dict[str, Any]) -> None:
    decoder = msgspec.msgpack.Decoder(RaftMessage)
    with pytest.raises(msgspec.ValidationError):
        decoder.decode(msgspec.msgpack.encode([changes["tag"], HEIGHT, 1, *changes["fields"]]))
