"""The bulk plane over loopback: peers that trust each other, and peers that should not be trusted."""

import contextlib
import os
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio

from barnraise.errors import ConfigError, LocalError, Unavailable
from barnraise.identity import ClusterKey, Identity
from barnraise.ids import PeerId
from barnraise.net import bulk as bulk_module
from barnraise.net.bulk import MIN_POOLED, BulkLimits, SealedBulk, open_bulk
from barnraise.net.seam import MAX_HEADER_BYTES, Bulk

KEY = ClusterKey(bytes(32))
IDENTITIES = [Identity(bytes([i]) * 32, bytes([i]) * 32) for i in range(1, 6)]
STRANGER = IDENTITIES.pop()
LOCALHOST = "127.0.0.1"
MEBIBYTE = 1024 * 1024


@dataclass
class Node:
    """A bulk plane with a store behind it."""

    identity: Identity
    key: ClusterKey = KEY
    limits: BulkLimits = field(default_factory=BulkLimits)
    wanted: bool = True
    buffers: dict[tuple[PeerId, bytes], bytearray] = field(default_factory=dict)
    arrived: dict[tuple[PeerId, bytes], bytes] = field(default_factory=dict)
    asked: threading.Event = field(default_factory=threading.Event)
    bulk: SealedBulk = field(init=False)

    @property
    def peer_id(self) -> PeerId:
        return self.identity.peer_id

    def sink(self, peer: PeerId, header: bytes, size_bytes: int) -> memoryview | None:
        self.asked.set()
        if not self.wanted:
            return None
        self.buffers[peer, header] = bytearray(size_bytes)
        return memoryview(self.buffers[peer, header])

    def note(self, peer: PeerId, header: bytes) -> None:
        self.arrived[peer, header] = bytes(self.buffers[peer, header])

    def learn(self, other: "Node") -> None:
        self.bulk.learn(other.peer_id, *other.bulk.address)


@asynccontextmanager
async def running(*nodes: Node) -> AsyncIterator[Sequence[Node]]:
    """Run the nodes and let all know each other; at the end no thread of theirs may be busy."""
    async with AsyncExitStack() as stack:
        for node in nodes:
            plane = open_bulk(node.identity, node.key, sink=node.sink, arrived=node.note, limits=node.limits)
            node.bulk = await stack.enter_async_context(plane)
        for node in nodes:
            for other in nodes:
                if other is not node:
                    node.learn(other)
        yield nodes
    for node in nodes:
        assert not node.bulk._receiving.borrowed_tokens
        assert not node.bulk._sending.borrowed_tokens
        assert not node.bulk._handshaking.borrowed_tokens


@asynccontextmanager
async def pair(mine: BulkLimits | None = None, theirs: BulkLimits | None = None) -> AsyncIterator[Sequence[Node]]:
    alice = Node(IDENTITIES[0], limits=mine or BulkLimits())
    async with running(alice, Node(IDENTITIES[1], limits=theirs or BulkLimits())) as nodes:
        yield nodes


async def send(sender: Node, receiver: Node, header: bytes, payload: bytes) -> None:
    await sender.bulk.send(receiver.peer_id, header, [memoryview(payload)])


async def test_it_is_the_seams_bulk_plane() -> None:
    async with pair() as (alice, _):
        bulk: Bulk = alice.bulk
        assert bulk.address[0] == LOCALHOST


@pytest.mark.parametrize("size", [0, 1, 4095, MEBIBYTE + 1, 5 * MEBIBYTE + 3])
async def test_payload_makes_the_trip(size: int) -> None:
    payload = os.urandom(size)
    async with pair(BulkLimits(connections=3)) as (alice, bob):
        await send(alice, bob, b"header", payload)
        assert bob.arrived == {(alice.peer_id, b"header"): payload}


async def test_parts_of_any_shape_are_joined() -> None:
    words = memoryview(bytearray(range(240))).cast("H")
    async with pair() as (alice, bob):
        await alice.bulk.send(bob.peer_id, b"", [memoryview(b""), words, memoryview(b"tail")])
        assert bob.arrived == {(alice.peer_id, b""): bytes(range(240)) + b"tail"}


