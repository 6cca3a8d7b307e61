"""ENOSPC: a peer whose disk is full says so and leaves; the others go on, and with room it comes along again."""

import shutil
import subprocess
from pathlib import Path

import pytest

from .swarm import check, everybody_contributes, raised, read

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
