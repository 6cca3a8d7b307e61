"""What members say to each other and store in `raft`, bounded where it is decoded; no rules.

Only an `Ack` is signed: it becomes part of a certificate. For the rest the connection vouches, since nobody here lies.
"""

from typing import Annotated, Final

import msgspec

from barnraise.consensus.agreement import MAX_VALUE_BYTES, Ballot, Decided, Record
from barnraise.ids import DIGEST_BYTES

VOTE_CONTEXT: Final = "barnraise 1 vote"
MAX_SIGNATURE_BYTES: Final = 4096
"""Ed25519 and ML-DSA-65 together take 3373."""

EntryTerm = Annotated[int, msgspec.Meta(ge=-1, le=1 << 40)]
"""-1: the slot is empty."""


class PreVote(Ballot, frozen=True, kw_only=True, tag="raft.PreVote"):
    """May I stand for leader in term ``view``?"""

    entry_term: EntryTerm


class PreVoteReply(Ballot, frozen=True, kw_only=True, tag="raft.PreVoteReply"):
    """Granted: stand in term ``view``, as far as I am concerned. Refused: my term is ``view``."""

    asks = False

    granted: bool


class RequestVote(Ballot, frozen=True, kw_only=True, tag="raft.RequestVote"):
    """I stand for leader in term ``view``: vote for me."""

    entry_term: EntryTerm


class VoteReply(Ballot, frozen=True, kw_only=True, tag="raft.VoteReply"):
    """Granted: my vote of term ``view``. Refused: my term is ``view``; to candidates, and to leaders of older terms."""

    asks = False

    granted: bool


class Append(Ballot, frozen=True, kw_only=True, tag="raft.Append"):
    """I lead term ``view``, and propose this; empty: nothing yet."""

    value: Annotated[bytes, msgspec.Meta(max_length=MAX_VALUE_BYTES)]


class Ack(Ballot, frozen=True, kw_only=True, tag="raft.Ack"):
    """The value with this digest is in my log, as an entry of term ``view``."""

    asks = False

    value: Annotated[bytes, msgspec.Meta(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]
    signature: Annotated[bytes, msgspec.Meta(max_length=MAX_SIGNATURE_BYTES)]


RaftMessage = PreVote | PreVoteReply | RequestVote | VoteReply | Append | Ack | Decided


class RaftRecord(Record, frozen=True, kw_only=True, tag="raft.Record"):
    """Term, vote and log, as Raft's figure 2 wants them on disk; and whether the term is ours to lead."""

    epoch: int
    """Term and vote are of this one."""
    term: int
    vote: str
    """Whom we voted for, or follow, in this term; empty: nobody yet."""
    leads: bool
    entry_term: int
    """-1: nothing is in the slot at this height."""
    entry: bytes
