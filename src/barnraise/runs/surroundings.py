"""Examines what lies around a peer on this machine: keys, ports, room, memory, leftovers, and how its run is doing.

For `barnraise doctor`. Everything is looked at and nothing is sent, except that the peers named in ``bootstrap`` are
knocked at. What the peer keeps of the run is for `barnraise.dag.doctor`.
"""

import contextlib
import errno
import ipaddress
import os
import re
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from barnraise.config import PeerConfig
from barnraise.dag import sealing
from barnraise.dag.doctor import REPAIR, Finding
from barnraise.errors import BarnraiseError, ConfigError
from barnraise.identity import ClusterKey, Identity
from barnraise.net.addresses import bulk_endpoint, control_endpoint
from barnraise.runs.directory import CLUSTER_KEY_FILE, IDENTITY_FILE, INVITATION_FILE
from barnraise.swarm.records import MICRO, Vertex

VECTORS_A_ROUND: Final = 4
"""A round writes parameters, momentum and residual before it deletes older ones, and the trainer its update."""
VECTORS_IN_MEMORY: Final = 8
"""Parameters, momentum, residual, the update, the step's copies of the first two, and shards on their way."""
KNOCK_S: Final = 2.0
DIVERGED: Final = 1.3
"""A held-out loss this many times the best one is no noise."""
MIN_MEASURED: Final = 4
MAX_SNAPSHOT_HEADER_BYTES: Final = 100_000_000
"""The limit of the safetensors format."""


def keys(home: Path, config: PeerConfig | None) -> Iterator[Finding]:
    """Examine a peer's secret files: whether they can be read, and by nobody else."""
    cluster_key = config.cluster_key_file if config else home.parent / CLUSTER_KEY_FILE
    for path, load in ((home / IDENTITY_FILE, Identity.load), (cluster_key, ClusterKey.load)):
        try:
            load(path)
        except ConfigError as error:
            yield Finding(level="error", what=str(error))
    invitation = home.parent / INVITATION_FILE
    with contextlib.suppress(FileNotFoundError):
        if stat.S_IMODE(invitation.stat().st_mode) & 0o077:
            told = f"{invitation}: other users can read it, and whoever has it can join"
            yield Finding(level="error", what=told, mend=f"chmod 600 {invitation}")


def snapshots(home: Path) -> Iterator[Finding]:
    """Examine what the built-in trainer keeps of its optimiser from round to round; other trainers keep what they like."""
    for path in sorted((home / "trainer").glob("round-*.safetensors")):
        if _is_snapshot(path):
            continue

        def repair(path: Path = path) -> str:
            path.unlink(missing_ok=True)
            return f"deleted {path.name}"

        told = f"{path}: is no whole snapshot of the trainer"
        mend = f"{REPAIR}; the trainer takes an older one, or begins its optimiser anew."
        yield Finding(level="error", what=told, mend=mend, repair=repair)


def room(home: Path, num_values: int, *, keeps: int) -> Iterator[Finding]:
    """Examine whether the disk and the memory suffice for a model of so many values.

    Args:
        home: the peer's directory.
        num_values: of the flat vector, float32.
        keeps: checkpoints whose tensors stay.
    """
    vector_bytes = 4 * num_values
    free = shutil.disk_usage(home).free
    needed = VECTORS_A_ROUND * vector_bytes
    if free < needed:
        told = f"the disk of {home} has {_mb(free)} free; a round needs {_mb(needed)} for a while"
        yield Finding(level="error", what=told, mend=f"Free some, or keep fewer checkpoints than {keeps}.")
    elif free < 3 * needed:
        told = f"the disk of {home} has {_mb(free)} free, which is three rounds' need or less"
        yield Finding(level="warning", what=told, mend="Free some before it is full: a peer whose disk is full leaves.")
    available = _available_memory_bytes()
    if available is not None and available < VECTORS_IN_MEMORY * vector_bytes:
        told = f"{_mb(available)} of memory are available; the peer alone needs some {_mb(VECTORS_IN_MEMORY * vector_bytes)}"
        mend = "End other programs, or take a smaller model; the trainer's needs come on top (gradient_checkpointing)."
        yield Finding(level="warning", what=told, mend=mend)


def ports(config: PeerConfig) -> Iterator[Finding]:
    """Examine whether a peer that does not run could listen where it is told to."""
    try:
        control = control_endpoint(config.listen).split("/")
        places = [
            ("listen", control[2], int(control[4])),
            ("bulk_listen", *bulk_endpoint(config.bulk_listen, config.listen)),
        ]
    except (ConfigError, ValueError, IndexError) as error:
        yield Finding(level="error", what=f"listen = {config.listen!r}, bulk_listen = {config.bulk_listen!r}: {error}")
        return
    for key, host, port in places:
        if refusal := _refusal(host, port):
            told = f"{key}: nothing can listen on {host}, port {port} ({refusal.strerror})"
            mend = (
                f"Stop the program that has the port (ss -ltnp 'sport = :{port}' names it), or take port 0, a free one."
            )
            if refusal.errno == errno.EADDRNOTAVAIL:
                mend = f"This machine has no such address now: change {key}; 'lan' means the one that leads to others."
            yield Finding(level="error", what=told, mend=mend)
    yield from _reach(places)


