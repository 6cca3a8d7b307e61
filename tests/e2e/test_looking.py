"""Looking at a run from another process while it goes on, after a peer was killed, and after its end."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from barnraise.train.device import choose

SMALL = {
    "MODEL__HIDDEN_SIZE": 32,
    "MODEL__NUM_LAYERS": 1,
    "MODEL__NUM_HEADS": 1,
    "ROUND__ROUNDS": 400,
    "ROUND__STEPS": 4,
}
DEADLINE_S = 120.0
COMMAND = (sys.executable, "-P", "-m", "barnraise")
pytestmark = pytest.mark.timeout(400)


def environment() -> dict[str, str]:
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        **{f"BARNRAISE_RUN_{key}": str(value) for key, value in SMALL.items()},
    }


@pytest.fixture
def train(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A run of three peers that would go on for longer than the test."""
    with (tmp_path / "out").open("wb") as out:
        process = subprocess.Popen(
            [*COMMAND, "train", "--peers", "3"],
            cwd=tmp_path,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGINT)
        process.wait(60)


def ask(place: Path, *words: str, may_fail: bool = False) -> Any:
    """Return what a verb says to a program; None where it may fail and does."""
    done = subprocess.run(
        [*COMMAND, *words, "--json"],
        cwd=place,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if may_fail and done.returncode == 2:
        return None
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def status_when(place: Path, accept: Callable[[Any], bool]) -> Any:
    """Return the status once it is as wanted; asking takes a while, so that this loop needs no rest."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        found = ask(place, "status", may_fail=True)
        if found is not None and accept(found):
            return found
    raise AssertionError(f"not in {DEADLINE_S:.0f} s; last: {found}; {(place / 'out').read_text()[-2000:]}")


def test_a_run_is_seen_from_outside(tmp_path: Path, train: subprocess.Popen[bytes]) -> None:
    found = status_when(tmp_path, lambda found: found["round"] >= 2 and found["round_s"])
    assert [peer["is_alive"] for peer in found["peers"]] == [True] * 3
    assert found["peers"][0]["status"]["device"] == choose("auto").device.type
    assert found["remaining_s"] > 0

    checkpoint = ask(tmp_path, "show")
    assert checkpoint["round"] >= 2
    assert checkpoint["held"] == {"model": True, "outer": True}
    assert len(checkpoint["signers"]) >= 2
    entries = ask(tmp_path, "log", "--last", "1000")
    assert [entry["height"] for entry in entries] == list(range(len(entries)))
    peers = ask(tmp_path, "peers", "--node", "peer-1")["peers"]
    assert [peer["is_connected"] for peer in peers if not peer["is_self"]] == [True, True]

    victim = found["peers"][2]["status"]
    os.kill(victim["pid"], signal.SIGKILL)
    after = status_when(tmp_path, lambda found: not found["peers"][2]["is_alive"])
    assert [peer["is_alive"] for peer in after["peers"]] == [True, True, False]
    gone = ask(tmp_path, "peers", "--node", victim["peer"])
    assert not gone["is_alive"]
    status_when(tmp_path, lambda found: found["round"] > after["round"])

    train.send_signal(signal.SIGINT)
    train.wait(60)
    ended = ask(tmp_path, "status")
    assert [peer["is_alive"] for peer in ended["peers"]] == [False] * 3
    assert ended["remaining_s"] is None
    assert ask(tmp_path, "show", "latest")["round"] == ended["round"]
