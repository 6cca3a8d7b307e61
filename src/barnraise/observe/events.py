"""Writes events: one JSON line each, to a file and to a stream; and puts one into plain words."""

import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TextIO

import msgspec

from barnraise.errors import ConfigError
from barnraise.ids import short

SHORTENED: Final = frozenset({"peer", "other", "donor", "vertex", "theta", "run"})
"""Fields that hold an id: a person needs six characters of it."""


class EventLog:
    """The events of one process, appended to ``path`` and echoed on ``stream``; either may be None.

    Events are not agreed state: a full disk or a reader that went away must not stop a peer. The first line that
    could not be written is told on stderr, once for each of the two; the file is tried again with each event.

        log = EventLog(directory / "metrics.jsonl", sys.stdout)
        log.emit("peer.joined", other=peer)
    """

    def __init__(
        self, path: Path | None, stream: TextIO | None = None, *, clock: Callable[[], float] = time.time
    ) -> None:
        """Open ``path`` for appending.

        Raises:
            ConfigError: the file cannot be opened.
        """
        self._clock = clock
        self._stream = stream
        self._path = path
        self._warned = False
        self._torn = False
        self._file: int | None = None
        if path is not None:
            try:
                self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except OSError as error:
                raise ConfigError(
                    f"{path}: cannot be written ({error.strerror}). Name a writable directory."
                ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def emit(self, name: str, /, **fields: object) -> dict[str, Any]:
        """Write one event that happens now; return the record."""
        record: dict[str, Any] = {"time": round(self._clock(), 3), "event": name, **fields}
        self.write(record)
        return record

    def write(self, record: Mapping[str, Any]) -> None:
        """Write an event that somebody else made, as it is."""
        line = msgspec.json.encode(record) + b"\n"
        if self._file is not None:
            self._append(self._file, line)
        if self._stream is not None:
            self._echo(self._stream, line)

    def close(self) -> None:
        """Close the file; the stream is its owner's to close."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _append(self, file: int, line: bytes) -> None:
        whole = b"\n" + line if self._torn else line
        try:
            self._torn = os.write(file, whole) < len(whole)
        except OSError as error:
            if not self._warned:
                self._warned = True
                _warn(f"{self._path}: events are not being kept ({error.strerror}). Make room; the run goes on.")

    def _echo(self, stream: TextIO, line: bytes) -> None:
        try:
            stream.write(line.decode())
            stream.flush()
        except OSError as error:
            self._stream = None
            _warn(f"nobody reads this process's events any more ({error.strerror}). The run goes on.")


def describe(record: Mapping[str, Any]) -> str:
    """Return an event as a log line: ``round.committed round=12 members=4 took_s=3.2``."""
    fields = [f"{key}={_plain(key, value)}" for key, value in record.items() if key not in ("time", "event")]
    return " ".join([str(record.get("event", "?")), *fields])


def _plain(key: str, value: object) -> str:
    match value:
        case str() if key in SHORTENED and value:
            return value[:12] if key in ("vertex", "theta", "run") else short(value)
        case str():
            return value if value and value.isprintable() and " " not in value else msgspec.json.encode(value).decode()
        case bool() | None:
            return str(value).lower()
        case float():
            return f"{value:.4g}"
        case list() | tuple():
            return str(len(value))
        case _:
            return str(value)


def _warn(text: str) -> None:
    print(f"barnraise: {text}", file=sys.stderr, flush=True)
