"""Peers of two machines on their real addresses, which find and join each other over the network between them."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from .lan import HERE, THERE, Lan


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
