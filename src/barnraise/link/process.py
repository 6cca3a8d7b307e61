"""The peer's end of the trainer: a process that it starts, and starts again, or one that somebody else starts.

A trainer of ours that dies is given the same work again, from the snapshot at the round's start, so that its death
costs time and nothing else. One that somebody else drives comes once, and when it goes, so do we. The socket lies in a
directory of mode 0700: whoever connects to it is this user.
"""

import contextlib
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import trio

from barnraise.errors import LocalError
from barnraise.link import messages
from barnraise.link.messages import (
    Begin,
    Done,
    Failed,
    Finished,
    Hello,
    Initialise,
    Initialised,
    Leave,
    Progress,
)

MAX_DEATHS: Final = 5
"""A trainer that dies this often without finishing a round in between will not finish the next one either."""
CONNECT_DEADLINE_S: Final = 120.0
"""Importing a tensor library takes seconds, on a busy machine many."""
LEAVE_DEADLINE_S: Final = 5.0
LOG_TAIL_BYTES: Final = 600


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerUp:
    """A trainer said hello; ``died`` is the exit status of the one before, None for the first."""

    hello: Hello
    died: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerGone:
    """A trainer that somebody else drives has no more rounds to train."""

    hung_up: bool
    """It closed its end; False: it said `Leave` and waits for `Finished`."""


TrainerEvent = TrainerUp | TrainerGone | Initialised | Progress | Done | Failed
Work = Begin | Initialise | Finished


class TrainerLink:
    """What a peer's driver knows of its trainer: take from `events`, give it work with `assign`."""

    def __init__(self) -> None:
        """Begin with nobody at the other end."""
        self._send, self.events = trio.open_memory_channel[TrainerEvent](64)
        self._work: Work | None = None
        self._stream: trio.SocketStream | None = None
        self._writing = trio.Lock()

    async def assign(self, work: Work) -> None:
        """Give work, which supersedes what was given before; a trainer that is not there yet gets it when it comes."""
        self._work = work
        if self._stream is not None:
            await self._tell(self._stream, work)

    async def run(self) -> None:
        """Serve the trainer until cancelled, or until it is gone for good."""
        raise NotImplementedError

    async def _greet(self, stream: trio.SocketStream, died: int | None) -> bool:
        """Hear the trainer's hello and give it the work that waits; False: it hung up instead."""
        hello = await self._receive(stream)
        if hello is None:
            return False
        if not isinstance(hello, Hello) or hello.version != messages.VERSION:
            raise LocalError(f"the trainer began with {hello!r:.200} instead of a Hello of version {messages.VERSION}")
        await self._send.send(TrainerUp(hello=hello, died=died))
        self._stream = stream
        if self._work is not None:
            await self._tell(stream, self._work)
        return True

    async def _tell(self, stream: trio.SocketStream, work: Work) -> None:
        async with self._writing:
            # Broken: it is dying, and its successor is given the work.
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await stream.send_all(messages.frame(work))

    async def _receive(self, stream: trio.SocketStream) -> messages.FromTrainer | None:
        """Return the next message, None at the end of the stream."""
        prefix = await _exactly(stream, 4)
        try:
            body = await _exactly(stream, messages.body_length(prefix)) if prefix else b""
            return messages.from_trainer(body) if body else None
        except (msgspec.DecodeError, ValueError) as error:
            raise LocalError(f"the trainer sent a malformed message: {error}") from error


