"""The trainer's end of the conversation with its peer: blocking, framed messages over a Unix socket, nothing else."""

import contextlib
import select
import socket
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from barnraise.errors import LocalError, Unavailable
from barnraise.link import messages


class PeerGone(Unavailable):
    """The peer closed the connection; the trainer has nothing left to do."""


class Session:
    """A connection to the peer; use it as a context manager."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    @classmethod
    def connect(cls, path: Path) -> Self:
        """Connect to the peer's socket.

        Raises:
            Unavailable: nobody listens at ``path``.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(str(path))
        except OSError as error:
            connection.close()
            raise Unavailable(f"no peer listens at {path}: {error.strerror}; start the peer first") from error
        return cls(connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Said aloud: a data loader's worker that was forked from this process may hold the socket open.
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def send(self, message: messages.FromTrainer) -> None:
        """Send one message.

        Raises:
            PeerGone: nobody is there to read it.
        """
        try:
            self._connection.sendall(messages.frame(message))
        except (BrokenPipeError, ConnectionResetError) as error:
            raise PeerGone("the peer closed its end") from error

    @property
    def has_mail(self) -> bool:
        """Tell whether `receive` would not wait: the peer has something newer to do, or is gone."""
        readable, _, _ = select.select([self._connection], [], [], 0)
        return bool(readable)

    def receive(self) -> messages.FromPeer:
        """Wait for one message.

        Raises:
            PeerGone: the peer closed the connection, between messages or inside one.
            LocalError: what came is no message of this version.
        """
        try:
            body = self._read(messages.body_length(self._read(4)))
            return messages.from_peer(body)
        except (ValueError, msgspec.DecodeError) as error:
            raise LocalError(f"the peer sent no message of version {messages.VERSION}: {error}") from error

    def _read(self, size: int) -> bytes:
        buffer = bytearray(size)
        view = memoryview(buffer)
        while view:
            try:
                count = self._connection.recv_into(view)
            except ConnectionResetError:
                count = 0
            if count == 0:
                raise PeerGone("the peer closed its end")
            view = view[count:]
        return bytes(buffer)
