"""How streams end: interrupted, given up, closed, cancelled before they began."""

import socket
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import cast

import pytest
import trio
import trio.testing

from barnraise.errors import Unavailable
from barnraise.ids import PeerId
from barnraise.net import bulk as bulk_module
from barnraise.net.bulk import BulkLimits
from barnraise.net.channel import PATIENCE_PARTS, Channel, Meter
from barnraise.net.frames import HEADER_BYTES, MAX_PAYLOAD_BYTES, TAG_BYTES, Kind, Opener, Sealer, Suite
from barnraise.net.handshake import Agreed
from barnraise.net.seam import Ended, Stream

from .stream_nodes import IDENTITIES, Node, in_thread, receive, running, stream


class Blocked:
    """A call on a stream in a thread, which is known to block once `entered` and the kernel's buffers are full."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.entered = threading.Event()
        self.outcome: SimpleQueue[BaseException | None] = SimpleQueue()
        self._work = work
        threading.Thread(target=self._run).start()

    def _run(self) -> None:
        self.entered.set()
        try:
            self._work()
        except BaseException as error:
            self.outcome.put(error)
        else:
            self.outcome.put(None)

    async def fails(self) -> str:
        error = await in_thread(self.outcome.get)
        assert isinstance(error, Unavailable)
        assert not isinstance(error, Ended)
        return str(error)


def send_for_ever(near: Stream) -> None:
    while True:
        near.send(bytes(MAX_PAYLOAD_BYTES))


@pytest.mark.parametrize("blocked_end", ["sender", "receiver"])
@pytest.mark.parametrize("means", ["interrupt", "the other end's interrupt", "forget", "the other side forgets"])
async def test_whoever_blocks_is_woken(blocked_end: str, means: str) -> None:
    async with stream(connections=2) as (near, far, alice, bob):
        sends = blocked_end == "sender"
        call = Blocked(lambda: send_for_ever(near) if sends else receive(far))
        await in_thread(call.entered.wait)
        mine, other = (near, far) if sends else (far, near)
        here, there = (alice, bob) if sends else (bob, alice)
        if means == "interrupt":
            mine.interrupt()
        elif means == "forget":
            here.bulk.forget(there.peer_id)
        elif means == "the other end's interrupt":
            other.interrupt()
        else:
            there.bulk.forget(here.peer_id)
        words = await call.fails()
        assert str(there.peer_id) in words
        assert ("interrupted at this end" in words) == (means in ("interrupt", "forget"))


async def test_end_of_the_plane_wakes_whoever_blocks() -> None:
    alice, bob = Node(IDENTITIES[0]), Node(IDENTITIES[1])
    async with running(alice, bob):
        unread, silent = [await alice.bulk.open_stream(bob.peer_id, b"") for _ in range(2)]
        fars = [bob.given.get_nowait()[2] for _ in range(2)]
        calls = [Blocked(lambda: send_for_ever(unread)), Blocked(lambda: receive(fars[1]))]
    for call in calls:
        await call.fails()
    for end in (unread, silent, *fars):
        end.close()


@pytest.mark.parametrize("blocked_end", ["sender", "receiver"])
async def test_peer_that_moves_no_byte_is_given_up_by_name(blocked_end: str) -> None:
    async with stream() as (near, far, alice, bob):
        if blocked_end == "sender":
            near.patience(0.05)
            call, other = Blocked(lambda: send_for_ever(near)), bob
        else:
            far.patience(0.05)
            call, other = Blocked(lambda: receive(far)), alice
        words = await call.fails()
        assert str(other.peer_id) in words
        assert "nothing for 0.05 s" in words


class Dribbling:
    """A socket whose kernel gives up often, and moves one byte every fourth time."""

    def __init__(self, arriving: bytes = b"") -> None:
        self.arriving = bytearray(arriving)
        self.sent = bytearray()
        self.num_calls = 0

    def recv_into(self, room: memoryview, size: int, flags: int) -> int:
        self._give_up()
        room[0] = self.arriving.pop(0)
        return 1

    def send(self, data: memoryview) -> int:
        self._give_up()
        self.sent += data[:1]
        return 1

    def _give_up(self) -> None:
        self.num_calls += 1
        if self.num_calls % PATIENCE_PARTS:
            raise BlockingIOError

    def settimeout(self, seconds: float | None) -> None: ...

    def setsockopt(self, level: int, option: int, value: object) -> None: ...


def test_patience_is_for_silence_not_for_the_whole_frame() -> None:
    """Twenty times as long as the patience passes, but a byte moves before each is over."""
    frame = bytearray(HEADER_BYTES + 10 + TAG_BYTES)
    Sealer(Suite.AES_256_GCM, bytes(32)).seal_into(Kind.PAYLOAD, b"0123456789", memoryview(frame))
    for sock in (Dribbling(bytes(frame)), Dribbling()):
        agreed = Agreed(
            PeerId("peer"),
            Suite.AES_256_GCM,
            Sealer(Suite.AES_256_GCM, bytes(32)),
            Opener(Suite.AES_256_GCM, bytes(32)),
        )
        channel = Channel(cast("socket.socket", sock), agreed, Meter(), 1.0)
        if sock.arriving:
            room = memoryview(bytearray(10))
            assert channel.receive_payload(room) == 10
            assert bytes(room) == b"0123456789"
        else:
            channel.send(Kind.PAYLOAD, b"0123456789")
            assert sock.sent == frame


async def test_interrupted_stream_ends_without_a_mark_and_a_closed_one_with_it() -> None:
    for is_interrupted in (True, False):
        async with stream() as (near, far, *_):
            near.send(b"last")
            if is_interrupted:
                near.interrupt()
            near.close()
            near.close()
            assert receive(far) == b"last"
            with pytest.raises(Unavailable) as caught:
                receive(far)
            assert isinstance(caught.value, Ended) is not is_interrupted


async def test_closed_streams_raise_and_nothing_else_happens() -> None:
    async with stream() as (near, far, *_):
        near.close()
        far.close()
        with pytest.raises(Unavailable):
            near.send(b"x")
        with pytest.raises(Unavailable):
            receive(far)
        for end in (near, far):
            end.patience(1.0)
            end.interrupt()


async def test_opening_is_cancelled_cleanly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bob's sink does not come back until it is let go, so that the opener waits for its answer."""
    monkeypatch.setattr(bulk_module, "DIAL_PAUSES_S", ())
    asked, release = threading.Event(), threading.Event()

    class Slow(Node):
        def take(self, peer: PeerId, header: bytes, stream: Stream) -> None:
            asked.set()
            release.wait()
            super().take(peer, header, stream)

    async with running(Node(IDENTITIES[0], BulkLimits(connections=2)), Slow(IDENTITIES[1])) as (alice, bob):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(alice.bulk.open_stream, bob.peer_id, b"")
            await in_thread(asked.wait)
            nursery.cancel_scope.cancel()
        release.set()
        _, _, far = await in_thread(bob.given.get)
        with pytest.raises(Unavailable):
            await in_thread(receive, far)
        far.close()
        await trio.testing.wait_all_tasks_blocked()
        assert not alice.bulk._peers[bob.peer_id].streams
