"""``barnraise doctor``: what is wrong with the peers of this machine, what to do about it, and what can be mended here."""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final

from cyclopts import Parameter

from barnraise.cli.page import Directory, Json, print_json
from barnraise.config import PeerConfig, load_peer_config
from barnraise.dag import doctor as disk_doctor
from barnraise.dag import lock
from barnraise.dag.doctor import Finding, Patient
from barnraise.dag.retention import Retention
from barnraise.errors import ConfigError
from barnraise.identity import Identity, PublicIdentity
from barnraise.ids import PeerId
from barnraise.runs import reading, surroundings, unsealing
from barnraise.runs.directory import IDENTITY_FILE, PEER_FILE, RUN_FILE
from barnraise.swarm.records import Vertex

VOTERS_FILE: Final = "voters"
RUNNING: Final = "it runs: everything was looked at, and nothing is repaired before it is stopped"
RECENT_VERTICES: Final = 50


def doctor(
    *,
    directory: Directory = None,
    repair: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    json: Json = False,
) -> int:
    """Examine the peers of this machine: disk, log, votes, tensors, keys, ports, memory; say what mends what is wrong.

    The exit code is 0 if nothing is wrong, and 1 otherwise. A peer that runs is only looked at.

    Args:
        directory: Directory of the run, or of one peer. Default: the run of this user in which something happened last.
        repair: Mend what can be mended without asking: cut a log off where it does not hold, delete what is damaged, so
            that it is fetched again, and what was left over.
        json: Print one object, with a list of peers and what was found about each.
    """
    peers = {home: list(_examined(home, repair=repair)) for home in reading.peer_directories(reading.find(directory))}
    machine = list(surroundings.sockets())
    if repair:
        machine = disk_doctor.repaired(machine)
    everything = itertools.chain(machine, *peers.values())
    is_healthy = not any(finding.level == "error" and not finding.mended for finding in everything)
    if json:
        about = [{**_running(home), "findings": _records(findings)} for home, findings in peers.items()]
        print_json({"healthy": is_healthy, "peers": about, "machine": _records(machine)})
    else:
        for home, findings in peers.items():
            _print(f"{home}{' (running)' if lock.is_held(home) else ''}", findings)
        _print("this machine", machine)
        print("healthy" if is_healthy else "not healthy")
    return 0 if is_healthy else 1


def _examined(home: Path, *, repair: bool) -> Iterator[Finding]:
    is_running = lock.is_held(home)
    if is_running and repair:
        yield Finding(level="note", what=RUNNING)
    findings = list(_findings(home, is_running=is_running))
    yield from disk_doctor.repaired(findings) if repair and not is_running else findings


def _findings(home: Path, *, is_running: bool) -> Iterator[Finding]:
    config: PeerConfig | None = None
    try:
        if (home / PEER_FILE).is_file():
            config = dataclasses.replace(load_peer_config(home / PEER_FILE), data_dir=home)
            _retention(config)
    except ConfigError as error:
        yield Finding(level="error", what=str(error))
        config = None
    yield from surroundings.keys(home, config)
    try:
        patient = _patient(home, config, is_running=is_running)
    except ConfigError as error:
        yield Finding(level="error", what=str(error))
        return
    yield from disk_doctor.examine(patient)
    if config and not (is_running or config.trainer or config.trainer_socket):
        yield from surroundings.snapshots(home)
    yield from surroundings.scratch(home, is_running=is_running)
    num_values, vertices = _known(home)
    yield from surroundings.room(home, num_values, keeps=patient.retention.newest)
    yield from surroundings.learning(vertices)
    if config is not None:
        yield from () if is_running else surroundings.ports(config)
        yield from surroundings.doors(config)


def _patient(home: Path, config: PeerConfig | None, *, is_running: bool) -> Patient:
    """Gather what an examination of the disk needs; raises `ConfigError` for a configuration or key that is damaged."""
    has_run = any((place / RUN_FILE).is_file() for place in (home, home.parent))
    return Patient(
        home=home,
        config=reading.run_config(home) if has_run else None,
        voters=_voters(home),
        retention=_retention(config),
        seal=unsealing.seal_of(home),
        is_running=is_running,
    )


def _retention(config: PeerConfig | None) -> Retention:
    return Retention(newest=config.keep_checkpoints, every=config.keep_every) if config else Retention()


def _voters(home: Path) -> dict[PeerId, PublicIdentity]:
    """Return the keys that votes in a peer's log can be checked with: its own, and those that it has kept."""
    known = []
    with contextlib.suppress(ConfigError):  # told among the keys
        known.append(Identity.load(home / IDENTITY_FILE).public)
    file = home / VOTERS_FILE
    for line in file.read_text("ascii", errors="replace").splitlines() if file.is_file() else ():
        try:
            known.append(PublicIdentity.decode(bytes.fromhex(line)))
        except ValueError:
            continue  # cut short by a crash, or empty
    return {identity.peer_id: identity for identity in known}


def _known(home: Path) -> tuple[int, list[Vertex]]:
    """Return how many values the model has, and the newest checkpoints; nothing where the log cannot be read."""
    try:
        with reading.opened(home) as reader:
            founding = reader.founding()
            return (founding.blocks[-1][1] if founding else 0), reader.vertices(RECENT_VERTICES)
    except ConfigError:
        return 0, []


def _running(home: Path) -> dict[str, Any]:
    return {"peer_dir": str(home), "running": lock.is_held(home)}


def _records(findings: list[Finding]) -> list[dict[str, str]]:
    return [{"level": one.level, "what": one.what, "mend": one.mend, "mended": one.mended} for one in findings]


def _print(about: str, findings: list[Finding]) -> None:
    print(about if findings else f"{about}: nothing to say")
    for finding in findings:
        print(f"  {finding.level:7}  {finding.what}")
        told = f"done: {finding.mended}" if finding.mended else finding.mend
        if told:
            print(f"           {told}")
