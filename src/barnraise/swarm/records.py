"""The records that peers hash, sign and agree on: array-like, versioned, without maps or floats.

Fields that this profile leaves empty are there already (fragment, gram, ledger, trace root ...), so that rounds
in flight together, streamed fragments, robust rules and replay need no new format. A loss is an integer number of
micro-nats.
"""

from typing import Annotated, Final, Generic, TypeVar

import blake3
import msgspec

from barnraise.ids import Digest

T = TypeVar("T")

VERSION: Final = 1
"""What a run begins with; `Upgrade` raises it."""
NEWEST: Final = 2
"""The newest version that this code reads and writes. From 2 on a checkpoint names the rules in force, so that they may
change; what else is written is alike but for the number."""
RULES_VERSION: Final = 2
MICRO: Final = 1_000_000
MAX_NAMED: Final = 500
"""Members that one entry names, ids of 52 characters: it stays below what an agreement takes."""
MAX_RULES: Final = 32
MAX_SEALS: Final = 8
"""Signatures in an entry, of 3.3 kB each."""
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
"""A height, a round, a view, a place: what a peer may say without overflowing what is added to it or stored."""
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
"""A peer's id; or a key of the configuration, or its value."""
Hash = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class Record(msgspec.Struct, frozen=True, array_like=True, kw_only=True, tag=True, forbid_unknown_fields=True):
    """What all records share: the format's version, and what the record is about."""

    version: int = VERSION
    run: bytes
    epoch: int
    round: int
    fragment: int = 0


class Commitment(Record, frozen=True, kw_only=True):
    """A member fixes its update before anybody has seen any: signed, and sent ahead of all tensors."""

    base: bytes
    """The vertex that the update was computed from."""
    member: str
    samples: int
    """The update's weight."""
    steps: int
    tokens: int
    codec: str
    exponents: tuple[int, ...]
    """The grid, one exponent a block; the previous vertex fixes it."""
    update_root: bytes
    """Root over the hashes of the encoded shards."""
    trace_root: bytes
    """Root over checkpoints of the inner steps, for replay; empty in ``home``."""
    train_loss: int
    """Micro-nats per token."""
    validation_loss: int
    """Micro-nats per token on the windows this member was asked to measure ``base`` on."""
    validation_tokens: int


class Event(Record, frozen=True, kw_only=True):
    """An entry of the agreed log."""

    previous: bytes
    """Digest of the entry before: the log is a chain."""
    attempt: int = 0


