"""The command as a user types it, with real trainers, once; and what a peer says to input that cannot be."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from barnraise.config import save
from barnraise.dag.store import Store

from .swarm import Swarm, raised

FIELDS = (
    "val_bits_per_byte",
    "wall_s",
    "tokens",
    "rounds",
    "bytes_sent_per_peer",
    "ddp_bytes_per_peer",
    "vertex",
    "theta_path",
)
TRAIN = (sys.executable, "-P", "-m", "barnraise", "train", "--json", "--preset", "local", "--steps", "3")


def processes_of(directory: Path) -> list[str]:
    """Return the command lines of the processes that name a run's directory."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it ended meanwhile
        if str(directory) in command:
            found.append(command)
    return found


def test_a_swarm_outlives_a_peer_and_a_trainer(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    text = tmp_path / "text.txt"
    text.write_text("Many hands raise a barn in a day, and each of them owns a barn of their own. " * 1000)
    faults = ("--kill", "peer:2@round:1", "--kill", "trainer:1@round:1")
    command = [*TRAIN, "--peers", "3", "--rounds", "3", *faults, "--data", str(text), "--dir", str(directory)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    events: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    last = events[-1]
    assert last["event"] == "run.finished"
    assert not set(FIELDS) - set(last)
    assert last["rounds"] == 3
    assert 0 < last["val_bits_per_byte"] < 10
    assert 0 < last["bytes_sent_per_peer"] < last["ddp_bytes_per_peer"]
    assert Path(last["theta_path"]).stat().st_size > 0
    assert {event["target"] for event in events if event["event"] == "fault.injected"} == {"peer:2", "trainer:1"}
    assert any(event["event"] == "trainer.restarted" and event["source"] == 1 for event in events)
    for round_ in range(3):
        roots = [e["theta"] for e in events if e["event"] == "round.committed" and e["round"] == round_]
        assert len(roots) >= 2
        assert len(set(roots)) == 1
    assert not processes_of(directory)


@pytest.mark.parametrize("num_signals", [1, 2], ids=["once: the round is finished", "twice: at once"])
async def test_ctrl_c_ends_every_process(tmp_path: Path, num_signals: int) -> None:
    directory = tmp_path / "run"
    command = [*TRAIN, "--peers", "2", "--rounds", "1000", "--dir", str(directory)]
    process = await trio.lowlevel.open_process(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        seen = b""
        while b'"round.planned"' not in seen:
            seen += await process.stdout.receive_some()
            assert process.poll() is None, seen
        process.send_signal(signal.SIGINT)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drain, process.stdout)
            said, num_sent = b"", 1
            async for chunk in process.stderr:
                said += chunk
                if num_sent < num_signals and b"finishing the round" in said:
                    process.send_signal(signal.SIGINT)
                    num_sent += 1
        assert await process.wait() == num_signals - 1
        assert "barnraise: finishing the round" in said.decode()
        assert ("barnraise: stopped." in said.decode()) is (num_signals == 2)
        assert b"Traceback" not in said
        assert not processes_of(directory)
    finally:
        if process.poll() is None:
            process.kill()


async def drain(stream: trio.abc.ReceiveStream) -> None:
    async for _ in stream:
        pass


# ---- a peer's own input -------------------------------------------------------------------------------------------


def node(swarm: Swarm, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Start the first peer with what lies in its directory, and wait for its end."""
    home = swarm.directory.home(0)
    command = [sys.executable, "-P", "-m", "barnraise.node", str(home / "peer.toml"), str(swarm.directory.run_file)]
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(environment or {})},
    )


def told(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """Check that a process left with one paragraph and this exit code."""
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("barnraise: ")
    assert done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in words), done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["event"] == "error"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("colour = 1", ("unknown key 'colour'", "Known here")),
        ('bulk_connections = "two"', ("bulk_connections = 'two'", "Change the value")),
        ('bulk_listen = "here"', ("bulk_listen = 'here' is not HOST:PORT", "127.0.0.1:0")),
        ('bootstrap = ["somebody"]', ("bootstrap address", "somebody")),
    ],
)
async def test_a_configuration_that_cannot_be(line: str, words: tuple[str, ...], tmp_path: Path) -> None:
    async with raised(tmp_path, 1) as swarm:
        file = swarm.directory.write_peer_config(0, swarm.directory.peer_config(0))
        key = line.split(" ")[0]
        kept = [known for known in file.read_text().splitlines() if known.split(" ")[0] != key]
        file.write_text("\n".join([*kept, line]))
        told(await trio.to_thread.run_sync(node, swarm), 2, *words)


@pytest.mark.parametrize("plane", ["listen", "bulk_listen"])
async def test_a_port_in_use(plane: str, tmp_path: Path) -> None:
    async with raised(tmp_path, 1) as swarm:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            where = f"/ip4/127.0.0.1/tcp/{port}" if plane == "listen" else f"127.0.0.1:{port}"
            settings = swarm.directory.peer_config(0)
            settings = replace(settings, listen=where) if plane == "listen" else replace(settings, bulk_listen=where)
            swarm.directory.write_peer_config(0, settings)
            told(await trio.to_thread.run_sync(node, swarm), 2, str(port))


async def test_a_directory_of_another_run(tmp_path: Path) -> None:
    async with raised(tmp_path, 1) as swarm:
        swarm.directory.write_peer_config(0, swarm.directory.peer_config(0))
        Store(swarm.directory.home(0) / "log.sqlite", swarm.directory.config.run_id).close()
        await swarm.peers[0].start()
        await swarm.peers[0].committed(0)
        told(await trio.to_thread.run_sync(node, swarm), 2, "is in use. Is another peer running in this directory?")
        await swarm.leave()
        save(replace(swarm.directory.config, seed=99), swarm.directory.run_file)
        told(await trio.to_thread.run_sync(node, swarm), 2, "log.sqlite", "Name another data directory")


async def test_a_fault_that_is_not_understood(tmp_path: Path) -> None:
    async with raised(tmp_path, 1) as swarm:
        await swarm.peers[0].start(fault="explode@Commit")
        assert await swarm.peers[0].end() == 2
        assert "BARNRAISE_FAULT='explode@Commit' is not understood" in swarm.peers[0].words
