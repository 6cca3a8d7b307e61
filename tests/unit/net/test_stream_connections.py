"""The connections of a stream: those that contradict each other or do not come, and the keys of each."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import msgspec
import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives.asymmetric import ec

from barnraise.errors import PeerError, Unavailable
from barnraise.ids import PeerId
from barnraise.net import bulk as bulk_module
from barnraise.net.bulk import BulkLimits
from barnraise.net.channel import Channel, Meter
from barnraise.net.frames import HEADER_BYTES, TAG_BYTES, Kind, Opener, Sealer, Suite
from barnraise.net.handshake import Agreed
from barnraise.net.seam import Ended
from barnraise.net.speed import Gauge
from barnraise.net.streams import SealedStream, StreamAnnouncement

from .stream_nodes import IDENTITIES, Node, in_thread, receive, running


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
