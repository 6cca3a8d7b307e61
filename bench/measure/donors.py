"""Donors of blobs, a process each, behind links of a certain rate: what `blobs.py` fetches from.

Where the kernel can do it (Linux, root, iproute2), each donor has a network namespace of its own and what it sends is
limited by tbf on its end of a veth pair into a bridge. Elsewhere a donor waits before each answer for as long as its link would take,
on loopback; the figures say which of the two it was.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from barnraise.dag.blobs import Blobs
from barnraise.dag.depot import Depot
from barnraise.errors import LocalError
from barnraise.identity import ClusterKey, Identity
from barnraise.ids import PeerId
from barnraise.net.bulk import open_bulk
from barnraise.net.seam import Bulk, LinkSpeed, Stream

BENCH: Final = Path(__file__).parents[1]
KEY: Final = ClusterKey(bytes(range(32)))
PREFIX: Final = "barnraise-blobs-"
NETWORK: Final = "10.78.0."
BURST_BYTES: Final = 256 * 1024
QUEUE_MS: Final = 50


def identity(number: int) -> Identity:
    """Return the keys of the peer with this number; 0 asks, the others give."""
    return Identity(bytes([number]) * 32, bytes([number + 100]) * 32)


class Paced:
    """A bulk plane that sends no faster than its link would, one answer behind the other."""

    def __init__(self, bulk: Bulk, bytes_per_s: float) -> None:
        self._bulk, self._bytes_per_s, self._free_at = bulk, bytes_per_s, 0.0
        self.address = bulk.address
        self.bytes_sent = self.bytes_received = 0

    async def send(self, to: PeerId, header: bytes, parts: Sequence[memoryview]) -> None:
        """Wait for the link, then send."""
        size_bytes = sum(part.nbytes for part in parts)
        self._free_at = max(self._free_at, trio.current_time()) + size_bytes / self._bytes_per_s
        await trio.sleep_until(self._free_at)
        await self._bulk.send(to, header, parts)

    async def open_stream(self, to: PeerId, header: bytes) -> Stream:
        """Open no stream: blobs need none."""
        raise LocalError("a donor opens no streams")

    def learn(self, peer: PeerId, host: str, port: int) -> None:
        """Remember where a peer listens."""
        self._bulk.learn(peer, host, port)

    def forget(self, peer: PeerId) -> None:
        """Forget a peer."""
        self._bulk.forget(peer)

    def speed(self, peer: PeerId) -> LinkSpeed | None:
        """Return what was measured of the way to a peer."""
        return self._bulk.speed(peer)


@dataclass(frozen=True, kw_only=True, slots=True)
class Donor:
    """One of them, at work."""

    peer: PeerId
    host: str
    port: int


def lacking() -> str:
    """Say why the kernel cannot limit links here; empty: it can."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "network namespaces need Linux and root"
    if any(shutil.which(program) is None for program in ("ip", "tc")):
        return "there is no ip or tc (Debian: apt install iproute2)"
    try:
        with places(1, 100.0, in_kernel=True):
            return ""
    except LocalError as error:
        return str(error)


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """Where the asker is, and each donor: how to run a command there, and its address."""

    asker: str
    donors: tuple[tuple[tuple[str, ...], str], ...]
    pace_mbit: float
    """What a donor holds itself to; 0: the kernel does."""


@contextlib.contextmanager
def places(count: int, mbit: float, *, in_kernel: bool) -> Iterator[Places]:
    """Make links of this rate, or promise that donors pretend; delete them at the end."""
    if not in_kernel:
        yield Places(asker="127.0.0.1", donors=(((), "127.0.0.1"),) * count, pace_mbit=mbit)
        return
    bridge = f"bb{os.getpid()}"
    with contextlib.ExitStack() as stack:
        _run("ip", "link", "add", bridge, "type", "bridge")
        stack.callback(_run, "ip", "link", "delete", bridge)
        _run("ip", "addr", "add", f"{NETWORK}1/24", "dev", bridge)
        _run("ip", "link", "set", bridge, "up")
        found = []
        for number in range(1, count + 1):
            namespace = f"{PREFIX}{os.getpid()}-{number}"
            _run("ip", "netns", "add", namespace)
            stack.callback(_run, "ip", "netns", "delete", namespace)
            _link(number, namespace, bridge, mbit)
            found.append((("ip", "netns", "exec", namespace), f"{NETWORK}{number + 1}"))
        yield Places(asker=f"{NETWORK}1", donors=tuple(found), pace_mbit=0.0)