def doors(config: PeerConfig) -> Iterator[Finding]:
    """Knock at the peers that this one is to find the others through; those of this machine need not be up."""
    others = [address for address in config.bootstrap if not re.match(r"/ip4/127\.|/ip6/::1/", address)]
    silent = [address for address in others if not _answers(address)]
    if silent and len(silent) == len(others):
        told = f"none of the {len(silent)} peers in bootstrap answers: {', '.join(silent[:3])}"
        mend = (
            "Are they up, and do their firewalls let TCP in? Else ask for a new invitation: barnraise join INVITATION."
        )
        yield Finding(level="error", what=told, mend=mend)
    elif silent:
        told = f"{len(silent)} of {len(others)} peers in bootstrap do not answer: {', '.join(silent[:3])}"
        yield Finding(level="note", what=told, mend="One that answers is enough.")


def learning(vertices: Sequence[Vertex]) -> Iterator[Finding]:
    """Examine a run's held-out losses, newest first, for divergence."""
    measured = [vertex.validation_loss / MICRO for vertex in vertices if vertex.validation_loss >= 0]
    if len(measured) >= MIN_MEASURED and measured[0] > DIVERGED * min(measured):
        told = f"the held-out loss is {measured[0]:.3f} nats per byte and was {min(measured):.3f}: the run diverges"
        mend = (
            "Begin another one with a lower outer.lr or inner.lr, fewer round.steps, or more inner.warmup_steps; "
            "barnraise log shows since when."
        )
        yield Finding(level="warning", what=told, mend=mend)


def sockets(trainer_socket: str = "") -> Iterator[Finding]:
    """Look for sockets of trainers, of any peer of this user on this machine, that nobody listens at any more.

    Args:
        trainer_socket: one more place to look at: `PeerConfig.trainer_socket`.
    """
    stale = [path for path in _trainer_sockets(trainer_socket) if _is_stale(path)]
    if not stale:
        return

    def repair() -> str:
        for path in stale:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # there is something else in it
                path.parent.rmdir()
        return f"removed {len(stale)} sockets"

    told = f"{len(stale)} sockets are left that nobody listens at: {', '.join(map(str, stale[:3]))}"
    yield Finding(level="warning", what=told, mend=REPAIR, repair=repair)


def scratch(home: Path, *, is_running: bool) -> Iterator[Finding]:
    """Look for plain copies in memory of a peer that was killed."""
    try:
        place = sealing.scratch_place(home)
    except BarnraiseError:
        return
    if is_running or not place.is_dir():
        return

    def repair() -> str:
        shutil.rmtree(place)
        return f"removed {place}"

    told = f"{place}: plain copies of sealed tensors are left in memory"
    yield Finding(
        level="warning", what=told, mend=f"{REPAIR}; the peer's next start removes them as well.", repair=repair
    )


def _reach(places: Sequence[tuple[str, str, int]]) -> Iterator[Finding]:
    address = ipaddress.ip_address("127.0.0.1" if places[0][1] == "localhost" else places[0][1])
    told = ", ".join(f"{port or 'a free one'} ({key})" for key, _, port in places)
    if address.is_loopback:
        what = f"it listens on {address}: only peers on this machine can reach it"
        mend = "For others: listen = '/ip4/lan/tcp/0' and bulk_listen = 'lan:0', or --listen lan."
    elif address.is_private:
        what = f"it listens on {address}, TCP ports {told}: peers of the same network can reach it"
        mend = (
            "Let these ports in through the firewall. From the internet, forward them at the router, or dial out to a "
            "peer that can be reached: one side of each pair is enough."
        )
    else:
        what, mend = f"it listens on {address}, TCP ports {told}", "Let these ports in through the firewall."
    yield Finding(level="note", what=what, mend=mend)


def _refusal(host: str, port: int) -> OSError | None:
    """Say why nothing can listen there; None: it can."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as a peer does
            probe.bind((host, port))
    except OSError as error:
        return error
    return None


def _answers(address: str) -> bool:
    found = re.match(r"/(?:ip4|ip6|dns4|dns6|dns)/([^/]+)/tcp/([0-9]{1,5})", address)
    if found is None:
        return False
    try:
        socket.create_connection((found[1], int(found[2])), KNOCK_S).close()
    except (OSError, OverflowError, UnicodeError):
        return False
    return True


def _is_snapshot(path: Path) -> bool:
    """Tell whether a file begins like safetensors and is as long as its header says at least."""
    try:
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            return 2 <= header_bytes <= MAX_SNAPSHOT_HEADER_BYTES and path.stat().st_size >= 8 + header_bytes
    except OSError:
        return False


def _trainer_sockets(named: str) -> Iterator[Path]:
    """Return the sockets of this user at which a peer may have waited for its trainer."""
    candidates = [Path(named)] if named else []
    for directory in Path(tempfile.gettempdir()).glob("barnraise-*"):
        with contextlib.suppress(OSError):
            if directory.stat().st_uid == os.geteuid():
                candidates += directory.iterdir()
    yield from (path for path in candidates if path.is_socket())


def _is_stale(path: Path) -> bool:
    """Tell whether nobody has a socket. Asked for datagrams, a peer's refuses the kind and notices nothing."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            probe.connect(str(path))
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def _available_memory_bytes() -> int | None:
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.0f} MB"
