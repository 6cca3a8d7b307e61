"""Frames over several connections: each piece goes to whichever can take it soonest, and is put in its place again; blocking.

    a frame is cut into pieces; a piece is a PAYLOAD frame of one connection:
        the piece's number, 8 bytes little-endian | 1 if its frame ends with it, else 0 | bytes of the frame
    END goes out on every connection: nothing is missing once it came on all, and every number.

Connections that lose packets are fast and slow in turns. If frames went round them, the slowest would set the pace: over
100 Mbit/s, 50 ms and 0.1 % loss eight cubic connections used 8 % of the link so. Here a connection is given a piece when
the kernel has little left of the last ones to send, so each carries what it can.

Numbers are sealed, and grow on each connection, whose own counter says that nothing of it is missing, doubled or moved.
So whatever comes next lies at the head of some connection. The receiver opens no more than the heads; behind them frames
stay sealed, in each connection's buffer and then in the kernel's, and when these are full TCP makes the sender wait.
"""

import contextlib
import select
import socket
import struct
from collections.abc import Sequence
from typing import Final

from barnraise.errors import PeerError, Unavailable
from barnraise.net.channel import Channel
from barnraise.net.frames import HEADER_BYTES, MAX_PAYLOAD_BYTES, TAG_BYTES, Kind
from barnraise.net.speed import Gauge

MIN_PIECE_BYTES: Final = 16 * 1024
MAX_PIECE_BYTES: Final = 256 * 1024
PIECE_S: Final = 0.002
"""A piece is what the link carries in this time: small beside a round trip, large beside what Python needs for it."""

UNSENT_PIECES: Final = 4
"""A connection with less than half as many left to send gets another: enough for a thread that waits for a core."""
TAKEN_BYTES: Final = 512 * 1024
"""Of each connection, what the receiver holds sealed at most; over 100 Mbit/s more than comes while a loss is mended."""
MAX_POLL_MS: Final = 2**31 - 1
"""poll takes no more; 24 days."""

_HEAD: Final = struct.Struct("<Q?")
_LENGTH_BYTES: Final = 4
"""Of a frame's header, in front (`frames`)."""


class Spread:
    """The sending end."""

    def __init__(self, channels: Sequence[Channel], gauge: Gauge) -> None:
        """Take over a stream's channels; ``gauge`` knows how fast they are together."""
        self._channels = channels
        self._gauge = gauge
        self._number = 0
        self._turn = 0
        self._piece_bytes = 0
        self._piece = memoryview(bytearray(_HEAD.size + MAX_PIECE_BYTES))
        self._poll = select.poll()
        self._index = {channel.socket.fileno(): index for index, channel in enumerate(channels)}
        for fileno in self._index:
            self._poll.register(fileno, select.POLLOUT)

    def send(self, kind: Kind, payload: memoryview | bytes) -> None:
        """Send one frame, or the end mark.

        Raises:
            Unavailable: the peer is gone, or no connection took anything for the patience.
        """
        if kind is Kind.END:
            for channel in self._channels:
                channel.send(Kind.END, b"")
            return
        size = self._size_pieces()
        for start in range(0, len(payload), size):
            body = payload[start : start + size]
            piece = self._piece[: _HEAD.size + len(body)]
            _HEAD.pack_into(piece, 0, self._number, start + size >= len(payload))
            piece[_HEAD.size :] = body
            self._free().send(kind, piece)
            self._number += 1

    def _free(self) -> Channel:
        """Wait for a connection that has little left to send; of several take each in turn."""
        patience_s = self._channels[0].patience_s
        ready = self._poll.poll(_milliseconds(patience_s))
        if not ready:
            raise Unavailable(
                f"peer {self._channels[0].peer}: the stream's other end took nothing for {patience_s:g} s"
            )
        count = len(self._channels)
        found = min((self._index[fileno] for fileno, _ in ready), key=lambda index: (index - self._turn) % count)
        self._turn = (found + 1) % count
        return self._channels[found]

    def _size_pieces(self) -> int:
        """Return how long pieces are by now, powers of two; let no connection keep more than a few to send."""
        wanted = int((self._gauge.bandwidth_bytes_s or 0.0) * PIECE_S)
        size = max(MIN_PIECE_BYTES, min(1 << wanted.bit_length() >> 1, MAX_PIECE_BYTES))
        if size != self._piece_bytes:
            self._piece_bytes = size
            for channel in self._channels:
                _keep_little_unsent(channel.socket, UNSENT_PIECES * size)
        return size


