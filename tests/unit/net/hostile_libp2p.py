"""Hosts of our own, and what anybody can say to them who has no cluster key: for tests of what that does to them."""

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from multiaddr import Multiaddr  # type: ignore[import-untyped]  # the package has no py.typed

from barnraise.identity import Identity
from barnraise.net import hardened
from barnraise.net.addresses import parse_address
from barnraise.net.hardened import ControlStream, HardenedHost, open_host
from barnraise.net.host import Libp2pNetwork
from barnraise.net.seam import PeerUp, Received, Refused

from .hosts import network, next_event

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
ALICE, BOB, MALLORY = (Identity(bytes([n]) * 32, bytes(32)) for n in range(3))

YAMUX_HEADER = struct.Struct("!BBHII")
DATA, WINDOW, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8


async def ignore(stream: ControlStream) -> None:
    await trio.sleep_forever()


def host_of(network: Libp2pNetwork) -> HardenedHost:
    assert network._host is not None
    return network._host


async def assert_still_serves(victim: Libp2pNetwork) -> None:
    """Check that an honest peer is admitted and heard."""
    async with network(BOB, bootstrap=victim.addresses) as bob:
        assert isinstance(await next_event(bob), PeerUp)
        await bob.send(victim.peer_id, b"alive?")
        while not isinstance(event := await next_event(victim), Received):
            assert isinstance(event, Refused) or event.peer == BOB.peer_id
        assert event == Received(peer=BOB.peer_id, message=b"alive?")


@asynccontextmanager
async def stream_to(victim: Libp2pNetwork) -> AsyncIterator[ControlStream]:
    """Open a control stream to a victim as anybody can who has no cluster key."""
    async with open_host(MALLORY.ed25519_seed, LOOPBACK, ignore) as host:
        stream = await host.dial(parse_address(victim.addresses[0]))
        yield stream
        await stream.aclose()


@asynccontextmanager
async def yamux_to(victim: Libp2pNetwork | HardenedHost) -> AsyncIterator[Any]:
    """Yield a connection with Noise done and yamux agreed on, to write frames of our own to."""
    address = parse_address(victim.addresses[0])
    port = int(Multiaddr(address.transport).value_for_protocol("tcp"))
    upgrader = hardened._make_swarm(MALLORY.ed25519_seed).upgrader
    raw = RawConnection(TrioTCPStream(await trio.open_tcp_stream("127.0.0.1", port)), True)
    try:
        secured = await upgrader.upgrade_security(raw, True, ID.from_string(address.peer))
        await upgrader.muxer_multistream.select_transport(secured)
        yield secured
    finally:
        await raw.close()


def frame(kind: int, flags: int, stream: int, length: int, version: int = 0) -> bytes:
    return YAMUX_HEADER.pack(version, kind, flags, stream, length)