async def test_four_peers_send_to_all_at_once_and_keep_their_connections() -> None:
    payloads = {identity.peer_id: os.urandom(3 * MEBIBYTE) for identity in IDENTITIES}
    async with running(*(Node(identity) for identity in IDENTITIES)) as nodes:
        for round_ in (b"one", b"two"):
            async with trio.open_nursery() as nursery:
                for node in nodes:
                    for other in nodes:
                        if other is not node:
                            nursery.start_soon(send, node, other, round_, payloads[node.peer_id])
            for node in nodes:
                got = {peer: payload for (peer, header), payload in node.arrived.items() if header == round_}
                assert got == {peer: payload for peer, payload in payloads.items() if peer != node.peer_id}
        for node in nodes:
            assert all(len(peer.accepted) <= MIN_POOLED for peer in node.bulk._peers.values())


async def test_bytes_are_counted_with_their_framing() -> None:
    async with pair() as (alice, bob):
        await send(alice, bob, b"h", bytes(MEBIBYTE))
    assert MEBIBYTE < alice.bulk.bytes_sent < MEBIBYTE + 10_000
    assert bob.bulk.bytes_received == alice.bulk.bytes_sent
    assert bob.bulk.bytes_sent == alice.bulk.bytes_received > 2000


async def test_more_transfers_than_permits_take_turns() -> None:
    async with (
        pair(BulkLimits(connections=1), BulkLimits(max_transfers=1)) as (alice, bob),
        trio.open_nursery() as all_,
    ):
        for number in range(10):
            all_.start_soon(send, alice, bob, bytes([number]), bytes([number]) * 10_000)
    assert bob.arrived == {(alice.peer_id, bytes([number])): bytes([number]) * 10_000 for number in range(10)}


async def test_unknown_peer_is_unavailable() -> None:
    async with pair() as (alice, _):
        with pytest.raises(Unavailable, match="no bulk address is known"):
            await alice.bulk.send(STRANGER.peer_id, b"", [])


async def test_too_long_a_header_is_our_own_fault() -> None:
    async with pair() as (alice, bob):
        await send(alice, bob, bytes(MAX_HEADER_BYTES), b"")
        with pytest.raises(LocalError, match="4097 bytes"):
            await send(alice, bob, bytes(MAX_HEADER_BYTES + 1), b"")


async def test_refused_transfer_is_unavailable_and_the_next_one_goes_through() -> None:
    for payload in (b"small", bytes(5 * MEBIBYTE)):
        async with pair() as (alice, bob):
            bob.wanted = False
            with pytest.raises(Unavailable, match="refused the transfer: 'not wanted'"):
                await send(alice, bob, b"bad", payload)
            bob.wanted = True
            await send(alice, bob, b"good", payload)
            assert bob.arrived == {(alice.peer_id, b"good"): payload}


async def test_peer_that_is_not_who_we_want_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk_module, "DIAL_PAUSES_S", ())
    async with pair() as (alice, bob):
        alice.bulk.learn(STRANGER.peer_id, *bob.bulk.address)
        with pytest.raises(Unavailable, match=f"{bob.peer_id} answers at its address"):
            await alice.bulk.send(STRANGER.peer_id, b"", [memoryview(b"secret")])
        assert not bob.asked.is_set()


async def test_stranger_is_refused_until_it_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk_module, "DIAL_PAUSES_S", ())
    async with pair() as (_, bob), running(Node(STRANGER)) as (stranger,):
        stranger.learn(bob)
        with pytest.raises(Unavailable, match="does not know you yet"):
            await send(stranger, bob, b"", b"hello")
        bob.learn(stranger)
        await send(stranger, bob, b"", b"hello")
        assert bob.arrived == {(stranger.peer_id, b""): b"hello"}


async def test_dialler_tries_again_once_the_other_side_has_learned_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async with pair() as (_, bob), running(Node(STRANGER)) as (stranger,):

        def pauses() -> Iterator[float]:
            yield 0.0
            # Asked for a second pause: the first attempt was refused.
            bob.learn(stranger)
            yield 0.0

        monkeypatch.setattr(bulk_module, "DIAL_PAUSES_S", pauses())
        stranger.learn(bob)
        await send(stranger, bob, b"", b"hello")
        assert bob.arrived == {(stranger.peer_id, b""): b"hello"}


async def test_peer_of_another_cluster_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk_module, "DIAL_PAUSES_S", ())
    other = Node(IDENTITIES[1], key=ClusterKey(bytes([1]) * 32))
    async with running(Node(IDENTITIES[0]), other) as (alice, bob):
        for one, two in ((alice, bob), (bob, alice)):
            with pytest.raises(Unavailable, match="another cluster key"):
                await send(one, two, b"", b"secret")
            assert not two.asked.is_set()


