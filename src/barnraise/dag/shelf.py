"""Serves blobs to peers that ask: whole chunks of what is on disk or in memory, and never more than a little at a time.

A blob is opened when it is first asked for. Its manifest is computed from its bytes then, so that what is damaged is
noticed here and not sent. It stays open until nobody has asked for a while: whoever fetches a checkpoint goes on doing so
while the run goes on and the checkpoint's files are deleted.
"""

import contextlib
import os
from collections import Counter, deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Final, Protocol

import trio

from barnraise.codec.grid import Float32
from barnraise.dag.asking import Answer, Part, encode
from barnraise.dag.blobs import Blobs
from barnraise.errors import LocalError, Unavailable
from barnraise.ids import Digest, PeerId
from barnraise.net.seam import Bulk
from barnraise.swarm.manifest import CHUNK_BYTES, Hasher, Manifest, manifest_of
from barnraise.swarm.workspace import as_bytes

MAX_AT_ONCE: Final = 8
"""Answers on their way: each has a thread of the bulk plane, and up to 4 MiB."""
MAX_AT_ONCE_PER_PEER: Final = 2
"""So that the link is not idle while the last chunk of an answer is acknowledged."""
MAX_QUEUED: Final = 64
MAX_QUEUED_PER_PEER: Final = 8
MAX_OPEN: Final = 8
"""Blobs, opened files or vectors in memory; four checkpoints."""
LEASE_S: Final = 60.0
"""A blob that nobody has asked for since is closed."""
SWEEP_S: Final = 10.0
ANSWER_S: Final = 60.0
"""Whoever takes less than 70 kB/s is given up."""


class Source(Protocol):
    """Where a blob's bytes are."""

    def manifest(self) -> Manifest:
        """Hash all of it; may block."""
        ...

    def read(self, part: Part) -> memoryview:
        """Return some chunks; may block. Raises `OSError`."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class InMemory:
    """A vector that nobody writes to any more."""

    def __init__(self, vector: Float32) -> None:
        self._data = as_bytes(vector)

    def manifest(self) -> Manifest:
        """Hash all of it."""
        return manifest_of(self._data)

    def read(self, part: Part) -> memoryview:
        """Return some chunks."""
        return self._data[part.first * CHUNK_BYTES : (part.first + part.count) * CHUNK_BYTES]

    def close(self) -> None:
        """Let go of it."""
        self._data = memoryview(b"")


class OnDisk:
    """An opened file, which may be deleted meanwhile. Read, not mapped: a disk's error is to be an `OSError`."""

    def __init__(self, file: int) -> None:
        self._file = file

    def manifest(self) -> Manifest:
        """Hash all of it."""
        hasher, position = Hasher(), 0
        while piece := os.pread(self._file, CHUNK_BYTES, position):
            hasher.update(piece)
            position += len(piece)
        return hasher.manifest()

    def read(self, part: Part) -> memoryview:
        """Return some chunks."""
        return memoryview(os.pread(self._file, part.count * CHUNK_BYTES, part.first * CHUNK_BYTES))

    def close(self) -> None:
        """Let go of it."""
        os.close(self._file)


@dataclass(kw_only=True, slots=True)
class _Lent:
    """A blob that is served."""

    source: Source
    asked_at: float
    manifest: Manifest | None = None
    """None: nobody has asked yet."""
    is_damaged: bool = False
    readers: int = 0


@dataclass(kw_only=True, slots=True)
class _Books:
    """Who waits for what, and who is being served."""

    queue: deque[tuple[PeerId, Part]] = field(default_factory=deque)
    queued: Counter[PeerId] = field(default_factory=Counter)
    active: Counter[PeerId] = field(default_factory=Counter)


