"""Long links in user space: packets of TUN devices wait here for as long as the link is long; rates can be cut as well.

`DelayLine` is the rule, without clock and without I/O; `main` is a process that lives by it, one TUN device for each
network namespace. The kernel's tbf limits what a host sends; what it receives, and whole regions' links, are limited
here. Run by `measure.namespaces`.
"""

import ctypes
import fcntl
import gc
import heapq
import os
import random
import select
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

NETWORK: Final = "10.77.0."
"""The host with index i is NETWORK + (i + 1)."""
DEVICE: Final = "wan0"
NAMESPACES: Final = Path("/run/netns")
SLACK_S: Final = 0.0002
"""Packets come so much early rather than late, several at a time; the kernel needs about as long to wake a process."""
READS_A_TURN: Final = 32
"""Packets taken from one device before the others have their turn."""
MAX_PACKET_BYTES: Final = 65_535
_CLONE_NEWNET: Final = 0x40000000
_TUNSETIFF: Final = 0x400454CA
_IFF_TUN_NO_PI: Final = 0x0001 | 0x1000


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """The links of n hosts, which are known by index."""

    namespaces: tuple[str, ...]
    delays_s: tuple[tuple[float, ...], ...]
    """One way, from a host (row) to a host (column)."""
    down_mbit: tuple[float | None, ...]
    """What each host can receive; None: anything."""
    regions: tuple[int, ...] = ()
    """Where each host is; empty: all in one."""
    between_mbit: float | None = None
    """What all hosts of a region together can send to another region; None: anything."""
    loss: float = 0.0
    """Share of packets that are dropped, at random."""
    queue_s: float = 0.2
    """A link holds no more than it delivers in this time; what comes then is dropped."""
    seed: int = 1


class _Gate:
    """A link of a certain rate, first in, first out."""

    def __init__(self, mbit: float, queue_s: float) -> None:
        self._seconds_a_byte, self._queue_s = 8e-6 / mbit, queue_s
        self._free_s = 0.0

    def pass_(self, size_bytes: int, now_s: float) -> float | None:
        """Return when a packet that comes now is through; None: it was dropped."""
        begins_s = max(now_s, self._free_s)
        if begins_s - now_s > self._queue_s:
            return None
        self._free_s = begins_s + size_bytes * self._seconds_a_byte
        return self._free_s


class DelayLine:
    """Decides when each packet arrives, if it does.

    A packet is under way for as long as the link is long, and then passes the gates on its way, each when it comes to it:
    packets of a short and of a long link that end at one gate are served in the order in which they come there.

    >>> line = DelayLine(Spec(namespaces=("a", "b"), delays_s=((0, 0.5), (0.5, 0)), down_mbit=(None, None)))
    >>> line.take(0, 1, b"packet", now_s=10.0)
    >>> list(line.due(10.4)), line.next_s, list(line.due(10.5))
    ([], 10.5, [(1, b'packet')])
    """

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._random = random.Random(spec.seed)
        self._gates = _gates(spec)
        self._waiting: list[tuple[float, int, int, bytes, tuple[_Gate, ...]]] = []
        """When each packet comes to its next gate or, if there is none, arrives; a number for ties; and where to."""
        self._order = 0
        self.num_dropped = 0

    @property
    def next_s(self) -> float | None:
        """When something happens to a packet next; None: none is under way."""
        return self._waiting[0][0] if self._waiting else None

    def take(self, source: int, destination: int, packet: bytes, now_s: float) -> None:
        """Let a packet set out."""
        if self._spec.loss and self._random.random() < self._spec.loss:
            self.num_dropped += 1
            return
        gates = self._gates[source][destination]
        self._wait(now_s + self._spec.delays_s[source][destination], destination, packet, gates)

    def _wait(self, until_s: float, destination: int, packet: bytes, gates: tuple[_Gate, ...]) -> None:
        self._order += 1
        heapq.heappush(self._waiting, (until_s, self._order, destination, packet, gates))

    def due(self, now_s: float) -> Iterator[tuple[int, bytes]]:
        """Give out the packets that have arrived by now, each with its destination."""
        waiting = self._waiting
        while waiting and waiting[0][0] <= now_s:
            at_s, _, destination, packet, gates = heapq.heappop(waiting)
            if not gates:
                yield destination, packet
                continue
            passed_s = gates[0].pass_(len(packet), at_s)
            if passed_s is None:
                self.num_dropped += 1
            else:
                self._wait(passed_s, destination, packet, gates[1:])


