"""Finding peers on the local network by multicast DNS: one interface, bounded in time and numbers; dials nobody.

The interface is the one that the peer listens on, loopback for a peer that listens there: what a peer of this machine
alone says never leaves the machine. A receiving socket is bound to the multicast group and joined on that interface
alone, a sending one to the interface's address; nothing is ever bound to all interfaces.

`zeroconf` writes and reads the packets. Its own service loop is not used: that listens on every interface and keeps
what anybody says, where this keeps `MAX_FOUND` peers of our own cluster and reads 100 packets a second at most.
"""

import ipaddress
import random
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Final

import ifaddr
import structlog
import trio

from barnraise.errors import Unavailable
from barnraise.ids import PeerId
from barnraise.net.announcement import Announcement, Packet, instance_of, query, read_packet, response

GROUPS: Final = {4: "224.0.0.251", 6: "ff02::fb"}
PORT: Final = 5353
MAX_DATAGRAM_BYTES: Final = 1472
"""What fits an Ethernet frame; ours have less than 600."""
MAX_FOUND: Final = 64
PACKET_PAUSE_S: Final = 0.01
"""After each packet; whoever sends more than 100 a second has the kernel drop them."""
RESPONSE_PAUSE_S: Final = 1.0
"""A record is not sent more often (RFC 6762 section 6)."""
RESPONSE_DELAYS_S: Final = (0.02, 0.12)
"""So that many who are asked at once do not answer at once (RFC 6762 section 6)."""
QUERY_PAUSES_S: Final = (1.0, 3.0, 9.0, 27.0, 60.0)
"""Between the questions of a peer that stays; the last one for ever."""
_IP_MULTICAST_ALL: Final = 49
_IPV6_MULTICAST_ALL: Final = 29
"""Linux, <linux/in.h> and <linux/in6.h>; without them a socket gets what others of this machine have joined."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


@asynccontextmanager
async def announce(announcement: Announcement, found: Callable[[Announcement], None]) -> AsyncIterator[None]:
    """Tell the local network of this peer, and the caller of others of its run, for as long as the block lasts.

    Args:
        announcement: this peer; the address that it listens on chooses the interface.
        found: called with each announcement of another peer of the same run and cluster; a peer's comes again.

    Raises:
        Unavailable: this machine does not let us use multicast DNS on that interface.

    Example:
        >>> async with announce(announcement, lambda seen: network.meet([seen.place])):
        ...     await driver.run()
    """
    with _open(announcement.host) as wire:
        async with trio.open_nursery() as nursery:
            responder = _Responder(wire, announcement)
            nursery.start_soon(responder.run)
            nursery.start_soon(_ask_for_ever, wire)
            nursery.start_soon(_listen_for_others, wire, announcement, responder, found)
            try:
                yield
            finally:
                nursery.cancel_scope.cancel()
                wire.say_at_once(response(announcement, ttl_s=0))


def find(cluster_tag: bytes, timeout_s: float, host: str = "127.0.0.1") -> list[Announcement]:
    """Return the peers of a cluster that answer on the local network, sorted by run and peer; blocks.

    Args:
        cluster_tag: `announcement.cluster_tag` of this machine's cluster key; of others nothing is returned.
        timeout_s: how long to listen, all of it; peers answer within about a second.
        host: this machine's address on the interface to ask on; loopback finds what runs on this machine.

    Raises:
        Unavailable: this machine does not let us use multicast DNS on that interface.
    """
    return trio.run(look, cluster_tag, timeout_s, host)


async def look(cluster_tag: bytes, timeout_s: float, host: str = "127.0.0.1") -> list[Announcement]:
    """Do what `find` does, inside trio."""
    seen: dict[PeerId, Announcement] = {}
    with _open(host) as wire, trio.move_on_after(timeout_s):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_ask_for_ever, wire)
            while True:
                packet = await wire.hear()
                for announcement in packet.present:
                    is_ours = announcement.cluster_tag == cluster_tag
                    if is_ours and (announcement.peer in seen or len(seen) < MAX_FOUND):
                        seen[announcement.peer] = announcement
                for announcement in packet.leaving:
                    seen.pop(announcement.peer, None)
    return sorted(seen.values(), key=lambda announcement: (announcement.run, announcement.peer))


@dataclass(eq=False, slots=True)
class _Wire:
    """The multicast group on one interface."""

    ears: trio.socket.SocketType
    mouth: trio.socket.SocketType
    plain_mouth: socket.socket
    group: tuple[str | int, ...]

    async def hear(self) -> Packet:
        """Return what is said next, at a pace that we can stand."""
        while True:
            data, source = await self.ears.recvfrom(MAX_DATAGRAM_BYTES + 1)
            await trio.sleep(PACKET_PAUSE_S)
            if len(data) <= MAX_DATAGRAM_BYTES and source[1] == PORT:
                return read_packet(data, source[0].partition("%")[0])

    async def say(self, datagram: bytes) -> None:
        try:
            await self.mouth.sendto(datagram, self.group)
        except OSError as error:
            # An interface that is down for a while; the next time may go better.
            log.debug("mdns.not_sent", reason=error.strerror)

    def say_at_once(self, datagram: bytes) -> None:
        """Say something where nothing can be awaited; a full buffer swallows it."""
        try:
            self.plain_mouth.sendto(datagram, self.group)
        except OSError as error:
            log.debug("mdns.not_sent", reason=error.strerror)


class _Responder:
    """Says who we are: twice at the start, then when asked, once a second at most."""

    def __init__(self, wire: _Wire, announcement: Announcement) -> None:
        self._wire = wire
        self._announcement = announcement
        self._instance = instance_of(announcement.peer).lower()
        self._asked = trio.Event()

    def hear(self, packet: Packet) -> None:
        """Take a question; one that holds our answer already is none."""
        if packet.asks and self._instance not in packet.knows:
            self._asked.set()

    async def run(self) -> None:
        datagram = response(self._announcement)
        await self._wire.say(datagram)
        await trio.sleep(RESPONSE_PAUSE_S)
        while True:
            await self._wire.say(datagram)
            await trio.sleep(RESPONSE_PAUSE_S)
            await self._asked.wait()
            self._asked = trio.Event()
            await trio.sleep(random.uniform(*RESPONSE_DELAYS_S))  # noqa: S311  # spreads answers, guards nothing


async def _ask_for_ever(wire: _Wire) -> None:
    for pause_s in QUERY_PAUSES_S:
        await wire.say(query())
        await trio.sleep(pause_s)
    while True:
        await wire.say(query())
        await trio.sleep(QUERY_PAUSES_S[-1])


async def _listen_for_others(
    wire: _Wire, ours: Announcement, responder: _Responder, found: Callable[[Announcement], None]
) -> None:
    while True:
        packet = await wire.hear()
        responder.hear(packet)
        for seen in packet.present:
            if seen.peer != ours.peer and (seen.run, seen.cluster_tag) == (ours.run, ours.cluster_tag):
                found(seen)


@contextmanager
def _open(host: str) -> Iterator[_Wire]:
    """Open the group on the interface that has the address ``host``."""
    ip = ipaddress.ip_address(host)
    with ExitStack() as stack:
        try:
            sockets = _sockets_4(host, stack) if ip.version == 4 else _sockets_6(host, stack)
        except OSError as error:
            raise Unavailable(
                f"multicast DNS cannot be used at {host} ({error.strerror or error}). Join by the line that a peer of "
                "the run printed, or start this peer without mDNS."
            ) from error
        ears, mouth, group = sockets
        for plain in (ears, mouth):
            plain.setblocking(False)
        trio_ears, trio_mouth = trio.socket.from_stdlib_socket(ears), trio.socket.from_stdlib_socket(mouth)
        yield _Wire(trio_ears, trio_mouth, mouth, group)


_Sockets = tuple[socket.socket, socket.socket, tuple[str | int, ...]]


def _sockets_4(host: str, stack: ExitStack) -> _Sockets:
    group = GROUPS[4]
    ears = _socket(socket.AF_INET, (group, PORT), stack)
    ears.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(group) + socket.inet_aton(host))
    if sys.platform == "linux":
        ears.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_ALL, 0)
    mouth = _socket(socket.AF_INET, (host, PORT), stack)
    mouth.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(host))
    mouth.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
    mouth.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
    return ears, mouth, (group, PORT)


def _sockets_6(host: str, stack: ExitStack) -> _Sockets:
    group, index = GROUPS[6], _interface_index(host)
    ears = _socket(socket.AF_INET6, (group, PORT, 0, index), stack)
    membership = socket.inet_pton(socket.AF_INET6, group) + index.to_bytes(4, sys.byteorder)
    ears.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, membership)
    if sys.platform == "linux":
        ears.setsockopt(socket.IPPROTO_IPV6, _IPV6_MULTICAST_ALL, 0)
    mouth = _socket(socket.AF_INET6, (host, PORT), stack)
    mouth.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
    mouth.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
    mouth.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 1)
    return ears, mouth, (group, PORT, 0, index)


def _socket(family: int, address: tuple[str | int, ...], stack: ExitStack) -> socket.socket:
    opened = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
    # The port is every multicast DNS program's, of which a machine may run several.
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "SO_REUSEPORT"):
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    opened.bind(address)
    return opened


def _interface_index(host: str) -> int:
    wanted = ipaddress.ip_address(host)
    for adapter in ifaddr.get_adapters():
        for candidate in adapter.ips:
            text = candidate.ip if isinstance(candidate.ip, str) else candidate.ip[0]
            if ipaddress.ip_address(text.partition("%")[0]) == wanted and adapter.index is not None:
                return adapter.index
    raise OSError(f"no interface of this machine has the address {host}")
