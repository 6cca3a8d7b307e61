"""A peer's disk alone, killed at each point of it: what was agreed is there again, whole, and the rest can be done again.

One process loads everything once and forks a child for each point, which kills itself there. A power cut is simulated as
well: at each point, what a disk may keep of what was not synced is put together again, and opened (ALICE, Pillai et al.,
OSDI 2014).
"""

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trio

from barnraise.codec.grid import Float32
from barnraise.consensus.agreement import Decision
from barnraise.consensus.raft_messages import RaftRecord
from barnraise.dag.blobs import Blobs
from barnraise.dag.disk import POINTS, WRITING, unwatched
from barnraise.dag.store import Store
from barnraise.ids import Digest, RunId
from barnraise.peer.archive import Archive
from barnraise.peer.faults import VARIABLE, Drill
from barnraise.swarm.records import Vertex
from barnraise.swarm.workspace import root_of

RUN = RunId(b"r" * 32)
ROUNDS = 4
SIZE = 1000
FAULTY_ROUND = 1
"""There is something to lose by then, and something to delete in the next round."""

Seen = dict[str, int]


def tensor(round_: int, kind: int) -> Float32:
    return np.full(SIZE, 10 * round_ + kind, np.float32)


def vertex_of(rounds: int) -> Vertex:
    return Vertex(
        run=RUN,
        parents=(),
        round=rounds,
        model=root_of(tensor(rounds, 0)),
        outer=root_of(tensor(rounds, 1)),
        random=bytes(32),
        cursor=0,
        requeued=(),
        exponents=(16,),
        time=0,
        contributors=(),
        total_samples=0,
        train_loss=0,
        validation_loss=0,
    )


def decision_of(height: int) -> Decision:
    return Decision(value=f"entry {height}".encode(), view=0, votes=(("peer", b"signature"),))


async def live(home: Path, drill: Drill, promised: Path) -> None:
    """Be a peer's disk from wherever it is to the last round; what was promised to others is noted in a file."""
    store, blobs = Store(home / "log.sqlite", RUN), Blobs(home / "blobs")
    try:
        await work(Archive(store, blobs, drill), promised)
    finally:
        store.close()


