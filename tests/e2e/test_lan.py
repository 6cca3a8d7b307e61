"""Two machines on one network: two network namespaces with a cable between them, and peers on their real addresses.

The namespaces are ours alone: they are made without any privilege, have no way out, and go when the test ends.
"""

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


@pytest.fixture
def lan() -> Iterator[Lan]:
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


def told(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Return the next thing that a peer says."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"a peer ended with {process.wait()}"
    said: dict[str, Any] = json.loads(line)
    return said


def until_event(process: subprocess.Popen[str], kind: str) -> dict[str, Any]:
    """Return the next event of this kind that a command prints."""
    while (said := told(process))["event"] != kind:
        pass
    return said


def wait_for(path: Path) -> None:
    """Return once a file is there; the test's own timeout bounds it."""
    while not path.exists():
        os.sched_yield()


def peer_of(address: str) -> str:
    return address.rpartition("/")[2]


@pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])
def test_a_full_mesh_forms_between_two_machines_and_tensors_pass_both_ways(lan: Lan, family: int) -> None:
    here, there = HERE[family], THERE[family]
    founder = lan.start(0, number=1, host=here if family else "lan", bootstrap=[], others=2, find_on="")
    address = told(founder)["address"]
    assert address.startswith(f"/ip{'46'[family]}/{here}/tcp/")
    joiner = lan.start(1, number=2, host=there, bootstrap=[address], others=2, find_on="")
    finder = lan.start(1, number=3, host=there, bootstrap=[], others=2, find_on=there)
    places = {peer_of(address): here}
    for process in (joiner, finder):
        listening = told(process)
        assert listening["bulk"] == there
        places[peer_of(listening["address"])] = there
    for process in (founder, joiner, finder):
        report = told(process)
        assert len(report["met"]) == 2
        assert report["met"].items() <= places.items()
        assert sorted(report["whole"]) == sorted(report["met"])


@pytest.mark.parametrize("way", ["invitation", "alone"])
def test_somebody_on_another_machine_joins_a_run(lan: Lan, way: str, tmp_path: Path) -> None:
    """With the word that the run printed, or found by mDNS with the same cluster key."""
    place = tmp_path / "founder"
    train = ("train", "--peers", "1", "--min-peers", "2", "--rounds", "3", "--steps", "1", "--listen", "lan", "--json")
    founder = lan.barnraise(0, tmp_path / "home", *train, "--dir", str(place))
    said = until_event(founder, "peer.started")
    assert f"/ip4/{HERE[0]}/tcp/" in said["address"]
    wait_for(place / "invitation")
    word = ("--listen", "lan") if way == "alone" else ((place / "invitation").read_text().strip(),)
    home = tmp_path / "home" if way == "alone" else tmp_path / "elsewhere"
    joiner = lan.barnraise(1, home, "join", *word, "--json", "--dir", str(tmp_path / "joiner"))
    assert f"/ip4/{THERE[0]}/tcp/" in until_event(joiner, "peer.started")["address"]
    for process in (founder, joiner):
        until_event(process, "run.finished")
        assert process.wait() == 0
