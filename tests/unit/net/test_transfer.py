"""Transfers between two channels over loopback, without trio: honest ones, hostile ones, stalled ones."""

import itertools
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from barnraise.errors import LocalError, PeerError, Unavailable
from barnraise.ids import PeerId
from barnraise.net import transfer
from barnraise.net.channel import Channel, Meter
from barnraise.net.frames import HEADER_BYTES, MAX_PAYLOAD_BYTES, Kind, Opener, Sealer, Suite
from barnraise.net.handshake import Agreed
from barnraise.net.seam import MAX_HEADER_BYTES
from barnraise.net.transfer import (
    EAGER_BYTES,
    MAX_ANNOUNCEMENT_BYTES,
    MAX_STRIPES,
    MAX_TRANSFER_BYTES,
    Announcement,
    Inbox,
    Refused,
    Reply,
    send_stripe,
    serve,
)

AES = Suite.AES_256_GCM
SENDER, RECEIVER = PeerId("sender"), PeerId("receiver")
KEYS = bytes(32), bytes([1]) * 32
PATIENT_S, IMPATIENT_S = 20.0, 0.1
ID = bytes(16)


@dataclass
class Store:
    """A sink that takes what it is told to take, and remembers what arrived."""

    wanted: Callable[[bytes], bool] = lambda header: True
    asked: list[tuple[bytes, int]] = field(default_factory=list)
    buffers: dict[bytes, bytearray] = field(default_factory=dict)
    arrived: dict[bytes, bytes] = field(default_factory=dict)

    def sink(self, peer: PeerId, header: bytes, size_bytes: int) -> memoryview | None:
        self.asked.append((header, size_bytes))
        if not self.wanted(header):
            return None
        self.buffers[header] = bytearray(size_bytes)
        return memoryview(self.buffers[header])

    def note(self, peer: PeerId, header: bytes) -> None:
        assert peer == SENDER
        self.arrived[header] = bytes(self.buffers[header])

    def inbox(self, max_transfers: int = 4, patience_s: float = PATIENT_S) -> Inbox:
        return Inbox(self.sink, self.note, max_transfers, patience_s)


def connection() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        return near, listener.accept()[0]


@contextmanager
def channels(sender_s: float = PATIENT_S, receiver_s: float = PATIENT_S) -> Iterator[tuple[Channel, Channel]]:
    """Yield a sender's and a receiver's end, with these idle timeouts."""
    near, far = connection()
    out, back = KEYS
    mine = Agreed(RECEIVER, AES, Sealer(AES, out), Opener(AES, back))
    theirs = Agreed(SENDER, AES, Sealer(AES, back), Opener(AES, out))
    ends = Channel(near, mine, Meter(), sender_s), Channel(far, theirs, Meter(), receiver_s)
    try:
        yield ends
    finally:
        for end in ends:
            end.close()


@contextmanager
def served(store: Store, *receivers: Channel, inbox: Inbox | None = None) -> Iterator[list[Future[None]]]:
    inbox = inbox or store.inbox()
    with ThreadPoolExecutor(len(receivers)) as threads:
        try:
            yield [threads.submit(serve, receiver, inbox) for receiver in receivers]
        finally:
            for receiver in receivers:
                receiver.interrupt()


def announce(
    size_bytes: int, header: bytes = b"h", num_stripes: int = 1, index: int = 0, transfer: bytes = ID
) -> Announcement:
    return Announcement(transfer, size_bytes, num_stripes, index, header)


def send(channel: Channel, announcement: Announcement, payload: bytes) -> None:
    send_stripe(channel, announcement, [memoryview(payload)] if payload else [])


def announce_only(channel: Channel, announcement: Announcement) -> None:
    channel.send(Kind.ANNOUNCEMENT, msgspec.msgpack.encode(announcement))


@pytest.mark.parametrize("size", [0, 1, EAGER_BYTES, EAGER_BYTES + 1, 2 * MAX_PAYLOAD_BYTES + 7])
def test_payload_arrives_whole(size: int) -> None:
    payload, store = bytes(i % 251 for i in range(size)), Store()
    with channels() as (mine, theirs), served(store, theirs):
        send(mine, announce(size), payload)
        assert store.arrived == {b"h": payload}


def test_channel_is_used_again() -> None:
    store = Store()
    with channels() as (mine, theirs), served(store, theirs):
        for number in range(3):
            send(mine, announce(1, header=bytes([number])), bytes([number]))
    assert store.arrived == {bytes([number]): bytes([number]) for number in range(3)}


def test_sender_is_answered_after_arrived_was_called() -> None:
    seen: list[bytes] = []
    store = Store()
    inbox = Inbox(store.sink, lambda peer, header: seen.append(header), 1, PATIENT_S)
    with channels() as (mine, theirs), served(store, theirs, inbox=inbox):
        send(mine, announce(3), b"abc")
        assert seen == [b"h"]


