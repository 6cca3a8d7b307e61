"""What only the medium in memory does: faults on demand, on a mocked clock, the same for the same seed."""

import random

import pytest
import trio
from trio.testing import MockClock

from barnraise.errors import LocalError, Unavailable
from barnraise.ids import PeerId
from barnraise.net.memory import MemoryBulk, MemoryMedium, MemoryNetwork, open_medium
from barnraise.net.seam import MAX_HEADER_BYTES, NetworkEvent, PeerDown, PeerUp, Received

ALICE, BOB, CAROL = PeerId("alice"), PeerId("bob"), PeerId("carol")


async def take(network: MemoryNetwork, count: int) -> list[NetworkEvent]:
    with trio.fail_after(1000):
        return [await network.events.receive() for _ in range(count)]


async def test_a_partition_takes_links_down_and_healing_brings_them_back(autojump_clock: MockClock) -> None:
    async with open_medium(random.Random(1), delays_s=(1.0, 2.0)) as medium:
        alice, bob, carol = (medium.join(peer) for peer in (ALICE, BOB, CAROL))
        for network in (alice, bob, carol):
            assert {type(event) for event in await take(network, 2)} == {PeerUp}
        medium.partition([ALICE, BOB])
        assert {event.peer for event in await take(carol, 2) if isinstance(event, PeerDown)} == {ALICE, BOB}
        assert [(type(event), event.peer) for event in await take(alice, 1)] == [(PeerDown, CAROL)]
        await alice.send(BOB, b"still here")
        with pytest.raises(Unavailable):
            await alice.send(CAROL, b"")
        await trio.sleep(100)
        medium.heal()
        assert {event.peer for event in await take(carol, 2) if isinstance(event, PeerUp)} == {ALICE, BOB}


async def test_bytes_take_their_time(autojump_clock: MockClock) -> None:
    async with open_medium(random.Random(1), delays_s=(3.0, 3.0)) as medium:
        alice, bob = medium.join(ALICE), medium.join(BOB)
        await take(alice, 1)
        await take(bob, 1)
        began = trio.current_time()
        await alice.send(BOB, b"slow")
        assert await take(bob, 1) == [Received(peer=ALICE, message=b"slow")]
        assert trio.current_time() - began == pytest.approx(3.0)


async def test_a_cut_is_a_loss_of_connection_only(autojump_clock: MockClock) -> None:
    async with open_medium(random.Random(1), delays_s=(1.0, 1.0)) as medium:
        alice, bob = medium.join(ALICE), medium.join(BOB)
        await take(alice, 1)
        await alice.send(BOB, b"under way, and lost")
        medium.cut(ALICE, BOB)
        assert [type(event) for event in await take(alice, 2)] == [PeerDown, PeerUp]
        assert [type(event) for event in await take(bob, 3)] == [PeerUp, PeerDown, PeerUp]


async def test_a_crashed_peer_is_gone_for_everybody_and_itself(autojump_clock: MockClock) -> None:
    async with open_medium(random.Random(1)) as medium:
        alice, bob = medium.join(ALICE), medium.join(BOB)
        await take(alice, 1)
        medium.crash(BOB)
        assert [type(event) for event in await take(alice, 1)] == [PeerDown]
        assert [type(event) async for event in bob.events] in ([], [PeerUp])
        with pytest.raises(Unavailable):
            await bob.send(ALICE, b"ghost")


def arrivals_of(seed: int) -> list[float]:
    async def main() -> list[float]:
        async with open_medium(random.Random(seed), delays_s=(0.0, 10.0)) as medium:
            alice, bob = medium.join(ALICE), medium.join(BOB)
            await take(alice, 1)
            await take(bob, 1)
            began, times = trio.current_time(), []
            for _ in range(5):
                await alice.send(BOB, b"")
                await take(bob, 1)
                times.append(trio.current_time() - began)
            return times

    return trio.run(main, clock=MockClock(autojump_threshold=0))


def test_the_same_seed_is_the_same_world() -> None:
    assert arrivals_of(7) == pytest.approx(arrivals_of(7))
    assert arrivals_of(7) != pytest.approx(arrivals_of(8))


class Receiver:
    """Takes transfers of at most 100 bytes."""

    def __init__(self) -> None:
        self.buffers: dict[bytes, bytearray] = {}
        self.arrived: list[tuple[PeerId, bytes]] = []

    def sink(self, sender: PeerId, header: bytes, size_bytes: int) -> memoryview | None:
        if size_bytes > 100:
            return None
        self.buffers[header] = bytearray(size_bytes)
        return memoryview(self.buffers[header])

    def take(self, sender: PeerId, header: bytes) -> None:
        self.arrived.append((sender, header))


def join_bulk(medium: MemoryMedium, receiver: Receiver) -> tuple[MemoryBulk, MemoryBulk]:
    medium.join(ALICE)
    medium.join(BOB)
    alice = medium.bulk(ALICE, receiver.sink, receiver.take)
    bob = medium.bulk(BOB, receiver.sink, receiver.take)
    alice.learn(BOB, *bob.address)
    bob.learn(ALICE, *alice.address)
    return alice, bob


async def test_a_bulk_transfer_lands_in_the_sink(autojump_clock: MockClock) -> None:
    receiver = Receiver()
    async with open_medium(random.Random(1), bytes_per_s=10.0, delays_s=(0.0, 0.0)) as medium:
        alice, bob = join_bulk(medium, receiver)
        began = trio.current_time()
        await alice.send(BOB, b"header", [memoryview(b"abc"), memoryview(b""), memoryview(b"defghij")])
        assert trio.current_time() - began == pytest.approx(1.0)
        assert receiver.arrived == [(ALICE, b"header")]
        assert receiver.buffers == {b"header": bytearray(b"abcdefghij")}
        assert alice.bytes_sent == bob.bytes_received == 16


async def test_a_bulk_transfer_that_cannot_be_says_so(autojump_clock: MockClock) -> None:
    receiver = Receiver()
    async with open_medium(random.Random(1), delays_s=(1.0, 1.0)) as medium:
        alice, bob = join_bulk(medium, receiver)
        with pytest.raises(LocalError, match="4096"):
            await alice.send(BOB, bytes(MAX_HEADER_BYTES + 1), [])
        with pytest.raises(Unavailable, match="refused"):
            await alice.send(BOB, b"", [memoryview(bytes(101))])
        with pytest.raises(Unavailable, match="unknown"):
            await alice.send(CAROL, b"", [])
        bob.forget(ALICE)
        with pytest.raises(Unavailable, match="does not know"):
            await alice.send(BOB, b"", [])
        bob.learn(ALICE, *alice.address)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(crash_later, medium)
            with pytest.raises(Unavailable, match="cannot be reached"):
                await alice.send(BOB, b"lost", [memoryview(b"x")])
        assert receiver.arrived == []


async def crash_later(medium: MemoryMedium) -> None:
    await trio.sleep(0.5)
    medium.crash(BOB)
