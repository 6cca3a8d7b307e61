"""Flat float32 vectors on disk, each in a file named by its hash; a file is whole or not there.

Neither a crash of the process nor a power cut leaves half of one (`disk`); a disk that rots does, which the name gives
away when it is read.
"""

import re
from collections.abc import Collection
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

import numpy as np

from barnraise.codec.grid import Float32
from barnraise.dag import disk
from barnraise.dag.disk import Watch, unwatched
from barnraise.dag.retention import Holds
from barnraise.errors import LocalError
from barnraise.ids import DIGEST_BYTES, Digest
from barnraise.swarm.workspace import as_bytes, root_of


class Blobs:
    """A directory of vectors. Writing the same bytes twice is writing them once."""

    def __init__(self, directory: Path, watch: Watch = unwatched) -> None:
        self._directory = directory
        self.watch = watch
        """Told of each step on the disk."""
        self._holds = Holds()
        disk.make_directory(directory)
        disk.sync_directory(directory)  # a life before this one may have been killed between a rename and this

    def path(self, name: Digest) -> Path:
        """Return where a vector lies, whether or not it is there."""
        return self._directory / name.hex()

    def put(self, vector: Float32, name: Digest | None = None, what: str = "theta") -> Digest:
        """Write float32[d] and return its name; ``what`` is what the points of `disk` call it.

        Raises:
            OSError: the disk is full, say; nothing is left under the name.
        """
        name = name or root_of(vector)
        if not self.path(name).exists():
            disk.write_whole(self.path(name), [as_bytes(vector)], what, self.watch)
        return name

    def take(self, name: Digest, file: Path) -> None:
        """Put a file that was fetched, plain and synced, under a vector's name; its chunks were checked.

        Raises:
            OSError: the disk is full, say.
        """
        if file.parent == self._directory:
            disk.name_whole(file, self.path(name), watch=self.watch)
        else:
            self.put(np.fromfile(file, dtype="<f4").astype(np.float32, copy=False), name)
            file.unlink()

    def get(self, name: Digest) -> Float32:
        """Return a vector as an array of its own memory.

        Raises:
            LocalError: it is not there, or what is there is something else.
        """
        try:
            vector = self._read(name)
        except OSError as error:
            raise LocalError(f"{self.path(name)}: the vector cannot be read ({error.strerror})") from error
        if root_of(vector) != name:
            raise LocalError(f"{self.path(name)}: the file is damaged; delete the peer's data and let it catch up")
        return vector

    def find(self, name: Digest) -> Float32 | None:
        """Return a vector, or None where it is missing or damaged; what is damaged is removed, to be fetched again."""
        try:
            return self.get(name)
        except LocalError:
            self.path(name).unlink(missing_ok=True)
            return None

    def plain(self, name: Digest) -> Path:
        """Return a file that a trainer may map: float32[d], nothing else in it."""
        return self.path(name)

    @property
    def scratch(self) -> Path | None:
        """Return where plain files must lie that others are to read; None: anywhere."""
        return None

    def hold(self, *names: Digest) -> AbstractContextManager[None]:
        """Keep vectors, and what is there of them so far, from being deleted by `keep` in the block."""
        return self._holds.hold(names)

    def keep(self, names: Collection[Digest]) -> None:
        """Delete every vector, whole or in the making, but these and those that are held."""
        self._sweep(self._directory, names, strays=True)

    def close(self) -> None:
        """Remove what no later life of the peer needs."""

    def _read(self, name: Digest) -> Float32:
        return np.fromfile(self.path(name), dtype="<f4").astype(np.float32, copy=False)

    def _sweep(self, directory: Path, names: Collection[Digest], *, strays: bool) -> None:
        """Delete what is of no vector that is wanted; with ``strays`` what is of no vector at all, too."""
        for file in list(directory.iterdir()):
            name = name_of(file)
            if name in names or file.is_dir() or (name is None and not strays):
                continue
            with self._holds.unless_held(name or _NOBODY) as is_free:
                if is_free:
                    disk.remove(file, self.watch)


def name_of(file: Path) -> Digest | None:
    """Return the name of the vector that a file, by its own name, is of or is to become; None: of none."""
    stem = file.name.partition(".")[0]
    return Digest(bytes.fromhex(stem)) if _HEX.fullmatch(stem) else None


_HEX: Final = re.compile(f"[0-9a-f]{{{2 * DIGEST_BYTES}}}")
_NOBODY: Final = Digest(b"")
