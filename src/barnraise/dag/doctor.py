"""Examines what one peer keeps on disk, against the hashes and votes that it holds itself, and mends what can be mended.

An examination only reads, so that it may look at a peer that runs. A repair holds the directory's lock; it removes what
is damaged and never makes anything up: what is missing afterwards is fetched from other peers at the next start.
What lies around the peer (ports, keys, memory) is for `barnraise.runs.surroundings`.
"""

import contextlib
import itertools
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, NamedTuple

import msgspec
import numpy as np

from barnraise.config import RunConfig
from barnraise.consensus.agreement import Decision
from barnraise.dag import sealing
from barnraise.dag.blobs import name_of
from barnraise.dag.disk import WRITING
from barnraise.dag.lock import DirectoryLock
from barnraise.dag.partial import PARTIAL
from barnraise.dag.retention import Retention
from barnraise.dag.sealing import BLOBS_DIRECTORY, SUFFIX, Seal, damage_of
from barnraise.dag.store import Founding, Reader, Store
from barnraise.errors import BarnraiseError, ConfigError, LocalError
from barnraise.identity import PublicIdentity
from barnraise.ids import Digest, PeerId, RunId
from barnraise.swarm import records
from barnraise.swarm.adopt import adopt
from barnraise.swarm.records import Vertex
from barnraise.swarm.state import State, genesis
from barnraise.swarm.workspace import root_of

LOG_FILE: Final = "log.sqlite"
PIECE_ENTRIES: Final = 512
"""Entries looked at between two looks into the file."""
START_AGAIN: Final = "Start the peer again: it fetches what it lacks, from peers that have it."
ONLY_KEPT: Final = "Nothing needs to be done: the peer does not need it itself."
BEGIN_AT_ZERO: Final = "Nothing needs to be done: the peer begins it at zero, which costs a little accuracy once."
REPAIR: Final = "barnraise doctor --repair"

Level = Literal["error", "warning", "note"]
Repair = Callable[[], str]
"""Mends something and says what it did."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that an examination found."""

    level: Level
    """``error``: the peer cannot go on, or not as it was; ``warning``: it may soon not; ``note``: good to know."""
    what: str
    mend: str = ""
    """What to do about it: a command, or plain words."""
    repair: Repair | None = field(default=None, compare=False)
    """How it is mended without asking; None: only by its operator."""
    mended: str = ""
    """What a repair did."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Patient:
    """A peer's disk, and what is needed to understand it."""

    home: Path
    config: RunConfig | None
    """None: the run's configuration cannot be read, and what rests on it is not examined."""
    voters: dict[PeerId, PublicIdentity]
    retention: Retention
    seal: Seal | None
    """None: there is none, or its passphrase was not given."""
    is_running: bool = False
    """What it does not need any more it deletes, and what is half written it is about to finish."""

    @property
    def log_file(self) -> Path:
        """Return where the log lies."""
        return self.home / LOG_FILE

    @property
    def blobs(self) -> Path:
        """Return where the vectors lie."""
        return self.home / BLOBS_DIRECTORY


class _Wanted(NamedTuple):
    """A vector that ought to be there."""

    what: str
    level: Level
    """How bad it is if it is damaged."""
    mend: str


@dataclass(kw_only=True)
class Reading:
    """What following a log from its genesis came to."""

    state: State
    vertices: list[Vertex] = field(default_factory=list)
    broken: str = ""
    """Why the entry at the state's height does not hold; "": all do."""
    unknown: set[PeerId] = field(default_factory=set)
    """Voters whose keys are not here."""


def examine(patient: Patient) -> list[Finding]:
    """Return what is to be said of a peer's disk; nothing is changed."""
    if not patient.log_file.is_file():
        return [Finding(level="note", what="has not begun: there is no log yet", mend="Wait for the first round.")]
    try:
        with contextlib.closing(Store.read(patient.log_file)) as reader:
            with reader.at_one_moment():
                of_the_log = list(_log(patient, reader))
            return [*of_the_log, *_tensors(patient, reader), *_leftovers(patient)]
    except (ConfigError, sqlite3.DatabaseError, msgspec.DecodeError, OverflowError) as error:
        return [_lost(patient, str(error)), *_leftovers(patient)]


def repaired(findings: Sequence[Finding]) -> list[Finding]:
    """Mend what can be mended, in order, and return the findings with what was done about each."""
    return [_repaired(finding) for finding in findings]


def _repaired(finding: Finding) -> Finding:
    if finding.repair is None:
        return finding
    try:
        done = finding.repair()
    except (BarnraiseError, OSError, sqlite3.Error) as error:
        return Finding(level=finding.level, what=finding.what, mend=f"It could not be mended: {error}")
    return Finding(level=finding.level, what=finding.what, mend=finding.mend, mended=done)