def _gates(spec: Spec) -> list[list[tuple[_Gate, ...]]]:
    """Return what a packet has to pass from each host (row) to each host (column)."""
    count = len(spec.namespaces)
    regions = spec.regions or (0,) * count
    down = [_Gate(mbit, spec.queue_s) if mbit else None for mbit in spec.down_mbit]
    between: dict[tuple[int, int], _Gate] = {}
    if spec.between_mbit:
        pairs = ((a, b) for a in set(regions) for b in set(regions) if a != b)
        between = {pair: _Gate(spec.between_mbit, spec.queue_s) for pair in pairs}
    return [
        [tuple(gate for gate in (between.get((regions[a], regions[b])), down[b]) if gate) for b in range(count)]
        for a in range(count)
    ]


def destination_of(packet: bytes, num_hosts: int) -> int | None:
    """Return the host that an IPv4 packet is for; None: it is no such packet, or for nobody here."""
    if len(packet) < 20 or packet[0] >> 4 != 4 or packet[16:19] != b"\x0a\x4d\x00":
        return None
    index = packet[19] - 1
    return index if 0 <= index < num_hosts else None


def open_device(namespace: str) -> int:
    """Open the TUN device of a namespace without staying there; return its descriptor, which does not block."""
    libc = ctypes.CDLL(None, use_errno=True)
    here = os.open("/proc/self/ns/net", os.O_RDONLY)
    there = os.open(NAMESPACES / namespace, os.O_RDONLY)
    try:
        _enter(libc, there)
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), _IFF_TUN_NO_PI))
        _enter(libc, here)
    finally:
        os.close(here)
        os.close(there)
    return device


def _enter(libc: ctypes.CDLL, namespace: int) -> None:
    if libc.setns(namespace, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")


def carry(line: DelayLine, devices: list[int], parent: int) -> None:
    """Move packets until the parent's pipe is closed.

    select takes microseconds where epoll takes milliseconds, and there are few devices.
    """
    watched = [*devices, parent]
    while True:
        for destination, packet in line.due(time.monotonic() + SLACK_S):
            _write(devices[destination], packet, line)
        next_s = line.next_s
        timeout_s = None if next_s is None else max(0.0, next_s - SLACK_S - time.monotonic())
        ready, _, _ = select.select(watched, (), (), timeout_s)
        if parent in ready:
            return
        for device in ready:
            _read(device, devices.index(device), line, len(devices))


def _read(device: int, source: int, line: DelayLine, num_hosts: int) -> None:
    for _ in range(READS_A_TURN):
        try:
            packet = os.read(device, MAX_PACKET_BYTES)
        except BlockingIOError:
            return
        destination = destination_of(packet, num_hosts)
        if destination is not None:
            line.take(source, destination, packet, time.monotonic())


def _write(device: int, packet: bytes, line: DelayLine) -> None:
    try:
        os.write(device, packet)
    except OSError:  # the receiver's queue is full, as on a real wire
        line.num_dropped += 1


def main() -> int:
    """Emulate the links that the first argument describes until stdin is closed; say ``ready`` when they are there."""
    spec = msgspec.json.decode(sys.argv[1], type=Spec)
    devices = [open_device(namespace) for namespace in spec.namespaces]
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))  # a wire does not wait for a core
    gc.disable()  # nothing here is cyclic
    print("ready", flush=True)
    line = DelayLine(spec)
    carry(line, devices, sys.stdin.fileno())
    print(line.num_dropped, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
