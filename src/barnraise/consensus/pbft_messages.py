"""What members say to each other, sign and store in `pbft`, with the bytes that a signature stands over; no rules.

Every message but `Fetch` and `Decided` is signed by its author, in a context of its own, so that it means the same
whoever passes it on. None carries a certificate: what proves something is a number of these, one by one.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Final, Literal

import msgspec

from barnraise.consensus.agreement import MAX_VALUE_BYTES, Ballot, Decided, Record, Scope
from barnraise.ids import DIGEST_BYTES, Digest, PeerId

MAX_SIGNATURE_BYTES: Final = 4096
"""Ed25519 and ML-DSA-65 together take 3373."""
MAX_PEER_ID_CHARS: Final = 64
MAX_DECIDED_BYTES: Final = 60 * 1024
"""A `Decided` with more than this in it would not fit in a control message of 64 KiB."""
MAX_PLACES_BYTES: Final = 128
"""A bit for each member of a committee of 1000 at most."""

Member = Annotated[str, msgspec.Meta(max_length=MAX_PEER_ID_CHARS)]
Signature = Annotated[bytes, msgspec.Meta(max_length=MAX_SIGNATURE_BYTES)]
Value = Annotated[bytes, msgspec.Meta(max_length=MAX_VALUE_BYTES)]
Name = Annotated[bytes, msgspec.Meta(max_length=DIGEST_BYTES)]
PreparedView = Annotated[int, msgspec.Meta(ge=-1, le=1 << 40)]
"""-1: none."""


class PrePrepare(Ballot, frozen=True, kw_only=True, tag="pbft.PrePrepare"):
    """The primary's value for a view; in a view after the first it is the new-view message, too."""

    context: ClassVar[str] = "barnraise 1 pre-prepare"
    member: Member
    value: Value
    prepared_view: PreparedView = -1
    """The view of the certificate that binds the primary to this value; -1: it is free."""
    signature: Signature = b""


class Prepare(Ballot, frozen=True, kw_only=True, tag="pbft.Prepare"):
    """A vote for the value with this digest to be the only one of its view."""

    asks = False
    context: ClassVar[str] = "barnraise 1 prepare"
    member: Member
    value: Name
    signature: Signature = b""


class Commit(Ballot, frozen=True, kw_only=True, tag="pbft.Commit"):
    """A vote for the value with this digest to be decided, by one who knows that it is the only one of its view."""

    asks = False
    context: ClassVar[str] = "barnraise 1 commit"
    member: Member
    value: Name
    signature: Signature = b""


class ViewChange(Ballot, frozen=True, kw_only=True, tag="pbft.ViewChange"):
    """A promise to vote in no view before this one, with the newest prepared certificate that its author has."""

    context: ClassVar[str] = "barnraise 1 view change"
    member: Member
    prepared_view: PreparedView
    prepared: Name
    """Digest of the certificate's value; empty: there is none."""
    signature: Signature = b""

    @property
    def claim(self) -> tuple[int, bytes]:
        """Return the certificate's view and the digest of its value."""
        return self.prepared_view, self.prepared


class Fetch(Ballot, frozen=True, kw_only=True, tag="pbft.Fetch"):
    """I lack these: please pass them on, each as its author signed it."""

    what: Literal["changes", "prepares", "commits", "value"]
    value: Name
    """Digest of the value that they are about; empty for view changes."""
    held: Annotated[bytes, msgspec.Meta(max_length=MAX_PLACES_BYTES)]
    """Whose are here already: a bit for each member in order of seniority, the lowest first."""


PbftMessage = PrePrepare | Prepare | Commit | ViewChange | Fetch | Decided
Vote = Prepare | Commit
Signed = PrePrepare | Prepare | Commit | ViewChange


class PbftRecord(Record, frozen=True, kw_only=True, tag="pbft.Record"):
    """What must not be forgotten: all that this member has said that binds it."""

    change: ViewChange | None
    """Our promise; None: view 0."""
    proposal: PrePrepare | None
    """Of the view we are in: what we proposed, or voted for."""
    vote: Prepare | None
    """The newest one that we cast."""
    prepared: PrePrepare | None
    """The proposal of our newest prepared certificate, ..."""
    prepares: tuple[tuple[Member, Signature], ...]
    """... and its votes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """Two statements about one view that nobody honest signs both of; `Verify` takes each of them as it is."""

    member: PeerId
    context: str
    first: tuple[bytes, bytes]
    """Statement and signature."""
    second: tuple[bytes, bytes]


def proposal_statement(scope: Scope, view: int, name: Digest, prepared_view: int) -> bytes:
    """Return what a pre-prepare signs, given the digest of its value."""
    return msgspec.msgpack.encode((scope.run, scope.epoch, scope.height, view, name, prepared_view))


def change_statement(scope: Scope, change: ViewChange) -> bytes:
    """Return what a view change signs."""
    return msgspec.msgpack.encode((scope.run, scope.epoch, scope.height, change.view, *change.claim))
