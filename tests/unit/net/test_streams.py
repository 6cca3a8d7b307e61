"""Streams over real bulk planes on loopback: frames in order, both kinds of end, limits, interruption."""

import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TypeVar, cast

import msgspec
import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives.asymmetric import ec

from barnraise.errors import ConfigError, LocalError, PeerError, Unavailable
from barnraise.identity import ClusterKey, Identity
from barnraise.ids import PeerId
from barnraise.net import bulk as bulk_module
from barnraise.net import congestion
from barnraise.net.bulk import BulkLimits, SealedBulk, open_bulk
from barnraise.net.channel import PATIENCE_PARTS, Channel, Meter
from barnraise.net.congestion import MAX_CONNECTIONS
from barnraise.net.frames import HEADER_BYTES, MAX_PAYLOAD_BYTES, TAG_BYTES, Kind, Opener, Sealer, Suite
from barnraise.net.handshake import Agreed
from barnraise.net.seam import MAX_HEADER_BYTES, Bulk, Ended, Stream
from barnraise.net.speed import MIN_TRANSFER_BYTES, Gauge
from barnraise.net.streams import SealedStream, StreamAnnouncement

T = TypeVar("T")

KEY = ClusterKey(bytes(32))
SMALL_BYTES = 16 * 1024
"""Of a frame that fits the kernel's buffers before anybody reads."""
IDENTITIES = [Identity(bytes([i]) * 32, bytes([i]) * 32) for i in range(1, 4)]


@dataclass
class Node:
    """A bulk plane that keeps the streams it is given."""

    identity: Identity
    limits: BulkLimits = field(default_factory=BulkLimits)
    refusal: Exception | None = None
    given: SimpleQueue[tuple[PeerId, bytes, Stream]] = field(default_factory=SimpleQueue)
    bulk: SealedBulk = field(init=False)

    @property
    def peer_id(self) -> PeerId:
        return self.identity.peer_id

    def take(self, peer: PeerId, header: bytes, stream: Stream) -> None:
        if self.refusal:
            raise self.refusal
        self.given.put((peer, header, stream))

    def learn(self, other: "Node") -> None:
        self.bulk.learn(other.peer_id, *other.bulk.address)


@asynccontextmanager
async def running(*nodes: Node) -> AsyncIterator[Sequence[Node]]:
    async with AsyncExitStack() as stack:
        for node in nodes:
            plane = open_bulk(
                node.identity, KEY, sink=lambda *_: None, arrived=lambda *_: None, streams=node.take, limits=node.limits
            )
            node.bulk = await stack.enter_async_context(plane)
        for node in nodes:
            for other in nodes:
                if other is not node:
                    node.learn(other)
        yield nodes


@asynccontextmanager
async def stream(
    connections: int = 1, header: bytes = b"header", limits: BulkLimits | None = None
) -> AsyncIterator[tuple[Stream, Stream, Node, Node]]:
    """Yield a stream's two ends, and close them."""
    alice = Node(IDENTITIES[0], limits or BulkLimits(connections=connections))
    bob = Node(IDENTITIES[1])
    async with running(alice, bob):
        near = await alice.bulk.open_stream(bob.peer_id, header)
        _, _, far = bob.given.get_nowait()
        try:
            yield near, far, alice, bob
        finally:
            for end in (near, far):
                end.interrupt()
                end.close()


async def in_thread(work: Callable[..., T], *arguments: object) -> T:
    return await trio.to_thread.run_sync(work, *arguments)


def receive(far: Stream, room_bytes: int = MAX_PAYLOAD_BYTES) -> bytes:
    room = memoryview(bytearray(room_bytes))
    return bytes(room[: far.receive(room)])


async def test_sink_is_told_who_opens_and_what_the_header_says() -> None:
    alice, bob = Node(IDENTITIES[0]), Node(IDENTITIES[1])
    async with running(alice, bob):
        bulk: Bulk = alice.bulk
        near = await bulk.open_stream(bob.peer_id, b"what it is for")
        peer, header, far = bob.given.get_nowait()
        assert (peer, header, far.peer, near.peer) == (alice.peer_id, b"what it is for", alice.peer_id, bob.peer_id)
        for end in (near, far):
            end.close()


@pytest.mark.parametrize("connections", [1, 2, 3, 8])
async def test_frames_come_in_order_whatever_their_sizes(connections: int) -> None:
    sizes = [1, MAX_PAYLOAD_BYTES, 17, MAX_PAYLOAD_BYTES, MAX_PAYLOAD_BYTES - 1, 3, 4096, 70_000, 1, 300_000] * 3
    frames = [os.urandom(size) for size in sizes]

    def send_all(near: Stream) -> None:
        for frame in frames:
            near.send(frame)
        near.close()

    async with stream(connections) as (near, far, *_), trio.open_nursery() as nursery:
        nursery.start_soon(in_thread, send_all, near)
        for frame in frames:
            assert await in_thread(receive, far) == frame
        with pytest.raises(Ended, match="closed the stream"):
            await in_thread(receive, far)


