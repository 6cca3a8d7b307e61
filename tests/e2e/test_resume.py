"""A run that is paused and gone on with is, bit for bit, the run that never stopped; real trainers, dropout and all."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from barnraise.config import InnerConfig, ModelConfig, RoundConfig, RunConfig
from barnraise.dag.store import Store
from barnraise.runs import directory as rundir
from barnraise.runs.directory import RunDirectory

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

ROUNDS = 5
CONFIG = RunConfig(
    model=ModelConfig(hidden_size=32, num_layers=1, num_heads=1, max_seq_len=64, dropout=0.1),
    inner=InnerConfig(optimizer="adamw", batch_size=4),
    round=RoundConfig(rounds=ROUNDS, steps=5, grace_min_s=60.0),
)
"""AdamW and dropout: what a restart could lose. The grace keeps a busy machine from leaving somebody out."""


def raise_swarm(path: Path) -> subprocess.Popen[str]:
    """Start the swarm of a directory that has everything but the peers' processes."""
    command = [sys.executable, "-P", "-m", "barnraise", "train", "--resume", "--dir", str(path), "--json"]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    )


def run_to_the_end(path: Path) -> None:
    done = raise_swarm(path)
    out, words = done.communicate()
    assert done.returncode == 0, out[-2000:] + words[-2000:]


def pause_in_round(path: Path, number: int) -> None:
    """Send one SIGINT as soon as a round has begun anywhere; see that everybody finished one and stopped."""
    process = raise_swarm(path)
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == "round.planned" and event["round"] == number:
            process.send_signal(signal.SIGINT)
            break
    out, words = process.communicate()
    assert process.returncode == 0, out[-2000:] + words[-2000:]
    left = [json.loads(line) for line in out.splitlines() if '"run.left"' in line]
    assert [event["rounds"] for event in left] == [number + 1, number + 1]
    assert all("still a member" in event["reason"] for event in left)


def kill_in_round(path: Path, number: int) -> None:
    """Kill everything at once, as when the power goes."""
    process = raise_swarm(path)
    assert process.stdout is not None
    groups = []
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == "peer.started":
            groups.append(event["pid"])
        if event["event"] == "round.planned" and event["round"] == number:
            break
    process.kill()
    for group in groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    process.communicate()


def book_of(made: RunDirectory, index: int) -> dict[str, Any]:
    """Return all that a peer has at its newest checkpoint, but the times."""
    config, home = made.resolved(), made.home(index)
    store = Store(home / "log.sqlite", config.run_id)
    try:
        vertices, residual = store.vertices(), store.residual()
    finally:
        store.close()
    assert residual is not None
    snapshot = home / "trainer" / f"round-{ROUNDS:08d}.safetensors"
    return {
        "checkpoints": [dataclasses.astuple(_Facts.of(vertex)) for vertex in vertices],
        "residual": residual,
        "snapshot": snapshot.read_bytes(),
    }


@dataclasses.dataclass(frozen=True)
class _Facts:
    round: int
    model: bytes
    outer: bytes
    random: bytes
    cursor: int
    requeued: tuple[tuple[int, int], ...]
    contributors: tuple[tuple[str, int], ...]
    train_loss: int

    @classmethod
    def of(cls, vertex: Any) -> "_Facts":
        return cls(**{field.name: getattr(vertex, field.name) for field in dataclasses.fields(cls)})


def test_a_run_that_was_paused_and_one_that_lost_power_end_like_the_one_that_never_stopped(tmp_path: Path) -> None:
    made = rundir.create(CONFIG, 2, tmp_path / "straight", datetime(2026, 1, 2))
    others = [dataclasses.replace(made, path=tmp_path / name) for name in ("paused", "killed")]
    for other in others:
        shutil.copytree(made.path, other.path)
    paused, killed = others

    run_to_the_end(made.path)
    pause_in_round(paused.path, 2)
    run_to_the_end(paused.path)
    kill_in_round(killed.path, 3)
    run_to_the_end(killed.path)

    for index in range(2):
        straight = book_of(made, index)
        assert len(straight["checkpoints"]) == ROUNDS
        for other in others:
            assert book_of(other, index) == straight
