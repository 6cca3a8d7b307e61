"""One peer per data directory: a file that a running peer holds locked; the kernel lets go of it when the peer dies.

The lock is advisory and of this machine: Linux (WSL too), macOS. On a file system that cannot lock, no peer starts.
"""

import fcntl
import os
import time
from pathlib import Path
from typing import Final

from barnraise.errors import ConfigError

LOCK_FILE: Final = "peer.lock"
PATIENCE_S: Final = 0.2
"""`is_held` looks by taking the lock for some microseconds; a peer that starts just then tries again for this long."""
RETRY_S: Final = 0.02


class DirectoryLock:
    """A directory held for this process, until `release` or the process's end."""

    def __init__(self, directory: Path) -> None:
        """Take the lock.

        Raises:
            ConfigError: another process holds it, or the directory cannot be written or locked in.
        """
        path = directory / LOCK_FILE
        try:
            self._file: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be opened ({error.strerror}). Name a writable directory.") from error
        try:
            _take(self._file, path)
        except ConfigError:
            self.release()
            raise

    def release(self) -> None:
        """Let another process have the directory; a second call does nothing."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def is_held(directory: Path) -> bool:
    """Tell whether a process that lives holds the directory; no where there is no lock file, or none that we may read."""
    try:
        file = os.open(directory / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(file)
    return False


def _take(file: int, path: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise ConfigError(
                    f"{path.parent}: is in use. Is another peer running in this directory? Stop it, or name another one."
                ) from None
            time.sleep(RETRY_S)
        except OSError as error:
            raise ConfigError(
                f"{path}: this file system cannot lock files ({error.strerror}). Keep the peer's data on a local disk."
            ) from error
        else:
            return
