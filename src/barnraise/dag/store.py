"""The peer's durable memory: the agreed log, the vertices, the newest promise; SQLite, one file.

Every method is one transaction. `synchronous=FULL` in WAL mode: what a method has returned from survives a power cut.
A peer holds its directory locked, so there is one writer; `Store.read` sees what it wrote, while it runs and after.
"""

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

import msgspec

from barnraise.consensus.agreement import Decision, Record
from barnraise.consensus.protocols import decode_record
from barnraise.dag.disk import Watch, unwatched
from barnraise.dag.lock import DirectoryLock
from barnraise.dag.retention import Retention
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

BUSY_S: Final = 5.0
"""Readers never keep a writer waiting, but whoever opens the file after a crash first replays what was written."""

_encode = msgspec.msgpack.Encoder().encode
_votes: msgspec.msgpack.Decoder[tuple[tuple[str, bytes], ...]] = msgspec.msgpack.Decoder(tuple[tuple[str, bytes], ...])
_blocks: msgspec.msgpack.Decoder[tuple[tuple[int, int], ...]] = msgspec.msgpack.Decoder(tuple[tuple[int, int], ...])


@dataclass(frozen=True, kw_only=True, slots=True)
class Founding:
    """What a run began with."""

    theta: Digest
    blocks: tuple[tuple[int, int], ...]


class Reader:
    """The log and the vertices, to be looked at; each call sees what was durable when it began."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Take an open database; `Store.read` opens one."""
        self._connection = connection

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    @contextlib.contextmanager
    def at_one_moment(self) -> Iterator[None]:
        """Let all that is read in the block be of the moment when it began; the peer may go on meanwhile."""
        self._connection.execute("BEGIN")
        try:
            yield
        finally:
            self._connection.execute("ROLLBACK")

    def run(self) -> RunId | None:
        """Return the id of the run whose log this is; None before it began."""
        row = self._connection.execute("SELECT id FROM run").fetchone()
        return RunId(row[0]) if row else None

    def founding(self) -> Founding | None:
        """Return what the run began with; None on a fresh disk."""
        row = self._connection.execute("SELECT theta, blocks FROM run").fetchone()
        return Founding(theta=Digest(row[0]), blocks=_blocks.decode(row[1])) if row else None

    def ballot(self) -> Record | None:
        """Return the newest promise."""
        row = self._connection.execute("SELECT record FROM ballot").fetchone()
        return decode_record(row[0]) if row else None

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

    def kept(self, retention: Retention) -> list[Vertex]:
        """Return the vertices that keep their tensors by a rule, newest first."""
        query = """SELECT record FROM vertex WHERE round > (SELECT IFNULL(MAX(round), 0) FROM vertex) - :newest
            OR (:every > 0 AND round % MAX(:every, 1) = 0) ORDER BY round DESC"""
        rules = {"newest": retention.newest, "every": retention.every}
        rows = self._connection.execute(query, rules).fetchall()
        return [records.decode_vertex.decode(row[0]) for row in rows]

    def first_gap(self) -> int | None:
        """Return the first height that is missing below the newest entry; None: there is no gap."""
        query = """SELECT MIN(place) FROM (SELECT height, ROW_NUMBER() OVER (ORDER BY height) - 1 AS place FROM log)
            WHERE height <> place"""
        found: tuple[int | None] = self._connection.execute(query).fetchone()
        return found[0]

    def damage(self) -> str:
        """Return what SQLite finds wrong with its own file; "": nothing."""
        found = [str(row[0]) for row in self._connection.execute("PRAGMA integrity_check(3)")]
        return "" if found == ["ok"] else "; ".join(found)

    def residual(self) -> Digest | None:
        """Return the name of the error-feedback residual at the newest vertex."""
        row = self._connection.execute("SELECT name FROM residual").fetchone()
        return Digest(row[0]) if row else None