class Merge:
    """The receiving end."""

    def __init__(self, channels: Sequence[Channel]) -> None:
        """Take over a stream's channels."""
        self._channels = channels
        self._lanes = {channel.socket.fileno(): _Lane(channel) for channel in channels}
        self._number = 0
        self._heads: dict[int, _Lane] = {}
        """Of each connection the piece that was opened and not yet used, by its number."""
        self._poll = select.poll()
        self._watched: set[int] = set()
        self._failure: PeerError | Unavailable | None = None

    def receive_payload(self, room: memoryview, *, may_end: bool = False) -> int:
        """Put the next frame together in the start of ``room``; return its length, or 0 after the end mark if that may come.

        Raises:
            PeerError: what came is forged, out of order, or a frame longer than ``room``.
            Unavailable: the peer is gone, or sent nothing for the patience.
        """
        if self._failure is not None:
            raise self._failure
        try:
            length = self._frame(room[:MAX_PAYLOAD_BYTES])
            if not length and not may_end:
                raise PeerError(self._channels[0].peer, "the end of a stream where a frame was due")
        except (PeerError, Unavailable) as error:
            self._failure = error
            raise
        return length

    def _frame(self, room: memoryview) -> int:
        filled = 0
        while (lane := self._next()) is not None:
            stop = filled + len(lane.body)
            if stop > len(room):
                raise PeerError(lane.channel.peer, f"a frame of {stop} bytes or more is over the limit of {len(room)}")
            room[filled:stop] = lane.body
            is_last = lane.is_last
            self._advance(lane)
            if is_last:
                return stop
            filled = stop
        if filled:
            raise PeerError(self._channels[0].peer, "the end of a stream within a frame")
        return 0

    def _next(self) -> "_Lane | None":
        """Wait for the connection whose head is the next piece; None: all has come and ended."""
        while (lane := self._heads.pop(self._number, None)) is None:
            if all(lane.has_head or lane.has_ended for lane in self._lanes.values()):
                if self._heads:
                    raise PeerError(self._channels[0].peer, f"piece {self._number} of a stream is missing")
                return None
            self._wait()
        self._number += 1
        return lane

    def _wait(self) -> None:
        """Take what comes next on any connection that has room for it."""
        self._watch()
        patience_s = self._channels[0].patience_s
        lost = next((lane.lost for lane in self._lanes.values() if lane.is_cut), None)
        ready = self._poll.poll(0 if lost else _milliseconds(patience_s))
        if not ready:
            silent = f"peer {self._channels[0].peer}: the stream's other end sent nothing for {patience_s:g} s"
            raise lost or Unavailable(silent)
        for fileno, _ in ready:
            lane = self._lanes[fileno]
            lane.take()
            if not lane.has_head:
                self._open(lane)

    def _watch(self) -> None:
        """Wait only for connections that have room: the others are full, which is how their sender comes to wait."""
        for fileno, lane in self._lanes.items():
            if lane.wants_more == (fileno in self._watched):
                continue
            if lane.wants_more:
                self._poll.register(fileno, select.POLLIN)
                self._watched.add(fileno)
            else:
                self._poll.unregister(fileno)
                self._watched.discard(fileno)

    def _advance(self, lane: "_Lane") -> None:
        lane.has_head = False
        self._open(lane)

    def _open(self, lane: "_Lane") -> None:
        """Open a connection's next frame, if it is here."""
        if not lane.open():
            return
        if lane.number < self._number or lane.number in self._heads:
            raise PeerError(lane.channel.peer, f"piece {lane.number} of a stream came twice")
        self._heads[lane.number] = lane


