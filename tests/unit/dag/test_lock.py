"""Who holds a peer's directory: one process that lives, whatever became of the ones before."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from barnraise.dag.lock import LOCK_FILE, DirectoryLock, is_held
from barnraise.errors import ConfigError

HOLD = """
import sys, pathlib
from barnraise.dag.lock import DirectoryLock
held = DirectoryLock(pathlib.Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def holder(directory: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_one_at_a_time(tmp_path: Path) -> None:
    assert not is_held(tmp_path)
    lock = DirectoryLock(tmp_path)
    assert is_held(tmp_path)
    with pytest.raises(ConfigError, match="Is another peer running in this directory"):
        DirectoryLock(tmp_path)
    lock.release()
    lock.release()
    assert not is_held(tmp_path)
    DirectoryLock(tmp_path).release()


def test_a_killed_process_holds_nothing_and_a_living_one_does(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        assert is_held(tmp_path)
        with pytest.raises(ConfigError, match="Is another peer running"):
            DirectoryLock(tmp_path)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / LOCK_FILE).exists()
        assert not is_held(tmp_path)
        DirectoryLock(tmp_path).release()


def test_a_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False):
        lock.release()
        assert not is_held(tmp_path)


def test_a_look_in_between_does_not_refuse_a_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    DirectoryLock(tmp_path).release()
    look = os.open(tmp_path / LOCK_FILE, os.O_RDONLY)
    fcntl.flock(look, fcntl.LOCK_SH)
    monkeypatch.setattr("time.sleep", lambda seconds: fcntl.flock(look, fcntl.LOCK_UN))  # the look ends meanwhile
    DirectoryLock(tmp_path).release()
    os.close(look)


def test_a_directory_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be opened"):
        DirectoryLock(tmp_path / "nowhere")
