"""One bulk connection: a blocking TCP socket with a finished handshake, used by one worker thread at a time.

Blocking with the kernel's own timeouts, not Python's: a `recv_into` with MSG_WAITALL takes a whole frame in one call
and needs 14 times less CPU than an event loop's reader (DESIGN's measurements). Another thread may `interrupt` a
channel, nothing else; that makes every call under way fail with `Unavailable`.
"""

import contextlib
import socket
import struct
import threading
import time
from typing import Final

from barnraise.errors import PeerError, Unavailable
from barnraise.net.frames import HEADER_BYTES, MAX_FRAME_BYTES, MAX_PAYLOAD_BYTES, TAG_BYTES, Kind, read_header
from barnraise.net.handshake import RECORD_HEADER_BYTES, Agreed, Handshake, record_length
from barnraise.net.keepalive import keep_alive

SMALL_FRAME_BYTES: Final = 8 * 1024
"""A channel has room of its own for frames of this size each way; longer ones are a matter of their thread's `_Room`."""
PATIENCE_PARTS: Final = 4
"""The kernel times out after this part of the patience. A call that it ends early because some bytes have moved hides
for how long none did, so a stop is noticed after 1 to 1.25 times the patience (with one part: after 3 times)."""
MIN_TIMEOUT_S: Final = 0.001
"""Zero would mean for ever."""


class Meter:
    """Counts bytes on the wire, from many threads."""

    def __init__(self) -> None:
        """Start at nothing."""
        self._lock = threading.Lock()
        self.sent_bytes = 0
        self.received_bytes = 0

    def add(self, *, sent: int = 0, received: int = 0) -> None:
        """Count bytes that a socket took or gave."""
        with self._lock:
            self.sent_bytes += sent
            self.received_bytes += received


class _Room(threading.local):
    """Where a thread has the sealed frame that it sends or receives just now: the same one for all its channels.

    A buffer for each channel swept the cache: with three peers each way an all-reduce took 12 % more CPU time.
    """

    def __init__(self) -> None:
        self.frame = memoryview(bytearray(MAX_FRAME_BYTES))


_room = _Room()


