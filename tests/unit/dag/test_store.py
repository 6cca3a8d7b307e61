"""The peer's durable memory: whose it is, what is in it after a crash, and what a full disk does to it."""

import sqlite3
from pathlib import Path

import pytest

from barnraise.consensus.voting import Decision, Persisted
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
    store.persist(Persisted(3, 1, -1, b""))
    store.persist(Persisted(3, 2, 1, b"value"))
    store = reopen(store, path)
    assert store.ballot() == Persisted(3, 2, 1, b"value")
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
