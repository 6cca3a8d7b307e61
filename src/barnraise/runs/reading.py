"""Looks at runs on this machine from outside: which there are, what their peers agreed on, and the newest checkpoint.

Nothing here writes. A peer that runs is not disturbed; what one that was killed left behind is read as well.
"""

import contextlib
import re
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from barnraise.config import RunConfig, load_run_config
from barnraise.dag import lock
from barnraise.dag.sealing import BLOBS_DIRECTORY, SUFFIX, damage_of
from barnraise.dag.store import Reader, Store
from barnraise.errors import ConfigError
from barnraise.ids import Digest
from barnraise.observe import status
from barnraise.observe.status import Status
from barnraise.observe.vocabulary import AnyEvent, decode
from barnraise.runs import places, unsealing
from barnraise.runs.directory import DEFAULT_PARENT, IDENTITY_FILE, RUN_FILE
from barnraise.swarm import records
from barnraise.swarm.records import LogEvent, Vertex

LOG_FILE: Final = "log.sqlite"
METRICS_FILE: Final = "metrics.jsonl"
TAIL_BYTES: Final = 512 * 1024
"""The end of a peer's events that is read for its last rounds; a round has some 30 lines of 100 bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """The newest parameters that a run on this machine agreed on."""

    config: RunConfig
    vertex: Vertex
    theta_path: Path
    """float32[d], little-endian, named by its hash; it may be sealed: `unsealing.plain`."""
    peer_dir: Path
    """Whose disk it lies on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One agreed entry of the log."""

    height: int
    event: LogEvent
    signers: tuple[str, ...]
    """Whose votes decided it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PeerNow:
    """One peer of this machine, as its directory tells."""

    directory: Path
    is_alive: bool
    status: Status | None
    """What it said last; None: nothing yet."""


def find(directory: Path | None) -> Path:
    """Return the directory that a verb is about: the named one, or the newest run or peer of this user.

    Raises:
        ConfigError: it holds no peer, or there is no run at all.
    """
    if directory is not None:
        if not peer_directories(directory):
            raise ConfigError(
                f"{directory}: no peer keeps its data there. Name a run's or a peer's directory: --dir DIR."
            )
        return directory
    return _newest([*_below(DEFAULT_PARENT), *_below(places.peers_directory())], DEFAULT_PARENT)


def newest_run(parent: Path = DEFAULT_PARENT) -> Path:
    """Return the run below ``parent`` in which something happened last.

    Raises:
        ConfigError: there is none.
    """
    return _newest(_below(parent), parent)


def peer_directories(path: Path) -> list[Path]:
    """Return the data directories of a run's peers on this machine, by number; a peer's own directory is its only one."""
    if (path / IDENTITY_FILE).is_file():
        return [path]
    return sorted((found for found in _below(path) if (found / IDENTITY_FILE).is_file()), key=_natural)


def run_config(peer_dir: Path) -> RunConfig:
    """Return the configuration of a peer's run, which lies beside its log or, in a run's directory, one above.

    Raises:
        ConfigError: there is none, or it cannot be read.
    """
    own = peer_dir / RUN_FILE
    return load_run_config(own if own.is_file() else peer_dir.parent / RUN_FILE)


@contextlib.contextmanager
def opened(peer_dir: Path) -> Iterator[Reader]:
    """Open a peer's log to look at it. Raises `ConfigError` where it has none, or what it has is damaged."""
    with contextlib.closing(Store.read(peer_dir / LOG_FILE)) as reader:
        try:
            yield reader
        except (sqlite3.DatabaseError, msgspec.DecodeError) as error:
            raise ConfigError(
                f"{peer_dir / LOG_FILE}: is damaged, or of another version of barnraise ({error}). Move the peer's "
                "directory away; a peer that starts anew fetches what it lacks."
            ) from error


def entries(peer_dir: Path, last: int | None = None) -> list[Entry]:
    """Return the agreed entries, oldest first; ``last``: only so many, the newest.

    Raises:
        ConfigError: the log cannot be read.
    """
    with opened(peer_dir) as reader:
        first = 0 if last is None else max(0, reader.height() - last)
        return [
            Entry(
                height=height,
                event=records.decode_event.decode(decision.value),
                signers=tuple(voter for voter, _ in decision.votes),
            )
            for height, decision in enumerate(reader.log(first), start=first)
        ]


