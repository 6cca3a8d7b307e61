"""The fake's streams keep the real ones' promises: order, both ends, blocking, interruption."""

import math
import random
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import pytest

from barnraise.errors import LocalError, PeerError, Unavailable
from barnraise.ids import PeerId
from barnraise.net.frames import MAX_PAYLOAD_BYTES
from barnraise.net.memory import MemoryBulk, MemoryMedium, open_medium
from barnraise.net.memory_streams import WINDOW_BYTES, MemoryStream, Pipe
from barnraise.net.seam import MAX_HEADER_BYTES, Bulk, Ended, LinkSpeed, Stream

ALICE, BOB = PeerId("alice"), PeerId("bob")


class Given:
    """What a plane was given, and whether it wants any."""

    def __init__(self) -> None:
        self.streams: list[tuple[PeerId, bytes, Stream]] = []
        self.is_wanted = True

    def take(self, peer: PeerId, header: bytes, stream: Stream) -> None:
        if not self.is_wanted:
            raise Unavailable("not now")
        self.streams.append((peer, header, stream))


@asynccontextmanager
async def planes(bytes_per_s: float = math.inf) -> AsyncIterator[tuple[MemoryMedium, MemoryBulk, MemoryBulk, Given]]:
    given = Given()
    async with open_medium(random.Random(1), bytes_per_s=bytes_per_s) as medium:
        alice, bob = (medium.bulk(peer, lambda *_: None, lambda *_: None, given.take) for peer in (ALICE, BOB))
        for peer in (ALICE, BOB):
            medium.join(peer)
        alice.learn(BOB, *bob.address)
        bob.learn(ALICE, *alice.address)
        yield medium, alice, bob, given


def ends() -> tuple[MemoryStream, MemoryStream]:
    pipe = Pipe()
    return MemoryStream(BOB, pipe, is_sending=True), MemoryStream(ALICE, pipe, is_sending=False)


def receive(far: Stream, room_bytes: int = 100) -> bytes:
    room = memoryview(bytearray(room_bytes))
    return bytes(room[: far.receive(room)])


async def test_frames_go_through_a_medium_in_order_and_then_end() -> None:
    async with planes() as (_, alice, _, given):
        bulk: Bulk = alice
        near = await bulk.open_stream(BOB, b"header")
        ((peer, header, far),) = given.streams
        assert (peer, header, far.peer, near.peer) == (ALICE, b"header", ALICE, BOB)
        for number in range(5):
            near.send(bytes([number]))
        near.close()
        near.close()
        assert [receive(far) for _ in range(5)] == [bytes([number]) for number in range(5)]
        with pytest.raises(Ended, match="alice: closed the stream"):
            receive(far)
        far.close()


async def test_streams_that_cannot_be_say_so() -> None:
    async with planes() as (medium, alice, _, given):
        with pytest.raises(LocalError, match="4097 bytes"):
            await alice.open_stream(BOB, bytes(MAX_HEADER_BYTES + 1))
        with pytest.raises(Unavailable, match="cannot be reached"):
            await alice.open_stream(PeerId("carol"), b"")
        given.is_wanted = False
        with pytest.raises(Unavailable, match="bob refused the stream: 'not now'"):
            await alice.open_stream(BOB, b"")
        medium.bulk(BOB, lambda *_: None, lambda *_: None)
        alice.learn(BOB, *medium.bulks[BOB].address)
        medium.bulks[BOB].learn(ALICE, *alice.address)
        with pytest.raises(Unavailable, match="not wanted"):
            await alice.open_stream(BOB, b"")


@pytest.mark.parametrize(
    "break_it",
    [
        lambda medium, alice, bob: medium.partition([ALICE], [BOB]),
        lambda medium, alice, bob: medium.crash(BOB),
        lambda medium, alice, bob: medium.cut(BOB, ALICE),
        lambda medium, alice, bob: alice.forget(BOB),
        lambda medium, alice, bob: bob.forget(ALICE),
    ],
    ids=["partition", "crash", "cut", "forget", "the other side forgets"],
)
async def test_what_breaks_links_breaks_streams(
    break_it: Callable[[MemoryMedium, MemoryBulk, MemoryBulk], None],
) -> None:
    async with planes() as (medium, alice, bob, given):
        near = await alice.open_stream(BOB, b"")
        near.send(b"lost")
        break_it(medium, alice, bob)
        with pytest.raises(Unavailable, match="bob: the stream is cut"):
            near.send(b"x")
        with pytest.raises(Unavailable, match="alice: the stream is cut"):
            receive(given.streams[0][2])


async def test_speed_is_what_the_medium_does() -> None:
    async with planes(bytes_per_s=1e6) as (_, alice, _, _):
        assert alice.speed(BOB) == LinkSpeed(latency_s=0.003, bandwidth_bytes_s=1e6)
        assert alice.speed(PeerId("carol")) is None
    async with planes() as (_, alice, _, _):
        assert alice.speed(BOB) is None


def test_sender_is_blocked_by_what_is_not_received() -> None:
    near, far = ends()
    near.patience(0.01)
    for _ in range(WINDOW_BYTES // MAX_PAYLOAD_BYTES):
        near.send(bytes(MAX_PAYLOAD_BYTES))
    with pytest.raises(Unavailable, match="bob: took nothing"):
        near.send(b"x")
    receive(far, MAX_PAYLOAD_BYTES)
    near.send(b"x")


def test_receiver_gives_up_in_time_and_is_woken() -> None:
    near, far = ends()
    far.patience(0.01)
    with pytest.raises(Unavailable, match="alice: sent nothing"):
        receive(far)
    far.patience(20)
    for wake in (lambda: near.send(b"x"), far.interrupt):
        with ThreadPoolExecutor(1) as thread:
            call = thread.submit(receive, far)
            wake()
        if wake == far.interrupt:
            with pytest.raises(Unavailable, match="is cut"):
                call.result()
        else:
            assert call.result() == b"x"


def test_misuse_is_our_own_fault_and_a_long_frame_the_peers() -> None:
    near, far = ends()
    for wrong in (
        lambda: near.send(b""),
        lambda: near.send(bytes(MAX_PAYLOAD_BYTES + 1)),
        lambda: far.send(b"x"),
        lambda: near.receive(memoryview(bytearray(1))),
        lambda: far.receive(memoryview(b"")),
        lambda: far.patience(0),
    ):
        with pytest.raises(LocalError):
            wrong()
    near.send(b"abc")
    with pytest.raises(PeerError, match="3 bytes is over the limit of 2"):
        receive(far, 2)


def test_closing_the_receiving_end_cuts_the_sender_off() -> None:
    near, far = ends()
    far.close()
    with pytest.raises(Unavailable):
        near.send(b"x")
    near.close()
    with pytest.raises(Unavailable):
        near.send(b"x")
