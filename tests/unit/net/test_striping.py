"""Frames over several connections: in order whatever each does, bounded memory, and whoever plays tricks is refused."""

import os
import random
import socket
import struct
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from queue import SimpleQueue

import pytest

from barnraise.errors import PeerError, Unavailable
from barnraise.ids import PeerId
from barnraise.net.channel import Channel, Meter
from barnraise.net.frames import (
    HEADER_BYTES,
    MAX_FRAME_BYTES,
    MAX_PAYLOAD_BYTES,
    TAG_BYTES,
    Kind,
    Opener,
    Sealer,
    Suite,
)
from barnraise.net.handshake import Agreed
from barnraise.net.seam import Ended
from barnraise.net.speed import Gauge
from barnraise.net.streams import SealedStream
from barnraise.net.striping import MAX_PIECE_BYTES, MIN_PIECE_BYTES, Merge, Spread

PEER = PeerId("peer")
SUITE = Suite.AES_256_GCM
SMALL_BUFFER_BYTES = 64 * 1024


@contextmanager
def pairs(
    number: int, patience_s: float = 20.0, buffer_bytes: int = 0
) -> Iterator[tuple[list[Channel], list[Channel]]]:
    """Yield both ends of connections, each with keys of its own."""
    with ExitStack() as stack:
        nears, fars = [], []
        for index in range(number):
            out, back = bytes([2 * index]) * 32, bytes([2 * index + 1]) * 32
            with socket.socket() as listener:
                if buffer_bytes:
                    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
                listener.bind(("127.0.0.1", 0))
                listener.listen()
                near = socket.socket()
                if buffer_bytes:
                    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
                near.connect(listener.getsockname())
                far = listener.accept()[0]
            for sock, mine, theirs, ends in ((near, out, back, nears), (far, back, out, fars)):
                agreed = Agreed(PEER, SUITE, Sealer(SUITE, mine), Opener(SUITE, theirs))
                ends.append(Channel(sock, agreed, Meter(), patience_s))
                stack.callback(ends[-1].close)
        yield nears, fars


def piece(number: int, body: bytes, *, is_last: bool = True) -> bytes:
    return struct.pack("<Q?", number, is_last) + body


def receive(merge: Merge, room_bytes: int = MAX_PAYLOAD_BYTES) -> bytes:
    room = memoryview(bytearray(room_bytes))
    return bytes(room[: merge.receive_payload(room, may_end=True)])


def receive_for_ever(merge: Merge, room_bytes: int) -> None:
    while receive(merge, room_bytes):
        pass


def send_for_ever(spread: Spread) -> None:
    while True:
        spread.send(Kind.PAYLOAD, bytes(MAX_PAYLOAD_BYTES))


def in_background(work: Callable[[], object]) -> SimpleQueue[BaseException | None]:
    """Start a thread; return where it leaves its error, or None."""
    outcome: SimpleQueue[BaseException | None] = SimpleQueue()

    def run() -> None:
        try:
            work()
        except BaseException as error:
            outcome.put(error)
        else:
            outcome.put(None)

    threading.Thread(target=run).start()
    return outcome


@pytest.mark.parametrize("speed_bytes_s", [0.0, 25e6, 10e9], ids=["not known", "200 Mbit/s", "loopback"])
@pytest.mark.parametrize("number", [2, 3, 8])
def test_frames_come_in_order_and_whole(number: int, speed_bytes_s: float) -> None:
    draw = random.Random(number)
    sizes = [
        1,
        MIN_PIECE_BYTES,
        MIN_PIECE_BYTES + 1,
        MAX_PAYLOAD_BYTES,
        *(draw.randrange(1, 200_000) for _ in range(20)),
    ]
    frames = [os.urandom(size) for size in sizes]
    gauge = Gauge(speed_bytes_s or None)
    if speed_bytes_s:
        gauge.delivered(speed_bytes_s, is_bound_by_us=False)
    with pairs(number) as (nears, fars):
        spread, merge = Spread(nears, gauge), Merge(fars)

        def send_all() -> None:
            for frame in frames:
                spread.send(Kind.PAYLOAD, memoryview(frame))
            spread.send(Kind.END, b"")

        outcome = in_background(send_all)
        assert [receive(merge) for _ in frames] == frames
        assert receive(merge) == b""
        assert outcome.get() is None