async def test_garbage_on_the_port_hurts_nobody() -> None:
    async with pair(theirs=BulkLimits(handshake_timeout_s=20.0)) as (alice, bob):
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff", bytes(100), b"\x16\x03\x01\x00\x05hello"):
            stream = await trio.open_tcp_stream(*bob.bulk.address)
            with trio.fail_after(10):
                await stream.send_all(garbage)
                assert await end_of(stream)
        await send(alice, bob, b"", b"fine")
        assert bob.arrived == {(alice.peer_id, b""): b"fine"}


async def end_of(stream: trio.SocketStream) -> bool:
    """Read to the stream's end, then close it."""
    async with stream:
        with contextlib.suppress(trio.BrokenResourceError):
            async for _ in stream:
                pass
    return True


async def test_connection_that_says_nothing_is_closed() -> None:
    async with pair(theirs=BulkLimits(handshake_timeout_s=0.1)) as (_, bob):
        with trio.fail_after(10):
            assert await end_of(await trio.open_tcp_stream(*bob.bulk.address))


async def test_unauthenticated_connections_are_limited() -> None:
    async with pair(theirs=BulkLimits(max_handshakes=2)) as (_, bob), AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(await trio.open_tcp_stream(*bob.bulk.address)) for _ in range(3)]
        with trio.fail_after(10):
            assert await end_of(streams[-1])
        assert bob.bulk._handshaking.borrowed_tokens == 2


async def test_listener_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk_module, "DIAL_PAUSES_S", ())
    async with pair(BulkLimits(handshake_timeout_s=0.1)) as (alice, _):
        with socket.create_server((LOCALHOST, 0)) as silent:
            alice.bulk.learn(STRANGER.peer_id, *silent.getsockname())
            with pytest.raises(Unavailable, match=r"handshake took over 0\.1 s"):
                await alice.bulk.send(STRANGER.peer_id, b"", [])


async def test_unreachable_peer_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk_module, "DIAL_PAUSES_S", (0.001,))
    with socket.create_server((LOCALHOST, 0)) as closed:
        address = closed.getsockname()
    async with pair() as (alice, _):
        alice.bulk.learn(STRANGER.peer_id, *address)
        with pytest.raises(Unavailable, match="cannot be reached at 127"):
            await alice.bulk.send(STRANGER.peer_id, b"", [])


@dataclass
class Stuck(Node):
    """Its sink does not come back until it is let go, so a transfer to it stays under way."""

    release: threading.Event = field(default_factory=threading.Event)

    def sink(self, peer: PeerId, header: bytes, size_bytes: int) -> memoryview | None:
        self.asked.set()
        self.release.wait()
        return super().sink(peer, header, size_bytes)

    async def was_asked(self) -> None:
        await trio.to_thread.run_sync(self.asked.wait)


async def test_cancelled_send_ends_its_connection_and_the_next_send_dials_again() -> None:
    async with running(Node(IDENTITIES[0]), Stuck(IDENTITIES[1])) as (alice, bob):
        assert isinstance(bob, Stuck)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, alice, bob, b"first", bytes(5 * MEBIBYTE))
            await bob.was_asked()
            nursery.cancel_scope.cancel()
        assert not alice.bulk._peers[bob.peer_id].idle
        bob.release.set()
        await send(alice, bob, b"second", b"payload")
        assert bob.arrived == {(alice.peer_id, b"second"): b"payload"}


async def test_forgetting_a_peer_fails_what_is_under_way() -> None:
    async with running(Node(IDENTITIES[0]), Stuck(IDENTITIES[1])) as (alice, bob):
        assert isinstance(bob, Stuck)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_unavailable, alice, bob)
            await bob.was_asked()
            alice.bulk.forget(bob.peer_id)
        with pytest.raises(Unavailable, match="no bulk address"):
            await send(alice, bob, b"", b"x")
        bob.release.set()


async def expect_unavailable(sender: Node, receiver: Node) -> None:
    with pytest.raises(Unavailable, match="bulk channel"):
        await send(sender, receiver, b"", bytes(5 * MEBIBYTE))


async def test_peer_that_shuts_down_fails_what_is_under_way() -> None:
    async with running(Node(IDENTITIES[0])) as (alice,):
        async with trio.open_nursery() as nursery, running(Stuck(IDENTITIES[1])) as (bob,):
            assert isinstance(bob, Stuck)
            bob.learn(alice)
            alice.learn(bob)
            nursery.start_soon(expect_unavailable, alice, bob)
            await bob.was_asked()
            bob.bulk.forget(alice.peer_id)
            bob.release.set()
        assert not bob.arrived


