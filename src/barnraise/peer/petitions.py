"""The petitions that somebody leaves in a peer's directory, as files; and keys of whoever signed one. No judgement here."""

import contextlib
from pathlib import Path
from typing import Final

import msgspec

from barnraise.identity import PublicIdentity
from barnraise.ids import PeerId
from barnraise.peer.keyring import Keyring
from barnraise.swarm import petitions
from barnraise.swarm.petitions import Petition

DIRECTORY: Final = "petitions"
SUFFIX: Final = ".petition"
MAX_FILES: Final = 64
MAX_FILE_BYTES: Final = 128 * 1024
"""The longest body, and eight signatures with keys."""


class Desk:
    """A directory of petitions. A file stays where it is: what is done is not done again, however often it is read."""

    def __init__(self, data_dir: Path) -> None:
        """Look in ``data_dir / DIRECTORY``, which need not be there."""
        self._directory = data_dir / DIRECTORY
        self._read: dict[Path, tuple[tuple[int, int], list[Petition]]] = {}
        self._height = -1

    def look(self, height: int) -> list[Petition]:
        """Return what is to be handed to the members: all of it when the log has grown, else what is new.

        A petition for a place in the log that we are not at yet is good for nothing now, and is later.
        """
        is_due, self._height = height != self._height, height
        found: list[Petition] = []
        for path in self._files():
            with contextlib.suppress(OSError):  # it was taken away meanwhile
                about = path.stat()
                stamp = about.st_mtime_ns, about.st_size
                is_new = self._read.get(path, ((0, 0), []))[0] != stamp
                if is_new:
                    self._read[path] = stamp, _read(path, about.st_size)
                found += self._read[path][1] if is_new or is_due else []
        return found

    def _files(self) -> list[Path]:
        try:
            return sorted(path for path in self._directory.iterdir() if path.suffix == SUFFIX)[:MAX_FILES]
        except OSError:
            return []


def introduce(keys: Keyring, peer: PeerId, data: bytes) -> None:
    """Remember the keys of a peer that signed a petition, for `Pool`; what are not its keys is passed over."""
    if peer in keys.known:
        return
    with contextlib.suppress(ValueError):
        identity = PublicIdentity.decode(data)
        if identity.peer_id == peer:
            keys.add(identity)


def _read(path: Path, size: int) -> list[Petition]:
    """Return a file's petition, in pieces that fit a message; none, where it is no petition."""
    if size > MAX_FILE_BYTES:
        return []
    try:
        petition = petitions.decode_petition.decode(path.read_bytes())
    except msgspec.DecodeError:
        return []
    return petitions.in_messages(petition.body, petition.vouchers)
