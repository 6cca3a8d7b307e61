"""What members say to each other on the control plane; every message is checked here before anything looks at it."""

import msgspec

from barnraise.collective.links import Row
from barnraise.consensus.agreement import Ballot
from barnraise.consensus.protocols import BallotMessage
from barnraise.errors import PeerError
from barnraise.ids import PeerId
from barnraise.swarm.petitions import Petition
from barnraise.swarm.records import NEWEST, Count, Decoder, Signed


class _Message(msgspec.Struct, frozen=True, array_like=True, kw_only=True, tag=True, forbid_unknown_fields=True):
    pass


class Commit(_Message, frozen=True, kw_only=True):
    """A signed commitment and the hashes of the encoded shards under its root."""

    commitment: Signed
    leaves: tuple[bytes, ...]


class Status(_Message, frozen=True, kw_only=True):
    """Once a second: I am here, and this far."""

    height: Count
    round: Count
    wants_in: bool
    """Not a member, has caught up, would like to be one."""
    wants_out: bool = False
    """A member that leaves once this round is agreed."""
    is_hollow: bool = False
    """Knows the run's configuration and has none of its tensors yet."""
    speaks: Count = NEWEST
    """The newest version of records that it reads."""


class Want(_Message, frozen=True, kw_only=True):
    """Please repeat the decision at this height, or these members' commitments of this round."""

    height: Count
    round: Count
    commitments: tuple[str, ...]


class GenesisWanted(_Message, frozen=True, kw_only=True):
    """Please send the run's configuration: whoever joins knows its hash and nothing else."""


class Genesis(_Message, frozen=True, kw_only=True):
    """The run's configuration as TOML, which the run id is the hash of; without paths of the sender's machine."""

    config: str


class StateWanted(_Message, frozen=True, kw_only=True):
    """Please send the log from this height on, and the newest vertex's tensors, over the bulk plane."""

    height: Count
    is_hollow: bool = False
    """Send the tensors also if there is no newer entry."""


class Links(_Message, frozen=True, kw_only=True):
    """What I know of my own links, in the order of the members of this epoch. An opinion, for plans and for people."""

    epoch: Count
    row: Row


Spoken = Commit | Status | Want | GenesisWanted | Genesis | StateWanted | Links | Petition
Message = Spoken | Ballot
"""Of ballots those that the protocols know: `consensus.protocols.BallotMessage`."""

_encode = msgspec.msgpack.Encoder().encode
_decoder: Decoder[Message] = Decoder(msgspec.msgpack.Decoder(Spoken | BallotMessage))


def encode(message: Message) -> bytes:
    """Return a message's bytes."""
    return _encode(message)


def decode(sender: PeerId, data: bytes) -> Message:
    """Return the message in ``data``.

    Raises:
        PeerError: it is malformed.
    """
    try:
        return _decoder.decode(data)
    except msgspec.DecodeError as error:
        raise PeerError(sender, f"sent a malformed message: {error}", data) from error


__all__ = [
    "Ballot",
    "Commit",
    "Genesis",
    "GenesisWanted",
    "Links",
    "Message",
    "Petition",
    "StateWanted",
    "Status",
    "Want",
    "decode",
    "encode",
]