async def test_streams_of_both_directions_and_several_at_once() -> None:
    alice, bob = Node(IDENTITIES[0]), Node(IDENTITIES[1])
    async with running(alice, bob), AsyncExitStack() as stack:
        for sender, receiver in ((alice, bob), (bob, alice), (alice, bob)):
            near = await sender.bulk.open_stream(receiver.peer_id, b"")
            _, _, far = receiver.given.get_nowait()
            stack.callback(near.close)
            stack.callback(far.close)
            near.send(sender.peer_id.encode())
            assert receive(far) == sender.peer_id.encode()


async def test_frame_of_any_buffer_is_its_bytes() -> None:
    async with stream() as (near, far, *_):
        near.send(memoryview(bytearray(range(240))).cast("f"))
        room = memoryview(bytearray(240)).cast("f")
        assert far.receive(room) == 240
        assert bytes(room) == bytes(range(240))


@pytest.mark.parametrize("size", [0, MAX_PAYLOAD_BYTES + 1])
async def test_frame_that_cannot_be_is_our_own_fault(size: int) -> None:
    async with stream() as (near, far, *_):
        with pytest.raises(LocalError, match=f"{size} bytes"):
            near.send(bytes(size))
        near.send(b"fine")
        assert receive(far) == b"fine"


async def test_wrong_end_is_our_own_fault() -> None:
    async with stream() as (near, far, *_):
        with pytest.raises(LocalError, match="sending end"):
            far.send(b"x")
        with pytest.raises(LocalError, match="receiving end"):
            near.receive(memoryview(bytearray(1)))
        with pytest.raises(LocalError, match="room of 0 bytes"):
            far.receive(memoryview(b""))
        with pytest.raises(LocalError, match="patience"):
            near.patience(0)


async def test_frame_longer_than_the_room_is_the_peers_fault() -> None:
    async with stream() as (near, far, alice, _):
        near.send(bytes(11))
        with pytest.raises(PeerError, match=rf"{alice.peer_id}.*11 bytes is over the limit of 10"):
            receive(far, 10)


async def test_header_over_the_limit_and_unknown_peers_are_refused_here() -> None:
    async with running(Node(IDENTITIES[0])) as (alice,):
        with pytest.raises(LocalError, match="4097 bytes"):
            await alice.bulk.open_stream(IDENTITIES[1].peer_id, bytes(MAX_HEADER_BYTES + 1))
        with pytest.raises(Unavailable, match="no bulk address is known"):
            await alice.bulk.open_stream(IDENTITIES[1].peer_id, b"")


async def test_refusal_tells_the_sinks_words() -> None:
    bob = Node(IDENTITIES[1], refusal=Unavailable("no collective runs here"))
    async with running(Node(IDENTITIES[0], BulkLimits(connections=2)), bob) as (alice, _):
        with pytest.raises(Unavailable, match=f"{bob.peer_id} refused the stream: 'no collective runs here'"):
            await alice.bulk.open_stream(bob.peer_id, b"")
        bob.refusal = None
        near = await alice.bulk.open_stream(bob.peer_id, bytes(MAX_HEADER_BYTES))
        near.close()
        bob.given.get_nowait()[2].close()
        assert bob.given.empty()


async def test_plane_without_a_sink_refuses_streams() -> None:
    async with (
        running(Node(IDENTITIES[0])) as (alice,),
        open_bulk(IDENTITIES[1], KEY, sink=lambda *_: None, arrived=lambda *_: None) as plane,
    ):
        alice.bulk.learn(IDENTITIES[1].peer_id, *plane.address)
        plane.learn(alice.peer_id, *alice.bulk.address)
        with pytest.raises(Unavailable, match="refused the stream: 'not wanted'"):
            await alice.bulk.open_stream(IDENTITIES[1].peer_id, b"")


async def test_sinks_own_error_ends_its_plane() -> None:
    async with running(Node(IDENTITIES[0])) as (alice,):
        with pytest.RaisesGroup(LocalError, flatten_subgroups=True):
            async with running(Node(IDENTITIES[1], refusal=LocalError("a defect"))) as (bob,):
                alice.learn(bob)
                bob.learn(alice)
                with pytest.raises(Unavailable):
                    await alice.bulk.open_stream(bob.peer_id, b"")
                await trio.sleep_forever()