class _Lane:
    """One connection of a receiving end: what was taken from it, sealed, and its head, opened."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.has_head = self.has_ended = False
        self.lost: Unavailable | None = None
        """Why nothing more will come; what came before still counts."""
        self.number = 0
        self.is_last = False
        self.body = memoryview(b"")
        self._piece = memoryview(b"")
        self._taken = memoryview(bytearray(TAKEN_BYTES))
        self._start = self._stop = 0

    @property
    def wants_more(self) -> bool:
        """Tell whether there is room, or soon will be."""
        is_full = self._stop == len(self._taken) and self._start < len(self._taken) // 2 and self._frame_stop()
        return not (self.has_ended or self.lost or is_full)

    @property
    def is_cut(self) -> bool:
        """Tell whether all that came was used and there is no end mark."""
        return self.lost is not None and not (self.has_head or self.has_ended)

    def take(self) -> None:
        """Take what has come, unless nothing more will."""
        if self._stop == len(self._taken):
            rest = bytes(self._taken[self._start :])
            self._start, self._stop = 0, len(rest)
            self._taken[: len(rest)] = rest
        try:
            self._stop += self.channel.take(self._taken[self._stop :])
        except Unavailable as error:
            self.lost = error

    def open(self) -> bool:
        """Open the next frame if it is here whole; say whether it is a head now. Raises `PeerError`."""
        stop = self._frame_stop()
        if not stop:
            return False
        frame = self._taken[self._start : stop]
        self._start, self._stop = (0, 0) if stop == self._stop else (stop, self._stop)
        if frame[HEADER_BYTES - 1] == Kind.END:
            self.channel.open(frame, Kind.END, memoryview(bytearray()))
            self.has_ended = True
            return False
        if len(self._piece) < len(frame):
            self._piece = memoryview(bytearray(len(frame)))
        length = self.channel.open(frame, Kind.PAYLOAD, self._piece)
        self.number, self.is_last = _read_head(self.channel, self._piece[:length])
        self.body, self.has_head = self._piece[_HEAD.size : length], True
        return True

    def _frame_stop(self) -> int:
        """Return where the next frame ends, if it is here whole, else 0. Raises `PeerError` where it is too long."""
        taken, start = self._stop - self._start, self._start
        if taken < HEADER_BYTES:
            return 0
        length = int.from_bytes(self._taken[start : start + _LENGTH_BYTES], "little")
        if length > _HEAD.size + MAX_PIECE_BYTES:
            what = f"a piece of {length} bytes is over the limit of {_HEAD.size + MAX_PIECE_BYTES}"
            raise PeerError(self.channel.peer, what, bytes(self._taken[start : start + HEADER_BYTES]))
        size = HEADER_BYTES + length + TAG_BYTES
        return start + size if size <= taken else 0


def _read_head(channel: Channel, piece: memoryview) -> tuple[int, bool]:
    if len(piece) <= _HEAD.size or piece[_HEAD.size - 1] > 1:
        raise PeerError(channel.peer, f"a malformed piece of {len(piece)} bytes", bytes(piece[: _HEAD.size]))
    number, is_last = _HEAD.unpack_from(piece)
    return number, is_last


def _milliseconds(seconds: float) -> float:
    return min(1000 * seconds, MAX_POLL_MS)


def _keep_little_unsent(sock: socket.socket, size_bytes: int) -> None:
    """Let a socket count as free to send only while it has less than half of this left."""
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        with contextlib.suppress(OSError):  # closed meanwhile; sending says so
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, size_bytes)
