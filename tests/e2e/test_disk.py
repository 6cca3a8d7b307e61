"""What becomes of a peer's disk: one that is full, one that shows nothing in the open, one that was damaged.

A peer whose disk is full (ENOSPC) says so and leaves; the others go on, and with room it comes along again.
"""

import dataclasses
import json
import shutil
import signal
import sqlite3
import subprocess
from pathlib import Path

import pytest

from barnraise import cli
from barnraise.dag.sealing import MEMORY_VARIABLE

from .swarm import Peer, check, everybody_contributes, raised, read

SIZE_KB = 420
"""Enough for a peer to start and take part in some rounds."""
ON_A_SMALL_DISK = """
set -e
cp -a "$1/." "$2"
mount -t tmpfs -o size="$3"k none "$1"
cp -a "$2/." "$1"
rm -rf "$2"
home=$1 kept=$2
shift 3
set +e
"$@"
code=$?
cp -a "$home/." "$kept"
exit $code
"""
"""Runs a command with its directory on a small disk of its own, which is copied out before it vanishes."""


def own_mounts() -> list[str] | None:
    """Return the command after which mounts are seen by nobody else; None where this system has no such thing."""
    for command in (["unshare", "--mount"], ["unshare", "--user", "--map-root-user", "--mount"]):
        if shutil.which(command[0]) is None:
            continue
        probe = [*command, "mount", "-t", "tmpfs", "none", "/mnt"]
        if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
            return command
    return None


async def test_a_full_disk_is_told_and_nothing_is_half_applied(tmp_path: Path) -> None:
    unshare = own_mounts()
    if unshare is None:
        pytest.skip("this system lets nobody mount a small disk: unshare(1) with root or user namespaces is needed")
    kept = tmp_path / "kept"
    async with raised(tmp_path, 3, round_s=0.3) as swarm:
        first, second, full = swarm.peers
        await swarm.start(only=[0, 1])
        small = ["sh", "-c", ON_A_SMALL_DISK, "small-disk", str(full.home), str(kept), str(SIZE_KB)]
        await full.start(prefix=[*unshare, *small])
        await full.committed(0)
        assert await full.end() == 1, full.words
        (error,) = full.named("error")
        assert str(full.home) in error["message"]
        assert any(words in error["message"].lower() for words in ("no space left", "disk is full", "disk full"))
        assert "Traceback" not in full.words
        shutil.copytree(kept, full.home, dirs_exist_ok=True)
        assert read(swarm, full.index).state.round >= full.round
        for peer in (first, second):
            await peer.committed(peer.round + 1)
        since = len(full.events)
        await full.start()
        await full.until_found(everybody_contributes(3), since, what="a round with everybody in it again")
        await swarm.leave()
        check(swarm)


def settings(peer: Peer, **changes: object) -> None:
    """Change what a peer's own configuration says."""
    config = dataclasses.replace(peer.directory.peer_config(peer.number), **changes)  # type: ignore[arg-type]
    peer.directory.write_peer_config(peer.number, config)


def examined(peer: Peer, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, list[dict[str, str]]]:
    """Return the exit code of `barnraise doctor`, and what it found."""
    code = cli.main(["doctor", "--dir", str(peer.home), "--json", *options])
    return code, json.loads(capsys.readouterr().out)["peers"][0]["findings"]


async def test_a_peer_that_seals_shows_its_disk_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed, it leaves plain copies in memory, which stands here for what a power cut takes; its next start removes
    them. What it keeps is read again by its key."""
    memory = tmp_path / "memory"
    memory.mkdir()
    monkeypatch.setenv(MEMORY_VARIABLE, str(memory))
    async with raised(tmp_path, 2, round_s=0.3) as swarm:
        plain, sealed = swarm.peers
        settings(sealed, encrypt="cluster", keep_checkpoints=3)
        await swarm.start()
        for peer in (plain, sealed):
            await peer.committed(3)
        sealed.strike(signal.SIGKILL)
        await sealed.end()
        files = list((sealed.home / "blobs").iterdir())
        assert len(files) >= 6  # three checkpoints, of which the oldest may be on its way out
        assert all(".sealed" in file.suffixes for file in files)
        for left in ("update.f32", "initial.f32"):
            assert not (sealed.home / left).exists()
        assert list((sealed.home / "trainer").iterdir()) == []
        assert len(list(memory.iterdir())) == 1
        since = len(sealed.events)
        await sealed.start()
        await sealed.until_found(everybody_contributes(2), since, what="a round with everybody in it again")
        await swarm.leave()
        assert list(memory.iterdir()) == []
        check(swarm)
        kept = 3 * 2 + 1  # parameters and momentum of three checkpoints, and the residual; a round may have begun
        assert 3 <= sum(1 for _ in (sealed.home / "blobs").iterdir()) <= kept + 3
        code, found = examined(sealed, capsys)
        assert code == 0, found


async def test_what_a_repair_removed_is_fetched_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three peers: two go on while the third one's log is mended, which then takes part as if nothing had been."""
    async with raised(tmp_path, 3, round_s=0.3) as swarm:
        damaged = swarm.peers[2]
        await swarm.start()
        await damaged.committed(3)
        assert await damaged.leave() == 0
        connection = sqlite3.connect(damaged.home / "log.sqlite")
        with connection:
            connection.execute("UPDATE log SET votes = x'90' WHERE height = 3")
        connection.close()
        for file in (damaged.home / "blobs").iterdir():
            file.write_bytes(b"rotten")
        code, found = examined(damaged, capsys)
        assert code == 1
        assert any("the log does not hold at height 3" in one["what"] for one in found)
        code, found = examined(damaged, capsys, "--repair")
        assert any("removed the" in one["mended"] for one in found)
        since = len(damaged.events)
        await damaged.start()
        await damaged.until_found(everybody_contributes(3), since, what="a round with everybody in it again")
        await swarm.leave()
        check(swarm)
        code, found = examined(damaged, capsys)
        assert code == 0, found
