"""The protocols that members agree by, by name, and what they say and store, as one type each."""

import types
from collections.abc import Mapping
from typing import Final

import msgspec

from barnraise.consensus import voting
from barnraise.consensus.agreement import Decided, Kind, Record
from barnraise.swarm.records import Decoder

BallotMessage = voting.Propose | voting.Accept | voting.Change | Decided

KINDS: Final[Mapping[str, Kind]] = types.MappingProxyType({voting.HOME.name: voting.HOME})

_record: Decoder[voting.Persisted] = Decoder(msgspec.msgpack.Decoder(voting.Persisted))


def protocol_of(name: str) -> Kind:
    """Return the protocol of this name, which `RunConfig.protocol` gives."""
    return KINDS[name]


def decode_record(data: bytes) -> Record:
    """Return what a member had persisted; raises `msgspec.DecodeError`."""
    return _record.decode(data)
