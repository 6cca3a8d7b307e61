"""What the node asks of a network: a control plane for small messages, a bulk plane for tensors.

`host.py` (libp2p) and `bulk.py` (sealed TCP) are the real ones, `memory.py` is the fake. Nothing above this
file knows which it talks to.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import trio

from barnraise.errors import Unavailable
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

    def latency_s(self, peer: PeerId) -> float | None:
        """Return the one-way latency to a connected peer as heartbeats found it; None before one was answered."""
        ...

    def silent_s(self, peer: PeerId) -> float:
        """Return for how many seconds a connected peer has not answered a heartbeat that it should have; 0: it does."""
        ...


Sink = Callable[[PeerId, bytes, int], memoryview | None]
"""``(sender, header, size_bytes)`` -> where to put the payload (a writable buffer of exactly that size), or
None to refuse the transfer. Called in a worker thread before anything is allocated for the payload."""

Arrived = Callable[[PeerId, bytes], None]
"""``(sender, header)``: the payload is whole and authentic in the sink's buffer. Called in a worker thread."""


class Ended(Unavailable):
    """A stream's sender closed it, and said so under seal: nothing is missing. Any other end was a cut."""


class Stream(Protocol):
    """One direction of sealed frames between two peers, in order, for worker threads: every call may block.

    One thread sends, or one receives; `interrupt` alone may be called from any other at any time. A frame arrives whole,
    authentic and in its place, or the call raises; after an error the stream is only good for `close`. An end that
    the sender did not put there itself is never taken for one: `receive` raises `Ended` after the sender's `close`,
    plain `Unavailable` where the connection ended otherwise. A sender does not learn what has arrived.
    """

    @property
    def peer(self) -> PeerId:
        """Whoever is at the other end."""
        ...

    def send(self, payload: memoryview | bytes) -> None:
        """Send one frame of 1 to ``MAX_PAYLOAD_BYTES``, 512 KiB; return when ``payload`` may change again.

        Raises:
            Unavailable: the peer is gone, took no byte for the patience, or the stream was interrupted.
            LocalError: the frame is empty or too long, or this is the receiving end.
        """
        ...

    def receive(self, room: memoryview) -> int:
        """Write the next frame, whole, to the start of ``room``, and return its length, at least 1.

        What of ``room`` is behind it may be overwritten, too; after an error all of it may hold rubbish.

        Raises:
            Ended: the sender closed the stream after its last frame.
            Unavailable: the peer is gone, sent no byte for the patience, or the stream was interrupted.
            PeerError: what came is forged or altered, out of order, or longer than ``room``.
            LocalError: ``room`` is empty, or this is the sending end.
        """
        ...

    def patience(self, seconds: float) -> None:
        """Let a call give up once no byte has moved for so long; a stop is noticed within 1.25 times that."""
        ...

    def is_alive(self) -> bool:
        """Tell whether the other end still takes frames, as far as is known here; of a sending end that is not in a call."""
        ...

    def interrupt(self) -> None:
        """Make what blocks and whatever comes after raise `Unavailable` at once; from any thread."""
        ...

    def close(self) -> None:
        """Free the stream; its sender first puts the end mark, for which it waits no longer than its patience.

        Only where no other thread is in a call. After `interrupt` there is no mark and no wait.
        """
        ...


StreamSink = Callable[[PeerId, bytes, Stream], None]
"""``(opener, header, stream)``: a peer opened a stream to us. Takes it over, and must close it one day; returns at once.

Called in a worker thread. Raises `Unavailable` to refuse it; the words are told to the peer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkSpeed:
    """What was measured of the way to a peer."""

    latency_s: float
    """One way: half of the shortest round trip that TCP saw."""
    bandwidth_bytes_s: float
    """Of real transfers to it: a moving average over pushes, the best of the last looks at streams."""
    is_at_least: bool = False
    """Never did it have enough to send, so its bandwidth may be anything above that."""
    is_held_by_loss: bool = False
    """Its connections slow down with every loss, so the line may carry more than they do (`congestion`)."""


class Bulk(Protocol):
    """The bulk plane: pushes byte buffers to peers and opens streams to them, encrypted and authenticated."""

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

    async def open_stream(self, to: PeerId, header: bytes) -> Stream:
        """Open a stream to a peer, over connections of its own; the caller must close it.

        The caller bounds it in time with a cancel scope. `forget` interrupts the stream, and so does the plane's end.

        Raises:
            Unavailable: the peer is unknown, unreachable, or refused the stream.
            LocalError: the header is too long.
        """
        ...

    def speed(self, peer: PeerId) -> LinkSpeed | None:
        """Return what was measured of the way to a peer; None before anything was."""
        ...

    @property
    def bytes_sent(self) -> int:
        """Bytes put on the wire so far, framing and handshakes included."""
        ...

    @property
    def bytes_received(self) -> int:
        """Bytes taken from the wire so far."""
        ...