class TrainerProcess(TrainerLink):
    """One trainer after another, started by us."""

    def __init__(self, command: Sequence[str], log_file: Path) -> None:
        """``command`` is completed by ``--socket PATH``."""
        super().__init__()
        self._command = tuple(command)
        self._log_file = log_file
        self._deaths = 0

    async def run(self) -> None:
        """Keep a trainer alive until cancelled, or until it was told that no round comes after the last.

        Raises:
            LocalError: it died too often without finishing anything; the message ends with its last words.
        """
        died: int | None = None
        with tempfile.TemporaryDirectory(prefix="barnraise-") as directory, _unix_socket() as listener:
            socket_path = Path(directory) / "trainer"
            await listener.bind(str(socket_path))
            listener.listen(1)
            while self._deaths < MAX_DEATHS:
                died = await self._live(listener, socket_path, died)
                if isinstance(self._work, Finished):
                    return
                self._deaths += 1
        raise LocalError(
            f"the trainer died {MAX_DEATHS} times without finishing a round, last with exit status {died}. "
            f"Its last words, from {self._log_file}: {self._last_words()}"
        )

    async def _live(self, listener: trio.socket.SocketType, socket_path: Path, died: int | None) -> int:
        """Start one trainer, serve it until it ends, and return its exit status."""
        with self._log_file.open("ab") as log:
            command = [*self._command, "--socket", str(socket_path)]
            process = await trio.lowlevel.open_process(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._serve, listener, died)
                await process.wait()
                nursery.cancel_scope.cancel()
        finally:
            self._stream = None
            with trio.CancelScope(shield=True):
                await self._end(process)
        return process.returncode or 0

    async def _serve(self, listener: trio.socket.SocketType, died: int | None) -> None:
        try:
            with trio.fail_after(CONNECT_DEADLINE_S):
                connection, _ = await listener.accept()
        except trio.TooSlowError:
            raise LocalError(
                f"the trainer has not come to its socket within {CONNECT_DEADLINE_S:.0f} s. Its last words, from "
                f"{self._log_file}: {self._last_words()}"
            ) from None
        async with trio.SocketStream(connection) as stream:
            if not await self._greet(stream, died):
                await trio.sleep_forever()  # it died at once; its exit status is next
            while (message := await self._receive(stream)) is not None:
                if isinstance(message, Done):
                    self._deaths = 0
                if isinstance(message, Initialised):
                    self._work = None  # a successor would do it again, in a run that has begun
                if isinstance(message, Hello):
                    raise LocalError("the trainer said hello twice")
                if isinstance(message, Leave):
                    raise LocalError("the trainer wants to leave, which is for its peer to say")
                await self._send.send(message)
            await trio.sleep_forever()  # it hung up; its exit status is next

    async def _end(self, process: trio.Process) -> None:
        """See the process off: its socket is closed, which tells it to leave."""
        with trio.move_on_after(LEAVE_DEADLINE_S):
            await process.wait()
        if process.returncode is None:
            process.kill()
            await process.wait()

    def _last_words(self) -> str:
        try:
            return self._log_file.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip()
        except OSError:
            return "(none)"


class ExternalTrainer(TrainerLink):
    """The one trainer that somebody else starts: it connects to a socket that we wait at, and is not replaced."""

    def __init__(self, socket_path: Path) -> None:
        """``socket_path`` is made by `run`, in a directory that nobody but this user may enter."""
        super().__init__()
        self._path = socket_path

    async def run(self) -> None:
        """Wait for the trainer, for as long as that takes, and serve it until it hangs up or we are cancelled.

        Raises:
            LocalError: it breaks the protocol.
            OSError: the socket cannot be made there.
        """
        with _unix_socket() as listener:
            await listener.bind(str(self._path))
            try:
                listener.listen(1)
                connection, _ = await listener.accept()
            finally:
                self._path.unlink(missing_ok=True)
        async with trio.SocketStream(connection) as stream:
            if await self._greet(stream, died=None):
                await self._converse(stream)
            self._stream = None
            await self._send.send(TrainerGone(hung_up=True))

    async def _converse(self, stream: trio.SocketStream) -> None:
        while (message := await self._receive(stream)) is not None:
            match message:
                case Hello():
                    raise LocalError("the trainer said hello twice")
                case Leave():
                    await self._send.send(TrainerGone(hung_up=False))
                case _:
                    await self._send.send(message)


def _unix_socket() -> trio.socket.SocketType:
    return trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)


async def _exactly(stream: trio.SocketStream, size: int) -> bytes:
    """Return ``size`` bytes; fewer, and then none, where the stream ends."""
    data = b""
    try:
        while len(data) < size:
            more = await stream.receive_some(size - len(data))
            if not more:
                return b""
            data += more
    except trio.BrokenResourceError:
        return b""
    return data
