"""What every `Network` promises, checked on the one in memory and on the one over libp2p."""

import contextlib
import itertools
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

import pytest
import trio

from barnraise.errors import LocalError, Unavailable
from barnraise.identity import ClusterKey, Identity
from barnraise.ids import PeerId
from barnraise.net import links
from barnraise.net.host import open_network
from barnraise.net.memory import MemoryMedium, open_medium
from barnraise.net.seam import MAX_MESSAGE_BYTES, Network, PeerDown, PeerUp, Received

from .hosts import PATIENCE_S, next_event, until


class World(Protocol):
    """Where peers come and go."""

    async def start(self, number: int) -> Network: ...

    async def stop(self, number: int) -> None: ...


class MemoryWorld:
    def __init__(self, medium: MemoryMedium) -> None:
        self._medium = medium

    async def start(self, number: int) -> Network:
        return self._medium.join(PeerId(f"peer{number}"), hello=b"hello %d" % number)

    async def stop(self, number: int) -> None:
        self._medium.crash(PeerId(f"peer{number}"))


class Libp2pWorld:
    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._key = ClusterKey.generate()
        self._identities = [Identity.generate() for _ in range(4)]
        self._bootstrap: tuple[str, ...] = ()
        self._stops: dict[int, tuple[trio.Event, trio.Event]] = {}

    async def start(self, number: int) -> Network:
        network: Network = await self._nursery.start(self._run, number)
        return network

    async def stop(self, number: int) -> None:
        stop, stopped = self._stops[number]
        stop.set()
        await stopped.wait()

    async def _run(self, number: int, *, task_status: Any) -> None:
        stop, stopped = self._stops[number] = trio.Event(), trio.Event()
        async with open_network(
            self._identities[number],
            self._key,
            run=b"run",
            hello=b"hello %d" % number,
            bootstrap=self._bootstrap,
            rng=random.Random(number),
        ) as network:
            self._bootstrap = self._bootstrap or network.addresses
            task_status.started(network)
            await stop.wait()
        stopped.set()


@asynccontextmanager
async def memory_world() -> AsyncIterator[World]:
    async with open_medium(random.Random(1)) as medium:
        yield MemoryWorld(medium)


@asynccontextmanager
async def libp2p_world() -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        yield Libp2pWorld(nursery)
        nursery.cancel_scope.cancel()


@pytest.fixture(params=[memory_world, libp2p_world])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    async with request.param() as made:
        yield made


async def start_mesh(world: World, size: int) -> list[Network]:
    networks = [await world.start(number) for number in range(size)]
    for number, network in enumerate(networks):
        ups = [await next_event(network) for _ in range(size - 1)]
        others = {PeerUp(peer=networks[k].peer_id, hello=b"hello %d" % k) for k in range(size) if k != number}
        assert set(ups) == others
    return networks


async def test_a_full_mesh_forms_and_everybody_is_announced_once(world: World) -> None:
    networks = await start_mesh(world, 3)
    for network in networks:
        for other in networks:
            if other is not network:
                await network.send(other.peer_id, b"to " + other.peer_id.encode())
    for network in networks:
        received = {await next_event(network) for _ in range(2)}
        text = b"to " + network.peer_id.encode()
        assert received == {Received(peer=other.peer_id, message=text) for other in networks if other is not network}


async def test_messages_arrive_whole_and_in_order(world: World) -> None:
    alice, bob = await start_mesh(world, 2)
    rng = random.Random(5)
    sizes = [0, 1, 65_000, MAX_MESSAGE_BYTES, *(rng.randrange(2000) for _ in range(200))]
    messages = [rng.randbytes(size) for size in sizes]

    async def send_all() -> None:
        for message in messages:
            await alice.send(bob.peer_id, message)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_all)
        for message in messages:
            assert await next_event(bob) == Received(peer=alice.peer_id, message=message)


async def test_what_cannot_be_sent_says_so(world: World) -> None:
    alice, bob = await start_mesh(world, 2)
    with pytest.raises(LocalError, match="over the limit of 65536"):
        await alice.send(bob.peer_id, bytes(MAX_MESSAGE_BYTES + 1))
    with pytest.raises(Unavailable, match="not connected"):
        await alice.send(PeerId("nobody"), b"")


async def test_both_ends_measure_the_latency_of_a_link_for_as_long_as_there_is_one(world: World) -> None:
    alice, bob = await start_mesh(world, 2)
    await until(lambda: None not in (alice.latency_s(bob.peer_id), bob.latency_s(alice.peer_id)))
    for measured in (alice.latency_s(bob.peer_id), bob.latency_s(alice.peer_id)):
        assert 0 < (measured or 0) < PATIENCE_S
    assert alice.latency_s(PeerId("nobody")) is None
    await world.stop(1)
    assert isinstance(await next_event(alice), PeerDown)
    await until(lambda: alice.latency_s(bob.peer_id) is None)


async def test_a_peer_that_leaves_is_down_and_may_come_back(world: World) -> None:
    alice, bob = await start_mesh(world, 2)
    await world.stop(1)
    down = await next_event(alice)
    assert isinstance(down, PeerDown)
    assert (down.peer, bool(down.reason)) == (bob.peer_id, True)
    with pytest.raises(Unavailable):
        await alice.send(bob.peer_id, b"anybody?")
    again = await world.start(1)
    assert await next_event(alice) == PeerUp(peer=bob.peer_id, hello=b"hello 1")
    assert await next_event(again) == PeerUp(peer=alice.peer_id, hello=b"hello 0")
    await alice.send(bob.peer_id, b"welcome")
    assert await next_event(again) == Received(peer=alice.peer_id, message=b"welcome")


async def test_an_application_that_never_reads_loses_the_link_loudly(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the sizes: what was sent has either arrived, or the link went down; nothing is missing in between."""
    monkeypatch.setattr(links, "STALL_DEADLINE_S", 0.05)
    monkeypatch.setattr(links, "MAX_UNREAD_MESSAGES", 8)
    alice, bob = await start_mesh(world, 2)
    with contextlib.suppress(Unavailable), trio.fail_after(PATIENCE_S):
        for number in itertools.count():
            await alice.send(bob.peer_id, number.to_bytes(4, "little") + bytes(MAX_MESSAGE_BYTES - 4))
    down = await next_event(alice)
    assert isinstance(down, PeerDown)
    arrived = 0
    while not isinstance(event := await next_event(bob), PeerDown):
        assert isinstance(event, Received)
        assert int.from_bytes(event.message[:4], "little") == arrived
        arrived += 1
    assert "unread" in event.reason
    assert arrived >= 8
