"""The peer's durable memory: the agreed log, the vertices, the newest promise; SQLite, one file.

Every method is one transaction. `synchronous=FULL` in WAL mode: what a method has returned from survives a power cut.
"""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from barnraise.consensus.voting import Decision, Persisted
from barnraise.errors import ConfigError, LocalError
from barnraise.ids import Digest, RunId
from barnraise.swarm import records
from barnraise.swarm.records import Vertex

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS run (only_one INTEGER PRIMARY KEY CHECK (only_one = 0), id BLOB, theta BLOB, blocks BLOB);
CREATE TABLE IF NOT EXISTS log (height INTEGER PRIMARY KEY, view INTEGER, value BLOB, votes BLOB);
CREATE TABLE IF NOT EXISTS vertex (id BLOB PRIMARY KEY, round INTEGER, record BLOB);
CREATE TABLE IF NOT EXISTS ballot (only_one INTEGER PRIMARY KEY CHECK (only_one = 0), record BLOB);
CREATE TABLE IF NOT EXISTS residual (only_one INTEGER PRIMARY KEY CHECK (only_one = 0), name BLOB);
"""

_encode = msgspec.msgpack.Encoder().encode
_votes: msgspec.msgpack.Decoder[tuple[tuple[str, bytes], ...]] = msgspec.msgpack.Decoder(tuple[tuple[str, bytes], ...])
_persisted: msgspec.msgpack.Decoder[Persisted] = msgspec.msgpack.Decoder(Persisted)
_blocks: msgspec.msgpack.Decoder[tuple[tuple[int, int], ...]] = msgspec.msgpack.Decoder(tuple[tuple[int, int], ...])


@dataclass(frozen=True, kw_only=True, slots=True)
class Founding:
    """What a run began with."""

    theta: Digest
    blocks: tuple[tuple[int, int], ...]


class Store:
    """Opened by one process at a time; its methods may be called from any thread, one at a time."""

    def __init__(self, path: Path, run: RunId) -> None:
        """Open or create the file.

        Raises:
            ConfigError: it belongs to another run, is in use, or is no database.
        """
        try:
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1.0)
            self._connection.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            self._connection.executescript(_SCHEMA)
        except sqlite3.DatabaseError as error:
            raise ConfigError(
                f"{path}: cannot be used ({error}). Is another peer running in this directory?"
            ) from error
        found = self._connection.execute("SELECT id FROM run").fetchone()
        if found and found[0] != run:
            self.close()
            raise ConfigError(
                f"{path}: holds run {found[0].hex()[:12]}, not {run.hex()[:12]}. Name another data directory."
            )
        self._run = run

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def found(self, theta: Digest, blocks: Sequence[tuple[int, int]]) -> None:
        """Remember what the run begins with."""
        self._connection.execute("INSERT INTO run VALUES (0, ?, ?, ?)", (self._run, theta, _encode(tuple(blocks))))

    def founding(self) -> Founding | None:
        """Return what the run began with; None on a fresh disk."""
        row = self._connection.execute("SELECT theta, blocks FROM run").fetchone()
        return Founding(theta=Digest(row[0]), blocks=_blocks.decode(row[1])) if row else None

    def persist(self, ballot: Persisted) -> None:
        """Remember a promise."""
        self._connection.execute("INSERT OR REPLACE INTO ballot VALUES (0, ?)", (_encode(ballot),))

    def ballot(self) -> Persisted | None:
        """Return the newest promise."""
        row = self._connection.execute("SELECT record FROM ballot").fetchone()
        return _persisted.decode(row[0]) if row else None

    def append(self, height: int, log: Sequence[Decision], vertices: Sequence[Vertex], residual: Digest | None) -> None:
        """Add decisions from ``height`` on, and the vertices and residual that they lead to: all of it or nothing.

        Raises:
            LocalError: the log does not end at ``height``.
            sqlite3.OperationalError: the disk is full, say; nothing is added.
        """
        if self.height() != height:
            raise LocalError(f"the log ends at {self.height()}, and something came for {height}")
        with self._connection:
            self._connection.execute("BEGIN")
            for place, decision in enumerate(log, start=height):
                entry = (place, decision.view, decision.value, _encode(decision.votes))
                self._connection.execute("INSERT INTO log VALUES (?, ?, ?, ?)", entry)
            for vertex in vertices:
                row = (records.vertex_id(vertex), vertex.round, records.encode(vertex))
                self._connection.execute("INSERT INTO vertex VALUES (?, ?, ?)", row)
            if residual is not None:
                self._connection.execute("INSERT OR REPLACE INTO residual VALUES (0, ?)", (residual,))

    def height(self) -> int:
        """Return the number of decisions in the log."""
        found: tuple[int] = self._connection.execute("SELECT IFNULL(MAX(height) + 1, 0) FROM log").fetchone()
        return found[0]

    def log(self, first: int = 0, limit: int = -1) -> list[Decision]:
        """Return the decisions from height ``first`` on."""
        query = "SELECT view, value, votes FROM log WHERE height >= ? ORDER BY height LIMIT ?"
        rows = self._connection.execute(query, (first, limit)).fetchall()
        return [Decision(view=view, value=value, votes=_votes.decode(votes)) for view, value, votes in rows]

    def vertices(self, limit: int = -1) -> list[Vertex]:
        """Return the vertices, newest first."""
        query = "SELECT record FROM vertex ORDER BY round DESC LIMIT ?"
        rows = self._connection.execute(query, (limit,)).fetchall()
        return [records.decode_vertex.decode(row[0]) for row in rows]

    def residual(self) -> Digest | None:
        """Return the name of the error-feedback residual at the newest vertex."""
        row = self._connection.execute("SELECT name FROM residual").fetchone()
        return Digest(row[0]) if row else None