async def test_streams_of_one_peer_are_limited_and_closed_ones_make_room() -> None:
    bob = Node(IDENTITIES[1], BulkLimits(max_streams_per_peer=1))
    async with running(Node(IDENTITIES[0]), bob) as (alice, _):
        near = await alice.bulk.open_stream(bob.peer_id, b"1")
        with pytest.raises(Unavailable, match="over 1 streams"):
            await alice.bulk.open_stream(bob.peer_id, b"2")
        near.close()
        bob.given.get_nowait()[2].close()
        await trio.testing.wait_all_tasks_blocked()
        near = await alice.bulk.open_stream(bob.peer_id, b"3")
        _, header, far = bob.given.get_nowait()
        near.close()
        far.close()
        assert header == b"3"


@pytest.mark.parametrize("connections", [-1, 9])
async def test_number_of_connections_is_the_users_to_correct(connections: int) -> None:
    with pytest.raises(ConfigError, match=f"bulk_connections is {connections}"):
        async with running(Node(IDENTITIES[0], BulkLimits(connections=connections))):
            raise AssertionError("it runs")


async def test_short_way_gets_one_connection_and_the_configuration_may_say_otherwise() -> None:
    for limits, expected in ((BulkLimits(), 1), (BulkLimits(connections=5), 5)):
        async with stream(limits=limits) as (near, far, *_):
            assert isinstance(near, SealedStream)
            assert isinstance(far, SealedStream)
            assert near.num_connections == far.num_connections == expected


@pytest.mark.skipif(not hasattr(socket, "TCP_CONGESTION"), reason="the system does not let a socket choose")
async def test_long_way_without_pacing_gets_all_connections_and_says_that_losses_hold_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(congestion, "LONG_ROUND_TRIP_S", -1.0)
    async with stream(limits=BulkLimits(congestion="reno")) as (near, far, alice, bob):
        assert isinstance(near, SealedStream)
        assert near.num_connections == MAX_CONNECTIONS
        for number in range(2 * MAX_CONNECTIONS):
            near.send(bytes([number]) * SMALL_BYTES)
            assert receive(far) == bytes([number]) * SMALL_BYTES
        assert alice.bulk._peers[bob.peer_id].gauge.is_held_by_loss


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


async def connected(opener: Node, listener: Node, number: int) -> list[Channel]:
    """Dial like an opener of streams that then does what it likes."""
    peer = opener.bulk._peers[listener.peer_id]
    return [await opener.bulk._dial(peer) for _ in range(number)]


def announce(channel: Channel, num_connections: int, index: int, header: bytes = b"") -> None:
    channel.send(Kind.STREAM, msgspec.msgpack.encode(StreamAnnouncement(bytes(16), num_connections, index, header)))


@pytest.mark.parametrize(
    "announcements",
    [
        [(2, 0, b""), (2, 0, b"")],
        [(2, 0, b""), (3, 1, b"")],
        [(2, 0, b"one"), (2, 1, b"other")],
    ],
    ids=["an index twice", "two numbers of connections", "two headers"],
)
async def test_connections_that_contradict_each_other_make_no_stream(
    announcements: list[tuple[int, int, bytes]],
) -> None:
    async with running(Node(IDENTITIES[0]), Node(IDENTITIES[1])) as (alice, bob):
        channels = await connected(alice, bob, 2)
        for channel, announcement in zip(channels, announcements, strict=True):
            announce(channel, *announcement)
        for channel in channels:
            assert not await in_thread(channel.wait)
            channel.close()
        assert bob.given.empty()


@pytest.mark.parametrize(
    "message",
    [b"", b"\x94", msgspec.msgpack.encode((bytes(16), 9, 0, b"")), msgspec.msgpack.encode((bytes(16), 2, 2, b""))],
)
async def test_malformed_announcement_ends_the_connection(message: bytes) -> None:
    async with running(Node(IDENTITIES[0]), Node(IDENTITIES[1])) as (alice, bob):
        (channel,) = await connected(alice, bob, 1)
        channel.send(Kind.STREAM, message)
        assert not await in_thread(channel.wait)
        channel.close()
        assert bob.given.empty()


async def test_stream_whose_connections_do_not_all_come_is_given_up() -> None:
    bob = Node(IDENTITIES[1], BulkLimits(handshake_timeout_s=0.3))
    async with running(Node(IDENTITIES[0]), bob) as (alice, _):
        (channel,) = await connected(alice, bob, 1)
        announce(channel, 2, 0)
        assert not await in_thread(channel.wait)
        channel.close()
        await trio.testing.wait_all_tasks_blocked()
        assert not bob.bulk._peers[alice.peer_id].gatherer._begun