class Channel:
    """A sealed connection to one peer. Frames in, frames out; what they mean is `transfer.py`'s and `streams.py`'s."""

    def __init__(self, sock: socket.socket, agreed: Agreed, meter: Meter, idle_timeout_s: float) -> None:
        """Take over the socket of a handshake that ended in ``agreed``."""
        self.peer = agreed.peer
        self.socket = sock
        self._agreed = agreed
        self._meter = meter
        self._ending = threading.Lock()
        self._is_interrupted = False
        self._outgoing = memoryview(bytearray(SMALL_FRAME_BYTES))
        self._incoming = memoryview(bytearray(SMALL_FRAME_BYTES))
        self._scratch = memoryview(b"")
        self._start = self._stop = 0  # what of `_incoming` was taken from the socket and not yet opened
        _prepare(sock)
        self.patience(idle_timeout_s)

    @property
    def scratch(self) -> memoryview:
        """Room for one payload, for whoever uses the channel."""
        if not self._scratch:
            self._scratch = memoryview(bytearray(MAX_PAYLOAD_BYTES))
        return self._scratch

    def patience(self, seconds: float) -> None:
        """Let later calls give up once no byte has moved for so long."""
        self._patience_s = seconds
        part_s = max(seconds / PATIENCE_PARTS, MIN_TIMEOUT_S)
        timeval = struct.pack("@ll", int(part_s), int((part_s - int(part_s)) * 1e6))
        with contextlib.suppress(OSError):  # closed meanwhile; the next call says so
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)

    def send(self, kind: Kind, payload: memoryview | bytes) -> None:
        """Seal and send one frame.

        Raises:
            Unavailable: the peer is gone, or took nothing for the patience.
        """
        size = HEADER_BYTES + len(payload) + TAG_BYTES
        frame = self._outgoing if size <= SMALL_FRAME_BYTES else _room.frame
        self._agreed.sealer.seal_into(kind, payload, frame)
        position = silent_parts = 0
        while position < size:
            try:
                position += self.socket.send(frame[position:size])
                silent_parts = 0
            except BlockingIOError:
                silent_parts += 1
                if silent_parts == PATIENCE_PARTS:
                    raise self._gone(f"took nothing for {self._patience_s:g} s") from None
            except OSError as error:
                raise self._gone(f"went away ({error.strerror})") from error
        self._meter.add(sent=size)

    def receive_payload(self, room: memoryview, *, may_end: bool = False) -> int:
        """Open the next frame, a PAYLOAD, into the start of ``room``; return its length, at least 1.

        What of ``room`` is behind it may be overwritten, too.

        ``may_end``: the frame may be an END as well; then 0 is returned.

        Raises:
            PeerError: another frame came, one longer than ``room``, an empty or a forged one.
            Unavailable: the peer is gone, or sent nothing for the patience.
        """
        limit = min(len(room), MAX_PAYLOAD_BYTES)
        header = self._header(HEADER_BYTES + limit + TAG_BYTES)
        if may_end and header[-1] == Kind.END:
            self.receive_message(Kind.END, 0)
            return 0
        length = self._check(header, Kind.PAYLOAD, limit)
        if not length:
            raise PeerError(self.peer, "an empty payload frame", header)
        self._open(header, length, room)
        return length

    def receive_message(self, kind: Kind, max_bytes: int) -> bytes:
        """Return what the next frame holds, which must be of this kind. Raises like `receive_payload`."""
        header = self._header(HEADER_BYTES + TAG_BYTES)
        length = self._check(header, kind, max_bytes)
        message = memoryview(bytearray(length))
        self._open(header, length, message)
        return bytes(message)

    def next_kind(self) -> int:
        """Wait for the next frame's header and return its kind, not authenticated yet. Raises `Unavailable`."""
        return self._header(HEADER_BYTES + TAG_BYTES)[-1]

    def wait(self) -> bool:
        """Wait as long as it takes for the next frame to begin; say whether one did, or the peer closed."""
        while self._start == self._stop:
            try:
                return bool(self._peek(0))
            except BlockingIOError:
                continue  # the socket's receive timeout; an idle channel may stay idle
            except OSError:
                return False
        return True

    def is_alive(self) -> bool:
        """Say whether an idle channel is still good: neither closed nor holding bytes that nobody asked for."""
        try:
            self._peek(socket.MSG_DONTWAIT)
        except BlockingIOError:
            return self._start == self._stop
        except OSError:
            return False
        return False

    @property
    def sent_in_all_bytes(self) -> int:
        """What all channels of this host's plane have sent so far."""
        return self._meter.sent_bytes

    # ---- for whoever waits for several channels at once --------------------------------------------------------

    @property
    def patience_s(self) -> float:
        """For how long no byte may move."""
        return self._patience_s

    def take(self, room: memoryview) -> int:
        """Take what has come of the next frames into ``room``, without waiting; return its length, maybe 0.

        Only where nothing of theirs was taken before. Raises `Unavailable`: nothing more will come.
        """
        try:
            count = self.socket.recv_into(room, 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._gone(f"went away ({error.strerror})") from error
        if not count:
            raise self._gone("closed the connection")
        self._meter.add(received=count)
        return count

    def open(self, frame: memoryview, kind: Kind, room: memoryview) -> int:
        """Open the next frame, which was taken whole, into the start of ``room``; return its length.

        Raises:
            PeerError: it is of another kind, longer than ``room``, or forged.
        """
        header = bytes(frame[:HEADER_BYTES])
        length = self._check(header, kind, len(room))
        try:
            self._agreed.opener.open_into(header, frame[HEADER_BYTES:], room[:length])
        except ValueError as error:
            raise PeerError(self.peer, str(error), header) from error
        return length

    def interrupt(self) -> None:
        """End the connection; from any thread. The socket itself is freed by `close`."""
        # Under a lock: with the descriptor freed and given out again in between, this would end a stranger's socket.
        with self._ending, contextlib.suppress(OSError):
            self._is_interrupted = True
            self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the connection and free the socket; only where no other thread uses the channel."""
        self.interrupt()
        with self._ending:
            self.socket.close()

    def _peek(self, flags: int) -> bytes:
        return self.socket.recv(1, socket.MSG_PEEK | flags)

    def _check(self, header: bytes, kind: Kind, max_bytes: int) -> int:
        try:
            return read_header(header, kind, max_bytes)
        except ValueError as error:
            raise PeerError(self.peer, str(error), header) from error

    def _header(self, size_bytes: int) -> bytes:
        """Wait for the header of the next frame, which is at most so long; take as much of it as is there and fits."""
        if self._start + HEADER_BYTES > len(self._incoming):
            self._move_to_front()
        start = self._start
        while self._stop < start + HEADER_BYTES:
            self._stop += self._take(self._incoming[self._stop : start + size_bytes], 0)
        return bytes(self._incoming[start : start + HEADER_BYTES])

    def _open(self, header: bytes, length: int, room: memoryview) -> None:
        """Open the frame that a header begins into ``room``."""
        begin, end = self._start + HEADER_BYTES, self._start + HEADER_BYTES + length + TAG_BYTES
        sealed = self._incoming[begin:end]
        if end <= self._stop:
            self._start, self._stop = (0, 0) if end == self._stop else (end, self._stop)
        else:
            sealed = self._rest_of_frame(begin, length + TAG_BYTES, room)
        try:
            self._agreed.opener.open_into(header, sealed, room if length == len(room) else room[:length])
        except ValueError as error:
            raise PeerError(self.peer, str(error), header) from error

    def _rest_of_frame(self, begin: int, size: int, room: memoryview) -> memoryview:
        """Take the rest of a frame of which some is in the buffer.

        What has room for the tag as well is opened where it came to lie: it does not go through the cache twice.
        """
        sealed = (room if len(room) >= size else _room.frame)[:size]
        taken = self._stop - begin
        sealed[:taken] = self._incoming[begin : self._stop]
        self._start = self._stop = 0
        while taken < size:
            taken += self._take(sealed[taken:], socket.MSG_WAITALL)
        return sealed

    def _move_to_front(self) -> None:
        """Make room behind what was taken and not opened."""
        rest = bytes(self._incoming[self._start : self._stop])
        self._start, self._stop = 0, len(rest)
        self._incoming[: len(rest)] = rest

    def _take(self, room: memoryview, flags: int) -> int:
        for _ in range(PATIENCE_PARTS):
            try:
                count = self.socket.recv_into(room, 0, flags)
            except BlockingIOError:
                continue
            except OSError as error:
                raise self._gone(f"went away ({error.strerror})") from error
            if not count:
                raise self._gone("closed the connection")
            self._meter.add(received=count)
            return count
        raise self._gone(f"sent nothing for {self._patience_s:g} s")

    def _gone(self, what: str) -> Unavailable:
        if self._is_interrupted:
            return Unavailable(f"peer {self.peer}: the bulk channel was interrupted at this end")
        return Unavailable(f"peer {self.peer}: the bulk channel's other end {what}")


def shake_hands(sock: socket.socket, handshake: Handshake, meter: Meter, deadline_s: float) -> Agreed:
    """Run one side of a handshake over a connected socket, within ``deadline_s`` seconds.

    Raises:
        PeerError: see `Handshake.receive`.
        Unavailable: the other side went away or was too slow.
    """
    ends_at = time.monotonic() + deadline_s
    try:
        while True:
            _send(sock, handshake.outgoing(), meter, ends_at)
            if handshake.agreed:
                return handshake.agreed
            header = _receive(sock, RECORD_HEADER_BYTES, meter, ends_at)
            try:
                length = record_length(header)
            except ValueError as error:
                raise PeerError(handshake.peer, str(error), header) from error
            body = _receive(sock, length, meter, ends_at)
            try:
                handshake.receive(header + body)
            except PeerError:
                # The other side is owed the alert or the refusal, so that it can say what was wrong.
                with contextlib.suppress(OSError):
                    _send(sock, handshake.outgoing(), meter, ends_at)
                raise
    except TimeoutError:
        raise Unavailable(f"peer {handshake.peer}: the handshake took over {deadline_s:g} s") from None
    except OSError as error:
        raise Unavailable(f"peer {handshake.peer}: went away during the handshake ({error.strerror})") from error


def _send(sock: socket.socket, data: bytes, meter: Meter, ends_at: float) -> None:
    if data:
        sock.settimeout(_remaining(ends_at))
        sock.sendall(data)
        meter.add(sent=len(data))


def _receive(sock: socket.socket, size: int, meter: Meter, ends_at: float) -> bytes:
    data = bytearray()
    while len(data) < size:
        sock.settimeout(_remaining(ends_at))
        piece = sock.recv(size - len(data))
        if not piece:
            raise ConnectionResetError(0, "connection closed")
        data += piece
        meter.add(received=len(piece))
    return bytes(data)


def _remaining(ends_at: float) -> float:
    remaining_s = ends_at - time.monotonic()
    if remaining_s <= 0:
        raise TimeoutError
    return remaining_s


def _prepare(sock: socket.socket) -> None:
    sock.settimeout(None)
    with contextlib.suppress(OSError):  # macOS refuses options of a connection that the other side has reset
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    keep_alive(sock)
