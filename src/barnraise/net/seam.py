"""What the node asks of a network: a control plane for small messages, a bulk plane for tensors.

`host.py` (libp2p) and `bulk.py` (sealed TCP) are the real ones, `memory.py` is the fake. Nothing above this
file knows which it talks to.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import trio

from barnraise.ids import PeerId

MAX_MESSAGE_BYTES = 64 * 1024
"""Largest control message; go and py libp2p lose 1 MiB publishes silently, rust's limit is 64 KiB."""

MAX_HEADER_BYTES = 4 * 1024
"""Largest header of a bulk transfer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PeerUp:
    """A peer was admitted: it proved its identity and the cluster key. ``hello`` is what it said of itself."""

    peer: PeerId
    hello: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class PeerDown:
    """The last connection to an admitted peer is gone."""

    peer: PeerId
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Received:
    """A control message arrived whole from an admitted peer."""

    peer: PeerId
    message: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Refused:
    """Somebody knocked or was dialled, and one of the two did not want the other; or a peer warns us of something.

    For the operator's eyes. Rationed, and dropped where the node is busy: strangers decide how often it happens."""

    peer: PeerId
    reason: str
    """In plain words; what the other side said is quoted, made printable and cut."""
    address: str = ""
    """Where it came from, host and port, if that is known."""


NetworkEvent = PeerUp | PeerDown | Received | Refused


class Network(Protocol):
    """The control plane. Delivery: in order and at most once while a connection lives; whoever needs
    more repeats itself. A message is never cut and never lost without `PeerDown` or an error."""

    peer_id: PeerId

    @property
    def addresses(self) -> tuple[str, ...]:
        """Multiaddresses under which others reach this peer, each ending in ``/p2p/<peer id>``."""
        ...

    @property
    def events(self) -> trio.MemoryReceiveChannel[NetworkEvent]:
        """Everything that happens, in order. The node must keep draining it."""
        ...

    async def send(self, to: PeerId, message: bytes) -> None:
        """Queue one message of at most ``MAX_MESSAGE_BYTES``.

        Raises:
            Unavailable: the peer is not connected, or its queue stayed full for the send deadline.
            LocalError: the message is too long.
        """
        ...


Sink = Callable[[PeerId, bytes, int], memoryview | None]
"""``(sender, header, size_bytes)`` -> where to put the payload (a writable buffer of exactly that size), or
None to refuse the transfer. Called in a worker thread before anything is allocated for the payload."""

Arrived = Callable[[PeerId, bytes], None]
"""``(sender, header)``: the payload is whole and authentic in the sink's buffer. Called in a worker thread."""


class Bulk(Protocol):
    """The bulk plane: pushes byte buffers to peers, encrypted and authenticated."""

    @property
    def address(self) -> tuple[str, int]:
        """Host and port to tell others."""
        ...

    def learn(self, peer: PeerId, host: str, port: int) -> None:
        """Remember where a peer's bulk plane listens; from now on that peer may connect as well."""
        ...

    def forget(self, peer: PeerId) -> None:
        """Close a peer's channels; transfers under way raise `Unavailable`."""
        ...

    async def send(self, to: PeerId, header: bytes, parts: Sequence[memoryview]) -> None:
        """Send one payload, the concatenation of ``parts``; return when the other side has taken it whole.

        The caller bounds it in time with a cancel scope. Parts are not copied and must not change meanwhile.

        Raises:
            Unavailable: the peer is unknown, unreachable, refused the transfer, or went away.
            LocalError: the header is too long.
        """
        ...

    @property
    def bytes_sent(self) -> int:
        """Bytes put on the wire so far, framing and handshakes included."""
        ...

    @property
    def bytes_received(self) -> int:
        """Bytes taken from the wire so far."""
        ...
