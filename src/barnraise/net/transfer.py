"""What bulk frames mean: a payload announced, moved in stripes over one or more channels, and taken or refused.

    sender, on each channel                      receiver, one thread a channel
    ANNOUNCEMENT (id, size, stripe, header) --->
                                            <--- REPLY go, or refused     only where the stripe is over EAGER_BYTES
    PAYLOAD, PAYLOAD ... (this stripe)      --->
                                            <--- REPLY taken, or refused

A small stripe follows its announcement at once and is drained where it is refused; a large one waits a round trip
for "go", so that a refused tensor costs nothing. Stripe boundaries are a function of (size, count, index): nobody
announces offsets. The stripe that completes a transfer is answered after ``arrived`` was called, the others at once:
a sender with all its answers knows that the payload was taken whole. A sender that gives up closes the channels it
used, and that is how the receiver learns it. Blocking code for worker threads; it knows no sockets and no trio.
"""

import contextlib
import threading
from collections.abc import Sequence
from typing import Annotated, Final, Literal, TypeVar

import msgspec

from barnraise.errors import LocalError, PeerError, Unavailable
from barnraise.ids import PeerId
from barnraise.net.channel import Channel
from barnraise.net.frames import MAX_PAYLOAD_BYTES, Kind, cut
from barnraise.net.seam import MAX_HEADER_BYTES, Arrived, Sink
from barnraise.swarm.records import Decoder

T = TypeVar("T")

EAGER_BYTES: Final = 1024 * 1024
ID_BYTES: Final = 16
MAX_STRIPES: Final = 16
MAX_TRANSFER_BYTES: Final = 1 << 40
"""1 TiB; the sink decides far below that."""
MAX_REASON_CHARACTERS: Final = 200
MAX_ANNOUNCEMENT_BYTES: Final = MAX_HEADER_BYTES + 64
MAX_REPLY_BYTES: Final = 4 * MAX_REASON_CHARACTERS + 32

TransferId = Annotated[bytes, msgspec.Meta(min_length=ID_BYTES, max_length=ID_BYTES)]


