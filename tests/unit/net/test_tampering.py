"""Somebody on the path between two real bulk planes, after an honest handshake: whatever he does, no wrong byte arrives.

The proxy is a TCP proxy in user space that knows where TLS ends and frames begin, and lets a test do what it likes with
the frames of the dialer. It has no keys, as nobody on the path has.
"""

import contextlib
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from queue import SimpleQueue

import pytest
import trio

from barnraise.errors import PeerError, Unavailable
from barnraise.identity import ClusterKey, Identity
from barnraise.ids import PeerId
from barnraise.net.bulk import BulkLimits, SealedBulk, open_bulk
from barnraise.net.frames import HEADER_BYTES, TAG_BYTES, Kind
from barnraise.net.handshake import RECORD_HEADER_BYTES, record_length
from barnraise.net.seam import Ended, Stream

KEY = ClusterKey(bytes(32))
ALICE, BOB = (Identity(bytes([i]) * 32, bytes([i]) * 32) for i in (1, 2))
FRAMES = [os.urandom(1000 + number) for number in range(6)]
MIDDLE = 2
"""Which of the frames is meddled with."""

Outgoing = list[bytes]
"""What goes on instead of one frame; b"" closes the connection there."""
Meddle = Callable[[int, int, bytes], Outgoing]
"""(connection, number of the frame behind the announcement, frame) -> what goes on."""


class Proxy:
    """Stands between; `answers` has what came back, by connection."""

    def __init__(self, listener: trio.SocketListener, to: tuple[str, int], meddle: Meddle) -> None:
        self.address: tuple[str, int] = listener.socket.getsockname()
        self.answers: list[bytes] = []
        self._listener, self._to, self._meddle = listener, to, meddle
        self._num_connections = 0
        self._turned_back = b""

    def turn_back(self, data: bytes) -> None:
        """Send this to the dialer once the hook is done."""
        self._turned_back = data

    async def run(self) -> None:
        await trio.serve_listeners(self._carry, [self._listener])

    async def _carry(self, near: trio.SocketStream) -> None:
        number = self._num_connections
        self._num_connections += 1
        far = await trio.open_tcp_stream(*self._to)
        async with near, far, trio.open_nursery() as nursery:
            nursery.start_soon(self._there, number, near, far)
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                async for data in far:
                    self.answers.append(bytes(data))
                    await near.send_all(data)
            nursery.cancel_scope.cancel()

    async def _there(self, number: int, near: trio.SocketStream, far: trio.SocketStream) -> None:
        with contextlib.suppress(EOFError, trio.BrokenResourceError, trio.ClosedResourceError):
            index = -1
            while True:
                header = await exactly(near, HEADER_BYTES)
                if header[0] in range(20, 24) and header[1] == 3:
                    await far.send_all(header + await exactly(near, record_length(header)))
                    continue
                frame = header + await exactly(near, int.from_bytes(header[:4], "little") + TAG_BYTES)
                for piece in [frame] if index < 0 else self._meddle(number, index, frame):
                    if not piece:
                        raise EOFError
                    await far.send_all(piece)
                if self._turned_back:
                    await near.send_all(self._turned_back)
                index += 1
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await far.send_eof()