async def work(archive: Archive, promised: Path) -> None:
    store = archive.store
    if store.founding() is None:
        await archive.on_log(store.found, Digest(root_of(tensor(0, 0))), ((0, SIZE),))
    note(promised, founded=1)
    for round_ in range(store.height() // 2, ROUNDS):
        height = 2 * round_
        if store.height() == height:
            await archive.on_log(store.append, height, [decision_of(height)], (), None)
            note(promised, height=height + 1)
        ballot = RaftRecord(height=height + 1, epoch=0, term=1, vote="peer-0", leads=True, entry_term=1, entry=b"value")
        await archive.on_log(store.persist, ballot)
        note(promised, ballot=height + 1)
        residual = tensor(round_ + 1, 2)
        await archive.write_residual(residual)
        tensors = tensor(round_ + 1, 0), tensor(round_ + 1, 1)
        names = root_of(tensors[0]), root_of(tensors[1])
        entry = height + 1, [decision_of(height + 1)], [vertex_of(round_ + 1)], tensors, names, residual
        await archive.prune(await archive.save(*entry))
        note(promised, height=height + 2)


def note(promised: Path, **news: int) -> None:
    """Write down, outside of the peer's directory, what others may count on from now on."""
    with promised.open("a") as file:
        file.write(json.dumps(news) + "\n")


def noted(promised: Path) -> Seen:
    seen: Seen = {"height": 0, "ballot": 0, "founded": 0}
    for line in promised.read_text().splitlines() if promised.exists() else ():
        seen |= json.loads(line)
    return seen


def check(home: Path, seen: Seen) -> None:
    """See that a peer finds what it promised, that what the log names is whole, and nothing is half applied."""
    store, blobs = Store(home / "log.sqlite", RUN), Blobs(home / "blobs")
    try:
        assert not store.damage()
        assert store.founding() is not None or not seen["founded"]
        height = store.height()
        assert seen["height"] <= height <= seen["height"] + 1
        assert store.log() == [decision_of(number) for number in range(height)]
        assert [vertex.round for vertex in store.vertices()] == list(range(height // 2, 0, -1))
        ballot = store.ballot()
        assert (ballot.height if ballot else 0) >= seen["ballot"]
        for vertex in store.vertices(2):
            assert np.array_equal(blobs.get(Digest(vertex.model)), tensor(vertex.round, 0))
            assert np.array_equal(blobs.get(Digest(vertex.outer)), tensor(vertex.round, 1))
        residual = store.residual()
        assert (residual is None) == (height < 2)
        if residual:
            assert np.array_equal(blobs.get(residual), tensor(height // 2, 2))
    finally:
        store.close()


def finish(home: Path, promised: Path) -> None:
    """Go on from there without a fault; nothing but what is kept is left at the end."""
    trio.run(live, home, Drill({}), promised)
    check(home, {"height": 2 * ROUNDS, "ballot": 2 * ROUNDS - 1, "founded": 1})
    kept = {root_of(tensor(rounds, kind)).hex() for rounds in (ROUNDS - 1, ROUNDS) for kind in (0, 1)}
    kept.add(root_of(tensor(ROUNDS, 2)).hex())
    assert {file.name for file in (home / "blobs").iterdir()} == kept


def round_of(point: str) -> int:
    return 0 if point.endswith("founding") else FAULTY_ROUND


def fork_and_die(root: Path) -> dict[str, int]:
    """Run a child into each point; return how each ended, as `os.waitpid` tells it."""
    ends: dict[str, int] = {}
    for point in POINTS:
        home = root / point
        home.mkdir()
        child = os.fork()
        if not child:
            drill = Drill({VARIABLE: f"kill@{point}:round={round_of(point)}"})
            try:
                trio.run(live, home, drill, root / f"{point}.promised")
            finally:
                os._exit(0)  # it was not killed: the parent sees that
        ends[point] = os.waitpid(child, 0)[1]
    return ends


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """Return where a directory for each point lies, and how the process ended that died there."""
    root = tmp_path_factory.mktemp("killed")
    done = subprocess.run([sys.executable, __file__, str(root)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return root, json.loads(done.stdout)


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_this_point_loses_nothing_that_was_agreed(killed: tuple[Path, dict[str, int]], point: str) -> None:
    root, ends = killed
    assert os.WIFSIGNALED(ends[point]), "nothing came by this point"
    assert os.WTERMSIG(ends[point]) == 9
    promised = root / f"{point}.promised"
    check(root / point, noted(promised))
    finish(root / point, promised)


async def test_every_point_that_is_passed_has_a_name(tmp_path: Path) -> None:
    seen = [point for point, _ in await watched(tmp_path)]
    assert set(seen) == set(POINTS)
    assert len(POINTS) == len(set(POINTS))


async def watched(home: Path) -> list[tuple[str, Path]]:
    """Return the points that a life passes, in order."""
    passed: list[tuple[str, Path]] = []

    class Watching(Archive):
        def _watch(self, point: str, path: Path) -> None:
            passed.append((point, path))

    store, blobs = Store(home / "log.sqlite", RUN), Blobs(home / "blobs")
    await work(Watching(store, blobs, Drill({})), home / "promised")
    store.close()
    return passed


class PowerCuts:
    """Watches a peer's disk; at each point makes the directories that a power cut there may leave.

    Of a file's bytes the disk surely keeps what was synced; of names those there were when their directory was synced
    last. Beyond that it may keep anything. Three of its choices are tried: nothing more than it must; all names, and of
    bytes that were not synced zeros; everything. SQLite's file is taken as it is written: what it may lose of its own
    is tried in `test_a_torn_tail_of_the_log_is_as_if_it_never_was`.
    """

    def __init__(self, home: Path, root: Path, promised: Path) -> None:
        self._home, self._root, self._promised = home, root, promised
        self._synced_bytes: dict[int, bytes] = {}
        self._synced_names: dict[str, int] = {}
        self.cuts: list[tuple[Path, Seen, str]] = []

    def watch(self, point: str, path: Path) -> None:
        if point.startswith("after.fsync"):
            self._synced_bytes[path.stat().st_ino] = path.read_bytes()
        if point.startswith("after.sync"):
            self._synced_names = self._names()
        for choice in ("least", "names", "most"):
            self._cut(point, choice)

    def _names(self) -> dict[str, int]:
        return {file.name: file.stat().st_ino for file in (self._home / "blobs").iterdir()}

    def _cut(self, point: str, choice: str) -> None:
        left = self._root / f"{len(self.cuts):04d}"
        (left / "blobs").mkdir(parents=True)
        for file in (self._home / "log.sqlite", self._home / "log.sqlite-wal"):
            if file.exists():
                shutil.copy(file, left)
        now = self._names()
        for name, inode in (self._synced_names if choice == "least" else now).items():
            data = self._synced_bytes.get(inode)
            if choice == "most" or data is None:
                data = self._bytes_of(inode, now, blank=choice != "most")
            (left / "blobs" / name).write_bytes(data)
        self.cuts.append((left, noted(self._promised), f"{point}, keeping {choice}"))

    def _bytes_of(self, inode: int, now: dict[str, int], *, blank: bool) -> bytes:
        for name, known in now.items():
            if known == inode:
                data = (self._home / "blobs" / name).read_bytes()
                return bytes(len(data)) if blank else data
        return b""


async def test_a_power_cut_at_any_point_loses_nothing_that_was_agreed(tmp_path: Path) -> None:
    home, promised = tmp_path / "home", tmp_path / "promised"
    cuts = PowerCuts(home, tmp_path / "cuts", promised)
    home.mkdir()

    class CutOff(Archive):
        def _watch(self, point: str, path: Path) -> None:
            cuts.watch(point, path)

    store, blobs = Store(home / "log.sqlite", RUN), Blobs(home / "blobs")
    await work(CutOff(store, blobs, Drill({})), promised)
    store.close()
    assert len(cuts.cuts) > 3 * len(POINTS)
    for left, seen, what in cuts.cuts:
        try:
            check(left, seen)
        except BaseException as error:
            raise AssertionError(f"after a power cut at {what}") from error


@pytest.mark.parametrize("step", ["fsync", "sync"])
async def test_the_simulated_disk_does_forget(tmp_path: Path, step: str) -> None:
    """Without the one step or the other, something that was agreed is lost: the test above can fail."""
    home, promised = tmp_path / "home", tmp_path / "promised"
    cuts = PowerCuts(home, tmp_path / "cuts", promised)
    home.mkdir()

    class CutOff(Archive):
        def _watch(self, point: str, path: Path) -> None:
            if not point.startswith(f"after.{step}."):
                cuts.watch(point, path)

    store, blobs = Store(home / "log.sqlite", RUN), Blobs(home / "blobs")
    await work(CutOff(store, blobs, Drill({})), promised)
    store.close()
    lost = 0
    for left, seen, _ in cuts.cuts:
        try:
            check(left, seen)
        except Exception:
            lost += 1
    assert lost


def test_a_torn_tail_of_the_log_is_as_if_it_never_was(tmp_path: Path) -> None:
    """A power cut may leave any part of the newest transaction in SQLite's write-ahead log, and nonsense behind it."""
    store = Store(tmp_path / "log.sqlite", RUN)
    store.found(Digest(bytes(32)), ((0, SIZE),))
    wal = tmp_path / "log.sqlite-wal"
    ends = [wal.stat().st_size]
    for height in range(4):
        store.append(height, [decision_of(height)], (), None)
        ends.append(wal.stat().st_size)
    data = wal.read_bytes()
    for number, (start, stop) in enumerate(itertools.pairwise(ends)):
        for size in {start, start + 1, start + 24, (start + stop) // 2, stop - 1}:
            for tail in (b"", bytes(5000), b"\xff" * 5000):
                left = tmp_path / f"{number}-{size}-{len(tail)}-{tail[:1].hex()}"
                left.mkdir()
                shutil.copy(tmp_path / "log.sqlite", left)
                (left / wal.name).write_bytes(data[:size] + tail)
                again = Store(left / "log.sqlite", RUN)
                assert again.height() == number
                again.append(number, [decision_of(number)], (), None)
                again.close()
    store.close()


def test_a_leftover_of_a_write_is_never_taken_for_a_vector(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    name = root_of(tensor(1, 0))
    leftover = tmp_path / (name.hex() + WRITING)
    leftover.write_bytes(tensor(1, 0).tobytes())
    assert blobs.find(name) is None
    assert blobs.watch is unwatched
    blobs.put(tensor(1, 0), name)
    assert not leftover.exists()


if __name__ == "__main__":
    print(json.dumps(fork_and_die(Path(sys.argv[1]))))