def farthest(path: Path) -> Path:
    """Return the data directory of a run's peer that has agreed to most. Raises `ConfigError` where there is none."""
    homes = [home for home in peer_directories(path) if (home / LOG_FILE).is_file()]
    if not homes:
        raise ConfigError(f"{path}: no peer has begun there yet. Wait for the first round, or name another: --dir DIR.")
    return max(homes, key=_height)


def newest_checkpoint(path: Path) -> Checkpoint:
    """Return the newest checkpoint whose parameters are on this machine.

    Args:
        path: a run's or a peer's directory.

    Raises:
        ConfigError: there is none yet, or nothing can be read there.
    """
    held = [
        (vertex, home) for home in peer_directories(path) for vertex in _vertices(home) if theta(home, vertex).is_file()
    ]
    if not held:
        raise ConfigError(f"{path}: holds no checkpoint yet. Wait until a round is agreed; barnraise status tells.")
    vertex, home = max(held, key=lambda pair: pair[0].round)
    return Checkpoint(config=run_config(home), vertex=vertex, theta_path=theta(home, vertex), peer_dir=home)


def theta(peer_dir: Path, vertex: Vertex) -> Path:
    """Return where a checkpoint's parameters lie, whether or not they are there; sealed, where its suffix says so."""
    return _vector(peer_dir, vertex.model)


def holds(peer_dir: Path, name: bytes) -> bool | None:
    """Tell whether a vector's file is what its name says; None: it is not there.

    Raises:
        ConfigError: it is sealed, and the key is not here.
    """
    path = _vector(peer_dir, name)
    if not path.is_file():
        return None
    seal = unsealing.required_seal(peer_dir) if path.suffix == SUFFIX else None
    return not damage_of(path, Digest(name), seal)


def peers_now(path: Path) -> list[PeerNow]:
    """Return what the peers of a run's or a peer's directory said last. Raises `ConfigError` for a damaged file."""
    return [
        PeerNow(directory=home, is_alive=lock.is_held(home), status=status.read(home / status.STATUS_FILE))
        for home in peer_directories(path)
    ]


def last_events(peer_dir: Path) -> list[AnyEvent]:
    """Return the events at the end of what a peer wrote, oldest first; lines that are none are passed over."""
    path = peer_dir / METRICS_FILE
    found: list[AnyEvent] = []
    with contextlib.suppress(OSError), path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        for line in file.read(TAIL_BYTES).splitlines():
            with contextlib.suppress(ValueError):  # the first may be cut off, the last half written
                found.append(decode(line)[1])
    return found


def _below(parent: Path) -> list[Path]:
    try:
        return [path for path in parent.iterdir() if path.is_dir() and not path.name.startswith(".")]
    except OSError:
        return []


def _newest(candidates: Iterable[Path], parent: Path) -> Path:
    runs = [path for path in candidates if peer_directories(path)]
    if not runs:
        raise ConfigError(f"{parent}: there is no run here. Start one: barnraise train; or name one: --dir DIR.")
    return max(runs, key=lambda path: (_touched(path), path.name))


def _vector(peer_dir: Path, name: bytes) -> Path:
    path = peer_dir / BLOBS_DIRECTORY / name.hex()
    sealed = path.with_suffix(SUFFIX)
    return sealed if sealed.is_file() else path


def _touched(path: Path) -> float:
    """Return when something last happened in a run, Unix seconds."""
    files = [path / RUN_FILE]
    files += [home / name for home in peer_directories(path) for name in (METRICS_FILE, IDENTITY_FILE)]
    times = []
    for file in files:
        with contextlib.suppress(OSError):
            times.append(file.stat().st_mtime)
    return max(times, default=0.0)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Return a key that puts peer-10 after peer-9."""
    return [(int(part) if part.isdecimal() else -1, part) for part in re.split(r"(\d+)", path.name)]


def _height(home: Path) -> int:
    with opened(home) as reader:
        return reader.height()


def _vertices(home: Path) -> list[Vertex]:
    if not (home / LOG_FILE).is_file():
        return []
    with opened(home) as reader:
        return reader.vertices(2)
