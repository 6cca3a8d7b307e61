"""The verbs that only look: what they print for a person, and what for a program."""

import json
import re
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from barnraise import cli
from barnraise.cli import dag
from barnraise.dag.lock import DirectoryLock
from barnraise.identity import SIGNATURE_BYTES
from barnraise.observe.events import EventLog
from barnraise.observe.status import Connected, MemberStatus, Status, StatusFile, read
from barnraise.runs import places
from barnraise.swarm import records
from barnraise.swarm.records import Vertex

MakeRun = Callable[..., Any]
VERBS = ("status", "peers", "log", "show", "dag")


@pytest.fixture
def run(made_run: MakeRun) -> Any:
    """A run of three peers in round 3 of 5: the first lives, the second was killed, the third never said a word."""
    run = made_run(3)
    for index, (phase, waits) in enumerate([("waiting for the cut", 1), ("exchanging", 0)]):
        say(run, index, phase, waits)
    log = EventLog(run.home(0) / "metrics.jsonl")
    for number in range(8):
        log.emit("round.committed", round=number % 3, took_s=100.0 if number < 3 else 10.0)
    log.close()
    return run


def say(run: Any, index: int, phase: str, waits: int, **changes: Any) -> None:
    peers = run.directory.peers
    status = {
        "time": time.time() - 3,
        "pid": 1,
        "run": run.state.run.hex(),
        "peer": peers[index],
        "address": "/ip4/127.0.0.1/tcp/4001",
        "round": run.state.round,
        "rounds": 5,
        "phase": phase,
        "waiting_for": tuple(peers[2 : 2 + waits]),
        "members": tuple(MemberStatus(peer=peer, counts_from=0, missed=int(peer == peers[2])) for peer in peers),
        "connected": (
            Connected(peer=peers[1], silent_s=0.5, latency_s=0.00021, bandwidth_bytes_s=117.9e6),
            Connected(peer="12D3KooWsomebody", silent_s=7.0),
        ),
        "vertex": run.state.vertex.hex(),
        "train_loss": 1.5,
        "tokens": 6144,
        "bytes_sent": 5_000_000,
    }
    StatusFile(run.home(index) / "status.json").write(Status(**{**status, **changes}))


