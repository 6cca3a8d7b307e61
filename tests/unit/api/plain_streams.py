"""Streams between threads of a test: frames over socket pairs, unsealed, with all that `seam.Stream` promises."""

import contextlib
import select
import socket
import struct

from barnraise.api.streams import Streams
from barnraise.errors import LocalError, PeerError, Unavailable
from barnraise.ids import PeerId
from barnraise.net.frames import MAX_PAYLOAD_BYTES
from barnraise.net.seam import Ended, Stream

_LENGTH = struct.Struct("<I")


class PlainStream:
    """One end; ``damage`` alters the next frame received as a hostile or broken peer would."""

    def __init__(self, peer: PeerId, sock: socket.socket) -> None:
        self.peer = peer
        self._sock = sock
        self.num_received = 0

    def send(self, payload: memoryview | bytes) -> None:
        if not 0 < len(payload) <= MAX_PAYLOAD_BYTES:
            raise LocalError(f"a frame of {len(payload)} bytes")
        try:
            self._sock.sendall(_LENGTH.pack(len(payload)))
            self._sock.sendall(payload)
        except OSError as error:
            raise Unavailable(f"peer {self.peer}: went away ({error})") from error

    def receive(self, room: memoryview) -> int:
        (size,) = _LENGTH.unpack(self._take(memoryview(bytearray(_LENGTH.size))))
        if size == 0:
            raise Ended(f"peer {self.peer} closed the stream")
        if size > len(room):
            raise PeerError(self.peer, f"a frame of {size} bytes is over {len(room)}")
        self._take(room[:size])
        self.num_received += 1
        return int(size)

    def _take(self, room: memoryview) -> memoryview:
        taken = 0
        while taken < len(room):
            try:
                size = self._sock.recv_into(room[taken:])
            except OSError as error:
                raise Unavailable(f"peer {self.peer}: went away ({error})") from error
            if not size:
                raise Unavailable(f"peer {self.peer}: went away")
            taken += size
        return room

    def patience(self, seconds: float) -> None:
        self._sock.settimeout(seconds)

    def is_alive(self) -> bool:
        return self._sock.fileno() >= 0 and not select.select([self._sock], [], [], 0)[0]

    def interrupt(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.interrupt()
        self._sock.close()


class Air:
    """What lies between the ranks of one test."""

    def __init__(self) -> None:
        self.sides: dict[PeerId, Streams] = {}
        self.streams: dict[tuple[PeerId, PeerId], tuple[PlainStream, PlainStream]] = {}
        """The newest one from each peer to each other: the sender's end and the receiver's."""
        self.all: list[PlainStream] = []
        """Both ends of all that there were."""
        self.unreachable: set[PeerId] = set()

    def join(self, me: PeerId) -> Streams:
        """Return the streams of one more rank."""
        self.sides[me] = Streams(
            lambda wanted, _: {peer: self._open(me, peer, header) for peer, header in wanted.items()}
        )
        return self.sides[me]

    def _open(self, me: PeerId, peer: PeerId, header: bytes) -> Stream | Unavailable:
        if peer in self.unreachable or peer not in self.sides:
            return Unavailable(f"peer {peer}: cannot be reached")
        near, far = socket.socketpair()
        ends = PlainStream(peer, near), PlainStream(me, far)
        self.streams[me, peer] = ends
        self.all += ends
        self.sides[peer].take(me, header, ends[1])
        return ends[0]
