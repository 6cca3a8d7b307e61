"""Hosts on one machine: network namespaces joined by links of a length, a rate and a loss. Made here, and deleted here.

What a host sends is limited by the kernel (tbf on its TUN device); the rest is `measure.emulator`'s. Linux and root.
"""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
from measure.emulator import DEVICE, NETWORK, Spec

from barnraise.errors import ConfigError, LocalError

BENCH: Final = Path(__file__).parents[1]
PREFIX: Final = "barnraise-"
"""Of a namespace's name; the process that made it comes behind it."""
BURST_BYTES: Final = 64 * 1024
TBF_QUEUE_S: Final = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class Links:
    """What lies between hosts."""

    up_mbit: tuple[float, ...]
    """What each host can send; as many hosts as figures."""
    down_mbit: tuple[float | None, ...] | None = None
    """What each can receive; None: the same."""
    round_trip_ms: float = 50.0
    """Between any two hosts of one region."""
    regions: tuple[int, ...] = ()
    """Where each host is; empty: all in one."""
    between_ms: float = 50.0
    """The round trip between two regions."""
    between_mbit: float | None = None
    """What one region can send to another."""
    loss: float = 0.0
    mtu: int = 9000
    """Large, so that the delay line's process keeps up; where loss matters, 1500."""
    congestion: str | None = None
    """The hosts' default congestion control; None: this machine's."""

    @property
    def num_hosts(self) -> int:
        """How many hosts there are."""
        return len(self.up_mbit)

    def mbit_to_next(self) -> list[float]:
        """Return what each host can send to the next one, and the last to the first, all at once."""
        hosts = range(self.num_hosts)
        down, regions = self.down_mbit or self.up_mbit, self.regions or (0,) * self.num_hosts
        found = []
        for here in hosts:
            there = (here + 1) % self.num_hosts
            limits = [self.up_mbit[here], down[there], None if regions[here] == regions[there] else self.between_mbit]
            found.append(min(limit for limit in limits if limit is not None))
        return found

    def spec(self, namespaces: Sequence[str]) -> Spec:
        """Return the part of it that is the delay line's."""
        regions = self.regions or (0,) * self.num_hosts
        one_way_s = [
            tuple((self.round_trip_ms if a == b else self.between_ms) / 2000 for b in regions) for a in regions
        ]
        return Spec(
            namespaces=tuple(namespaces),
            delays_s=tuple(one_way_s),
            down_mbit=self.up_mbit if self.down_mbit is None else self.down_mbit,
            regions=regions,
            between_mbit=self.between_mbit,
            loss=self.loss,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Host:
    """One of them: how to run a command there, and its address."""

    prefix: tuple[str, ...]
    address: str


def lacking() -> str | None:
    """Say in words why this machine cannot emulate links; None: it can."""
    if not sys.platform.startswith("linux"):
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "making network namespaces needs root"
    for program in ("ip", "tc"):
        if shutil.which(program) is None:
            return f"there is no command {program!r} (Debian: apt install iproute2)"
    if not Path("/dev/net/tun").exists():
        return "there is no /dev/net/tun (modprobe tun)"
    return None


@contextlib.contextmanager
def emulated(links: Links) -> Iterator[list[Host]]:
    """Make hosts and links; delete them at the end, whatever happens.

    Raises:
        ConfigError: this machine cannot do it; the message says why.
    """
    why = lacking()
    if why is not None:
        raise ConfigError(f"links cannot be emulated here: {why}.")
    _delete_left_over()
    names = [f"{PREFIX}{os.getpid()}-{index}" for index in range(links.num_hosts)]
    try:
        for index, name in enumerate(names):
            _make(name, index, links)
        with _delay_line(links.spec(names)):
            yield [
                Host(prefix=("ip", "netns", "exec", name), address=f"{NETWORK}{index + 1}")
                for index, name in enumerate(names)
            ]
    finally:
        for name in names:
            _run("ip", "netns", "delete", name, check=False)


def _delete_left_over() -> None:
    """Delete namespaces of benches that were killed."""
    for line in _run("ip", "netns", "list").splitlines():
        name = line.split()[0]
        if name.startswith(PREFIX) and not Path(f"/proc/{name.split('-')[1]}").exists():
            _run("ip", "netns", "delete", name, check=False)


def _make(name: str, index: int, links: Links) -> None:
    _run("ip", "netns", "add", name)
    inside = ("ip", "-n", name)
    _run(*inside, "link", "set", "lo", "up")
    _run(*inside, "tuntap", "add", "dev", DEVICE, "mode", "tun")
    _run(*inside, "link", "set", DEVICE, "mtu", str(links.mtu), "txqueuelen", "4000", "up")
    _run(*inside, "addr", "add", f"{NETWORK}{index + 1}/32", "dev", DEVICE)
    route = [*inside, "route", "add", f"{NETWORK}0/24", "dev", DEVICE, "src", f"{NETWORK}{index + 1}"]
    _run(*route, *(("congctl", links.congestion) if links.congestion else ()))
    rate_mbit = links.up_mbit[index]
    limit = (f"{rate_mbit:g}mbit", "burst", str(BURST_BYTES), "latency", f"{TBF_QUEUE_S * 1000:g}ms")
    _run("tc", "-n", name, "qdisc", "add", "dev", DEVICE, "root", "tbf", "rate", *limit)


def _run(*command: str, check: bool = True) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode and check:
        raise ConfigError(f"links cannot be emulated here: {' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


@contextlib.contextmanager
def _delay_line(spec: Spec) -> Iterator[None]:
    command = [sys.executable, "-P", "-m", "measure.emulator", msgspec.json.encode(spec).decode()]
    environment = os.environ | {"PYTHONPATH": str(BENCH)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as process:  # type: ignore[call-overload]
        try:
            if process.stdout.readline() != "ready\n":
                raise LocalError("the delay line did not begin; its own words are above")
            yield
        finally:
            process.stdin.close()
            process.wait()
