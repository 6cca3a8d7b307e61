"""The peer's durable memory: whose it is, what is in it after a crash, and what a full disk does to it."""

import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from barnraise.consensus.agreement import Decision
from barnraise.consensus.raft_messages import RaftRecord
from barnraise.dag.store import Founding, Store
from barnraise.errors import ConfigError, LocalError
from barnraise.ids import Digest, RunId
from barnraise.swarm import records
from barnraise.swarm.records import Vertex

RUN = RunId(b"r" * 32)
BLOCKS = ((0, 3), (3, 10))


def decision_of(number: int) -> Decision:
    return Decision(value=f"value {number}".encode(), view=number % 2, votes=(("peer-0", b"s"), ("peer-1", b"t")))


def vertex_of(round_: int) -> Vertex:
    return Vertex(
        run=RUN,
        parents=(),
        round=round_,
        model=bytes([round_]) * 32,
        outer=bytes(32),
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


def reopen(store: Store, path: Path) -> Store:
    store.close()
    return Store(path, RUN)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.sqlite"


def test_a_fresh_store_is_empty(path: Path) -> None:
    store = Store(path, RUN)
    assert (store.height(), store.log(), store.vertices()) == (0, [], [])
    assert (store.ballot(), store.residual(), store.founding()) == (None, None, None)
    store.close()


def test_everything_is_there_after_reopening(path: Path) -> None:
    store = Store(path, RUN)
    store.found(Digest(b"t" * 32), BLOCKS)
    store.append(0, [decision_of(0), decision_of(1)], [vertex_of(1)], Digest(b"e" * 32))
    store.append(2, [decision_of(2)], [], None)
    store.append(3, [decision_of(3)], [vertex_of(2)], Digest(b"f" * 32))
    store = reopen(store, path)
    assert store.founding() == Founding(theta=Digest(b"t" * 32), blocks=BLOCKS)
    assert store.height() == 4
    assert store.log() == [decision_of(number) for number in range(4)]
    assert store.log(1, limit=2) == [decision_of(1), decision_of(2)]
    assert store.vertices() == [vertex_of(2), vertex_of(1)]
    assert store.vertices(1) == [vertex_of(2)]
    assert store.residual() == b"f" * 32
    store.close()


def test_the_newest_promise_survives(path: Path) -> None:
    store = Store(path, RUN)
    record = RaftRecord(height=3, epoch=2, term=1, vote="peer-1", leads=False, entry_term=-1, entry=b"")
    newest = msgspec.structs.replace(record, term=2, leads=True, entry_term=1, entry=b"value")
    store.persist(record)
    store.persist(newest)
    store = reopen(store, path)
    assert store.ballot() == newest
    store.close()


def test_the_file_of_another_run_is_refused(path: Path) -> None:
    store = Store(path, RUN)
    store.found(Digest(bytes(32)), BLOCKS)
    store.close()
    with pytest.raises(ConfigError, match=r"holds run 727272.*Name another data directory"):
        Store(path, RunId(b"s" * 32))
    Store(path, RUN).close()  # being refused left nothing locked


def test_a_second_process_is_refused(path: Path) -> None:
    store = Store(path, RUN)
    with pytest.raises(ConfigError, match="Is another peer running"):
        Store(path, RUN)
    store.close()


def test_what_is_no_database_is_refused(path: Path) -> None:
    path.write_bytes(b"not a database, and long enough for a header" * 100)
    with pytest.raises(ConfigError, match="cannot be used"):
        Store(path, RUN)


@pytest.mark.parametrize("height", [0, 2, -1])
def test_a_gap_or_an_overlap_is_refused(path: Path, height: int) -> None:
    store = Store(path, RUN)
    store.append(0, [decision_of(0)], [], None)
    with pytest.raises(LocalError, match="the log ends at 1"):
        store.append(height, [decision_of(1)], [], None)
    assert store.log() == [decision_of(0)]
    store.close()


def test_an_append_that_fails_in_the_middle_leaves_nothing(path: Path) -> None:
    store = Store(path, RUN)
    store.append(0, [decision_of(0)], [vertex_of(1)], Digest(b"e" * 32))
    with pytest.raises(sqlite3.IntegrityError):
        store.append(1, [decision_of(1), decision_of(2)], [vertex_of(2), vertex_of(1)], Digest(b"f" * 32))
    store = reopen(store, path)
    assert (store.log(), store.vertices(), store.residual()) == ([decision_of(0)], [vertex_of(1)], b"e" * 32)
    store.append(1, [decision_of(1)], [vertex_of(2)], Digest(b"f" * 32))
    assert store.height() == 2
    store.close()


def test_a_full_disk_leaves_nothing_half_written(path: Path) -> None:
    store = Store(path, RUN)
    store.append(0, [decision_of(0)], [vertex_of(1)], Digest(b"e" * 32))
    pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
    store._connection.execute(f"PRAGMA max_page_count={pages + 2}")
    large = Decision(value=bytes(1 << 20), view=0, votes=())
    with pytest.raises(sqlite3.OperationalError, match="full"):
        store.append(1, [decision_of(1), large], [vertex_of(2)], Digest(b"f" * 32))
    assert (store.log(), store.vertices(), store.residual()) == ([decision_of(0)], [vertex_of(1)], b"e" * 32)
    store = reopen(store, path)
    store.append(1, [decision_of(1), large], [vertex_of(2)], Digest(b"f" * 32))
    assert store.height() == 3
    assert records.vertex_id(store.vertices(1)[0]) == records.vertex_id(vertex_of(2))
    store.close()


WRITE = """
import pathlib, sys
from barnraise.consensus.agreement import Decision
from barnraise.dag.store import Store
from barnraise.ids import Digest, RunId
store = Store(pathlib.Path(sys.argv[1]), RunId(b"r" * 32))
store.found(Digest(b"t" * 32), ((0, 3),))
for height in range(int(sys.argv[2])):
    store.append(height, [Decision(value=b"value", view=0, votes=())], [], None)
print("written", flush=True)
for height in range(int(sys.argv[2]), 10**6):
    line = sys.stdin.readline()
    store.append(height, [Decision(value=line.encode(), view=0, votes=())], [], None)
    print(height, flush=True)
"""


def writer(path: Path, entries: int) -> subprocess.Popen[str]:
    """Start another process that writes, and goes on doing so a line at a time."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE, str(path), str(entries)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    return process


def test_what_a_running_peer_wrote_can_be_read_at_any_moment(path: Path) -> None:
    with writer(path, 3) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for height in range(3, 20):
            process.stdin.write(f"{height}\n")
            process.stdin.flush()
            assert process.stdout.readline() == f"{height}\n"
            reader = Store.read(path)
            assert (reader.run(), reader.height()) == (RUN, height + 1)
            assert reader.log(height)[0].value == f"{height}\n".encode()
            reader.close()
        process.kill()


def test_what_a_killed_peer_wrote_can_be_read_and_taken_up(path: Path) -> None:
    with writer(path, 5) as process:
        process.send_signal(signal.SIGKILL)
    for _ in range(2):
        reader = Store.read(path)
        assert reader.height() == 5
        reader.close()
    store = Store(path, RUN)
    assert store.height() == 5
    reader = Store.read(path)
    store.append(5, [decision_of(5)], [vertex_of(1)], None)
    assert (reader.height(), reader.vertices()) == (6, [vertex_of(1)])
    reader.close()
    store.close()


def test_what_a_peer_that_left_wrote_can_be_read(path: Path) -> None:
    store = Store(path, RUN)
    store.append(0, [decision_of(0)], [], None)
    store.close()
    reader = Store.read(path)
    assert reader.log() == [decision_of(0)]
    reader.close()
    Store(path, RUN).close()


def test_a_reader_changes_nothing(path: Path) -> None:
    store = Store(path, RUN)
    store.append(0, [decision_of(0)], [], None)
    reader = Store.read(path)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader._connection.execute("DELETE FROM log")
    reader.close()
    store.close()


def test_there_is_nothing_to_read_where_no_peer_was(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no peer keeps its log there"):
        Store.read(tmp_path / "log.sqlite")
    (tmp_path / "log.sqlite").write_bytes(b"not a database, and long enough for a header" * 100)
    with pytest.raises(ConfigError, match="cannot be read"):
        Store.read(tmp_path / "log.sqlite")
    assert [file.name for file in tmp_path.iterdir()] == ["log.sqlite"]


def test_a_path_with_marks_of_an_address_is_a_path(tmp_path: Path) -> None:
    directory = tmp_path / "a?mode=memory&b#c %41"
    directory.mkdir()
    store = Store(directory / "log.sqlite", RUN)
    store.append(0, [decision_of(0)], [], None)
    reader = Store.read(directory / "log.sqlite")
    assert reader.height() == 1
    reader.close()
    store.close()


def test_a_log_that_is_cut_off_goes_on_from_there_without_a_promise(path: Path) -> None:
    store = Store(path, RUN)
    store.append(0, [decision_of(0), decision_of(1)], [vertex_of(1)], Digest(b"e" * 32))
    store.append(2, [decision_of(2), decision_of(3)], [vertex_of(2)], Digest(b"f" * 32))
    store.persist(RaftRecord(height=4, epoch=0, term=1, vote="", leads=False, entry_term=-1, entry=b""))
    store.truncate(2, 1)
    store = reopen(store, path)
    assert store.log() == [decision_of(0), decision_of(1)]
    assert (store.vertices(), store.ballot(), store.residual()) == ([vertex_of(1)], None, None)
    store.append(2, [decision_of(2)], [vertex_of(2)], None)
    assert store.height() == 3
    store.close()


def test_checkpoints_are_replaced_all_at_once(path: Path) -> None:
    store = Store(path, RUN)
    store.append(0, [decision_of(0)], [vertex_of(1), vertex_of(3)], None)
    with pytest.raises(sqlite3.IntegrityError):
        store.rewrite_vertices([vertex_of(2), vertex_of(2)])
    assert store.vertices() == [vertex_of(3), vertex_of(1)]
    store.rewrite_vertices([vertex_of(1), vertex_of(2)])
    assert store.vertices() == [vertex_of(2), vertex_of(1)]
    store.close()


@pytest.mark.parametrize(("missing", "gap"), [((), None), ((0,), 0), ((2,), 2), ((1, 3), 1), ((4,), None)])
def test_the_first_gap_is_found(path: Path, missing: tuple[int, ...], gap: int | None) -> None:
    store = Store(path, RUN)
    assert store.first_gap() is None
    store.append(0, [decision_of(number) for number in range(5)], [], None)
    for height in missing:
        store._connection.execute("DELETE FROM log WHERE height = ?", (height,))
    assert store.first_gap() == gap
    assert store.damage() == ""
    store.close()


def test_the_steps_of_each_transaction_are_told_in_order(path: Path) -> None:
    store = Store(path, RUN)
    told: list[str] = []
    store.watch = lambda point, place: told.append(point)
    store.found(Digest(bytes(32)), BLOCKS)
    store.persist(RaftRecord(height=0, epoch=0, term=0, vote="", leads=False, entry_term=-1, entry=b""))
    store.append(0, [decision_of(0)], [], None)
    store.close()
    steps = ("before.transaction", "before.commit", "after.commit")
    assert told == [f"{step}.{what}" for what in ("founding", "ballot", "entries") for step in steps]