@contextlib.contextmanager
def donors(at: Places, blobs: Path, asker_port: int) -> Iterator[list[Donor]]:
    """Start donors that serve a directory of blobs; stop them at the end."""
    with contextlib.ExitStack() as stack:
        starting = [
            _start(stack, number, prefix, blobs, (host, at.asker, asker_port), at.pace_mbit)
            for number, (prefix, host) in enumerate(at.donors, start=1)
        ]
        yield [
            Donor(peer=identity(number).peer_id, host=host, port=_port(process))
            for number, (process, (_, host)) in enumerate(zip(starting, at.donors, strict=True), start=1)
        ]


def _start(
    stack: contextlib.ExitStack,
    number: int,
    prefix: tuple[str, ...],
    blobs: Path,
    places: tuple[str, str, int],
    pace_mbit: float,
) -> subprocess.Popen[str]:
    host, asker_host, asker_port = places
    command = [*prefix, sys.executable, "-P", "-m", "measure.donors", str(number), str(blobs), host, asker_host]
    process = stack.enter_context(
        subprocess.Popen(
            [*command, str(asker_port), str(pace_mbit)],
            env=os.environ | {"PYTHONPATH": str(BENCH)},
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
    )
    assert process.stdin is not None
    stack.callback(process.stdin.close)  # it ends when its input does
    return process


def _port(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise LocalError("a donor did not start; its own words are above")
    return int(json.loads(line)["port"])


def _link(number: int, namespace: str, bridge: str, mbit: float) -> None:
    """Plug a namespace into the bridge, and limit what it sends."""
    outside, inside = f"bb{os.getpid()}n{number}", f"bp{os.getpid()}n{number}"
    _run("ip", "link", "add", outside, "type", "veth", "peer", "name", inside, "netns", namespace)
    _run("ip", "link", "set", outside, "master", bridge)
    _run("ip", "link", "set", outside, "up")
    _run("ip", "-n", namespace, "addr", "add", f"{NETWORK}{number + 1}/24", "dev", inside)
    _run("ip", "-n", namespace, "link", "set", inside, "up")
    _run("ip", "-n", namespace, "link", "set", "lo", "up")
    limit = ("rate", f"{mbit:g}mbit", "burst", str(BURST_BYTES), "latency", f"{QUEUE_MS}ms")
    _run("tc", "-n", namespace, "qdisc", "add", "dev", inside, "root", "tbf", *limit)


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise LocalError(f"{' '.join(command)}: {done.stderr.strip()}")


async def serve(number: int, blobs: Path, host: str, asker: tuple[str, int], pace_mbit: float) -> None:
    """Be a donor until the input ends."""
    depot = Depot(Blobs(blobs), lambda error: None)
    plane = open_bulk(identity(number), KEY, sink=depot.sink, arrived=depot.arrived, host=host)
    async with plane as sealed, trio.open_nursery() as nursery:
        bulk: Bulk = Paced(sealed, pace_mbit * 1e6 / 8) if pace_mbit else sealed
        bulk.learn(identity(0).peer_id, *asker)
        nursery.start_soon(depot.shelf.serve, bulk)
        print(json.dumps({"port": sealed.address[1]}), flush=True)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()


def main() -> None:
    """Read the arguments that `_start` gave."""
    parser = argparse.ArgumentParser()
    parser.add_argument("number", type=int)
    parser.add_argument("blobs", type=Path)
    parser.add_argument("host")
    parser.add_argument("asker_host")
    parser.add_argument("asker_port", type=int)
    parser.add_argument("pace_mbit", type=float)
    given = parser.parse_args()
    trio.run(serve, given.number, given.blobs, given.host, (given.asker_host, given.asker_port), given.pace_mbit)


if __name__ == "__main__":
    main()
