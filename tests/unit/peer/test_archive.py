"""A peer's disk off the event loop: what stays on it, and what the trainer is lent."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from barnraise.codec.grid import Float32
from barnraise.consensus.agreement import Decision
from barnraise.dag.blobs import Blobs
from barnraise.dag.retention import Retention
from barnraise.dag.store import Store
from barnraise.ids import RunId
from barnraise.peer.archive import Archive
from barnraise.peer.faults import Drill
from barnraise.swarm.records import Vertex
from barnraise.swarm.workspace import root_of


def tensor(rounds: int, kind: int) -> Float32:
    return np.full(10, 10 * rounds + kind, np.float32)


def vertex_of(rounds: int) -> Vertex:
    return Vertex(
        run=b"r" * 32,
        parents=(),
        round=rounds,
        model=root_of(tensor(rounds, 0)),
        outer=root_of(tensor(rounds, 1)),
        random=bytes(32),
        cursor=0,
        requeued=(),
        exponents=(),
        time=0,
        contributors=(),
        total_samples=0,
        train_loss=0,
        validation_loss=0,
    )


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    store = Store(tmp_path / "log.sqlite", RunId(b"r" * 32))
    yield Archive(store, Blobs(tmp_path / "blobs"), Drill({}), Retention(newest=1, every=3))
    store.close()


async def save(archive: Archive, rounds: int) -> None:
    tensors = tensor(rounds, 0), tensor(rounds, 1)
    names = root_of(tensors[0]), root_of(tensors[1])
    log = [Decision(value=b"value", view=0, votes=())]
    await archive.prune(await archive.save(rounds - 1, log, [vertex_of(rounds)], tensors, names, tensor(rounds, 2)))


def left(archive: Archive) -> set[str]:
    return {file.name for file in archive.blobs.path(root_of(tensor(0, 0))).parent.iterdir()}


def named(*which: tuple[int, int]) -> set[str]:
    return {root_of(tensor(rounds, kind)).hex() for rounds, kind in which}


async def test_tensors_stay_by_the_rule_and_the_residual_is_the_newest(archive: Archive) -> None:
    for rounds in range(1, 6):
        await save(archive, rounds)
    assert left(archive) == named((3, 0), (3, 1), (5, 0), (5, 1), (5, 2))


async def test_what_the_trainer_was_lent_stays_until_it_gets_the_next(archive: Archive) -> None:
    await save(archive, 1)
    path = await archive.lend(root_of(tensor(1, 0)))
    await save(archive, 2)
    assert path.exists()
    assert left(archive) == named((1, 0), (2, 0), (2, 1), (2, 2))
    await archive.lend(root_of(tensor(2, 0)))
    await save(archive, 3)
    await save(archive, 4)
    assert left(archive) == named((2, 0), (3, 0), (3, 1), (4, 0), (4, 1), (4, 2))