def test_stripes_of_two_channels_make_one_payload() -> None:
    payload, store = bytes(i % 249 for i in range(3_000_001)), Store()
    with channels() as (mine, theirs), channels() as (mine2, theirs2), served(store, theirs, theirs2):
        with ThreadPoolExecutor(1) as other:
            second = other.submit(send, mine2, announce(len(payload), num_stripes=2, index=1), payload)
            send(mine, announce(len(payload), num_stripes=2, index=0), payload)
            second.result()
        assert store.arrived == {b"h": payload}
    assert store.asked == [(b"h", len(payload))]


@given(st.integers(0, MAX_TRANSFER_BYTES), st.integers(1, MAX_STRIPES))
def test_stripes_cover_the_payload_without_gap_or_overlap(size: int, num_stripes: int) -> None:
    bounds = [announce(size, num_stripes=num_stripes, index=index).bounds for index in range(num_stripes)]
    assert bounds[0][0] == 0
    assert bounds[-1][1] == size
    assert all(one[1] == other[0] for one, other in itertools.pairwise(bounds))


def test_small_refused_transfer_is_drained_and_the_channel_stays_good() -> None:
    store = Store(wanted=lambda header: header == b"good")
    with channels() as (mine, theirs), served(store, theirs):
        with pytest.raises(Refused, match="not wanted"):
            send(mine, announce(EAGER_BYTES, header=b"bad"), bytes(EAGER_BYTES))
        send(mine, announce(4, header=b"good"), b"good")
    assert store.arrived == {b"good": b"good"}


def test_large_refused_transfer_is_never_sent() -> None:
    store = Store(wanted=lambda header: False)
    with channels() as (mine, theirs), served(store, theirs):
        with pytest.raises(Refused, match="not wanted"):
            send(mine, announce(4 * EAGER_BYTES), bytes(4 * EAGER_BYTES))
        assert mine._meter.sent_bytes < 200


def test_terabyte_is_the_sinks_to_refuse_and_more_is_malformed() -> None:
    store = Store(wanted=lambda header: False)
    with channels() as (mine, theirs), served(store, theirs) as (serving,):
        with pytest.raises(Refused, match="not wanted"):
            send(mine, announce(MAX_TRANSFER_BYTES), b"")
        announce_only(mine, announce(MAX_TRANSFER_BYTES + 1))
        with pytest.raises(PeerError, match="malformed announcement"):
            serving.result()
    assert store.asked == [(b"h", MAX_TRANSFER_BYTES)]


def test_header_of_the_callers_limit_fits() -> None:
    store, header = Store(), bytes(MAX_HEADER_BYTES)
    assert len(msgspec.msgpack.encode(announce(MAX_TRANSFER_BYTES, header, 16, 15))) <= MAX_ANNOUNCEMENT_BYTES
    with channels() as (mine, theirs), served(store, theirs):
        send(mine, announce(0, header), b"")
    assert store.arrived == {header: b""}


def hostile(attack: Callable[[Channel], None], store: Store | None = None, receiver_s: float = PATIENT_S) -> str:
    """Return why a receiver ends the channel on which ``attack`` was sent; nothing may have arrived."""
    store = store or Store()
    with channels(receiver_s=receiver_s) as (mine, theirs), served(store, theirs) as (serving,):
        attack(mine)
        error = serving.exception()
    assert isinstance(error, PeerError | Unavailable)
    assert not store.arrived
    return str(error)


def test_oversized_frames_are_refused_before_anything_is_asked() -> None:
    store = Store()
    for kind, limit in ((Kind.ANNOUNCEMENT, MAX_ANNOUNCEMENT_BYTES), (Kind.PAYLOAD, MAX_PAYLOAD_BYTES)):
        header = (2**32 - 1).to_bytes(4, "little") + bytes([kind])
        reason = hostile(lambda mine, header=header: mine.socket.sendall(header), store)  # type: ignore[misc]
        assert f"over the limit of {limit}" in reason or "where ANNOUNCEMENT" in reason
    assert not store.asked


def test_payload_beyond_its_announcement_is_refused() -> None:
    def attack(mine: Channel) -> None:
        announce_only(mine, announce(10))
        mine.send(Kind.PAYLOAD, bytes(11))

    assert "over the limit of 10" in hostile(attack)


def test_empty_payload_frames_are_refused() -> None:
    def attack(mine: Channel) -> None:
        announce_only(mine, announce(10))
        mine.send(Kind.PAYLOAD, b"")

    assert "an empty payload frame" in hostile(attack)


