"""Flat float32 vectors on disk, each in a file named by its hash; a file is whole or not there.

A crash of the process loses nothing that was written; after a power cut a file may be torn, which its name gives
away when it is read.
"""

import os
from collections.abc import Collection
from pathlib import Path

import numpy as np

from barnraise.codec.grid import Float32
from barnraise.errors import LocalError
from barnraise.ids import Digest
from barnraise.swarm.workspace import as_bytes, root_of


class Blobs:
    """A directory of vectors. Writing the same bytes twice is writing them once."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def path(self, name: Digest) -> Path:
        """Return where a vector lies, whether or not it is there."""
        return self._directory / name.hex()

    def put(self, vector: Float32, name: Digest | None = None) -> Digest:
        """Write float32[d] and return its name.

        Raises:
            OSError: the disk is full, say; nothing is left under the name.
        """
        name = name or root_of(vector)
        final = self.path(name)
        if final.exists():
            return name
        partial = final.with_suffix(".partial")
        try:
            with partial.open("wb") as file:
                file.write(as_bytes(vector))
                file.flush()
                os.fsync(file.fileno())  # the log, which names it, is synced as well: they survive the same power cut
            partial.replace(final)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
        return name

    def get(self, name: Digest) -> Float32:
        """Return a vector as an array of its own memory.

        Raises:
            LocalError: it is not there, or what is there is something else.
        """
        try:
            vector = np.fromfile(self.path(name), dtype="<f4").astype(np.float32, copy=False)
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

    def keep(self, names: Collection[Digest]) -> None:
        """Delete every vector but these."""
        wanted = {name.hex() for name in names}
        for file in self._directory.iterdir():
            if file.name not in wanted:
                file.unlink(missing_ok=True)
