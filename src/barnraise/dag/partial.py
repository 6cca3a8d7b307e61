"""A blob that is being fetched, on disk: chunks in their places as they come, and what is known of them beside.

    NAME.partial   the blob's bytes, sparse: of full length from the start, with holes
    NAME.chunks    its manifest, then a byte for each chunk: 1 once it was written

Nothing of it is synced before the blob is whole, and nothing of it is believed after a crash: the manifest must hash to
the blob's name, and each chunk that is marked to what the manifest says. So a download goes on wherever a kill or a
power cut left it. Chunks may be written from several threads at once.
"""

import os
import threading
from pathlib import Path
from typing import Final

from barnraise.dag.blobs import Blobs
from barnraise.dag.download import Found, Wanted
from barnraise.errors import LocalError
from barnraise.swarm.manifest import Buffer, Manifest, manifest_bytes

PARTIAL: Final = ".partial"
CHUNKS: Final = ".chunks"


class Partial:
    """One blob's file while it is fetched; `close` it, or `finish` it. Every call may block."""

    def __init__(self, blobs: Blobs, wanted: Wanted) -> None:
        """Open what an earlier download left, or begin a file.

        Raises:
            OSError: the disk is full, say.
        """
        self._blobs, self._wanted = blobs, wanted
        # Where vectors are sealed on disk, plain bytes are kept where other plain files are.
        directory = blobs.scratch or blobs.path(wanted.name).parent
        self.path = directory / (wanted.name.hex() + PARTIAL)
        self._chunks_path = directory / (wanted.name.hex() + CHUNKS)
        self._manifest: Manifest | None = None
        self._writing = threading.Lock()
        self._file = _open(self.path)
        try:
            self._chunks = _open(self._chunks_path)
        except OSError:
            os.close(self._file)
            raise

    def found(self) -> Found | None:
        """Return what an earlier download left and still holds; None: nothing. Hashes all of it; raises `OSError`."""
        length = manifest_bytes(self._wanted.size_bytes)
        try:
            manifest = Manifest.decode(os.pread(self._chunks, length, 0), self._wanted.name, self._wanted.size_bytes)
        except ValueError:
            return None
        self._manifest = manifest
        os.ftruncate(self._file, manifest.size_bytes)  # a power cut may have taken its end
        marked = os.pread(self._chunks, manifest.num_chunks, length)
        held = frozenset(index for index, mark in enumerate(marked) if mark and self._holds(manifest, index))
        return Found(manifest=manifest, chunks=held)

    def begin(self, manifest: Manifest) -> None:
        """Make room for a blob of this manifest, which was checked; raises `OSError`."""
        os.ftruncate(self._chunks, 0)
        _write_all(self._chunks, manifest.encode(), 0)
        os.ftruncate(self._file, 0)
        os.ftruncate(self._file, manifest.size_bytes)
        self._manifest = manifest

    def write(self, index: int, chunk: Buffer) -> bool:
        """Write a chunk in its place, if it is that chunk, and the file is still open; return whether it was written.

        Raises:
            OSError: the disk is full, say.
        """
        manifest = self._known
        if not manifest.holds(index, chunk):
            return False
        with self._writing:
            if self._file < 0:
                return False
            _write_all(self._file, chunk, manifest.bounds(index)[0])
            _write_all(self._chunks, b"\x01", manifest_bytes(manifest.size_bytes) + index)
        return True

    def finish(self) -> None:
        """Put the whole blob under its name, to stay there.

        Raises:
            LocalError: what is on the disk is not what was written.
            OSError: the disk is full, say.
        """
        size_bytes = os.fstat(self._file).st_size
        if size_bytes != self._known.size_bytes:
            raise LocalError(f"{self.path}: {size_bytes} bytes instead of {self._known.size_bytes}")
        os.fsync(self._file)
        self.close()
        self._blobs.take(self._wanted.name, self.path)
        self._chunks_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Leave what is there for a later download."""
        with self._writing:
            for file in (self._file, self._chunks):
                if file >= 0:
                    os.close(file)
            self._file = self._chunks = -1

    @property
    def _known(self) -> Manifest:
        if self._manifest is None:
            raise LocalError("a chunk came before its manifest")
        return self._manifest

    def _holds(self, manifest: Manifest, index: int) -> bool:
        start, stop = manifest.bounds(index)
        return manifest.holds(index, os.pread(self._file, stop - start, start))


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)


def _write_all(file: int, data: Buffer, position: int) -> None:
    rest = memoryview(data)
    while rest:
        written = os.pwrite(file, rest, position)
        rest, position = rest[written:], position + written
