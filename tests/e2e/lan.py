"""Two machines on one network: two network namespaces with a cable between them.

The namespaces are ours alone: they are made without any privilege, have no way out, and go when the test ends.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

PEER = Path(__file__).with_name("lan_peer.py")
TOOLS = ("unshare", "nsenter", "ip")
HERE, THERE = ("10.77.0.1", "fd77::1"), ("10.77.0.2", "fd77::2")
SMALL = {
    "BARNRAISE_RUN_MODEL__HIDDEN_SIZE": "32",
    "BARNRAISE_RUN_MODEL__NUM_LAYERS": "1",
    "BARNRAISE_RUN_MODEL__NUM_HEADS": "1",
    "BARNRAISE_RUN_MODEL__MAX_SEQ_LEN": "32",
    "OMP_NUM_THREADS": "1",
}
HOLD = [sys.executable, "-c", "import sys; print('ready', flush=True); sys.stdin.read()"]
"""A process whose namespaces others enter, for as long as its stdin is open."""


@dataclass
class Lan:
    """Two machines; ``enter`` begins a command on each."""

    enter: list[list[str]]
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, machine: int, **settings: Any) -> subprocess.Popen[str]:
        """Start a peer on a machine."""
        command = [*self.enter[machine], sys.executable, str(PEER), json.dumps(settings)]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        self.processes.append(process)
        return process

    def barnraise(self, machine: int, home: Path, *arguments: str) -> subprocess.Popen[str]:
        """Start the command on a machine; ``home`` is where its user's cluster key is."""
        process = subprocess.Popen(
            [*self.enter[machine], sys.executable, "-m", "barnraise", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **SMALL, "PYTHONPATH": os.pathsep.join(sys.path), "BARNRAISE_HOME": str(home)},
        )
        self.processes.append(process)
        return process

    def part(self) -> None:
        """Pull the cable: nothing passes, and nobody is told."""
        self.run(1, "ip link set cable down")

    def heal(self) -> None:
        """Put the cable back."""
        self.run(1, "ip link set cable up")
        self.run(1, "ip route replace default dev cable")

    def run(self, machine: int, command: str) -> None:
        """Run one command on a machine to its end; a kernel without virtual cables skips the test."""
        done = subprocess.run([*self.enter[machine], *command.split()], stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            pytest.skip(f"two machines cannot be made here: {command!r} says {done.stderr.strip()!r}")


def held(command: list[str]) -> subprocess.Popen[str]:
    """Start what holds a namespace, and wait until it does."""
    process = subprocess.Popen([*command, *HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        end(process)
        pytest.skip("this kernel does not let an ordinary user make network namespaces (unshare --net)")
    return process


def end(process: subprocess.Popen[str]) -> None:
    """End a process of this test and free its pipes."""
    process.send_signal(signal.SIGKILL)
    process.communicate()


@contextlib.contextmanager
def two_machines() -> Iterator[Lan]:
    """Make two machines; skip the test where none can be made."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: two machines cannot be made here")
    first = held(["unshare", "--user", "--map-root-user", "--net"])
    here = ["nsenter", "--preserve-credentials", "--user", "--net", "--target", str(first.pid)]
    second = held([*here, "unshare", "--net"])
    made = Lan([here, ["nsenter", "--preserve-credentials", "--user", "--net", "--target", str(second.pid)]])
    try:
        made.run(0, f"ip link add cable type veth peer name cable netns {second.pid}")
        for machine, (four, six) in enumerate((HERE, THERE)):
            for command in (
                "link set lo up",
                f"addr add {four}/24 dev cable",
                f"addr add {six}/64 dev cable nodad",
                "link set cable up",
                "route add default dev cable",
            ):
                made.run(machine, f"ip {command}")
        yield made
    finally:
        for process in (*made.processes, second, first):
            end(process)
