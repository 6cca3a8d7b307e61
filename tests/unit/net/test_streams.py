"""Streams over real bulk planes on loopback: frames in order, limits, refusals, what is measured of them."""

import os
import socket
from contextlib import AsyncExitStack

import pytest
import trio
import trio.testing

from barnraise.errors import ConfigError, LocalError, PeerError, Unavailable
from barnraise.net import congestion
from barnraise.net.bulk import BulkLimits, open_bulk
from barnraise.net.congestion import MAX_CONNECTIONS
from barnraise.net.frames import HEADER_BYTES, MAX_PAYLOAD_BYTES, TAG_BYTES
from barnraise.net.seam import MAX_HEADER_BYTES, Bulk, Ended, Stream
from barnraise.net.speed import MIN_TRANSFER_BYTES
from barnraise.net.streams import SealedStream

from .stream_nodes import IDENTITIES, KEY, SMALL_BYTES, Node, in_thread, receive, running, stream


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