class Store(Reader):
    """Opened by one process at a time; its methods may be called from any thread, one at a time."""

    def __init__(self, path: Path, run: RunId) -> None:
        """Open or create the file, and hold its directory.

        Raises:
            ConfigError: it belongs to another run, its directory is in use, or it is no database.
        """
        self.watch: Watch = unwatched
        """Told of each step of a transaction, by the names in `disk.POINTS`."""
        self._path = path
        self._lock = DirectoryLock(path.parent)
        try:
            super().__init__(_opened(path))
            found = self.run()
            if found not in (None, run):
                raise ConfigError(
                    f"{path}: holds run {found.hex()[:12]}, not {run.hex()[:12]}. Name another data directory."
                )
        except BaseException:
            self.close()
            raise
        self._run = run

    @staticmethod
    def read(path: Path) -> Reader:
        """Open what a peer keeps, to look at it only; the peer may be at work, killed, or gone in order.

        Raises:
            ConfigError: there is nothing, it cannot be read, or it is no such file.
        """
        if not path.is_file():
            raise ConfigError(f"{path}: no peer keeps its log there. {_NAME_ANOTHER}")
        connection: sqlite3.Connection | None = None
        try:
            # mode=ro: whatever happens here, nothing is checkpointed, cut or deleted under the peer that writes.
            connection = _connect(f"file:{quote(str(path.absolute()))}?mode=ro")
            connection.execute("SELECT 1 FROM run, log, vertex LIMIT 1")
        except sqlite3.DatabaseError as error:
            if connection is not None:
                connection.close()
            raise ConfigError(f"{path}: cannot be read ({error}). {_NAME_ANOTHER}") from error
        return Reader(connection)

    def close(self) -> None:
        """Close the file and let another process have the directory."""
        if hasattr(self, "_connection"):
            super().close()
        self._lock.release()

    def found(self, theta: Digest, blocks: Sequence[tuple[int, int]]) -> None:
        """Remember what the run begins with."""
        with self._transaction("founding") as execute:
            execute("INSERT INTO run VALUES (0, ?, ?, ?)", (self._run, theta, _encode(tuple(blocks))))

    def persist(self, ballot: Record) -> None:
        """Remember a promise."""
        with self._transaction("ballot") as execute:
            execute("INSERT OR REPLACE INTO ballot VALUES (0, ?)", (_encode(ballot),))

    def append(self, height: int, log: Sequence[Decision], vertices: Sequence[Vertex], residual: Digest | None) -> None:
        """Add decisions from ``height`` on, and the vertices and residual that they lead to: all of it or nothing.

        Raises:
            LocalError: the log does not end at ``height``.
            sqlite3.OperationalError: the disk is full, say; nothing is added.
        """
        if self.height() != height:
            raise LocalError(f"the log ends at {self.height()}, and something came for {height}")
        with self._transaction("entries") as execute:
            for place, decision in enumerate(log, start=height):
                entry = (place, decision.view, decision.value, _encode(decision.votes))
                execute("INSERT INTO log VALUES (?, ?, ?, ?)", entry)
            for vertex in vertices:
                execute("INSERT INTO vertex VALUES (?, ?, ?)", _row(vertex))
            if residual is not None:
                execute("INSERT OR REPLACE INTO residual VALUES (0, ?)", (residual,))

    def truncate(self, height: int, rounds: int) -> None:
        """Forget the entries from ``height`` on, and the vertices with more than ``rounds`` rounds behind them.

        The promise goes, too: a peer whose disk may have forgotten a vote abstains until it is sure that none of its
        own is under way, and it is the lack of a promise that tells it so. What was forgotten is fetched again.
        """
        with self._transaction("entries") as execute:
            execute("DELETE FROM log WHERE height >= ?", (height,))
            execute("DELETE FROM vertex WHERE round > ?", (rounds,))
            execute("DELETE FROM ballot", ())
            execute("DELETE FROM residual", ())

    def rewrite_vertices(self, vertices: Sequence[Vertex]) -> None:
        """Replace all vertices by these, which the log leads to."""
        with self._transaction("entries") as execute:
            execute("DELETE FROM vertex", ())
            for vertex in vertices:
                execute("INSERT INTO vertex VALUES (?, ?, ?)", _row(vertex))

    @contextlib.contextmanager
    def _transaction(self, what: str) -> Iterator[Callable[[str, tuple[object, ...]], object]]:
        """Give what runs statements, all of which take effect at the end of the block, or none does."""
        self.watch(f"before.transaction.{what}", self._path)
        with self._connection:
            self._connection.execute("BEGIN")
            yield self._connection.execute
            self.watch(f"before.commit.{what}", self._path)
        self.watch(f"after.commit.{what}", self._path)


_NAME_ANOTHER: Final = "Name the data directory of a peer, or a run's directory: --dir DIR."


def _row(vertex: Vertex) -> tuple[Digest, int, bytes]:
    return records.vertex_id(vertex), vertex.round, records.encode(vertex)


def _connect(target: str) -> sqlite3.Connection:
    return sqlite3.connect(target, uri=True, isolation_level=None, check_same_thread=False, timeout=BUSY_S)


def _opened(path: Path) -> sqlite3.Connection:
    """Return the database, made if there is none, with what it holds safe from a power cut."""
    connection = _connect(f"file:{quote(str(path.absolute()))}")
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA fullfsync=1")  # macOS: through the drive's cache; nothing elsewhere
        connection.executescript(_SCHEMA)
    except sqlite3.DatabaseError as error:
        connection.close()
        raise ConfigError(f"{path}: cannot be used ({error}). Name another data directory.") from error
    return connection
