"""Puts files on disk so that neither a kill nor a power cut leaves half of one: the order of writes, and their names.

    write NAME.writing      a kill here leaves a leftover under another name
    fsync                   or the name may survive a power cut that the bytes do not (Pillai et al., OSDI 2014)
    rename to NAME          whole or not there
    sync of the directory   or the name may be gone again, after the log that counts on it was synced

Each step is announced before and after it, by the names in `POINTS`: faults strike there, and tests look.
"""

import contextlib
import fcntl
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

WRITING: Final = ".writing"
"""Suffix of a file that is not whole yet."""
TENSORS: Final = ("theta", "momentum", "residual")
RECORDS: Final = ("founding", "ballot", "entries")

POINTS: Final = (
    *(
        f"{when}.{step}.{what}"
        for what in TENSORS
        for step in ("write", "fsync", "rename", "sync")
        for when in ("before", "after")
    ),
    *(
        f"{when}.{step}.{what}"
        for what in RECORDS
        for step, when in (("transaction", "before"), ("commit", "before"), ("commit", "after"))
    ),
    "before.unlink.garbage",
    "after.unlink.garbage",
)
"""Every point at which a peer's disk can be left by a crash; ``sync`` is of the directory."""

Watch = Callable[[str, Path], None]
"""``(point, path)``: told before and after each step."""


def unwatched(point: str, path: Path) -> None:
    """Watch nothing."""


def write_whole(path: Path, parts: Iterable[memoryview | bytes], what: str = "theta", watch: Watch = unwatched) -> None:
    """Write a file that is there in full, and stays there, once this returns.

    Args:
        path: the file; what was there is replaced.
        parts: its bytes, one after another.
        what: its name in the points, one of `TENSORS`.
        watch: told of each step.

    Raises:
        OSError: the disk is full, say; nothing new is left, under any name.
    """
    partial = path.with_name(path.name + WRITING)
    try:
        with partial.open("wb", buffering=0) as file:
            watch(f"before.write.{what}", partial)
            for part in parts:
                _write_all(file.fileno(), part)
            watch(f"after.write.{what}", partial)
            watch(f"before.fsync.{what}", partial)
            sync(file.fileno())
            watch(f"after.fsync.{what}", partial)
        name_whole(partial, path, what, watch)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def name_whole(partial: Path, path: Path, what: str = "theta", watch: Watch = unwatched) -> None:
    """Give a file that is whole and synced its name, which it keeps. Raises `OSError`."""
    watch(f"before.rename.{what}", partial)
    partial.replace(path)
    watch(f"after.rename.{what}", path)
    watch(f"before.sync.{what}", path)
    sync_directory(path.parent)
    watch(f"after.sync.{what}", path)


def sync(file: int) -> None:
    """See an open file's bytes to the disk; raises `OSError`. On macOS `os.fsync` leaves them in the drive's cache."""
    if sys.platform == "darwin":
        with contextlib.suppress(OSError):  # a file system that has no such thing
            fcntl.fcntl(file, fcntl.F_FULLFSYNC)
            return
    os.fsync(file)


def sync_directory(path: Path) -> None:
    """See the names in a directory to the disk; raises `OSError`."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def make_directory(path: Path, mode: int = 0o777) -> None:
    """Make a directory and its parents, to stay; raises `OSError`."""
    if path.is_dir():
        return
    if path.parent != path:
        make_directory(path.parent)
    path.mkdir(mode=mode, exist_ok=True)
    sync_directory(path.parent)


def remove(path: Path, watch: Watch = unwatched) -> None:
    """Delete a file that nothing needs any more; one that is gone already is no error."""
    watch("before.unlink.garbage", path)
    path.unlink(missing_ok=True)
    watch("after.unlink.garbage", path)


def _write_all(file: int, data: memoryview | bytes) -> None:
    rest = memoryview(data).cast("B") if len(data) else memoryview(b"")
    while rest:
        rest = rest[os.write(file, rest) :]  # Linux writes 2 GiB at a time