def test_pieces_grow_with_the_speed_of_the_link() -> None:
    with pairs(2) as (nears, _):
        for speed_bytes_s, expected in ((1e6, MIN_PIECE_BYTES), (25e6, 32 * 1024), (10e9, MAX_PIECE_BYTES)):
            gauge = Gauge(speed_bytes_s)
            gauge.delivered(speed_bytes_s, is_bound_by_us=False)
            assert Spread(nears, gauge)._size_pieces() == expected


def test_connection_that_takes_nothing_gets_little_and_the_others_the_rest() -> None:
    """Nobody reads the first connection; whatever was not given to it goes on."""
    frame, num_frames = bytes(MIN_PIECE_BYTES), 400
    with pairs(2, buffer_bytes=SMALL_BUFFER_BYTES) as (nears, (unread, read)):
        spread = Spread(nears, Gauge())

        def send_all() -> None:
            for _ in range(num_frames):
                spread.send(Kind.PAYLOAD, frame)
            nears[1].interrupt()

        outcome = in_background(send_all)
        taken_bytes, room = 0, bytearray(1 << 16)
        while count := read.socket.recv_into(room):
            taken_bytes += count
        assert outcome.get() is None
        sealed_bytes = HEADER_BYTES + len(piece(0, frame)) + TAG_BYTES
        # The kernel doubles what it is asked for, here and there.
        assert taken_bytes >= num_frames * sealed_bytes - 4 * SMALL_BUFFER_BYTES - 2 * MIN_PIECE_BYTES
        assert unread.socket.fileno() >= 0


def test_sender_whose_connections_all_take_nothing_gives_up_after_the_patience() -> None:
    with pairs(2, patience_s=0.05, buffer_bytes=SMALL_BUFFER_BYTES) as (nears, _):
        spread = Spread(nears, Gauge())
        with pytest.raises(Unavailable, match=r"took nothing for 0\.05 s"):
            send_for_ever(spread)


def test_pieces_are_put_in_their_places_however_they_were_spread() -> None:
    with pairs(3) as ((one, two, three), fars):
        merge = Merge(fars)
        for channel, number in ((three, 2), (two, 1), (two, 3), (three, 4), (three, 5)):
            channel.send(Kind.PAYLOAD, piece(number, bytes([number]), is_last=number % 2 == 1))
        one.send(Kind.PAYLOAD, piece(0, b"\0", is_last=False))
        for channel in (one, two, three):
            channel.send(Kind.END, b"")
        assert [receive(merge) for _ in range(4)] == [b"\0\1", b"\2\3", b"\4\5", b""]


def test_connection_that_ended_early_still_counts() -> None:
    """Its last pieces and its end mark were here, and it was closed, long before their turn."""
    with pairs(2) as ((early, late), fars):
        merge = Merge(fars)
        for number in (1, 2, 3):
            early.send(Kind.PAYLOAD, piece(number, bytes([number])))
        early.send(Kind.END, b"")
        early.close()
        frames: SimpleQueue[bytes] = SimpleQueue()
        outcome = in_background(lambda: [frames.put(receive(merge)) for _ in range(5)])
        late.send(Kind.PAYLOAD, piece(0, b"\0"))
        late.send(Kind.END, b"")
        assert outcome.get() is None
        assert [frames.get() for _ in range(5)] == [b"\0", b"\1", b"\2", b"\3", b""]


HOSTILE: dict[str, tuple[Sequence[tuple[int, bytes | None]], str]] = {
    "a number twice": ([(0, piece(1, b"x")), (1, piece(1, b"y"))], "piece 1 of a stream came twice"),
    "a number that was used": ([(0, piece(0, b"x")), (1, piece(0, b"y"))], "came twice"),
    "numbers that fall": (
        [(0, piece(0, b"x")), (0, piece(2, b"y")), (0, piece(1, b"z")), (1, None)],
        "piece 1 of a stream is missing",
    ),
    "a number left out": ([(0, piece(1, b"x")), (1, piece(2, b"y"))], "piece 0 of a stream is missing"),
    "a number left out at the end": ([(0, piece(1, b"x")), (1, None)], "piece 0 of a stream is missing"),
    "the end within a frame": ([(0, piece(0, b"x", is_last=False)), (0, None), (1, None)], "the end .* within a frame"),
    "a piece of nothing": ([(0, piece(0, b""))], "a malformed piece of 9 bytes"),
    "half a head": ([(0, bytes(5))], "a malformed piece of 5 bytes"),
    "neither last nor not": ([(0, bytes(8) + b"\2x")], "a malformed piece of 10 bytes"),
    "a frame without end": (
        [(0, piece(number, bytes(400), is_last=False)) for number in range(4)],
        "over the limit of 1000",
    ),
}


