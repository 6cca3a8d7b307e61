"""A stream: sealed frames to one peer, one way, in order, over one or several connections; blocking, no trio.

    opener, on each of its k connections          receiver
    STREAM (id, k, index, header)  ------------->
                                                  all k are there; its sink wants the stream
                                   <------------- REPLY go, or refused
    PAYLOAD, PAYLOAD, ...          ------------->
    END, where the next PAYLOAD was due

Each connection has its own keys and counts its frames: what is missing, doubled, swapped or of another connection does
not open. Only END says that nothing is missing at the end. Over several connections frames go in pieces (`striping`).

How much a stream keeps that was sent and not received: the frame that is being sent or received, of several connections
768 KiB each at the receiving end (`striping`), and what the kernels buffer, which is at most tcp_wmem's and tcp_rmem's
third figure (4 and 6 MiB usually) a connection. A sender whose peer does not read is blocked by then.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Final, Literal

import msgspec

from barnraise.errors import LocalError, Unavailable
from barnraise.ids import PeerId
from barnraise.net import congestion
from barnraise.net.channel import Channel
from barnraise.net.congestion import MAX_CONNECTIONS, Measured
from barnraise.net.frames import MAX_PAYLOAD_BYTES, Kind
from barnraise.net.seam import MAX_HEADER_BYTES, Ended, StreamSink
from barnraise.net.speed import MIN_TRANSFER_BYTES, Gauge
from barnraise.net.striping import Merge, Spread
from barnraise.net.transfer import Reply, TransferId, announced, answer, expect
from barnraise.swarm.records import Decoder

SAMPLE_EVERY_S: Final = 0.2
"""Between two looks at what TCP measured: a look takes the socket's lock, and one each MiB cost 10 % of the CPU. Several
round trips of most links, so that what came between two looks is not one burst."""


class StreamAnnouncement(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Opener to receiver: this connection is that one of the stream's."""

    id: TransferId
    num_connections: Annotated[int, msgspec.Meta(ge=1, le=MAX_CONNECTIONS)]
    index: Annotated[int, msgspec.Meta(ge=0, lt=MAX_CONNECTIONS)]
    header: Annotated[bytes, msgspec.Meta(max_length=MAX_HEADER_BYTES)]
    """The opener's user's."""

    def __post_init__(self) -> None:
        if self.index >= self.num_connections:
            raise ValueError(f"connection {self.index} of {self.num_connections}")


_encode = msgspec.msgpack.Encoder().encode
_announcements: Decoder[StreamAnnouncement] = Decoder(msgspec.msgpack.Decoder(StreamAnnouncement))


