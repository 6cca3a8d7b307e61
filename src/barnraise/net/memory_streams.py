"""Streams in one process, for tests: real threads block on them as on sockets, but bytes take no time."""

import threading
from collections import deque
from typing import Final

from barnraise.errors import LocalError, PeerError, Unavailable
from barnraise.ids import PeerId
from barnraise.net.frames import MAX_PAYLOAD_BYTES
from barnraise.net.seam import Ended

WINDOW_BYTES: Final = 2 * MAX_PAYLOAD_BYTES
"""So much may be sent and not received; more blocks the sender."""


class Pipe:
    """What is between a memory stream's two ends."""

    def __init__(self) -> None:
        """Begin empty."""
        self._changed = threading.Condition()
        self._frames: deque[bytes] = deque()
        self._has_ended = False
        self._is_cut = False

    def put(self, frame: bytes, patience_s: float) -> bool:
        """Queue a frame; say False if there was no room for so long. Raises `ConnectionError` if the pipe is cut."""
        with self._changed:
            in_time = self._changed.wait_for(lambda: self._is_cut or self._has_room(len(frame)), patience_s)
            if self._is_cut:
                raise ConnectionError
            if in_time:
                self._frames.append(frame)
                self._changed.notify_all()
            return in_time

    def get(self, patience_s: float) -> bytes | None:
        """Return the next frame, b"" after the last one, None if nothing came for so long. Raises like `put`."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_cut or self._frames or self._has_ended, patience_s)
            if self._is_cut:
                raise ConnectionError
            frame = self._frames.popleft() if self._frames else b"" if self._has_ended else None
            self._changed.notify_all()
            return frame

    def end(self) -> None:
        """Put the end mark."""
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    def cut(self) -> None:
        """Break it now; what is under way is lost."""
        with self._changed:
            self._is_cut = True
            self._changed.notify_all()

    @property
    def is_cut(self) -> bool:
        """Tell whether it is broken."""
        return self._is_cut

    def _has_room(self, size_bytes: int) -> bool:
        return sum(map(len, self._frames)) + size_bytes <= WINDOW_BYTES


class MemoryStream:
    """Either end of a stream (`seam.Stream`) over a pipe."""

    def __init__(self, peer: PeerId, pipe: Pipe, *, is_sending: bool, patience_s: float = 30.0) -> None:
        """Be one end."""
        self._peer = peer
        self._pipe = pipe
        self._is_sending = is_sending
        self._patience_s = patience_s
        self._is_closed = False

    @property
    def peer(self) -> PeerId:
        """Whoever is at the other end."""
        return self._peer

    def send(self, payload: memoryview | bytes) -> None:
        """Send one frame. See `seam.Stream`."""
        frame = bytes(memoryview(payload).cast("B"))
        if not self._is_sending or not 0 < len(frame) <= MAX_PAYLOAD_BYTES:
            raise LocalError(f"a frame of {len(frame)} bytes; the sending end takes 1 to {MAX_PAYLOAD_BYTES}")
        try:
            if not self._is_closed and self._pipe.put(frame, self._patience_s):
                return
        except ConnectionError:
            raise Unavailable(f"peer {self._peer}: the stream is cut") from None
        raise Unavailable(f"peer {self._peer}: took nothing for {self._patience_s:g} s")

    def receive(self, room: memoryview) -> int:
        """Write the next frame to the start of ``room``. See `seam.Stream`."""
        flat = room.cast("B")
        if self._is_sending or not flat:
            raise LocalError(f"room of {len(flat)} bytes; the receiving end needs at least 1")
        try:
            frame = self._pipe.get(self._patience_s)
        except ConnectionError:
            raise Unavailable(f"peer {self._peer}: the stream is cut") from None
        if frame is None:
            raise Unavailable(f"peer {self._peer}: sent nothing for {self._patience_s:g} s")
        if not frame:
            raise Ended(f"peer {self._peer}: closed the stream")
        if len(frame) > len(flat):
            raise PeerError(self._peer, f"a frame of {len(frame)} bytes is over the limit of {len(flat)}")
        flat[: len(frame)] = frame
        return len(frame)

    def patience(self, seconds: float) -> None:
        """Let later calls give up once nothing has moved for so long."""
        if not seconds > 0:
            raise LocalError(f"a patience of {seconds} s; it is more than nothing")
        self._patience_s = seconds

    def is_alive(self) -> bool:
        """Tell whether the other end still takes frames. See `seam.Stream`."""
        return not self._is_closed and not self._pipe.is_cut

    def interrupt(self) -> None:
        """Make what blocks and whatever comes after raise `Unavailable`; from any thread."""
        self._pipe.cut()

    def close(self) -> None:
        """Put the end mark, if this end sends; else cut the pipe."""
        if not self._is_closed:
            self._is_closed = True
            if self._is_sending:
                self._pipe.end()
            else:
                self._pipe.cut()
