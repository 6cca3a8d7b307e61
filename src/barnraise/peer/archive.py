"""A peer's disk: tensors in files, ahead of time where they are known early; then the log entry that names them.

Two worker threads at most: one for the log, which votes wait for, and one for files. A file that nothing names in the
end (an attempt was voided, an update was not in) is deleted with the next round's.
"""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import trio

from barnraise.codec.grid import Float32
from barnraise.consensus.agreement import Decision
from barnraise.dag.blobs import Blobs
from barnraise.dag.retention import Retention, tensors_of
from barnraise.dag.store import Store
from barnraise.ids import Digest
from barnraise.peer.faults import Drill
from barnraise.swarm.records import Vertex
from barnraise.swarm.workspace import root_of

T = TypeVar("T")


class Archive:
    """The store and the blobs of one peer, off the event loop."""

    def __init__(self, store: Store, blobs: Blobs, drill: Drill, retention: Retention | None = None) -> None:
        self.store, self.blobs = store, blobs
        self._drill = drill
        self._retention = retention or Retention()
        self._logging = trio.CapacityLimiter(1)
        self._filing = trio.CapacityLimiter(1)
        self._residual: tuple[Float32, Digest] | None = None
        newest = store.vertices(1)
        self._round = newest[0].round if newest else 0
        """Whose result is next; a fault strikes in it."""
        self._lent = contextlib.ExitStack()
        store.watch = blobs.watch = self._watch

    async def on_log(self, order: Callable[..., T], *arguments: Any) -> T:
        """Run an operation on the store in a worker thread, one at a time."""
        return await trio.to_thread.run_sync(order, *arguments, limiter=self._logging)

    async def write_residual(self, residual: Float32) -> None:
        """Write what may become the residual, float32[d]; it must not change afterwards.

        Raises:
            OSError: the disk is full, say.
        """
        await self._on_files(self._put_residual, residual)

    async def write_tensors(self, tensors: Sequence[Float32], names: Sequence[Digest]) -> None:
        """Write vectors that `save` may name soon; those that are there already cost nothing.

        Raises:
            OSError: the disk is full, say.
        """
        for tensor, name, what in zip(tensors, names, ("theta", "momentum"), strict=True):
            await self._on_files(self.blobs.put, tensor, name, what)

    async def lend(self, name: Digest) -> Path:
        """Return the file of parameters for the trainer to map; it stays until the next is lent.

        Raises:
            LocalError, OSError: it is not there, or there is no room for a plain copy of it.
        """
        before, self._lent = self._lent, contextlib.ExitStack()
        self._lent.enter_context(self.blobs.hold(name))
        before.close()
        return await self._on_files(self.blobs.plain, name)

    async def save(
        self,
        height: int,
        log: Sequence[Decision],
        vertices: Sequence[Vertex],
        tensors: tuple[Float32, Float32],
        names: tuple[Digest, Digest],
        residual: Float32,
    ) -> frozenset[Digest]:
        """Make durable what a result leads to: the files first, then the log entry, in one transaction.

        Args:
            height: of the first of ``log``.
            log: decisions.
            vertices: what they certify.
            tensors: parameters and outer momentum after the last of them, float32[d] each.
            names: their hashes.
            residual: float32[d].

        Returns:
            The names of all files that are still needed, for `prune`.

        Raises:
            OSError, sqlite3.OperationalError: the disk is full, say; the log is as it was.
        """
        if vertices:
            self._round = vertices[-1].round - 1
        await self.write_tensors(tensors, names)
        rest = await self._on_files(self._put_residual, residual)

        def append() -> frozenset[Digest]:
            self._drill.at("Saved", self._round)
            self.store.append(height, log, vertices, rest)
            self._round += bool(vertices)
            return tensors_of(self.store.kept(self._retention)) | {rest, *names}

        return await self.on_log(append)

    async def prune(self, needed: frozenset[Digest]) -> None:
        """Delete every file but these. Ask for it before anything of the next round is written."""
        await self._on_files(self.blobs.keep, needed)

    def _put_residual(self, residual: Float32) -> Digest:
        """Write a residual, which is hashed once however often it is asked for."""
        if self._residual is None or self._residual[0] is not residual:
            self._residual = residual, root_of(residual)
        return self.blobs.put(*self._residual, "residual")

    def _watch(self, point: str, path: Path) -> None:
        """Strike at a point of the disk, if a fault is to."""
        self._drill.at(point, self._round)

    async def _on_files(self, order: Callable[..., T], *arguments: Any) -> T:
        """Run an operation on files in a worker thread, one at a time, in the order asked."""
        return await trio.to_thread.run_sync(order, *arguments, limiter=self._filing)
