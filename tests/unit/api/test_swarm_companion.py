"""The peer's process beside the loop, against small scripts that behave and misbehave as a peer may."""

import os
import re
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from barnraise.api import companion as companions
from barnraise.api.companion import Companion
from barnraise.api.place import Place
from barnraise.config import PeerConfig
from barnraise.errors import BarnraiseError, ConfigError, LocalError, Unavailable

PEER = "12D3KooWGBmP1i8cQj8tLfJQiRVjZ1E3hFLFBPaEUgrMJjSo6Rc1"
PREAMBLE = f"""
import json, os, socket, sys, tomllib, time

def tell(event, **fields):
    print(json.dumps({{"time": 1.0, "event": event, **fields}}), flush=True)

def listen():
    settings = tomllib.load(open(sys.argv[1], "rb"))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(settings["trainer_socket"])
    listener.listen()
    return listener.accept()[0]

tell("peer.started", peer="{PEER}", address="/ip4/127.0.0.1/tcp/1/p2p/{PEER}", run="ab" * 32, pid=os.getpid())
"""
OBEDIENT = "connection = listen()\nsys.stdin.read()"


@contextmanager
def beside(tmp_path: Path, script: str) -> Iterator[Companion]:
    file = tmp_path / "peer.py"
    file.write_text(PREAMBLE + textwrap.dedent(script))
    home = tmp_path / "peer-0"
    home.mkdir()
    settings = PeerConfig(data_dir=home, cluster_key_file=tmp_path / "key")
    place = Place(path=tmp_path, run_file=tmp_path / "run.toml", settings=settings, founded=True)
    found = Companion(place, [sys.executable, str(file)])
    try:
        yield found
    finally:
        found.kill()
        found.leave_at_once()


def test_it_is_met_heard_and_seen_off(tmp_path: Path) -> None:
    script = 'tell("peer.joined", other="a")\ntell("peer.joined", other="b")\ntell("peer.lost", other="a")\n'
    script += 'tell("round.committed", round=3, train_loss=1.5)\nprint("no event")\n' + OBEDIENT
    with beside(tmp_path, script) as peer:
        with peer.connect() as session:
            assert not session.has_mail
            assert peer.wait(lambda: peer.committed is not None, 20.0)
            assert (peer.peer_id, peer.run.hex(), peer.num_connected) == (PEER, "ab" * 32, 2)
            assert peer.committed is not None
            assert peer.committed.round == 3
        pid = peer._process.pid
        assert not peer.wait(lambda: False, 0.01)
        peer.leave_at_once()
        assert not psutil.pid_exists(pid)
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert len(lines) == 5
    assert all('"source":0' in line for line in lines)


@pytest.mark.parametrize(
    ("script", "kind", "match"),
    [
        (
            'tell("error", message="no such thing.", next="Mend it.")\nsys.exit(2)',
            ConfigError,
            "no such thing. Mend it",
        ),
        ('tell("error", message="nobody there.")\nsys.exit(3)', Unavailable, "nobody there"),
        ('sys.exit("out of paper")', LocalError, "exit code 1.*out of paper"),
        ("os.kill(os.getpid(), 9)", LocalError, "killed by signal 9"),
        ("connection = listen()\nconnection.close()", LocalError, "exit code 0"),
    ],
)
def test_its_end_is_an_exception_in_its_own_words(
    tmp_path: Path, script: str, kind: type[BarnraiseError], match: str
) -> None:
    with beside(tmp_path, script) as peer:
        if "listen" in script:
            peer.connect().__exit__(None, None, None)
            error: BarnraiseError = peer.why_it_ended()
        else:
            with pytest.raises(BarnraiseError) as caught:
                peer.connect()
            error = caught.value
    assert isinstance(error, kind)
    assert re.search(match, str(error))


def test_one_that_does_not_leave_is_killed_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(companions, "LEAVE_AT_ONCE_S", 0.2)
    script = """
        import signal, subprocess
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        tell("trainer.started", pid=child.pid)
        connection = listen()
        time.sleep(600)
    """
    with beside(tmp_path, script) as peer:
        peer.connect().__exit__(None, None, None)
        assert peer.wait(lambda: peer._view.peers[0].trainer_pid > 0, 20.0)
        pids = (peer._process.pid, peer._view.peers[0].trainer_pid)
        peer.leave_at_once()
    gone, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=10)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE], gone


def test_one_that_leaves_by_itself_is_waited_for(tmp_path: Path) -> None:
    with beside(tmp_path, "connection = listen()\nconnection.recv(1)\ntell('peer.joined', other='late')") as peer:
        peer.connect().__exit__(None, None, None)
        assert peer.wait_for_end(20.0)
        assert peer.num_connected == 2, "its last words are heard"


def test_it_does_not_outlive_this_process(tmp_path: Path) -> None:
    """Ctrl-C in a terminal reaches a whole process group: the peer has one of its own, and a pipe that tells it."""
    with beside(tmp_path, "sys.stdin.read()") as peer:
        assert os.getpgid(peer._process.pid) != os.getpgid(0)
        assert peer._process.stdin is not None
        peer._process.stdin.close()
        assert peer._process.wait(20) == 0