def test_payload_where_an_announcement_is_due_is_refused() -> None:
    assert "where ANNOUNCEMENT" in hostile(lambda mine: mine.send(Kind.PAYLOAD, b"x"))


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (0, 1)])
def test_replayed_dropped_and_reordered_frames_are_refused(first: int, second: int) -> None:
    """Frames 0 and 1 are the announcement and the payload; only (0, 1) is what was sealed, and then a bit is off."""

    def attack(mine: Channel) -> None:
        frames: list[bytes] = []
        for kind, content in ((Kind.ANNOUNCEMENT, msgspec.msgpack.encode(announce(4))), (Kind.PAYLOAD, b"data")):
            room = memoryview(bytearray(100))
            frames.append(bytes(room[: mine._agreed.sealer.seal_into(kind, content, room)]))
        tampered = bytearray(frames[second])
        tampered[-1] ^= (first, second) == (0, 1)
        mine.socket.sendall(frames[first] + tampered)

    reason = hostile(attack)
    assert "not authentic" in reason or "a frame of kind" in reason


@pytest.mark.parametrize("cut_at", [1, HEADER_BYTES, HEADER_BYTES + 1])
def test_truncated_frame_is_a_peer_that_went_away(cut_at: int) -> None:
    def attack(mine: Channel) -> None:
        room = memoryview(bytearray(100))
        size = mine._agreed.sealer.seal_into(Kind.ANNOUNCEMENT, msgspec.msgpack.encode(announce(4)), room)
        mine.socket.sendall(room[: min(size, cut_at)])
        mine.interrupt()

    assert "closed the connection" in hostile(attack)


def test_sender_that_stops_midway_leaves_nothing_behind() -> None:
    store = Store()
    inbox = store.inbox()
    with channels() as (mine, theirs), served(store, theirs, inbox=inbox) as (serving,):
        announce_only(mine, announce(10))
        mine.send(Kind.PAYLOAD, bytes(9))
        mine.interrupt()
        with pytest.raises(Unavailable, match="closed the connection"):
            serving.result()
    assert not store.arrived
    assert not inbox._open


def test_stalled_sender_is_given_up() -> None:
    def attack(mine: Channel) -> None:
        announce_only(mine, announce(10))

    assert "sent nothing for 0.1 s" in hostile(attack, receiver_s=IMPATIENT_S)


def test_idle_channel_is_not_given_up() -> None:
    store = Store()
    with channels(receiver_s=0.01) as (mine, theirs), served(store, theirs) as (serving,):
        with pytest.raises(TimeoutError):
            serving.result(timeout=0.1)
        send(mine, announce(1), b"x")
    assert store.arrived == {b"h": b"x"}


def test_receiver_that_never_reads_is_given_up() -> None:
    with channels(sender_s=IMPATIENT_S) as (mine, _), pytest.raises(Unavailable, match=r"sent nothing for 0\.1 s"):
        send(mine, announce(1), b"x")
    with channels(sender_s=IMPATIENT_S) as (mine, theirs):
        theirs.send(Kind.REPLY, msgspec.msgpack.encode(Reply("go")))
        with pytest.raises(Unavailable, match=r"took nothing for 0\.1 s"):
            send(mine, announce(64 * EAGER_BYTES), bytes(64 * EAGER_BYTES))


def test_receiver_that_goes_away_is_noticed() -> None:
    with channels() as (mine, theirs):
        theirs.close()
        with pytest.raises(Unavailable, match="peer receiver"):
            send(mine, announce(4 * EAGER_BYTES), bytes(4 * EAGER_BYTES))


@pytest.mark.parametrize("reply", [Reply("taken"), Reply("go"), "nonsense", ["go", "x" * 201], ["later", ""]])
def test_reply_out_of_turn_or_malformed_is_the_peers_fault(reply: object) -> None:
    size = EAGER_BYTES + 1 if reply == Reply("taken") else 1
    with channels() as (mine, theirs):
        theirs.send(Kind.REPLY, msgspec.msgpack.encode(reply))
        with pytest.raises(PeerError, match="reply"):
            send(mine, announce(size), bytes(size))


def test_idle_channel_knows_whether_it_is_alive() -> None:
    with channels() as (mine, theirs):
        assert mine.is_alive()
        theirs.send(Kind.REPLY, b"nobody asked")
        theirs.close()
        assert not mine.is_alive()
    with channels() as (mine, theirs):
        theirs.close()
        assert not mine.wait()
        assert not mine.is_alive()


def test_transfers_over_the_limit_wait_for_their_turn() -> None:
    inbox = Store().inbox(max_transfers=1)
    first = inbox.join(SENDER, announce(1, transfer=bytes([1]) * 16))
    with ThreadPoolExecutor(1) as threads:
        second = threads.submit(inbox.join, SENDER, announce(1, transfer=bytes([2]) * 16))
        assert not second.done()
        inbox.finish(first, 0)
        assert second.result().id == bytes([2]) * 16


