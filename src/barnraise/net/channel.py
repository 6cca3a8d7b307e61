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

from barnraise.errors import PeerError, Unavailable
from barnraise.net.frames import HEADER_BYTES, MAX_FRAME_BYTES, MAX_PAYLOAD_BYTES, TAG_BYTES, Kind, read_header
from barnraise.net.handshake import RECORD_HEADER_BYTES, Agreed, Handshake, record_length
from barnraise.net.keepalive import keep_alive


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


class Channel:
    """A sealed connection to one peer. Frames in, frames out; what they mean is `transfer.py`'s."""

    def __init__(self, sock: socket.socket, agreed: Agreed, meter: Meter, idle_timeout_s: float) -> None:
        """Take over the socket of a handshake that ended in ``agreed``."""
        self.peer = agreed.peer
        self._sock = sock
        self._agreed = agreed
        self._meter = meter
        self._idle_timeout_s = idle_timeout_s
        self._frame = memoryview(bytearray(MAX_FRAME_BYTES))
        self.scratch = memoryview(bytearray(MAX_PAYLOAD_BYTES))
        _prepare(sock, idle_timeout_s)

    def send(self, kind: Kind, payload: memoryview | bytes) -> None:
        """Seal and send one frame.

        Raises:
            Unavailable: the peer is gone, or took nothing for the idle timeout.
        """
        size = self._agreed.sealer.seal_into(kind, payload, self._frame)
        try:
            self._sock.sendall(self._frame[:size])
        except BlockingIOError:
            raise self._gone(f"took nothing for {self._idle_timeout_s:g} s") from None
        except OSError as error:
            raise self._gone(f"went away ({error.strerror})") from error
        self._meter.add(sent=size)

    def receive_payload(self, room: memoryview) -> int:
        """Open the next frame, a PAYLOAD, into the start of ``room``; return its length, at least 1.

        Raises:
            PeerError: another frame came, one longer than ``room``, an empty or a forged one.
            Unavailable: the peer is gone, or sent nothing for the idle timeout.
        """
        header = bytes(self._take(HEADER_BYTES))
        length = self._check(header, Kind.PAYLOAD, min(len(room), MAX_PAYLOAD_BYTES))
        if not length:
            raise PeerError(self.peer, "an empty payload frame", header)
        self._open(header, room[:length])
        return length

    def receive_message(self, kind: Kind, max_bytes: int) -> bytes:
        """Return what the next frame holds, which must be of this kind. Raises like `receive_payload`."""
        header = bytes(self._take(HEADER_BYTES))
        message = memoryview(bytearray(self._check(header, kind, max_bytes)))
        self._open(header, message)
        return bytes(message)

    def wait(self) -> bool:
        """Wait as long as it takes for the next frame to begin; say whether one did, or the peer closed."""
        while True:
            try:
                return bool(self._peek(0))
            except BlockingIOError:
                continue  # the socket's receive timeout; an idle channel may stay idle
            except OSError:
                return False

    def is_alive(self) -> bool:
        """Say whether an idle channel is still good: neither closed nor holding bytes that nobody asked for."""
        try:
            self._peek(socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def interrupt(self) -> None:
        """End the connection; from any thread. The socket itself is freed by `close`."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the connection and free the socket; only where no other thread uses the channel."""
        self.interrupt()
        self._sock.close()

    def _peek(self, flags: int) -> bytes:
        return self._sock.recv(1, socket.MSG_PEEK | flags)

    def _check(self, header: bytes, kind: Kind, max_bytes: int) -> int:
        try:
            return read_header(header, kind, max_bytes)
        except ValueError as error:
            raise PeerError(self.peer, str(error), header) from error

    def _open(self, header: bytes, payload: memoryview) -> None:
        sealed = self._take(len(payload) + TAG_BYTES)
        try:
            self._agreed.opener.open_into(header, sealed, payload)
        except ValueError as error:
            raise PeerError(self.peer, str(error), header) from error

    def _take(self, size: int) -> memoryview:
        """Fill the frame buffer's first ``size`` bytes from the socket."""
        filled = 0
        while filled < size:
            try:
                count = self._sock.recv_into(self._frame[filled:size], 0, socket.MSG_WAITALL)
            except BlockingIOError:
                raise self._gone(f"sent nothing for {self._idle_timeout_s:g} s") from None
            except OSError as error:
                raise self._gone(f"went away ({error.strerror})") from error
            if not count:
                raise self._gone("closed the connection")
            filled += count
        self._meter.add(received=size)
        return self._frame[:size]

    def _gone(self, what: str) -> Unavailable:
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


def _prepare(sock: socket.socket, idle_timeout_s: float) -> None:
    seconds = int(idle_timeout_s)
    timeval = struct.pack("@ll", seconds, int((idle_timeout_s - seconds) * 1e6))
    sock.settimeout(None)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    keep_alive(sock)