def printed(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert cli.main([str(word) for word in words]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_status_says_round_members_and_who_waits_for_whom(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    lock = DirectoryLock(run.home(0))
    out = printed(capsys, "status", "--dir", run.path)
    lock.release()
    peers = run.directory.peers
    assert f"run {run.state.run.hex()[:12]}, 3 of 5 rounds agreed, 3 members" in out
    assert "1 of 3 peers of this machine are running" in out
    assert "a round takes 10.0 s; 20 s to go" in out
    assert "loss 1.500, held-out - bits per byte, 6,144 tokens" in out
    first, second, third = out.splitlines()[-3:]
    assert first.split("  ")[0] == "peer-0"
    assert re.search(rf"running +waiting for the cut +3 +{peers[2][-6:]} +[34] s ago +5.0 MB", first)
    assert re.search(r"not running +was exchanging +3 +- ", second)
    assert "has said nothing yet" in third


def test_status_for_a_program(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    lock = DirectoryLock(run.home(0))
    found = json.loads(printed(capsys, "status", "--dir", run.path, "--json"))
    lock.release()
    assert (found["round"], found["rounds"], found["is_over"]) == (3, 5, False)
    assert (found["round_s"], found["remaining_s"]) == (10.0, 20.0)
    assert found["members"] == list(run.directory.peers)
    assert [peer["is_alive"] for peer in found["peers"]] == [True, False, False]
    assert found["peers"][0]["status"]["waiting_for"] == [run.directory.peers[2]]
    assert found["peers"][2]["status"] is None


def test_a_run_that_nobody_works_on_says_how_to_go_on(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, "status", "--dir", run.path)
    assert f"nobody works on it here. Go on: barnraise train --resume --dir {run.path}" in out
    assert "to go" not in out
    found = json.loads(printed(capsys, "status", "--dir", run.path, "--json"))
    assert found["remaining_s"] is None


def test_a_run_that_was_joined_or_started_is_taken_up_by_the_same_verb(
    run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    guest = msgspec.structs.replace(read(run.home(0) / "status.json"), peer="12D3KooWguest")
    for index in (0, 1):
        StatusFile(run.home(index) / "status.json").write(guest)
    assert f"Go on: barnraise join {run.path}\n" in printed(capsys, "status", "--dir", run.path)
    (run.path / "run.toml").unlink()
    assert f"Go on: barnraise join {run.path}\n" in printed(capsys, "status", "--dir", run.path)
    service = places.peers_directory() / "default"
    service.parent.mkdir(parents=True)
    run.path.rename(service)
    assert f"Go on: barnraise start --dir {service}\n" in printed(capsys, "status", "--dir", service)


def test_a_peer_that_lives_and_says_nothing_is_silent(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    say(run, 0, "training", 0, time=time.time() - 100)
    lock = DirectoryLock(run.home(0))
    assert "silent" in printed(capsys, "status", "--dir", run.path, "--node", "peer-0")
    lock.release()


def test_a_finished_run_is_finished(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    say(run, 0, "finished", 0, round=5)
    assert "5 of 5 rounds agreed" in (out := printed(capsys, "status", "--dir", run.path))
    assert "finished" in out
    assert "--resume" not in out


@pytest.mark.parametrize("verb", ["status", "peers"])
@pytest.mark.parametrize("name", ["peer-1", "id", "end"])
def test_a_node_is_named_by_directory_or_id(run: Any, capsys: pytest.CaptureFixture[str], verb: str, name: str) -> None:
    ident = run.directory.peers[1]
    node = {"id": ident, "end": ident[-8:]}.get(name, name)
    found = json.loads(printed(capsys, verb, "--dir", run.path, "--node", node, "--json"))
    assert ident == (found["peers"][0]["status"]["peer"] if verb == "status" else found["peer"])
    assert len(found["peers"]) == (1 if verb == "status" else 4)


def test_peers_lists_members_and_guests(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    lock = DirectoryLock(run.home(0))
    out = printed(capsys, "peers", "--dir", run.path)
    found = json.loads(printed(capsys, "peers", "--dir", run.path, "--json"))["peers"]
    lock.release()
    me, second, third = run.directory.peers
    assert f"peer-0 ({me}) is running; it listens on /ip4/127.0.0.1/tcp/4001" in out
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()[-4:]}
    assert rows[me] == ["yes", "0", "0", "itself", "-", "-", "-"]
    assert rows[second][:4] == ["yes", "0", "0", "yes"]
    assert rows[third] == ["yes", "0", "1", "no", "-", "-", "-"]
    assert rows["12D3KooWsomebody"][:4] == ["no", "-", "-", "yes"]
    assert " ".join(rows[second][-4:]) == "0.21 ms 943 Mbit/s"
    assert " ".join(rows["12D3KooWsomebody"][-6:]) == "not known yet not known yet"
    assert (found[1]["latency_s"], found[1]["bandwidth_bytes_s"]) == (0.00021, 117.9e6)
    assert (found[3]["latency_s"], found[0]["latency_s"]) == (None, None)
    assert [row["is_connected"] for row in found] == [False, True, False, True]
    assert 10.0 <= found[3]["silent_s"] < 60.0
    assert found[0]["is_self"]


def test_peers_of_a_dead_peer_is_what_it_knew(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is not running; this is what it knew last" in printed(capsys, "peers", "--dir", run.path)
    found = json.loads(printed(capsys, "peers", "--dir", run.path, "--json"))
    assert (found["is_alive"], found["peers"][1]["silent_s"]) == (False, 0.5)


def test_log_lists_what_was_agreed(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "log", "--dir", run.path).splitlines()
    assert lines[0].split()[:4] == ["height", "what", "round", "peers"]
    assert [line.split()[:3] for line in lines[1:]] == [
        ["0", "cut", "0"],
        ["1", "result", "0"],
        ["2", "cut", "1"],
        ["3", "void", "1"],
        ["4", "cut", "1"],
        ["5", "result", "1"],
        ["6", "cut", "2"],
        ["7", "result", "2"],
    ]
    without = run.directory.peers[2][-6:]
    assert lines[4].endswith(f"without {without}")
    assert lines[5].split()[3] == "2"
    assert lines[5].endswith("attempt 2")
    assert re.search(r"result +2 +- +1\.500 +2\.885 +" + run.state.vertex.hex()[:12] + r" +\d{4}-\d\d-\d\d ", lines[8])


def test_log_for_a_program_has_every_field(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(printed(capsys, "log", "--dir", run.path, "--json", "--last", "2"))
    assert [entry["height"] for entry in found] == [6, 7]
    cut, result = found
    assert (cut["what"], cut["round"], cut["signers"]) == ("cut", 2, list(run.directory.peers[:2]))
    assert cut["contributions"][0] == {"member": run.directory.peers[0], "commitment": "00" * 32, "samples": 16}
    assert result["vertex"] == run.state.vertex.hex()
    assert result["metrics"] == {"train_loss": 1_500_000, "validation_loss": 2_000_000, "tokens": 6144}


def test_show_tells_where_a_checkpoint_comes_from_and_what_is_here(
    run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    out = printed(capsys, "show", "--dir", run.path)
    newest, parent = (records.vertex_id(vertex).hex() for vertex in (run.vertices[-1], run.vertices[-2]))
    assert f"checkpoint              {newest}" in out
    assert f"comes from              {parent}" in out
    assert out.count("(here, and what its name says)") == 2
    assert out.count("contributed") == 3
    assert "certified by            2 of 3 members, by raft; their votes hold" in out
    assert f"voted for by            {run.directory.peers[0]}" in out
    found = json.loads(printed(capsys, "show", newest[:10].upper(), "--dir", run.path, "--json"))
    assert (found["id"], found["round"], found["parents"]) == (newest, 3, [parent])
    assert found["held"] == {"model": True, "outer": True}
    assert (found["signers"], found["uncertified"]) == (list(run.directory.peers[:2]), "")
    assert found["contributors"] == [[peer, 16] for peer in run.directory.peers]


def test_show_says_when_the_votes_do_not_hold(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with sqlite3.connect(run.home(0) / "log.sqlite") as connection:
        votes = msgspec.msgpack.encode([(peer, bytes(SIGNATURE_BYTES)) for peer in run.directory.peers])
        connection.execute("UPDATE log SET votes = ? WHERE height = 7", (votes,))
    connection.close()
    assert "NOT certified           the 2 votes at height 7 do not certify it, with 3 voters" in printed(
        capsys, "show", "--dir", run.home(0)
    )
    found = json.loads(printed(capsys, "show", "--dir", run.home(0), "--json"))
    assert found["signers"] == []
    assert "do not certify it" in found["uncertified"]


def test_dag_draws_what_came_of_what(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    names = [records.vertex_id(vertex).hex() for vertex in run.vertices]
    lines = printed(capsys, "dag", "--dir", run.path).splitlines()
    assert lines[0].split()[:4] == ["graph", "checkpoint", "round", "from"]
    assert [line.split()[:3] for line in lines[1:]] == [["*", names[at][:12], str(at + 1)] for at in (2, 1, 0)]
    assert lines[1].split()[3] == names[1][:12]
    found = json.loads(printed(capsys, "dag", "--dir", run.path, "--json", "--last", "2"))
    assert [(entry["id"], entry["parents"]) for entry in found] == [(names[2], [names[1]]), (names[1], [names[0]])]
    assert [entry["held"] for entry in found] == [True, True]


def test_a_fork_and_a_merge_have_lanes_of_their_own(run: Any) -> None:
    def vertex(round_: int, *parents: Vertex) -> Vertex:
        names = tuple(map(records.vertex_id, parents))
        return msgspec.structs.replace(run.vertices[0], round=round_, parents=names, cursor=len(made))

    made: list[Vertex] = []
    first = vertex(1)
    made.append(first)
    left, right = vertex(2, first), None
    made.append(left)
    right = vertex(2, first)
    made += [right, vertex(3, left), vertex(3, right)]
    merged = vertex(3, made[3], made[4])
    made.append(merged)
    made.append(vertex(4, merged))
    ordered = dag.in_order(made)
    assert [vertex.round for vertex in ordered] == [4, 3, 3, 3, 2, 2, 1]
    assert ordered[1] == merged
    assert dag.graph(ordered) == ["*", "*", "* |", "| *", "* |", "| *", "*"]


def test_show_says_what_is_damaged_or_gone(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    newest = run.vertices[-1]
    for index in (0, 1):
        (run.home(index) / "blobs" / newest.model.hex()).write_bytes(b"torn")
        (run.home(index) / "blobs" / newest.outer.hex()).unlink()
    out = printed(capsys, "show", "--dir", run.path)
    assert "here, but damaged" in out
    assert "not kept here any more" in out


@pytest.mark.parametrize("verb", VERBS)
def test_without_a_run_it_says_what_to_type_with_exit_code_2(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in ([verb], [verb, "--json"], [verb, "--dir", "nowhere"]):
        assert cli.main(words) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert "--dir DIR" in err


@pytest.mark.parametrize("verb", VERBS)
def test_a_run_that_has_not_begun_is_told_or_empty(
    verb: str, made_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made_run(0)
    code = cli.main([verb, "--dir", str(run.path)])
    out, err = capsys.readouterr()
    if verb in ("log", "dag"):
        assert (code, err) == (0, "")
        assert ("nothing is agreed yet" if verb == "log" else "there is no checkpoint yet") in out
    else:
        assert code == 2
        assert "Wait" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["status", "--node", "peer-7"], "--node peer-7 names 0 of the peers here: peer-0"),
        (["peers", "--node", "peer-7"], "--node peer-7 is none of the peers here: peer-0"),
        (["show", "f00d" * 16], "names 0 of 3 checkpoints. barnraise log lists them"),
        (["show", ""], "names 3 of 3 checkpoints"),
        (["log", "--last", "0"], "--last"),
        (["dag", "--last", "0"], "--last"),
    ],
)
def test_what_is_not_there_is_told_with_exit_code_2(
    run: Any, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert cli.main([*words, "--dir", str(run.path)]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
def test_without_a_name_it_is_the_newest_run(
    verb: str, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").mkdir()
    run.path.rename(tmp_path / "runs" / "newest")
    monkeypatch.chdir(tmp_path)
    assert printed(capsys, verb)


def test_looking_changes_nothing_but_databases_own_marks(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def there() -> dict[Path, bytes]:
        files = (file for file in run.path.rglob("*") if file.is_file())
        return {file: file.read_bytes() for file in files if not file.name.endswith(("-shm", "-wal"))}

    before = there()
    for verb in VERBS:
        printed(capsys, verb, "--dir", run.path)
    printed(capsys, "key", "--dir", run.path)
    assert there() == before
    assert not places.home().exists()
