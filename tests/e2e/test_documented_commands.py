"""Every command of the documents that trains, run as it stands there, with a small model from the environment."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from barnraise.config import ModelConfig, RoundConfig, RunConfig, save

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

COMMANDS = (
    ".venv/bin/barnraise train --kill peer:0@round:3 --kill trainer:1@round:5",
    ".venv/bin/barnraise train --data notes.txt --rounds 10",
    ".venv/bin/barnraise train --config runs/20260102-030405-a1b2c3/run.toml",
    ".venv/bin/barnraise train --json",
    "NO_COLOR=1 .venv/bin/barnraise train",
    "BARNRAISE_RUN_OUTER__LR=0.7 .venv/bin/barnraise train --steps 50",
)
SMALL = {"MODEL__HIDDEN_SIZE": 32, "MODEL__NUM_LAYERS": 1, "MODEL__NUM_HEADS": 1, "ROUND__ROUNDS": 7, "ROUND__STEPS": 2}
EARLIER = Path("runs/20260102-030405-a1b2c3/run.toml")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with the text and the earlier run that the documents speak of."""
    (tmp_path / "notes.txt").write_text("Many hands raise a barn in a day. " * 400)
    (tmp_path / EARLIER).parent.mkdir(parents=True)
    save(RunConfig(model=ModelConfig(), round=RoundConfig(rounds=3)), tmp_path / EARLIER)
    return tmp_path


def run(command: str, place: Path) -> str:
    """Run a documented command with this interpreter's package; return what it printed."""
    words = shlex.split(command)
    split = words.index(".venv/bin/barnraise")
    small = {f"BARNRAISE_RUN_{key}": str(value) for key, value in SMALL.items()}
    environment = {**os.environ, **small, **dict(word.split("=", 1) for word in words[:split])}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "barnraise", *words[split + 1 :]],
        cwd=place,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_it_trains_to_the_end(command: str, place: Path) -> None:
    out = run(command, place)
    if command.endswith("--json"):
        last = json.loads(out.splitlines()[-1])
        assert (last["event"], last["peers_finished"], last["rounds"]) == ("run.finished", 4, 7)
        assert last["ddp_bytes_per_peer"] > 0
        assert last["wall_s"] > 0
        return
    seen = 3 if "peer:0" in command else 4
    assert f"{seen} of 4 peers saw the end" in out
    assert "bits per byte" in out
    if "--kill" in command:
        assert "killed peer:0" in out
        assert "peer 1 restarted its trainer" in out