# ---- the log ------------------------------------------------------------------------------------------------------


def _log(patient: Patient, reader: Reader) -> Iterator[Finding]:
    if wrong := reader.damage():
        yield _lost(patient, wrong)
        return
    founding, config = reader.founding(), patient.config
    if founding is None or config is None:
        return
    if reader.run() != config.run_id:
        told = f"the log is of run {_short(reader.run())}, the configuration of run {_short(config.run_id)}"
        yield Finding(level="error", what=told, mend=f"Put the run.toml of the run beside {patient.log_file}.")
        return
    zeros = np.zeros(founding.blocks[-1][1], np.float32)
    found = follow(genesis(config, len(founding.blocks), founding.theta, root_of(zeros)), reader, patient.voters)
    if found.broken:
        yield _torn(patient, found, reader.height())
    if found.unknown:
        names = ", ".join(sorted(found.unknown)[:3])
        told = f"the votes of {len(found.unknown)} members could not be checked: their keys are not here ({names})"
        yield Finding(level="warning", what=told, mend="Start the peer among the others: it learns the keys it meets.")
    yield from _vertices(patient, found, reader)
    yield from _promise(reader, found.state)


def follow(state: State, reader: Reader, voters: dict[PeerId, PublicIdentity]) -> Reading:
    """Follow a log from ``state`` for as long as its entries hold: hashes, rules, and every vote that can be checked."""
    found = Reading(state=state)

    def verify(peer: PeerId, context: str, message: bytes, signature: bytes) -> bool:
        if peer not in voters:
            found.unknown.add(peer)
            return True
        return voters[peer].verify(context, message, signature)

    gap = reader.first_gap()
    end = reader.height() if gap is None else gap
    while found.state.height < end:
        for decision in reader.log(found.state.height, min(PIECE_ENTRIES, end - found.state.height)):
            found.broken = _broken(found, decision, verify)
            if found.broken:
                return found
    if gap is not None:
        found.broken = "the entry is missing, and later ones are there"
    return found


def _broken(found: Reading, decision: Decision, verify: Callable[[PeerId, str, bytes, bytes], bool]) -> str:
    """Take one more entry in, or say why it does not hold."""
    try:
        adopted = adopt(found.state, [decision], verify)
    except LocalError as error:
        return str(error)
    found.state = adopted.state
    found.vertices += adopted.vertices
    return ""


def _torn(patient: Patient, found: Reading, height: int) -> Finding:
    state = found.state
    at, rest = state.height, height - state.height

    def repair() -> str:
        with contextlib.closing(Store(patient.log_file, state.run)) as store:
            store.truncate(at, state.round)
        return f"removed the {rest} entries from height {at} on; the peer abstains until it has them again"

    told = f"the log does not hold at height {at} of {height}: {found.broken}"
    return Finding(level="error", what=told, mend=f"{REPAIR}, then start the peer: it fetches the rest.", repair=repair)


def _vertices(patient: Patient, found: Reading, reader: Reader) -> Iterator[Finding]:
    held = {records.vertex_id(vertex) for vertex in reader.vertices()}
    due = {records.vertex_id(vertex) for vertex in found.vertices}
    if held == due or found.broken:  # what a torn log leads to goes with it
        return

    def repair() -> str:
        with contextlib.closing(Store(patient.log_file, found.state.run)) as store:
            store.rewrite_vertices(found.vertices)
        return "wrote the checkpoints anew, as the log has them"

    told = f"of the log's {len(due)} checkpoints {len(due - held)} are missing, and {len(held - due)} are none of its"
    yield Finding(level="error", what=told, mend=REPAIR, repair=repair)


def _promise(reader: Reader, state: State) -> Iterator[Finding]:
    try:
        record = reader.ballot()
    except msgspec.DecodeError as error:
        told = f"the newest vote cannot be read ({error}): it may be of another version of barnraise"
        yield Finding(level="error", what=told, mend="Run the version that this peer ran before.")
        return
    if record is None and state.height:
        told = "no vote of this peer is on record: it abstains until nothing that it may have voted for is under way"
        yield Finding(level="note", what=told)


def _lost(patient: Patient, why: str) -> Finding:
    """Say that the database itself is broken, which nothing here can mend without forgetting votes."""
    mend = f"Move {patient.log_file}* away and start the peer: it fetches the log again, and abstains until then."
    return Finding(level="error", what=f"{patient.log_file} is damaged: {why}", mend=mend)


# ---- the tensors --------------------------------------------------------------------------------------------------