class SealedStream:
    """Either end of a real stream (`seam.Stream`)."""

    def __init__(
        self,
        channels: Sequence[Channel],
        *,
        gauge: Gauge | None,
        closed: Callable[["SealedStream"], None],
    ) -> None:
        """Take over a stream's channels, in order.

        Args:
            channels: one for each connection.
            gauge: told of the speed of what is sent; None at the receiving end.
            closed: called once, by whoever closes the stream.
        """
        self._channels = channels
        self._outgoing: Channel | Spread = channels[0]
        self._incoming: Channel | Merge = channels[0]
        if len(channels) > 1:
            if gauge is None:
                self._incoming = Merge(channels)
            else:
                self._outgoing = Spread(channels, gauge)
        self._gauge = gauge
        self._closed = closed
        self._ending = threading.Lock()
        self._is_interrupted = self._is_closed = False
        self._is_whole = True  # no frame was begun and not finished
        self._unsampled_bytes = 0
        self._next_sample_s = 0.0
        self._sampled_s = 0.0
        self._sampled_in_all_bytes = 0
        self._sampled: list[Measured] = []
        """What TCP had measured on each connection when we last looked."""

    @property
    def peer(self) -> PeerId:
        """Whoever is at the other end."""
        return self._channels[0].peer

    @property
    def num_connections(self) -> int:
        """How many connections the frames go over."""
        return len(self._channels)

    def send(self, payload: memoryview | bytes) -> None:
        """Seal and send one frame. See `seam.Stream`."""
        view = memoryview(payload).cast("B")
        if self._gauge is None or not 0 < len(view) <= MAX_PAYLOAD_BYTES:
            raise LocalError(f"a frame of {len(view)} bytes; the sending end takes 1 to {MAX_PAYLOAD_BYTES}")
        self._is_whole = False
        self._outgoing.send(Kind.PAYLOAD, view)
        self._is_whole = True
        self._unsampled_bytes += len(view)
        if self._unsampled_bytes >= MIN_TRANSFER_BYTES and time.monotonic() >= self._next_sample_s:
            self._sample(self._gauge)

    def receive(self, room: memoryview) -> int:
        """Open the next frame into the start of ``room``. See `seam.Stream`."""
        flat = room.cast("B")
        if self._gauge is not None or not flat:
            raise LocalError(f"room of {len(flat)} bytes; the receiving end needs at least 1")
        length = self._incoming.receive_payload(flat, may_end=True)
        if not length:
            raise Ended(f"peer {self.peer}: closed the stream")
        return length

    def patience(self, seconds: float) -> None:
        """Let later calls give up once no byte has moved for so long."""
        if not seconds > 0:
            raise LocalError(f"a patience of {seconds} s; it is more than nothing")
        for channel in self._channels:
            channel.patience(seconds)

    def is_alive(self) -> bool:
        """Tell whether the other end still takes frames. See `seam.Stream`."""
        return not self._is_interrupted and all(channel.is_alive() for channel in self._channels)

    def interrupt(self) -> None:
        """Make what blocks and whatever comes after raise `Unavailable`; from any thread."""
        self._is_interrupted = True
        for channel in self._channels:
            channel.interrupt()

    def close(self) -> None:
        """Put the end mark, if this end sends and nothing went wrong, and free the stream's connections."""
        with self._ending:
            if self._is_closed:
                return
            self._is_closed = True
            if self._gauge is not None and self._is_whole and not self._is_interrupted:
                with contextlib.suppress(Unavailable):
                    self._outgoing.send(Kind.END, b"")
            for channel in self._channels:
                channel.close()
        self._closed(self)

    def offer(self, stream: bytes, header: bytes) -> None:
        """Announce the stream on all its connections and wait until the other side takes it.

        Raises:
            Refused: it does not want it.
            Unavailable, PeerError: it is gone or breaks the protocol.
        """
        for index, channel in enumerate(self._channels):
            channel.send(Kind.STREAM, _encode(StreamAnnouncement(stream, len(self._channels), index, header)))
        for channel in self._channels:
            expect(channel, "go", "stream")

    def hand_over(self, header: bytes, sink: StreamSink | None) -> bool:
        """Give the stream to ``sink`` and tell the opener; return whether it was taken, closed otherwise."""
        try:
            if sink is None:
                raise Unavailable("not wanted")
            sink(self.peer, header, self)
        except Unavailable as refusal:
            self._answer("refused", str(refusal))
            self.close()
            return False
        except BaseException:
            self.close()
            raise
        self._answer("go")
        return True

    def _answer(self, verdict: Literal["go", "refused"], reason: str = "") -> None:
        # The owner may use the stream by now, and even close it: under the lock, so that no freed socket is written.
        with self._ending, contextlib.suppress(Unavailable):
            for channel in () if self._is_closed else self._channels:
                answer(channel, Reply(verdict, reason))

    def _sample(self, gauge: Gauge) -> None:
        now = time.monotonic()
        self._unsampled_bytes = 0
        self._next_sample_s = now + SAMPLE_EVERY_S
        found = [found for channel in self._channels if (found := congestion.measured(channel.socket))]
        if len(found) == len(self._channels):
            gauge.round_trip(min(each.round_trip_s for each in found))
            bandwidth_bytes_s, is_bound_by_us = congestion.rate(self._sampled, found, now - self._sampled_s)
            sent_bytes = self._channels[0].sent_in_all_bytes
            in_all_bytes_s = (sent_bytes - self._sampled_in_all_bytes) / (now - self._sampled_s)
            gauge.delivered(bandwidth_bytes_s, is_bound_by_us=is_bound_by_us, in_all_bytes_s=in_all_bytes_s)
            self._sampled, self._sampled_s, self._sampled_in_all_bytes = found, now, sent_bytes


def read_announcement(channel: Channel) -> StreamAnnouncement:
    """Return what a connection's first frame, a STREAM, says.

    Raises:
        PeerError: it is malformed or forged.
        Unavailable: the peer is gone.
    """
    return announced(channel, Kind.STREAM, _announcements)