def test_transfers_over_the_limit_are_refused_in_the_end() -> None:
    inbox = Store().inbox(max_transfers=1, patience_s=0.01)
    inbox.join(SENDER, announce(1, transfer=bytes([1]) * 16))
    with pytest.raises(Refused, match="busy with 1 other"):
        inbox.join(SENDER, announce(1, transfer=bytes([2]) * 16))


def test_closed_inbox_wakes_who_waits_and_refuses() -> None:
    store = Store()
    inbox = store.inbox(max_transfers=1)
    inbox.join(SENDER, announce(1, transfer=bytes([1]) * 16))
    with ThreadPoolExecutor(1) as threads:
        second = threads.submit(inbox.join, SENDER, announce(1, transfer=bytes([2]) * 16))
        inbox.close()
        with pytest.raises(Refused, match="not wanted"):
            second.result()
    assert len(store.asked) == 1


def test_second_try_waits_until_the_first_ones_writers_have_stopped() -> None:
    inbox = Store().inbox(patience_s=0.01)
    again = announce(10, transfer=bytes([1]) * 16)
    incoming = inbox.join(SENDER, announce(10, num_stripes=2, index=0))
    inbox.join(SENDER, announce(10, num_stripes=2, index=1))
    inbox.fail(incoming, writing=True)
    with pytest.raises(Refused, match="already given up"):
        inbox.join(SENDER, announce(10, num_stripes=2, index=1))
    with pytest.raises(Refused, match="busy"):
        inbox.join(SENDER, again)
    with pytest.raises(Unavailable, match="gave up"):
        inbox.finish(incoming, 1)
    assert inbox.join(SENDER, again).id == again.id


def test_channel_that_closes_between_its_stripe_and_the_others_ends_the_transfer() -> None:
    store = Store()
    inbox = store.inbox()
    with channels() as (mine, theirs), served(store, theirs, inbox=inbox) as (serving,):
        send(mine, announce(2, num_stripes=2, index=0), b"ab")
        assert inbox._open
        mine.interrupt()
        serving.result()
    assert not inbox._open
    assert not store.arrived


@pytest.mark.parametrize(
    "second", [announce(11, num_stripes=2, index=1), announce(10, b"other", 2, 1), announce(10, num_stripes=3, index=1)]
)
def test_stripes_that_contradict_each_other_are_refused(second: Announcement) -> None:
    inbox = Store().inbox()
    inbox.join(SENDER, announce(10, num_stripes=2, index=0))
    with pytest.raises(PeerError, match="different sizes or headers"):
        inbox.join(SENDER, second)


def test_stripe_that_comes_twice_is_refused() -> None:
    inbox = Store().inbox()
    inbox.join(SENDER, announce(10, num_stripes=2, index=0))
    with pytest.raises(PeerError, match="came twice"):
        inbox.join(SENDER, announce(10, num_stripes=2, index=0))


def test_two_senders_may_choose_the_same_id() -> None:
    inbox = Store().inbox()
    assert inbox.join(SENDER, announce(1)) is not inbox.join(RECEIVER, announce(1))


@pytest.mark.parametrize("room", [memoryview(bytearray(9)), memoryview(bytes(10)), memoryview(bytearray(20))[::2]])
def test_sink_owes_a_writable_buffer_of_the_size(room: memoryview) -> None:
    inbox = Inbox(lambda peer, header, size_bytes: room, lambda peer, header: None, 1, PATIENT_S)
    with pytest.raises(LocalError, match="the sink gave"):
        inbox.join(SENDER, announce(10))


@given(st.binary(max_size=100))
def test_any_bytes_are_a_sound_announcement_or_refused(data: bytes) -> None:
    for decode in (transfer._announcements.decode, transfer._replies.decode):
        try:
            decoded = decode(data)
        except msgspec.MsgspecError:
            continue
        assert decode(msgspec.msgpack.encode(decoded)) == decoded


@given(st.binary(max_size=20), st.integers(), st.integers(), st.integers(), st.binary(max_size=5000))
def test_announcement_out_of_range_is_refused(id: bytes, size: int, stripes: int, index: int, header: bytes) -> None:  # noqa: A002
    sound = (
        len(id) == 16
        and 0 <= size <= MAX_TRANSFER_BYTES
        and 0 <= index < stripes <= MAX_STRIPES
        and len(header) <= MAX_HEADER_BYTES
    )
    try:
        transfer._announcements.decode(msgspec.msgpack.encode([id, size, stripes, index, header]))
    except (msgspec.MsgspecError, OverflowError):
        assert not sound
    else:
        assert sound