class Announcement(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Sender to receiver: which stripe of which transfer follows on this channel."""

    id: TransferId
    size_bytes: Annotated[int, msgspec.Meta(ge=0, le=MAX_TRANSFER_BYTES)]
    """Of the whole payload."""
    num_stripes: Annotated[int, msgspec.Meta(ge=1, le=MAX_STRIPES)]
    index: Annotated[int, msgspec.Meta(ge=0, lt=MAX_STRIPES)]
    header: Annotated[bytes, msgspec.Meta(max_length=MAX_HEADER_BYTES)]
    """The caller's."""

    def __post_init__(self) -> None:
        if self.index >= self.num_stripes:
            raise ValueError(f"stripe {self.index} of {self.num_stripes}")

    @property
    def bounds(self) -> tuple[int, int]:
        """Return the stripe's first byte and the one after its last."""
        start = self.size_bytes * self.index // self.num_stripes
        return start, self.size_bytes * (self.index + 1) // self.num_stripes

    @property
    def is_eager(self) -> bool:
        """Say whether the stripe follows without waiting for a "go"."""
        start, stop = self.bounds
        return stop - start <= EAGER_BYTES


class Reply(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Receiver to sender: what becomes of the stripe."""

    verdict: Literal["go", "taken", "refused"]
    reason: Annotated[str, msgspec.Meta(max_length=MAX_REASON_CHARACTERS)] = ""


class Refused(Unavailable):
    """The receiver did not want the transfer; the channel is as good as before."""


_encode = msgspec.msgpack.Encoder().encode
_announcements: Decoder[Announcement] = Decoder(msgspec.msgpack.Decoder(Announcement))
_replies: Decoder[Reply] = Decoder(msgspec.msgpack.Decoder(Reply))


def send_stripe(channel: Channel, announcement: Announcement, parts: Sequence[memoryview]) -> None:
    """Send one stripe of the concatenated ``parts`` (flat bytes) and wait until it is taken.

    Raises:
        Refused: the receiver does not want it.
        Unavailable: the peer is gone or stalls.
        PeerError: it breaks the protocol.
    """
    channel.send(Kind.ANNOUNCEMENT, _encode(announcement))
    if not announcement.is_eager:
        expect(channel, "go", "transfer")
    for piece in cut(parts, *announcement.bounds, channel.scratch):
        channel.send(Kind.PAYLOAD, piece)
    expect(channel, "taken", "transfer")


def expect(channel: Channel, verdict: str, what: str) -> None:
    """Wait for this answer to ``what``, a transfer or a stream.

    Raises:
        Refused: it is not wanted.
        Unavailable: the peer is gone or stalls.
        PeerError: it breaks the protocol.
    """
    message = channel.receive_message(Kind.REPLY, MAX_REPLY_BYTES)
    try:
        reply = _replies.decode(message)
    except msgspec.MsgspecError as error:
        raise PeerError(channel.peer, f"a malformed reply: {error}", message) from error
    if reply.verdict == "refused":
        raise Refused(f"peer {channel.peer} refused the {what}: {reply.reason!r}")
    if reply.verdict != verdict:
        raise PeerError(channel.peer, f"the reply {reply.verdict!r} where {verdict!r} was due", message)


class Incoming:
    """A transfer being received: where its bytes go and which stripes are still out."""

    def __init__(self, peer: PeerId, announcement: Announcement, buffer: memoryview) -> None:
        """Begin with every stripe out."""
        self.peer = peer
        self.id = announcement.id
        self.header = announcement.header
        self.size_bytes = announcement.size_bytes
        self.buffer = buffer
        self.unbegun = set(range(announcement.num_stripes))
        self.num_stripes = announcement.num_stripes
        self.missing = set(self.unbegun)
        self.num_writers = 0
        self.failed = False


class Inbox:
    """All transfers being received, from every peer; its methods may be called in any thread."""

    def __init__(self, sink: Sink, arrived: Arrived, max_transfers: int, patience_s: float) -> None:
        """Ask ``sink`` where payloads go; let a transfer wait ``patience_s`` while ``max_transfers`` are under way."""
        self._sink = sink
        self._arrived = arrived
        self._max_transfers = max_transfers
        self._patience_s = patience_s
        self._changed = threading.Condition()
        self._open: dict[tuple[PeerId, bytes], Incoming] = {}
        self._closed = False

    def join(self, peer: PeerId, announcement: Announcement) -> Incoming:
        """Begin to receive a stripe; the transfer's first one asks the sink for room.

        Raises:
            Refused: the sink does not want it, or too many transfers stayed under way.
            PeerError: the stripe contradicts the transfer's others.
        """
        key = (peer, announcement.id)
        with self._changed:
            if not self._changed.wait_for(lambda: self._can_begin(key), self._patience_s):
                raise Refused(f"busy with {len(self._open)} other transfers")
            incoming = self._open.get(key)
            if incoming is None:
                incoming = self._open[key] = Incoming(peer, announcement, self._room(peer, announcement))
            self._check(incoming, announcement)
            incoming.unbegun.remove(announcement.index)
            incoming.num_writers += 1
            return incoming

    def finish(self, incoming: Incoming, index: int) -> None:
        """Note that a stripe is whole; the last one calls ``arrived``.

        Raises:
            Unavailable: the transfer failed meanwhile on another channel.
        """
        with self._changed:
            incoming.num_writers -= 1
            incoming.missing.remove(index)
            self._changed.notify_all()
            if incoming.failed:
                self._drop_if_unused(incoming)
                raise Unavailable(f"peer {incoming.peer} gave up the transfer")
            if incoming.missing:
                return
        try:
            self._arrived(incoming.peer, incoming.header)
        finally:
            self._drop(incoming)

    def fail(self, incoming: Incoming, *, writing: bool) -> None:
        """Give a transfer up unless it is complete; its other stripes end at their next frame.

        ``writing`` says whether the caller had joined and not finished. A failed transfer keeps its place until its
        last writer has stopped: else a sender's second try could share the sink's buffer with the first one's rest.
        """
        with self._changed:
            incoming.num_writers -= writing
            if incoming.missing:
                incoming.failed = True
                self._drop_if_unused(incoming)

    def close(self) -> None:
        """Refuse whatever comes or waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _can_begin(self, key: tuple[PeerId, bytes]) -> bool:
        if self._closed or key in self._open:
            return True
        failing = any(incoming.failed for (peer, _), incoming in self._open.items() if peer == key[0])
        return len(self._open) < self._max_transfers and not failing

    def _room(self, peer: PeerId, announcement: Announcement) -> memoryview:
        buffer = None if self._closed else self._sink(peer, announcement.header, announcement.size_bytes)
        if buffer is None:
            raise Refused("not wanted")
        if buffer.nbytes != announcement.size_bytes or buffer.readonly or not buffer.c_contiguous:
            raise LocalError(
                f"the sink gave {buffer.nbytes} bytes for {announcement.size_bytes}; it owes a writable, "
                "contiguous buffer of exactly that size"
            )
        return buffer.cast("B") if buffer.nbytes else memoryview(bytearray())

    def _check(self, incoming: Incoming, announcement: Announcement) -> None:
        if incoming.failed:
            raise Refused("already given up")
        known = (incoming.size_bytes, incoming.num_stripes, incoming.header)
        if known != (announcement.size_bytes, announcement.num_stripes, announcement.header):
            raise PeerError(incoming.peer, "two stripes of a transfer announce different sizes or headers")
        if announcement.index not in incoming.unbegun:
            raise PeerError(incoming.peer, f"stripe {announcement.index} of a transfer came twice")

    def _drop_if_unused(self, incoming: Incoming) -> None:
        if not incoming.num_writers:
            self._drop(incoming)

    def _drop(self, incoming: Incoming) -> None:
        with self._changed:
            if self._open.get((incoming.peer, incoming.id)) is incoming:
                del self._open[incoming.peer, incoming.id]
            self._changed.notify_all()


def answer(channel: Channel, reply: Reply) -> None:
    """Tell a sender what becomes of what it announced. Raises `Unavailable`."""
    channel.send(Kind.REPLY, _encode(Reply(reply.verdict, reply.reason[:MAX_REASON_CHARACTERS])))


def serve(channel: Channel, inbox: Inbox) -> bool:
    """Receive stripe after stripe on an accepted channel, until the peer closes it.

    Returns:
        Whether the channel goes on as a stream's: its next frame is a STREAM.

    Raises:
        PeerError: the peer breaks the protocol.
        Unavailable: it went away or stalled within a stripe.
    """
    with contextlib.ExitStack() as last:
        while channel.wait():
            if channel.next_kind() == Kind.STREAM:
                return True
            announcement = announced(channel, Kind.ANNOUNCEMENT, _announcements)
            # A sender starts its next transfer on a channel only after the last one ended, one way or the other.
            last.close()
            try:
                incoming = inbox.join(channel.peer, announcement)
            except Refused as refusal:
                _refuse(channel, announcement, str(refusal))
                continue
            last.callback(inbox.fail, incoming, writing=False)
            _receive_stripe(channel, announcement, incoming, inbox)
    return False


def announced(channel: Channel, kind: Kind, decoder: Decoder[T]) -> T:
    """Return what the next frame announces, which must be of this kind.

    Raises:
        PeerError: it is another frame, malformed or forged.
        Unavailable: the peer is gone or stalls.
    """
    message = channel.receive_message(kind, MAX_ANNOUNCEMENT_BYTES)
    try:
        return decoder.decode(message)
    except msgspec.MsgspecError as error:
        raise PeerError(channel.peer, f"a malformed announcement: {error}", message) from error


def _receive_stripe(channel: Channel, announcement: Announcement, incoming: Incoming, inbox: Inbox) -> None:
    try:
        if not announcement.is_eager:
            answer(channel, Reply("go"))
        position, stop = announcement.bounds
        while position < stop:
            if incoming.failed:
                raise Unavailable(f"peer {channel.peer} gave up the transfer")
            position += channel.receive_payload(incoming.buffer[position:stop])
    except BaseException:
        inbox.fail(incoming, writing=True)
        raise
    inbox.finish(incoming, announcement.index)
    answer(channel, Reply("taken"))


def _refuse(channel: Channel, announcement: Announcement, reason: str) -> None:
    answer(channel, Reply("refused", reason))
    if announcement.is_eager:
        start, stop = announcement.bounds
        while start < stop:
            start += channel.receive_payload(channel.scratch[: min(stop - start, MAX_PAYLOAD_BYTES)])