async def test_forgotten_peers_half_opened_streams_are_closed() -> None:
    async with running(Node(IDENTITIES[0]), Node(IDENTITIES[1])) as (alice, bob):
        (channel,) = await connected(alice, bob, 1)
        announce(channel, 2, 0)
        gatherer = bob.bulk._peers[alice.peer_id].gatherer
        while not gatherer._begun:
            await trio.lowlevel.checkpoint()
        bob.bulk.forget(alice.peer_id)
        assert not await in_thread(channel.wait)
        channel.close()


@pytest.mark.parametrize("suite", Suite)
def test_keys_change_within_a_stream(suite: Suite) -> None:
    """Every third frame of each connection is sealed with the next key, the end mark as well."""
    frames = [bytes([number]) * (number + 1) for number in range(20)]
    with channel_pairs(suite, 2, rekey_frames=3) as (senders, receivers):
        near = SealedStream(senders, gauge=Gauge(), closed=lambda _: None)
        far = SealedStream(receivers, gauge=None, closed=lambda _: None)
        for frame in frames:
            near.send(frame)
        near.close()
        assert [receive(far) for _ in frames] == frames
        with pytest.raises(Ended):
            receive(far)


@pytest.mark.parametrize("suite", Suite)
def test_frame_of_before_a_change_of_keys_does_not_open_after_it(suite: Suite) -> None:
    with channel_pairs(suite, 1, rekey_frames=2) as ((sender,), (receiver,)):
        far = SealedStream([receiver], gauge=None, closed=lambda _: None)
        for _ in range(2):
            sender.send(Kind.PAYLOAD, b"x")
            assert receive(far) == b"x"
        sender.socket.sendall(sender._outgoing[: HEADER_BYTES + 1 + TAG_BYTES])
        with pytest.raises(PeerError, match="not authentic"):
            receive(far)


@contextmanager
def channel_pairs(suite: Suite, number: int, rekey_frames: int) -> Iterator[tuple[list[Channel], list[Channel]]]:
    """Yield both ends of connections whose keys change after so many frames."""
    with ExitStack() as stack:
        senders, receivers = [], []
        for index in range(number):
            keys = bytes([2 * index]) * 32, bytes([2 * index + 1]) * 32
            with socket.create_server(("127.0.0.1", 0)) as listener:
                near = socket.create_connection(listener.getsockname())
                far = listener.accept()[0]
            for sock, (out, back), ends in ((near, keys, senders), (far, keys[::-1], receivers)):
                agreed = Agreed(
                    PeerId("peer"), suite, Sealer(suite, out, rekey_frames), Opener(suite, back, rekey_frames)
                )
                ends.append(Channel(sock, agreed, Meter(), 20.0))
                stack.callback(ends[-1].close)
        yield senders, receivers


@pytest.mark.parametrize("classical_side", ["opener", "receiver"])
async def test_peer_without_post_quantum_key_exchange_gets_no_stream(
    classical_side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_module, "DIAL_PAUSES_S", ())
    async with running(Node(IDENTITIES[0]), Node(IDENTITIES[1])) as (alice, bob):
        classical = alice if classical_side == "opener" else bob
        classical.bulk._credentials.context.set_tmp_ecdh(ec.SECP256R1())
        with pytest.raises(Unavailable, match="not the post-quantum X25519MLKEM768; is its OpenSSL over"):
            await alice.bulk.open_stream(bob.peer_id, b"")
        assert bob.given.empty()


async def test_speed_is_measured_by_what_is_sent_on_streams() -> None:
    async with stream() as (near, far, alice, bob):
        assert alice.bulk.speed(bob.peer_id) is None
        for _ in range(MIN_TRANSFER_BYTES // SMALL_BYTES):
            near.send(bytes(SMALL_BYTES))
            receive(far)
        speed = alice.bulk.speed(bob.peer_id)
        assert speed
        assert 0 < speed.latency_s < 1
        assert speed.bandwidth_bytes_s > 0
        assert bob.bulk.speed(alice.peer_id) is None
        assert alice.bulk.speed(IDENTITIES[2].peer_id) is None


async def test_bytes_of_streams_are_counted() -> None:
    async with stream() as (near, far, alice, bob):
        before = alice.bulk.bytes_sent, bob.bulk.bytes_received
        near.send(bytes(1000))
        receive(far)
        size = HEADER_BYTES + 1000 + TAG_BYTES
        assert (alice.bulk.bytes_sent, bob.bulk.bytes_received) == (before[0] + size, before[1] + size)


@pytest.mark.parametrize("ends_it", ["interrupt", "the other end closes"])
async def test_stream_knows_whether_the_other_end_still_takes_frames(ends_it: str) -> None:
    async with stream(connections=2) as (near, far, *_):
        assert near.is_alive()
        if ends_it == "interrupt":
            near.interrupt()
        else:
            far.close()
        assert not near.is_alive()