class Contribution(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A commitment that is in: whose, its digest, and what the fold needs of it."""

    member: str
    commitment: bytes
    samples: int


class Cut(Event, frozen=True, kw_only=True):
    """First agreement of a round: which commitments are in."""

    contributions: tuple[Contribution, ...]

    def has(self, member: str) -> bool:
        """Tell whether a member's update is in."""
        return any(entry.member == member for entry in self.contributions)


class Metrics(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a round showed, from the members' signed claims."""

    train_loss: int
    """Micro-nats per token, weighted by samples."""
    validation_loss: int
    """Micro-nats per token of the round's base, weighted by tokens; -1: nobody measured."""
    tokens: int


class Result(Event, frozen=True, kw_only=True):
    """Second agreement: what the round made of the parameters, and who are members after it."""

    cut: bytes
    """Digest of the agreed cut."""
    excluded: tuple[tuple[str, str], ...]
    """``(member, reason)`` of updates that a rule left out; none in ``home``."""
    gram: bytes
    """Digest of the Gram matrix of a robust rule; empty in ``home``."""
    aggregate_root: bytes
    theta_root: bytes
    momentum_root: bytes
    exponents: tuple[int, ...]
    """The next round's grid."""
    metrics: Metrics
    ledger: bytes
    """Digest of the ledger's changes; empty in ``home``."""
    joined: tuple[str, ...]
    left: tuple[str, ...]
    time: int
    """The proposer's clock, Unix seconds: information, trusted for nothing."""
    vertex: bytes
    """Id of the checkpoint that this entry certifies."""
    changes: bytes = b""
    """Hash of the changes that take effect with it; empty: none."""


class Void(Event, frozen=True, kw_only=True):
    """Second agreement, the other way: the exchange failed, nobody steps, the round's cut is taken again."""

    cut: bytes
    without: tuple[str, ...]
    """Members that the next attempt does not wait for."""


class Regroup(Event, frozen=True, kw_only=True):
    """Instead of a cut: the round cannot be trained by the members that it was planned for, so others are in it.

    Everybody who is a member afterwards counts at once: all begin the round anew, from the same checkpoint.
    """

    joined: tuple[str, ...]
    left: tuple[str, ...]
    changes: bytes = b""
    """As of a `Result`."""


class _Change(msgspec.Struct, frozen=True, array_like=True, kw_only=True, tag=True, forbid_unknown_fields=True):
    pass


class Upgrade(_Change, frozen=True, kw_only=True):
    """Rules of the run, and the version of its records, become others."""

    number: Count
    """Which upgrade of the run it is, from 1: none can be replayed over a later one."""
    version: Count
    """Of records, from then on."""
    rules: Annotated[tuple[tuple[Name, Name], ...], msgspec.Meta(max_length=MAX_RULES)]
    """``(dotted key, value as text)``, sorted by key; which keys there are, `amendments` says."""


class Rotate(_Change, frozen=True, kw_only=True):
    """A member goes on with another key: the new id has the old one's place and seniority."""

    old: Name
    new: Name


class Revoke(_Change, frozen=True, kw_only=True):
    """A key is lost or stolen: nobody is let in under its id any more, and who is a member under it is out."""

    peer: Name


class Readmit(_Change, frozen=True, kw_only=True):
    """The owner of a revoked key comes back with another one and has its seniority."""

    lost: Name
    new: Name


Change = Upgrade | Rotate | Revoke | Readmit


class Seal(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A signature of somebody who asked for a change, over `petitions.body_of` it."""

    signer: Name
    signature: Annotated[bytes, msgspec.Meta(max_length=4096)]


class Amend(Event, frozen=True, kw_only=True):
    """Before a round's cut: a change that was asked for takes effect at the end of the round."""

    change: Change
    seals: Annotated[tuple[Seal, ...], msgspec.Meta(max_length=MAX_SEALS)]


class Recover(Event, frozen=True, kw_only=True):
    """In place of any entry: too many members are gone for good, and the operators name who goes on.

    Its votes are the operators', over these bytes: no quorum of members is left to vote (`certification`).
    """

    vertex: Hash
    """The checkpoint that they go on from."""
    members: Annotated[tuple[Name, ...], msgspec.Meta(min_length=1, max_length=MAX_NAMED)]


class Parent(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A checkpoint that a merge goes on from, and what its parameters count for."""

    vertex: Hash
    weight: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]


class Merge(Event, frozen=True, kw_only=True):
    """Before a round's cut: the parameters become the declared mean of this run's and of forks of it.

    Nothing proposes one yet: whoever votes for it must have computed the same hashes.
    """

    parents: Annotated[tuple[Parent, ...], msgspec.Meta(min_length=2, max_length=16)]
    """The run's newest checkpoint first."""
    theta_root: Hash
    momentum_root: Hash
    exponents: tuple[int, ...]
    vertex: Hash
    """Id of the checkpoint that this entry certifies."""


LogEvent = Cut | Result | Void | Regroup | Amend | Recover | Merge


class Vertex(msgspec.Struct, frozen=True, array_like=True, kw_only=True, tag=True, forbid_unknown_fields=True):
    """A certified checkpoint of the DAG; its id is the hash of these bytes and the votes stand over the id."""

    version: int = VERSION
    run: bytes
    """Names architecture, data and rules: the run id hashes them all."""
    parents: tuple[bytes, ...]
    round: int
    """Rounds behind this checkpoint."""
    model: bytes
    """Name of the flat float32 parameters: the hash of their manifest (`swarm.manifest`)."""
    outer: bytes
    """Likewise of the outer optimiser's flat float32 state."""
    random: bytes
    """Seed of the next round."""
    cursor: int
    """First sample that no round was ever given."""
    requeued: tuple[tuple[int, int], ...]
    """``(first, count)`` of samples given out and to be given out again."""
    exponents: tuple[int, ...]
    time: int
    contributors: tuple[tuple[str, int], ...]
    """``(member, samples)`` of the round before."""
    total_samples: int
    train_loss: int
    validation_loss: int
    rules: bytes = b""
    """From version 2 on: hash of the rules in force, which the run id names no more once they were changed."""

    def __post_init__(self) -> None:
        if len(self.rules) != (32 if self.version >= RULES_VERSION else 0):
            raise ValueError(f"a checkpoint of version {self.version} with {len(self.rules)} bytes of rules")


class Signed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A record's exact bytes and a signature over them; what was received is what is verified."""

    record: bytes
    signature: bytes


class Decoder(Generic[T]):
    """A msgspec decoder that has one complaint: `msgspec.DecodeError`, also about a text that is not UTF-8."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[T]) -> None:
        self._decoder = decoder

    def decode(self, data: bytes) -> T:
        """Return what ``data`` says; raises `msgspec.DecodeError`, of which `msgspec.ValidationError` is a kind."""
        try:
            return self._decoder.decode(data)
        except UnicodeDecodeError as error:
            raise msgspec.DecodeError(f"a text is not UTF-8: {error.reason}") from error


_encode = msgspec.msgpack.Encoder().encode


def encode(record: Record | Vertex) -> bytes:
    """Return the canonical bytes of a record."""
    if isinstance(record, Vertex) and record.version < RULES_VERSION:
        return _encode(("Vertex", *msgspec.structs.astuple(record)[:-1]))
    return _encode(record)


def digest(data: bytes) -> Digest:
    """Return the hash by which a record's bytes are named."""
    return Digest(blake3.blake3(data, derive_key_context="barnraise 1 record").digest())


def vertex_id(vertex: Vertex) -> Digest:
    """Return the name of a checkpoint: the hash of its canonical bytes."""
    return Digest(blake3.blake3(encode(vertex), derive_key_context="barnraise 1 vertex").digest())


decode_event: Decoder[LogEvent] = Decoder(msgspec.msgpack.Decoder(LogEvent))
decode_commitment: Decoder[Commitment] = Decoder(msgspec.msgpack.Decoder(Commitment))
decode_vertex: Decoder[Vertex] = Decoder(msgspec.msgpack.Decoder(Vertex))
