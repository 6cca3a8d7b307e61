"""One connection's frames, wherever they come to lie before they are opened: in the channel's own room, the thread's or the caller's."""

import random
import socket
from collections.abc import Iterator

import pytest

from barnraise.errors import PeerError
from barnraise.ids import PeerId
from barnraise.net.channel import SMALL_FRAME_BYTES, Channel, Meter
from barnraise.net.frames import HEADER_BYTES, MAX_PAYLOAD_BYTES, TAG_BYTES, Kind, Opener, Sealer, Suite
from barnraise.net.handshake import Agreed

UNTOUCHED = 0xAA
OVERHEAD_BYTES = HEADER_BYTES + TAG_BYTES
SIZES = [
    1,
    100,
    SMALL_FRAME_BYTES - OVERHEAD_BYTES,
    SMALL_FRAME_BYTES - OVERHEAD_BYTES + 1,
    3 * SMALL_FRAME_BYTES,
    70_000,
]
ROOMIER_BYTES = [0, TAG_BYTES - 1, TAG_BYTES, TAG_BYTES + 48, 100_000]

Pair = tuple[Channel, Channel]


@pytest.fixture(params=list(Suite))
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    out, back = bytes([1]) * 32, bytes([2]) * 32
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far = listener.accept()[0]
    ends = [
        Channel(
            sock,
            Agreed(PeerId("peer"), request.param, Sealer(request.param, mine), Opener(request.param, theirs)),
            Meter(),
            20.0,
        )
        for sock, mine, theirs in ((near, out, back), (far, back, out))
    ]
    yield ends[0], ends[1]
    for end in ends:
        end.close()


def payload(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def receive(channel: Channel, room_bytes: int) -> tuple[bytes, bytes]:
    """Return the next frame, and what else is in a room of this size afterwards."""
    room = memoryview(bytearray([UNTOUCHED]) * room_bytes)
    length = channel.receive_payload(room)
    return bytes(room[:length]), bytes(room[length:])


@pytest.mark.parametrize("more", ROOMIER_BYTES)
@pytest.mark.parametrize("size", SIZES)
def test_frame_of_any_size_comes_whole_into_a_room_of_any_size(pair: Pair, size: int, more: int) -> None:
    near, far = pair
    near.send(Kind.PAYLOAD, payload(size))
    frame, behind = receive(far, size + more)
    assert frame == payload(size)
    assert set(behind[TAG_BYTES:]) <= {UNTOUCHED}


def test_frames_that_wait_behind_one_another_are_told_apart(pair: Pair) -> None:
    near, far = pair
    rng = random.Random(1)
    sizes = [rng.choice(SIZES[:-1]) for _ in range(40)]
    for start in range(0, len(sizes), 8):  # no more than the kernel keeps
        for size in sizes[start : start + 8]:
            near.send(Kind.PAYLOAD, payload(size))
        for size in sizes[start : start + 8]:
            assert receive(far, size + rng.choice(ROOMIER_BYTES))[0] == payload(size)


def test_both_ends_in_one_thread_do_not_disturb_each_other(pair: Pair) -> None:
    """They share the thread's room: a frame is in it only within a call."""
    near, far = pair
    for size in SIZES:
        near.send(Kind.PAYLOAD, payload(size))
        far.send(Kind.PAYLOAD, payload(size + 1))
        assert receive(far, size)[0] == payload(size)
        assert receive(near, size + 1)[0] == payload(size + 1)


@pytest.mark.parametrize("more", [0, TAG_BYTES])
def test_altered_frame_does_not_open_wherever_it_lies(pair: Pair, more: int) -> None:
    near, far = pair
    size = 3 * SMALL_FRAME_BYTES
    frame = bytearray(size + OVERHEAD_BYTES)
    near._agreed.sealer.seal_into(Kind.PAYLOAD, payload(size), memoryview(frame))
    frame[size // 2] ^= 1
    near.socket.sendall(frame)
    with pytest.raises(PeerError, match="not authentic"):
        receive(far, size + more)


def test_frame_longer_than_its_room_is_refused_before_it_is_taken(pair: Pair) -> None:
    near, far = pair
    near.socket.sendall((MAX_PAYLOAD_BYTES).to_bytes(4, "little") + bytes([Kind.PAYLOAD]))
    with pytest.raises(PeerError, match="over the limit of 20000"):
        receive(far, 20_000)


def test_what_was_taken_is_counted(pair: Pair) -> None:
    near, far = pair
    for size in SIZES:
        near.send(Kind.PAYLOAD, payload(size))
        receive(far, size + TAG_BYTES)
    whole = sum(SIZES) + len(SIZES) * OVERHEAD_BYTES
    assert (near._meter.sent_bytes, far._meter.received_bytes) == (whole, whole)
