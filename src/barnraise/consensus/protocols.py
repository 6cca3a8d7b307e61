"""The protocols that members agree by, by name, and what they say and store, as one type each."""

import types
from collections.abc import Mapping
from typing import Final

import msgspec

from barnraise.consensus import pbft_messages, raft_messages
from barnraise.consensus.agreement import Kind, Record
from barnraise.consensus.pbft_kind import PBFT
from barnraise.consensus.raft_kind import RAFT
from barnraise.swarm.records import Decoder

BallotMessage = raft_messages.RaftMessage | pbft_messages.PbftMessage

KINDS: Final[Mapping[str, Kind]] = types.MappingProxyType({kind.name: kind for kind in (RAFT, PBFT)})

_StoredRecord = raft_messages.RaftRecord | pbft_messages.PbftRecord
_record: Decoder[_StoredRecord] = Decoder(msgspec.msgpack.Decoder(_StoredRecord))


def protocol_of(name: str) -> Kind:
    """Return the protocol of this name, which `RunConfig.protocol` gives."""
    return KINDS[name]


def decode_record(data: bytes) -> Record:
    """Return what a member had persisted; raises `msgspec.DecodeError`."""
    return _record.decode(data)
