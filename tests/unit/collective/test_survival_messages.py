"""What ranks tell each other survives the wire, is bounded, and is refused where it is not."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from barnraise.collective.survival_messages import (
    MAX_COMPLAINTS,
    MAX_RANKS,
    MAX_REASON_CHARS,
    Accept,
    Accepted,
    Alarm,
    Ballot,
    Collect,
    Complaint,
    Decided,
    Decision,
    Fault,
    GaveUp,
    HandOn,
    Member,
    Message,
    Propose,
    Refuse,
    Report,
    Verdict,
    Work,
    decode,
    encode,
)

REASON = "x" * MAX_REASON_CHARS
EVERYBODY = tuple(range(MAX_RANKS))
BALLOT = Ballot(1 << 40, MAX_RANKS - 1)
LONGEST = Decision(
    1 << 40,
    tuple(Member(rank, 1 << 40) for rank in EVERYBODY),
    tuple(Verdict(rank, True, REASON) for rank in EVERYBODY),
    HandOn(1 << 40, 255, EVERYBODY),
    EVERYBODY,
)
REPORT = Report(
    epoch=1 << 40,
    ballot=BALLOT,
    done=1 << 40,
    called=1 << 40,
    weight=1 << 40,
    had=Work.COLLECTIVE,
    waits_for=255,
    complaints=(Complaint(Fault.STALLED, 1 << 40, 255, 1 << 40, REASON),) * MAX_COMPLAINTS,
    down=EVERYBODY,
    accepted=Accepted(BALLOT, LONGEST),
)
LONGEST_MESSAGES: tuple[Message, ...] = (
    Alarm(epoch=1 << 40),
    Collect(epoch=1 << 40, ballot=BALLOT, last=LONGEST, is_patient=True),
    REPORT,
    Propose(epoch=1 << 40, ballot=BALLOT, decision=LONGEST),
    Accept(epoch=1 << 40, ballot=BALLOT),
    Refuse(epoch=1 << 40, ballot=BALLOT),
    Decided(decision=LONGEST),
    GaveUp(epoch=1 << 40),
)


@pytest.mark.parametrize("message", LONGEST_MESSAGES, ids=lambda message: type(message).__name__)
def test_the_longest_messages_fit_into_a_control_message(message: Message) -> None:
    data = encode(message)
    assert len(data) < 64 * 1024
    assert decode(data) == message


@pytest.mark.parametrize(
    "message",
    [
        Alarm(epoch=-1),
        Alarm(epoch=1 << 41),
        Accept(epoch=0, ballot=Ballot(1, MAX_RANKS)),
        Decided(decision=Decision(1, ())),
        Decided(decision=Decision(1, (Member(0, 1),) * (MAX_RANKS + 1))),
        Decided(decision=Decision(1, (Member(0, 1),), (Verdict(0, True, REASON + "x"),))),
        msgspec.structs.replace(REPORT, complaints=REPORT.complaints * 2),
    ],
    ids=str,
)
def test_what_is_out_of_bounds_is_refused(message: Message) -> None:
    with pytest.raises(msgspec.ValidationError):
        decode(encode(message))


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_bytes_of_a_stranger_decode_or_are_refused(data: bytes) -> None:
    try:
        decode(data)
    except msgspec.DecodeError:
        return


@given(st.sampled_from(LONGEST_MESSAGES[:2]), st.integers(0, 300), st.integers(0, 255))
@settings(max_examples=300, deadline=None)
def test_a_damaged_message_decodes_or_is_refused(message: Message, at: int, value: int) -> None:
    data = bytearray(encode(message))
    data[at % len(data)] = value
    try:
        decode(bytes(data))
    except msgspec.DecodeError:
        return


MEMBERS = (Member(0, 1), Member(1, 1))


@pytest.mark.parametrize(
    "message",
    [
        Decided(decision=Decision(1, MEMBERS, (Verdict(200, True, "x"),))),
        Decided(decision=Decision(1, MEMBERS, (), None, (3,))),
        Decided(decision=Decision(1, (*MEMBERS, Member(3, 1)))),
        Decided(decision=Decision(1, (MEMBERS[0], *MEMBERS))),
        Decided(decision=Decision(1, MEMBERS, (), HandOn(1, 2, (0,)))),
        Decided(decision=Decision(1, MEMBERS, (), HandOn(1, 0, (2,)))),
        Collect(epoch=0, ballot=Ballot(1, 0), last=Decision(1, (Member(3, 1),)), is_patient=False),
        Refuse(epoch=0, ballot=Ballot(5, 200)),
        msgspec.structs.replace(REPORT, ballot=Ballot(1, 0), accepted=Accepted(Ballot(1, 9), Decision(1, MEMBERS))),
        msgspec.structs.replace(REPORT, ballot=Ballot(1, 0), accepted=Accepted(Ballot(1, 0), LONGEST)),
    ],
)
def test_ranks_that_a_group_has_not_are_refused(message: Message) -> None:
    with pytest.raises(msgspec.DecodeError, match="a group of 3"):
        decode(encode(message), 3)


def test_a_decision_of_one_piece_is_taken() -> None:
    decision = Decision(1, MEMBERS, (Verdict(2, True, "x"),), HandOn(1, 1, (0,)), (2,))
    assert decode(encode(Decided(decision=decision)), 3) == Decided(decision=decision)