@pytest.mark.parametrize("trick", HOSTILE)
def test_sender_that_breaks_the_rules_is_named_and_never_believed_again(trick: str) -> None:
    sent, complaint = HOSTILE[trick]
    with pairs(2) as (nears, fars):
        merge = Merge(fars)
        for connection, message in sent:
            nears[connection].send(*((Kind.END, b"") if message is None else (Kind.PAYLOAD, message)))
        with pytest.raises(PeerError, match=rf"{PEER}.*{complaint}"):
            receive_for_ever(merge, 1000)
        nears[0].send(Kind.PAYLOAD, piece(9, b"fine"))
        with pytest.raises(PeerError, match=complaint):
            receive(merge, 1000)


def test_frame_over_the_limit_is_refused_before_it_is_here() -> None:
    with pairs(2) as ((near, _), fars):
        near.socket.sendall((MAX_PIECE_BYTES + 10).to_bytes(4, "little") + bytes([Kind.PAYLOAD]))
        with pytest.raises(PeerError, match="262154 bytes is over the limit of 262153"):
            receive(Merge(fars))


def test_frame_of_another_kind_is_refused() -> None:
    with pairs(2) as ((near, _), fars):
        near.send(Kind.REPLY, b"what")
        with pytest.raises(PeerError, match="of kind 3 where PAYLOAD"):
            receive(Merge(fars))


@pytest.mark.parametrize("has_ended", [False, True])
def test_end_mark_on_some_connections_alone_is_a_cut(has_ended: bool) -> None:
    with pairs(2) as (nears, fars):
        far = SealedStream(fars, gauge=None, closed=lambda _: None)
        nears[0].send(Kind.PAYLOAD, piece(0, b"x"))
        nears[0].send(Kind.END, b"")
        if has_ended:
            nears[1].send(Kind.END, b"")
        for channel in nears:
            channel.close()
        room = memoryview(bytearray(10))
        assert far.receive(room) == 1
        with pytest.raises(Ended if has_ended else Unavailable) as caught:
            far.receive(room)
        assert isinstance(caught.value, Ended) == has_ended


def test_end_where_none_may_be_is_the_peers_fault() -> None:
    with pairs(2) as (nears, fars):
        for channel in nears:
            channel.send(Kind.END, b"")
        with pytest.raises(PeerError, match="where a frame was due"):
            Merge(fars).receive_payload(memoryview(bytearray(10)))


def test_withheld_connection_bounds_memory_blocks_the_sender_and_loses_nothing() -> None:
    """Piece 0 is kept back while the other connection carries what it can: then its sender waits, and nothing grows."""
    body, num_pieces = os.urandom(1000), 20_000
    with pairs(2, buffer_bytes=SMALL_BUFFER_BYTES) as ((withheld, eager), fars):
        merge, num_sent, wrong = Merge(fars), 0, 0

        def send_all() -> None:
            nonlocal num_sent
            for number in range(1, num_pieces):
                eager.send(Kind.PAYLOAD, piece(number, body))
                num_sent = number

        def receive_all() -> None:
            nonlocal wrong
            room = memoryview(bytearray(len(body)))
            for number in range(num_pieces):
                wrong += bytes(room[: merge.receive_payload(room)]) != (body if number else b"first")

        tracemalloc.start()
        try:
            sending, receiving = in_background(send_all), in_background(receive_all)
            while (eager_lane := merge._lanes[fars[1].socket.fileno()]).wants_more or not eager_lane.has_head:
                assert receiving.empty()
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        # The kernel doubles what it is asked for, here and there.
        assert num_sent * len(body) < MAX_FRAME_BYTES + 4 * SMALL_BUFFER_BYTES
        # A buffer for each end of each connection, room for a piece of each.
        assert peak_bytes < 2 * 3 * MAX_FRAME_BYTES
        withheld.send(Kind.PAYLOAD, piece(0, b"first"))
        assert sending.get() is None
        assert receiving.get() is None
        assert not wrong


def test_interrupted_receiver_says_so() -> None:
    with pairs(2) as (_, fars):
        merge = Merge(fars)
        outcome = in_background(lambda: receive(merge))
        for channel in fars:
            channel.interrupt()
        assert "interrupted at this end" in str(outcome.get())


def test_silent_sender_is_given_up_by_name() -> None:
    with pairs(2, patience_s=0.05) as (_, fars), pytest.raises(Unavailable, match=rf"{PEER}.*sent nothing for 0\.05 s"):
        receive(Merge(fars))
