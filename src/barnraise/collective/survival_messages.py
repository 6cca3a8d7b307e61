"""What the ranks of a group tell each other when a collective went wrong; only forms, checked where they are decoded.

`epoch` in a message is the number of the last decision its sender knows: what is said is about the next one. No message
passes 64 KiB with `MAX_RANKS` ranks.
"""

import enum
from typing import Annotated, Final

import msgspec

MAX_RANKS: Final = 256
MAX_COMPLAINTS: Final = 16
MAX_REASON_CHARS: Final = 120

Rank = Annotated[int, msgspec.Meta(ge=0, lt=MAX_RANKS)]
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
"""A sequence, an epoch, a weight: what a peer may say without overflowing what is added to it."""
Reason = Annotated[str, msgspec.Meta(max_length=MAX_REASON_CHARS)]
Ranks = Annotated[tuple[Rank, ...], msgspec.Meta(max_length=MAX_RANKS)]


class Fault(enum.Enum):
    """What one rank complains of in another."""

    BROKEN = "broken"
    """The stream between us broke, or could not be opened."""
    DAMAGED = "damaged"
    """What it sent did not authenticate or was malformed."""
    STALLED = "stalled"
    """It has begun this collective, and a deadline passed without its next chunk."""
    LATE = "late"
    """Its user did not call this collective for as long as ours was ready to wait."""


class Work(enum.Enum):
    """What a rank was at when it stopped."""

    NOTHING = "nothing"
    COLLECTIVE = "collective"
    HAND_ON = "hand on"


class _Part(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    pass


class _Message(msgspec.Struct, frozen=True, array_like=True, kw_only=True, tag=True, forbid_unknown_fields=True):
    pass


class Ballot(_Part, frozen=True, order=True):
    """Who wants to lead a decision, and the how-manieth time: they are ordered, and no two leaders share one."""

    number: Count
    leader: Rank


class Member(_Part, frozen=True):
    """A rank that is in, and how much its vectors weigh in a mean."""

    rank: Rank
    weight: Count


class Verdict(_Part, frozen=True):
    """A rank that was found to be at fault, for the users' logs."""

    rank: Rank
    is_out: bool
    reason: Reason


class HandOn(_Part, frozen=True):
    """A result that stands: who has it and gives it to those that lack it."""

    sequence: Count
    holder: Rank
    incomplete: Ranks


class Decision(_Part, frozen=True):
    """What the group agreed on: who is in from now on, and what becomes of a result that only some have."""

    number: Count
    members: Annotated[tuple[Member, ...], msgspec.Meta(min_length=1, max_length=MAX_RANKS)]
    verdicts: Annotated[tuple[Verdict, ...], msgspec.Meta(max_length=MAX_RANKS)] = ()
    hand_on: HandOn | None = None
    excused: Ranks = ()
    """Members that were in although some rank had no control link to them."""


class Complaint(_Part, frozen=True):
    """What a rank found wrong with another one, and how many times in a row."""

    fault: Fault
    sequence: Count
    rank: Rank
    times: Count
    reason: Reason


class Accepted(_Part, frozen=True):
    """A decision that a rank has accepted and that may have been made."""

    ballot: Ballot
    decision: Decision


class Alarm(_Message, frozen=True, kw_only=True):
    """Something failed: stop, and let the leader ask. Also: I am behind, tell me what was decided."""

    epoch: Count


class Collect(_Message, frozen=True, kw_only=True):
    """The leader asks everybody to stop, to follow no older ballot, and to report."""

    epoch: Count
    ballot: Ballot
    last: Decision | None
    """The decision numbered ``epoch``, for whoever missed it."""
    is_patient: bool
    """All is well but for a rank whose user has not called yet: the leader waits for it."""


class Report(_Message, frozen=True, kw_only=True):
    """The promise to follow no older ballot, and where this rank stands."""

    epoch: Count
    ballot: Ballot
    done: Count
    """The last collective whose result this rank has given to its user; 0: none."""
    called: Count
    """The last collective that its user has called."""
    weight: Count
    had: Work
    """What this rank was at when it stopped."""
    waits_for: Rank | None
    """Whose chunk was due in it."""
    complaints: Annotated[tuple[Complaint, ...], msgspec.Meta(max_length=MAX_COMPLAINTS)]
    down: Ranks
    """Ranks to which there is no control link from here."""
    accepted: Accepted | None
    waits_ms: Count | None = None
    """For how long its user, who has called, still waits for those who have not; None: it has not said."""


class Propose(_Message, frozen=True, kw_only=True):
    """The leader's decision."""

    epoch: Count
    ballot: Ballot
    decision: Decision


class Accept(_Message, frozen=True, kw_only=True):
    """A rank's vote for what its leader proposed in this ballot."""

    epoch: Count
    ballot: Ballot


class Refuse(_Message, frozen=True, kw_only=True):
    """A rank has promised to follow this newer ballot."""

    epoch: Count
    ballot: Ballot


class Decided(_Message, frozen=True, kw_only=True):
    """What was decided: go. ``decision.number`` is the epoch that begins with it."""

    decision: Decision


class GaveUp(_Message, frozen=True, kw_only=True):
    """This rank saw no quorum for too long and will take part in nothing any more."""

    epoch: Count


Message = Alarm | Collect | Report | Propose | Accept | Refuse | Decided | GaveUp

encode = msgspec.msgpack.Encoder().encode
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def decode(data: bytes, world_size: int = MAX_RANKS) -> Message:
    """Return the message in ``data``; raises `msgspec.DecodeError`, about text that is not UTF-8 as well.

    It names no rank that a group of ``world_size`` lacks, and its decisions are of one piece.
    """
    try:
        message = _decoder.decode(data)
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(f"a text is not UTF-8: {error.reason}") from error
    accepted = message.accepted if isinstance(message, Report) else None
    ballots = [getattr(message, "ballot", None), accepted and accepted.ballot]
    decisions = [getattr(message, "decision", None), getattr(message, "last", None), accepted and accepted.decision]
    if any(isinstance(ballot, Ballot) and ballot.leader >= world_size for ballot in ballots) or not all(
        _is_sound(decision, world_size) for decision in decisions if isinstance(decision, Decision)
    ):
        raise msgspec.DecodeError(f"it names ranks that a group of {world_size} has not, or contradicts itself")
    return message


def _is_sound(decision: Decision, world_size: int) -> bool:
    """Tell whether members ascend, and whoever is named is of the group or, for a result, a member."""
    members = [member.rank for member in decision.members]
    hand_on = decision.hand_on
    given = () if hand_on is None else (hand_on.holder, *hand_on.incomplete)
    named = (*members, *(verdict.rank for verdict in decision.verdicts), *decision.excused)
    return members == sorted(set(members)) and set(given) <= set(members) and max(named, default=0) < world_size
