"""The verb: what it prints, its exit code, and that it leaves a running peer alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from barnraise import cli
from barnraise.dag.lock import DirectoryLock
from barnraise.dag.sealing import MEMORY_VARIABLE
from barnraise.runs import surroundings

MakeRun = Callable[..., Any]


@pytest.fixture
def home(made_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A peer whose log has no entry yet, and nothing wrong with it."""
    monkeypatch.setenv(MEMORY_VARIABLE, str(tmp_path / "memory"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(surroundings, "_available_memory_bytes", lambda: None)
    run = made_run(0)
    run.directory.write_peer_config(0, run.directory.peer_config(0))
    home: Path = run.home(0)
    (home / "blobs").mkdir()
    return home


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    code = cli.main(["doctor", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_what_is_wrong_is_told_with_what_mends_it(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = told(capsys, "--dir", str(home))
    assert (code, found["healthy"]) == (1, False)
    (peer,) = found["peers"]
    assert (peer["peer_dir"], peer["running"]) == (str(home), False)
    (error,) = [one for one in peer["findings"] if one["level"] == "error"]
    assert error["what"] == "the first parameters: the file is missing"
    assert error["mend"].startswith("Start the peer again")


def test_a_person_is_told_the_same(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--dir", str(home)]) == 1
    out = capsys.readouterr().out
    assert out.splitlines()[0] == str(home)
    assert "  error    the first parameters: the file is missing\n           Start the peer again" in out
    assert out.splitlines()[-2:] == ["this machine: nothing to say", "not healthy"]


def test_a_repair_says_what_it_did(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "blobs" / "stray").write_bytes(b"")
    _, found = told(capsys, "--dir", str(home), "--repair")
    assert [one["mended"] for one in found["peers"][0]["findings"] if one["mended"]] == ["deleted 1 files"]
    assert not (home / "blobs" / "stray").exists()


def test_a_running_peer_is_looked_at_and_left_alone(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in (home / "blobs" / "stray", home / "run.toml.partial.toml"):
        file.write_bytes(b"")
    before = {file: file.stat().st_mtime_ns for file in home.rglob("*")}
    lock = DirectoryLock(home)
    before[home / "peer.lock"] = (home / "peer.lock").stat().st_mtime_ns
    _, found = told(capsys, "--dir", str(home), "--repair")
    lock.release()
    assert found["peers"][0]["running"]
    assert "nothing is repaired before it is stopped" in found["peers"][0]["findings"][0]["what"]
    after = {
        file: file.stat().st_mtime_ns for file in home.rglob("*") if file.suffix not in (".sqlite-shm", ".sqlite-wal")
    }
    assert after == {file: time for file, time in before.items() if file in after}
    assert (home / "blobs" / "stray").exists()


def test_settings_that_cannot_be_read_are_told(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (home / "peer.toml").read_text()
    (home / "peer.toml").write_text(text.replace("keep_checkpoints = 2", "keep_checkpoints = 0"))
    _, found = told(capsys, "--dir", str(home))
    assert any("keep_checkpoints = 0 is outside" in one["what"] for one in found["peers"][0]["findings"])


def test_a_run_that_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--dir", str(tmp_path / "nowhere")]) == 2
    assert "no peer keeps its data there" in capsys.readouterr().err