class Shelf:
    """What this peer serves. `accepts` and `asked` are called in the bulk plane's worker threads."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._token: trio.lowlevel.TrioToken | None = None
        self._lent: dict[Digest, _Lent] = {}
        self._opening = trio.Lock()
        self._books = _Books()
        self._nursery: trio.Nursery | None = None
        self._bulk: Bulk | None = None

    def lend(self, name: Digest, vector: Float32) -> None:
        """Serve a vector from memory for a while, float32[d], which nobody writes to any more."""
        if name not in self._lent:
            self._make_room()
            self._lent[name] = _Lent(source=InMemory(vector), asked_at=trio.current_time())
        self._lent[name].asked_at = trio.current_time()

    async def serve(self, bulk: Bulk) -> None:
        """Answer for ever."""
        async with trio.open_nursery() as nursery:
            self._token = trio.lowlevel.current_trio_token()
            self._bulk, self._nursery = bulk, nursery
            try:
                while True:
                    await trio.sleep(SWEEP_S)
                    self._sweep(trio.current_time() - LEASE_S)
            finally:
                self._nursery = None
                self._sweep(trio.current_time())

    # ---- asks -------------------------------------------------------------------------------------------------

    def accepts(self, sender: PeerId, part: Part, size_bytes: int) -> bool:
        """Tell whether an ask is taken."""
        books = self._books
        is_idle = len(books.queue) < MAX_QUEUED and books.queued[sender] < MAX_QUEUED_PER_PEER
        return is_idle and not size_bytes and self._nursery is not None and self._has(part.digest)

    def asked(self, sender: PeerId, part: Part) -> None:
        """Take an ask."""
        token = self._token
        if token is None:
            return
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(self._enqueue, sender, part)

    def _has(self, name: Digest) -> bool:
        lent = self._lent.get(name)
        return not lent.is_damaged if lent else self._blobs.path(name).exists()

    def _enqueue(self, sender: PeerId, part: Part) -> None:
        self._books.queue.append((sender, part))
        self._books.queued[sender] += 1
        self._start()

    def _start(self) -> None:
        """Begin whatever may begin now, in the order asked."""
        books, waiting = self._books, deque[tuple[PeerId, Part]]()
        while books.queue and self._nursery is not None and books.active.total() < MAX_AT_ONCE:
            sender, part = books.queue.popleft()
            if books.active[sender] >= MAX_AT_ONCE_PER_PEER:
                waiting.append((sender, part))
                continue
            books.queued[sender] -= 1
            books.active[sender] += 1
            self._nursery.start_soon(self._serve, sender, part)
        books.queue.extendleft(reversed(waiting))

    async def _serve(self, sender: PeerId, part: Part) -> None:
        try:
            with contextlib.suppress(Unavailable, OSError), trio.move_on_after(ANSWER_S):
                await self._answer(sender, part)
        finally:
            self._books.active[sender] -= 1
            self._books.queued, self._books.active = +self._books.queued, +self._books.active
            self._start()

    async def _answer(self, sender: PeerId, part: Part) -> None:
        async with self._reading(part.digest) as found:
            if found is None or self._bulk is None:
                return
            source, manifest = found
            length = part.length_bytes(manifest.size_bytes)
            if length is None:
                return
            if part.is_manifest:
                data = memoryview(manifest.encode())
            else:
                data = await trio.to_thread.run_sync(source.read, part)
            if len(data) == length:
                await self._bulk.send(sender, encode(Answer(part)), [data])

    # ---- what is open -----------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _reading(self, name: Digest) -> AsyncIterator[tuple[Source, Manifest] | None]:
        """Keep a blob open in the block; None: it is not there, or not what its name says."""
        async with self._opening:
            lent = self._lent.get(name) or await self._open(name)
            if lent is not None:
                lent.readers += 1
                lent.asked_at = trio.current_time()
        if lent is None:
            yield None
            return
        try:
            async with self._opening:
                if lent.manifest is None:
                    lent.manifest = await trio.to_thread.run_sync(lent.source.manifest)
                    lent.is_damaged = lent.manifest.name != name
            yield None if lent.is_damaged else (lent.source, lent.manifest)
        finally:
            lent.readers -= 1

    async def _open(self, name: Digest) -> _Lent | None:
        source = await trio.to_thread.run_sync(self._on_disk, name)
        if source is None:
            return None
        if name in self._lent:  # lent from memory meanwhile
            source.close()
            return self._lent[name]
        self._make_room()
        lent = self._lent[name] = _Lent(source=source, asked_at=trio.current_time())
        return lent

    def _on_disk(self, name: Digest) -> OnDisk | None:
        with self._blobs.hold(name):
            try:
                return OnDisk(os.open(self._blobs.plain(name), os.O_RDONLY | os.O_CLOEXEC))
            except (LocalError, OSError):
                return None  # gone meanwhile, or sealed and damaged

    def _make_room(self) -> None:
        idle = sorted((lent.asked_at, name) for name, lent in self._lent.items() if not lent.readers)
        for _, name in idle[: max(0, len(self._lent) - MAX_OPEN + 1)]:
            self._lent.pop(name).source.close()

    def _sweep(self, before: float) -> None:
        for name, lent in list(self._lent.items()):
            if lent.asked_at <= before and not lent.readers:
                self._lent.pop(name).source.close()
