"""The user's own loop with a real peer beside it: stopped and gone on with, failed, killed."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

import barnraise
from barnraise.api.parameters import Parameters
from barnraise.api.ranks import Ranks
from barnraise.api.swarm import Swarm
from barnraise.errors import ConfigError

PATIENCE_S = 120.0


def model_and_optimizer() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    return model, torch.optim.AdamW(model.parameters(), lr=0.05)


def train(swarm: Swarm, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        x = torch.randn(8, 4)
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        swarm.step(loss, samples=len(x))


def flat(model: nn.Module) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return Parameters(model, Ranks()).read()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path: Path) -> None:
    model, optimizer = model_and_optimizer()
    with barnraise.join(model, optimizer, sync_every=3, directory=tmp_path / "whole") as swarm:
        train(swarm, model, optimizer, 12)
    expected = flat(model)

    def begun() -> None:
        model, optimizer = model_and_optimizer()
        with barnraise.join(model, optimizer, sync_every=3, directory=tmp_path / "run") as swarm:
            train(swarm, model, optimizer, 8)  # two rounds, and two steps that are lost
            raise RuntimeError("the machine is switched off")

    with pytest.raises(RuntimeError, match="switched off"):
        begun()
    model, optimizer = model_and_optimizer()
    torch.manual_seed(77)  # the process knows nothing of the one before
    with barnraise.join(model, optimizer, directory=tmp_path / "run") as swarm:
        assert (swarm.round, swarm.first_step) == (2, 6)
        train(swarm, model, optimizer, 6)
        assert swarm.metrics["round"] == 3
    assert np.array_equal(flat(model), expected)


def test_the_end_of_a_run_ends_the_loop_and_another_model_is_refused(tmp_path: Path) -> None:
    model, optimizer = model_and_optimizer()
    with barnraise.join(model, optimizer, sync_every=2, rounds=2, directory=tmp_path / "run") as swarm:
        assert swarm.peer_id
        train(swarm, model, optimizer, 4)
        assert swarm.is_over
    other = nn.Linear(3, 3)
    with pytest.raises(ConfigError, match="the same model"):
        barnraise.join(other, torch.optim.SGD(other.parameters()), directory=tmp_path / "run").start()


LOOP = """
import sys, torch, barnraise
model = torch.nn.Linear(2, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
with barnraise.join(model, optimizer, sync_every=2, directory=sys.argv[1]) as swarm:
    print("started", flush=True)
    while True:
        model(torch.randn(4, 2)).square().mean().backward()
        optimizer.step()
        swarm.step()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_of_a_loop_that_is_killed_is_left(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "loop.py").write_text(textwrap.dedent(LOOP))
    command = [sys.executable, str(tmp_path / "loop.py"), str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "started\n", process.stderr.read()
        process.send_signal(number)
        process.wait(PATIENCE_S)
        assert ("KeyboardInterrupt" in process.stderr.read()) == (number == signal.SIGINT)
    lines = (tmp_path / "run" / "events.jsonl").read_bytes().splitlines()
    pid = next(event["pid"] for event in map(msgspec.json.decode, lines) if event["event"] == "peer.started")
    until = time.monotonic() + PATIENCE_S
    while is_alive(pid):
        assert time.monotonic() < until, "the peer outlived its loop"
        os.sched_yield()