async def test_peer_that_restarts_elsewhere_is_dialled_again() -> None:
    async with running(Node(IDENTITIES[0])) as (alice,):
        for number in range(2):
            async with running(Node(IDENTITIES[1])) as (bob,):
                bob.learn(alice)
                alice.learn(bob)
                await send(alice, bob, b"", bytes([number]))
                assert bob.arrived == {(alice.peer_id, b""): bytes([number])}


async def test_connection_that_the_peer_dropped_meanwhile_is_replaced() -> None:
    async with pair() as (alice, bob):
        await send(alice, bob, b"1", b"x")
        (channel,) = alice.bulk._peers[bob.peer_id].idle
        bob.bulk.forget(alice.peer_id)
        await trio.to_thread.run_sync(channel.wait)
        bob.learn(alice)
        await send(alice, bob, b"2", b"y")
        assert set(bob.arrived) == {(alice.peer_id, b"1"), (alice.peer_id, b"2")}


async def test_accepted_connections_of_one_peer_are_limited() -> None:
    async with pair(BulkLimits(connections=4), BulkLimits(max_accepted_per_peer=1)) as (alice, bob):
        with pytest.raises(Unavailable):
            await send(alice, bob, b"wide", bytes(4 * MEBIBYTE))
        assert not bob.arrived


async def test_port_in_use_is_the_users_to_change() -> None:
    async with pair() as (alice, _):
        _, port = alice.bulk.address
        with pytest.raises(ConfigError, match="Change bulk_listen"):
            async with open_bulk(STRANGER, KEY, sink=alice.sink, arrived=alice.note, port=port):
                pass


async def test_sinks_own_error_ends_the_plane() -> None:
    def broken(peer: PeerId, header: bytes, size_bytes: int) -> memoryview | None:
        raise LocalError("a defect")

    async with pair() as (alice, _):
        with pytest.RaisesGroup(LocalError, flatten_subgroups=True):
            async with open_bulk(STRANGER, KEY, sink=broken, arrived=alice.note) as plane:
                plane.learn(alice.peer_id, *alice.bulk.address)
                alice.bulk.learn(STRANGER.peer_id, *plane.address)
                with pytest.raises(Unavailable):
                    await alice.bulk.send(STRANGER.peer_id, b"", [])
                await trio.sleep_forever()


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::"])  # noqa: S104
async def test_every_interface_at_once_is_refused(host: str) -> None:
    """It would be told to others as it is."""
    with pytest.raises(ConfigError, match="Name one address"):
        async with open_bulk(
            IDENTITIES[0], Node(IDENTITIES[0]).key, sink=lambda *_: None, arrived=lambda *_: None, host=host
        ):
            raise AssertionError("listened")


async def test_idle_connections_are_probed_on_both_sides() -> None:
    async with pair() as (alice, bob):
        await send(alice, bob, b"h", b"payload")
        (ours,) = alice.bulk._peers[bob.peer_id].idle
        (theirs,) = bob.bulk._peers[alice.peer_id].accepted
        for channel in (ours, theirs):
            assert channel.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert channel.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 5
            assert channel.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 3


async def test_speed_is_measured_by_large_transfers() -> None:
    async with pair() as (alice, bob):
        await send(alice, bob, b"small", b"payload")
        assert alice.bulk.speed(bob.peer_id) is None
        await send(alice, bob, b"large", bytes(MEBIBYTE))
        speed = alice.bulk.speed(bob.peer_id)
        assert speed
        assert 0 < speed.latency_s < 1
        assert speed.bandwidth_bytes_s > 0
        assert bob.bulk.speed(alice.peer_id) is None
        assert alice.bulk.speed(STRANGER.peer_id) is None


async def test_congestion_control_that_is_not_there_is_the_users_to_change() -> None:
    with pytest.raises(ConfigError, match="congestion control 'warp'"):
        async with running(Node(IDENTITIES[0], limits=BulkLimits(congestion="warp"))):
            raise AssertionError("it runs")


async def test_link_that_wants_more_connections_gets_more_permits() -> None:
    async with pair() as (alice, bob):
        peer = alice.bulk._peers[bob.peer_id]
        for width, permits in ((1, MIN_POOLED), (5, 5), (3, 5)):
            peer.widen(width)
            assert (peer.width, peer.permits.value) == (permits, permits)
        await send(alice, bob, b"h", bytes(8 * MEBIBYTE))
        assert len(peer.idle) == 5
        assert bob.arrived == {(alice.peer_id, b"h"): bytes(8 * MEBIBYTE)}
