"""What can be found out of a run's directory, by somebody who is no peer."""

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from barnraise.errors import ConfigError
from barnraise.identity import Identity
from barnraise.observe.events import EventLog
from barnraise.observe.status import STATUS_FILE
from barnraise.observe.vocabulary import PeerWaiting, RoundCommitted
from barnraise.runs import places, reading
from barnraise.swarm import records
from barnraise.swarm.workspace import root_of

MakeRun = Callable[..., Any]


def test_the_newest_run_is_the_one_in_which_something_happened_last(tmp_path: Path, made_run: MakeRun) -> None:
    older, newer = made_run(1, tmp_path / "runs" / "a"), made_run(1, tmp_path / "runs" / "b")
    (tmp_path / "runs" / ".raising-x").mkdir()
    (tmp_path / "runs" / "c").mkdir()
    for run, when in ((older, 100), (newer, 200)):
        for file in run.path.rglob("*"):
            os.utime(file, (when, when))
    assert reading.newest_run(tmp_path / "runs") == newer.path
    EventLog(older.home(2) / "metrics.jsonl").emit("peer.joined", other="x")
    assert reading.newest_run(tmp_path / "runs") == older.path


def test_where_there_is_no_run_it_says_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for look in (lambda: reading.newest_run(), lambda: reading.find(None), lambda: reading.find(tmp_path)):
        with pytest.raises(ConfigError, match=r"--dir DIR"):
            look()


def test_a_peer_that_joined_elsewhere_is_found_among_this_users(
    tmp_path: Path, made_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    joined = places.peers_directory() / "some-run"
    Identity.create(joined / "identity.key")
    assert reading.find(None) == joined
    run = made_run(1, tmp_path / "runs" / "mine")
    os.utime(joined / "identity.key", (100, 100))
    assert reading.find(None) == Path("runs/mine")
    assert reading.find(run.path) == run.path


def test_peers_are_in_order_of_their_numbers(tmp_path: Path, made_run: MakeRun) -> None:
    run = made_run(1)
    for number in (10, 9):
        Identity.create(run.path / f"peer-{number}" / "identity.key")
    assert [path.name for path in reading.peer_directories(run.path)] == [f"peer-{n}" for n in (0, 1, 2, 9, 10)]
    assert reading.peer_directories(run.home(1)) == [run.home(1)]
    assert reading.peer_directories(tmp_path / "nowhere") == []


def test_the_log_is_read_from_the_peer_that_is_farthest(made_run: MakeRun) -> None:
    run = made_run(3)
    (run.home(0) / "log.sqlite").unlink()
    assert reading.farthest(run.path) == run.home(1)
    entries = reading.entries(run.home(1))
    assert [type(entry.event).__name__ for entry in entries] == [
        *("Cut", "Result"),
        *("Cut", "Void", "Cut", "Result"),
        *("Cut", "Result"),
    ]
    assert [entry.height for entry in entries] == list(range(8))
    assert entries[0].signers == run.state.peers[:2]
    assert reading.entries(run.home(1), last=3) == entries[5:]
    assert reading.entries(run.home(2), last=100) == entries[:6]


def test_the_newest_checkpoint_is_one_whose_parameters_are_here(made_run: MakeRun) -> None:
    run = made_run(3)
    found = reading.newest_checkpoint(run.path)
    assert (found.vertex, found.peer_dir.name) == (run.vertices[-1], "peer-0")
    assert found.config == run.directory.config
    assert root_of(np.fromfile(found.theta_path, np.float32)) == found.vertex.model
    assert reading.newest_checkpoint(run.home(2)).vertex == run.vertices[-2]
    for home in (run.home(0), run.home(1)):
        (home / "blobs" / run.vertices[-1].model.hex()).unlink()
    assert reading.newest_checkpoint(run.path).vertex == run.vertices[-2]


def test_before_the_first_round_there_is_no_checkpoint(made_run: MakeRun) -> None:
    run = made_run(0)
    with pytest.raises(ConfigError, match="holds no checkpoint yet"):
        reading.newest_checkpoint(run.path)
    for index in range(3):
        (run.home(index) / "log.sqlite").unlink()
    with pytest.raises(ConfigError, match="holds no checkpoint yet"):
        reading.newest_checkpoint(run.path)
    with pytest.raises(ConfigError, match="no peer has begun there yet"):
        reading.farthest(run.path)


def test_a_vector_is_whole_or_damaged_or_not_there(made_run: MakeRun) -> None:
    run = made_run(2)
    name = run.vertices[-1].model
    assert reading.holds(run.home(0), name) is True
    (run.home(0) / "blobs" / name.hex()).write_bytes(bytes(8))
    assert reading.holds(run.home(0), name) is False
    assert reading.holds(run.home(2), name) is None


def test_a_damaged_log_is_told_with_what_to_do(made_run: MakeRun) -> None:
    run = made_run(1)
    with sqlite3.connect(run.home(0) / "log.sqlite") as connection:
        connection.execute("UPDATE log SET value = x'c1'")
    connection.close()
    with pytest.raises(ConfigError, match="is damaged, or of another version"):
        reading.entries(run.home(0))


def test_the_last_events_are_those_that_can_be_read(made_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    home = made_run(1).home(0)
    assert reading.last_events(home) == []
    log = EventLog(home / "metrics.jsonl", clock=lambda: 1.0)
    for number in range(50):
        log.emit("round.committed", round=number, took_s=1.0)
    log.emit("of another version")
    log.emit("peer.waiting", reason="x")
    log.close()
    with (home / "metrics.jsonl").open("ab") as file:
        file.write(b'{"event":"peer.wai')
    found = reading.last_events(home)
    assert found[-1] == PeerWaiting(time=1.0, reason="x")
    assert [event.round for event in found[:-1] if isinstance(event, RoundCommitted)] == list(range(50))
    monkeypatch.setattr(reading, "TAIL_BYTES", 300)
    assert len(reading.last_events(home)) in range(2, 5)


def test_a_damaged_status_is_told(made_run: MakeRun) -> None:
    run = made_run(1)
    assert [(peer.is_alive, peer.status) for peer in reading.peers_now(run.path)] == [(False, None)] * 3
    (run.home(1) / STATUS_FILE).write_text('{"time": "now"}')
    with pytest.raises(ConfigError, match="is no peer's status"):
        reading.peers_now(run.path)


def test_ids_of_vertices_are_those_of_the_log(made_run: MakeRun) -> None:
    run = made_run(3)
    named = [entry.event.vertex for entry in reading.entries(run.home(0)) if hasattr(entry.event, "vertex")]
    assert named == [records.vertex_id(vertex) for vertex in run.vertices]