def _tensors(patient: Patient, reader: Reader) -> Iterator[Finding]:
    founding = reader.founding()
    if founding is None:
        return
    sealed_by = sealing.source_of(patient.blobs)
    if sealed_by and patient.seal is None:
        told = f"the tensors are sealed by the {sealing.called(sealed_by)}, which was not given: they were not examined"
        yield Finding(level="note", what=told, mend=f"Set {sealing.PASSPHRASE_VARIABLE} for this command.")
        return
    for name, wanted in _wanted(patient, reader, founding).items():
        found = list(_tensor(patient, name, wanted))
        if found and patient.is_running and name not in _wanted(patient, reader, founding):
            continue  # it has gone on meanwhile
        yield from found


def _wanted(patient: Patient, reader: Reader, founding: Founding) -> dict[Digest, _Wanted]:
    """Return the vectors that ought to be there, what each is, and how bad it is if it is not."""
    vertices = reader.kept(patient.retention)
    wanted: dict[Digest, _Wanted] = {}
    for place, vertex in enumerate(vertices):
        level: Level = "warning" if place else "error"
        for what, name in (("parameters", vertex.model), ("outer optimiser", vertex.outer)):
            told = f"the {what} of the checkpoint after round {vertex.round}"
            wanted.setdefault(Digest(name), _Wanted(told, level, ONLY_KEPT if place else START_AGAIN))
    if not vertices:
        wanted[founding.theta] = _Wanted("the first parameters", "error", START_AGAIN)
    if residual := reader.residual():
        wanted.setdefault(residual, _Wanted("what rounding left of our updates", "warning", BEGIN_AT_ZERO))
    return wanted


def _tensor(patient: Patient, name: Digest, wanted: _Wanted) -> Iterator[Finding]:
    paths = [path for path in (patient.blobs / name.hex(), patient.blobs / (name.hex() + SUFFIX)) if path.exists()]
    if not paths:
        # A peer that was away, or keeps more from now on, never had the older ones.
        level: Level = "error" if wanted.level == "error" else "note"
        yield Finding(level=level, what=f"{wanted.what}: the file is missing", mend=wanted.mend)
    for path in paths:
        if why := damage_of(path, name, patient.seal):

            def repair(path: Path = path) -> str:
                with contextlib.closing(_Held(patient.home)):
                    path.unlink(missing_ok=True)
                return f"deleted {path.name}"

            told = f"{wanted.what}: {path} is damaged ({why})"
            yield Finding(level=wanted.level, what=told, mend=f"{REPAIR}. {wanted.mend}", repair=repair)


class _Held:
    """A directory's lock, to be closed."""

    def __init__(self, home: Path) -> None:
        self._lock = DirectoryLock(home)

    def close(self) -> None:
        self._lock.release()


# ---- what was left over -------------------------------------------------------------------------------------------


def _leftovers(patient: Patient) -> Iterator[Finding]:
    files = list(patient.blobs.iterdir()) if patient.blobs.is_dir() else []
    halves = [] if patient.is_running else _halves(patient, files)
    if halves:
        yield _removable(patient, halves, "left by a write that was cut short, or from before it was sealed")
    fetched = [file for file in files if file.suffix == PARTIAL]
    if fetched:
        told = f"{len(fetched)} downloads are not finished: {_size(fetched)} of room, filled as chunks arrive"
        yield Finding(
            level="note", what=told, mend="They go on when the peer runs; what nothing needs is deleted then."
        )


def _halves(patient: Patient, files: Sequence[Path]) -> list[Path]:
    """Return the files that no peer would look at again."""
    halves = [file for file in files if file.suffix == WRITING or (name_of(file) is None and file.is_file())]
    halves += [file for file in patient.home.glob("*.partial*") if file.is_file()]
    if patient.seal is not None:
        plain = itertools.chain(*(patient.home.glob(pattern) for pattern in sealing.PLAIN_LEFTOVERS))
        halves += [file for file in files if name_of(file) is not None and not file.suffix]
        halves += plain
    return halves


def _removable(patient: Patient, files: Sequence[Path], why: str) -> Finding:
    told = f"{len(files)} files ({_size(files)}) are {why}: {', '.join(sorted(file.name for file in files)[:3])}"

    def repair() -> str:
        with contextlib.closing(_Held(patient.home)):
            for file in files:
                file.unlink(missing_ok=True)
        return f"deleted {len(files)} files"

    return Finding(level="warning", what=told, mend=REPAIR, repair=repair)


def _size(files: Sequence[Path]) -> str:
    total = 0
    for file in files:
        with contextlib.suppress(OSError):
            total += file.stat().st_size
    return f"{total / 1e6:.1f} MB"


def _short(run: RunId | None) -> str:
    return run.hex()[:12] if run else "(none)"