async def exactly(stream: trio.SocketStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = await stream.receive_some(size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def test_frames_and_records_cannot_be_confused() -> None:
    """Else the proxy would be wrong about where the handshake ends, and the tests below would test nothing."""
    assert RECORD_HEADER_BYTES == HEADER_BYTES
    assert all(len(frame) >> 8 == 3 and len(frame) & 0xFF > 200 for frame in FRAMES)


class Given:
    """What reached the receiving plane."""

    def __init__(self) -> None:
        self.streams: SimpleQueue[Stream] = SimpleQueue()
        self.buffer = bytearray()
        self.arrived: list[bytes] = []

    def take(self, peer: PeerId, header: bytes, stream: Stream) -> None:
        self.streams.put(stream)

    def sink(self, peer: PeerId, header: bytes, size_bytes: int) -> memoryview:
        self.buffer = bytearray(size_bytes)
        return memoryview(self.buffer)

    def note(self, peer: PeerId, header: bytes) -> None:
        self.arrived.append(bytes(self.buffer))


@asynccontextmanager
async def through_proxy(meddle: Meddle, connections: int = 1) -> AsyncIterator[tuple[SealedBulk, Given, Proxy]]:
    """Yield Alice's plane, which reaches Bob only through the proxy, and what Bob is given."""
    given, limits = Given(), BulkLimits(connections=connections)
    async with (
        open_bulk(ALICE, KEY, sink=lambda *_: None, arrived=lambda *_: None, limits=limits) as alice,
        open_bulk(BOB, KEY, sink=given.sink, arrived=given.note, streams=given.take) as bob,
        trio.open_nursery() as nursery,
    ):
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        proxy = Proxy(listener, bob.address, meddle)
        nursery.start_soon(proxy.run)
        alice.learn(BOB.peer_id, *proxy.address)
        bob.learn(ALICE.peer_id, *alice.address)
        yield alice, given, proxy
        nursery.cancel_scope.cancel()


def send_all(stream: Stream) -> None:
    with contextlib.suppress(Unavailable):
        for frame in FRAMES:
            stream.send(frame)
    stream.close()


def receive_all(stream: Stream) -> tuple[list[bytes], PeerError | Unavailable]:
    """Return the frames that came before the first error, and the error; a second try must not do better."""
    frames: list[bytes] = []
    room = memoryview(bytearray(2000))
    while True:
        try:
            frames.append(bytes(room[: stream.receive(room)]))
        except (PeerError, Unavailable) as error:
            with pytest.raises((PeerError, Unavailable)):
                stream.receive(room)
            return frames, error


async def received(meddle: Meddle, connections: int = 1) -> tuple[list[bytes], PeerError | Unavailable]:
    async with through_proxy(meddle, connections) as (alice, given, _), trio.open_nursery() as nursery:
        near = await alice.open_stream(BOB.peer_id, b"")
        far = given.streams.get_nowait()
        nursery.start_soon(trio.to_thread.run_sync, send_all, near)
        try:
            return await trio.to_thread.run_sync(receive_all, far)
        finally:
            far.close()


def flipped(frame: bytes, position: int) -> bytes:
    """Flip one bit."""
    changed = bytearray(frame)
    changed[position] ^= 1
    return bytes(changed)


def only(change: Callable[[bytes], Outgoing]) -> Meddle:
    """Meddle with one frame in the middle."""
    return lambda _, index, frame: change(frame) if index == MIDDLE else [frame]


class Swap:
    """Let two neighbours change places."""

    def __init__(self) -> None:
        self._kept = b""

    def __call__(self, connection: int, index: int, frame: bytes) -> Outgoing:
        if index == MIDDLE:
            self._kept = frame
            return []
        return [frame, self._kept] if index == MIDDLE + 1 else [frame]


class Replay:
    """Send an earlier frame in place of one."""

    def __init__(self) -> None:
        self._first = b""

    def __call__(self, connection: int, index: int, frame: bytes) -> Outgoing:
        self._first = self._first or frame
        return [self._first] if index == MIDDLE else [frame]


INVENTED = (100).to_bytes(4, "little") + bytes([Kind.PAYLOAD]) + bytes(100 + TAG_BYTES)
HOSTILE: dict[str, Callable[[], Meddle]] = {
    **{
        f"a bit of the {part} is flipped": lambda position=position: only(lambda frame: [flipped(frame, position)])  # type: ignore[misc]
        for part, position in {
            "length": 0,
            "length's highest byte": 3,
            "kind": 4,
            "payload": HEADER_BYTES + 10,
            "tag": -1,
        }.items()
    },
    "a frame is doubled": lambda: only(lambda frame: [frame, frame]),
    "an earlier frame is replayed": Replay,
    "a frame is dropped": lambda: only(lambda frame: []),
    "two frames are swapped": Swap,
    "a frame is cut in the middle": lambda: only(lambda frame: [frame[:500], b""]),
    "a header is cut in the middle": lambda: only(lambda frame: [frame[:3], b""]),
    "the stream is cut between frames": lambda: only(lambda frame: [b""]),
    "a frame is invented": lambda: only(lambda frame: [INVENTED, frame]),
    "rubbish comes in between": lambda: only(lambda frame: [b"rubbish", frame]),
    "the end mark is invented": lambda: only(lambda frame: [bytes([0, 0, 0, 0, Kind.END]) + bytes(TAG_BYTES)]),
}


async def test_untouched_frames_arrive_and_the_end_is_known_for_one() -> None:
    frames, error = await received(lambda connection, index, frame: [frame])
    assert frames == FRAMES
    assert isinstance(error, Ended)


@pytest.mark.parametrize("connections", [1, 2])
@pytest.mark.parametrize("attack", HOSTILE)
async def test_tampered_stream_ends_before_the_first_wrong_byte(attack: str, connections: int) -> None:
    frames, error = await received(HOSTILE[attack](), connections)
    # Both connections are meddled with; how many frames each has carried by then is the kernel's affair.
    num_right = {1: range(MIDDLE, MIDDLE + 2), 2: range(MIDDLE, 2 * MIDDLE + 3)}[connections]
    assert frames == FRAMES[: len(frames)]
    assert len(frames) in num_right
    assert not isinstance(error, Ended)
    assert str(ALICE.peer_id) in str(error)


async def test_stream_without_its_end_mark_was_cut_not_finished() -> None:
    frames, error = await received(lambda _, index, frame: [b""] if index == len(FRAMES) else [frame])
    assert frames == FRAMES
    assert not isinstance(error, Ended)
    assert isinstance(error, Unavailable)
    assert f"peer {ALICE.peer_id}" in str(error)


async def test_frames_of_another_connection_do_not_fit() -> None:
    """Both connections have a frame number 1."""
    kept: dict[int, bytes] = {}

    def splice(connection: int, index: int, frame: bytes) -> Outgoing:
        kept.setdefault(connection, frame)
        # Both first frames go through; then what the other connection began with comes once more on this one.
        return [kept[1 - connection]] if index == 1 and 1 - connection in kept else [frame]

    frames, error = await received(splice, connections=2)
    assert frames == FRAMES[: len(frames)]
    assert len(frames) < len(FRAMES)
    assert isinstance(error, PeerError)
    assert "not authentic" in str(error)


@pytest.mark.parametrize(
    ("disguise", "complaint"),
    [(False, "of kind 3 where PAYLOAD"), (True, "not authentic")],
    ids=["as it is", "disguised"],
)
async def test_frames_of_the_other_direction_do_not_fit(disguise: bool, complaint: str) -> None:
    """What Bob said comes back to him as if it were Alice's: as it is, and with the kind that is due."""

    def reflect(connection: int, index: int, frame: bytes) -> Outgoing:
        answer = proxies[0].answers[-1]
        return [answer[:4] + bytes([Kind.PAYLOAD]) + answer[5:] if disguise else answer]

    proxies: list[Proxy] = []
    async with through_proxy(reflect) as (alice, given, proxy), trio.open_nursery() as nursery:
        proxies.append(proxy)
        near = await alice.open_stream(BOB.peer_id, b"")
        far = given.streams.get_nowait()
        nursery.start_soon(trio.to_thread.run_sync, send_all, near)
        frames, error = await trio.to_thread.run_sync(receive_all, far)
        far.close()
    assert not frames
    assert isinstance(error, PeerError)
    assert complaint in str(error)


async def push(alice: SealedBulk, payload: bytes) -> None:
    await alice.send(BOB.peer_id, b"", [memoryview(payload)])


@pytest.mark.parametrize("attack", [name for name in HOSTILE if "end mark" not in name])
async def test_tampered_push_is_never_taken(attack: str) -> None:
    """Four PAYLOAD frames; the meddler waits for the one in the middle."""
    async with through_proxy(HOSTILE[attack]()) as (alice, given, _):
        with pytest.raises(Unavailable, match=str(BOB.peer_id)), trio.fail_after(20):
            await push(alice, os.urandom(4 * 512 * 1024))
        assert not given.arrived


@pytest.mark.parametrize("kind", [Kind.PAYLOAD, Kind.REPLY])
async def test_reflected_frame_is_refused_by_whoever_sent_it(kind: Kind) -> None:
    """The dialer waits for "taken" and gets its own frame back: as it is, and with the kind that is due."""

    def reflect(connection: int, index: int, frame: bytes) -> Outgoing:
        proxies[0].turn_back(frame[:4] + bytes([kind]) + frame[5:])
        return []

    proxies: list[Proxy] = []
    async with through_proxy(reflect) as (alice, given, proxy):
        proxies.append(proxy)
        with pytest.raises(Unavailable, match=f"{BOB.peer_id}: a frame of"):
            await push(alice, b"small")
        assert not given.arrived
