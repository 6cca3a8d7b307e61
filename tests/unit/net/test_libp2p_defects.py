"""Each defect of py-libp2p 0.8.1 that our host would inherit, tried on our host; where cheap, on the library as well.

The controls on the library say when a workaround may go: they fail once the library is mended.
"""

import contextlib
import inspect
import logging
import random
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import libp2p.network.connection.swarm_connection as swarm_connection
import libp2p.network.swarm as swarm_module
import libp2p.stream_muxer.yamux.yamux as yamux_module
import pytest
import trio
from libp2p import generate_new_ed25519_identity, new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.keys import KeyPair
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.protocol_muxer.multiselect_client import MultiselectClient
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID, InsecureTransport
from multiaddr import Multiaddr  # type: ignore[import-untyped]  # the package has no py.typed

from barnraise.errors import Unavailable
from barnraise.identity import ClusterKey, Identity
from barnraise.net import hardened
from barnraise.net import host as host_module
from barnraise.net.addresses import PeerAddress, parse_address
from barnraise.net.hardened import CONTROL_PROTOCOL, ControlStream, HardenedHost, open_host
from barnraise.net.host import Libp2pNetwork, open_network
from barnraise.net.seam import MAX_MESSAGE_BYTES, NetworkEvent, PeerUp, Received, Refused

PATIENCE_S = 20
LOOPBACK = "/ip4/127.0.0.1/tcp/0"
KEY = ClusterKey(bytes(32))
ALICE, BOB, MALLORY = (Identity(bytes([n]) * 32, bytes(32)) for n in range(3))

YAMUX_HEADER = struct.Struct("!BBHII")
DATA, WINDOW, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8


@asynccontextmanager
async def network(identity: Identity, **options: Any) -> AsyncIterator[Libp2pNetwork]:
    async with open_network(identity, KEY, run=b"run", rng=random.Random(1), **options) as opened:
        yield opened


async def ignore(stream: ControlStream) -> None:
    await trio.sleep_forever()


def host_of(network: Libp2pNetwork) -> HardenedHost:
    assert network._host is not None
    return network._host


async def next_event(network: Libp2pNetwork) -> NetworkEvent:
    with trio.fail_after(PATIENCE_S):
        return await network.events.receive()


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(PATIENCE_S):
        while not condition():  # noqa: ASYNC110  # what is waited for sets no event
            await trio.sleep(0.01)


async def assert_still_serves(victim: Libp2pNetwork) -> None:
    """Check that an honest peer is admitted and heard."""
    async with network(BOB, bootstrap=victim.addresses) as bob:
        assert isinstance(await next_event(bob), PeerUp)
        await bob.send(victim.peer_id, b"alive?")
        while not isinstance(event := await next_event(victim), Received):
            assert isinstance(event, Refused) or event.peer == BOB.peer_id
        assert event == Received(peer=BOB.peer_id, message=b"alive?")


# -- plaintext --


def plaintext_host_claiming(victim: KeyPair) -> Any:
    """Return a host that claims a victim's identity without having its private key."""
    own = generate_new_ed25519_identity()

    class ClaimedKey:
        def get_public_key(self) -> Any:
            return victim.public_key

    transport = InsecureTransport(KeyPair(own.private_key, victim.public_key))
    transport.local_peer = ID.from_pubkey(victim.public_key)
    transport.local_private_key = ClaimedKey()  # type: ignore[assignment]
    transport.local_public_key = victim.public_key  # type: ignore[attr-defined]
    return new_host(key_pair=own, sec_opt={TProtocol(PLAINTEXT_PROTOCOL_ID): transport})


def libp2p_keys(identity: Identity) -> KeyPair:
    return create_new_key_pair(identity.ed25519_seed)


async def test_our_listener_believes_no_plaintext_claim_of_an_identity() -> None:
    async with network(ALICE) as alice:
        attacker = plaintext_host_claiming(libp2p_keys(BOB))
        async with attacker.run([Multiaddr(LOOPBACK)]):
            address = parse_address(alice.addresses[0])
            with pytest.raises(BaseLibp2pError), trio.fail_after(PATIENCE_S):
                await attacker.connect(PeerInfo(ID.from_string(address.peer), [Multiaddr(address.transport)]))
        assert host_of(alice)._swarm.get_connections() == []
        await assert_still_serves(alice)


async def test_our_dialler_falls_back_to_no_plaintext() -> None:
    attacker = plaintext_host_claiming(libp2p_keys(BOB))
    stolen: list[bytes] = []

    async def steal(stream: Any) -> None:
        stolen.append(await stream.read(100))

    attacker.set_stream_handler(CONTROL_PROTOCOL, steal)
    async with attacker.run([Multiaddr(LOOPBACK)]), open_host(ALICE.ed25519_seed, LOOPBACK, ignore) as host:
        transport = str(attacker.get_addrs()[0]).split("/p2p/")[0]
        victim = parse_address(f"{transport}/p2p/{BOB.peer_id}")
        with pytest.raises(Unavailable, match="cannot be reached"), trio.fail_after(PATIENCE_S):
            await host.dial(victim)
        assert stolen == []


async def test_the_librarys_own_listener_does_believe_it() -> None:
    victim, naive = generate_new_ed25519_identity(), new_host()
    attacker = plaintext_host_claiming(victim)
    seen: list[str] = []

    async def look(stream: Any) -> None:
        seen.append(str(stream.muxed_conn.peer_id))

    naive.set_stream_handler(TProtocol("/look"), look)
    async with naive.run([Multiaddr(LOOPBACK)]), attacker.run([Multiaddr(LOOPBACK)]):
        address = str(naive.get_addrs()[0]).split("/p2p/")[0]
        with trio.fail_after(PATIENCE_S):
            await attacker.connect(PeerInfo(naive.get_id(), [Multiaddr(address)]))
            await attacker.new_stream(naive.get_id(), [TProtocol("/look")])
        await until(lambda: seen)
        await attacker.get_network().close_peer(naive.get_id())
    assert seen == [str(ID.from_pubkey(victim.public_key))]


def test_the_only_security_and_multiplexer_on_offer_are_noise_and_yamux() -> None:
    upgrader = hardened._make_swarm(ALICE.ed25519_seed).upgrader
    assert list(upgrader.security_multistream.transports) == ["/noise"]
    assert list(upgrader.muxer_multistream.transports) == ["/yamux/1.0.0"]


# -- crashes by what a peer sends --

PAYLOADS = [
    b"",
    b"\xff" * 20,
    b"\x05abc",
    random.Random(1).randbytes(200),
    b"\xff\xff\xff\xff\x7f" + random.Random(2).randbytes(50),
    b"\x80" * 30,
    b"\n\n\x08" + random.Random(3).randbytes(8),
    b'\x10{"a": notjson}}',
    struct.pack("<I", 5) + b"\x91\xa7Opening",
    struct.pack("<I", 6) + b"\x91\xa4\xff\xff\xff\xff",
]
TCP_PAYLOADS = [
    b"",
    b"GET / HTTP/1.0\r\n\r\n",
    random.Random(4).randbytes(100),
    b"\x13/multistream/1.0.0\n",
    b"\x13/multistream/1.0.0\n\x07/noise\n",
    b"\x13/multistream/1.0.0\n\x07/noise\n\x00\x20" + random.Random(5).randbytes(32),
    b"\x13/multistream/1.0.0\n\x07/noise\n\xff\xff" + random.Random(6).randbytes(300),
    b"\x13/multistream/1.0.0\n\xff\xff\xff\xff\x0f",
    b"\x13/multistream/1.0.0\n\x03\xff\xfe\n",
    b"\x13/multistream/1.0.0\n\x03ls\n",
]


async def test_the_host_speaks_the_control_protocol_and_nothing_else() -> None:
    async with open_host(ALICE.ed25519_seed, LOOPBACK, ignore) as host:
        assert host.protocols == (CONTROL_PROTOCOL,)


async def test_no_bytes_on_the_port_end_the_host() -> None:
    async with network(ALICE) as alice:
        port = int(Multiaddr(alice.addresses[0]).value_for_protocol("tcp"))
        for payload in TCP_PAYLOADS:
            attacker = await trio.open_tcp_stream("127.0.0.1", port)
            async with attacker:
                await attacker.send_all(payload)
                with trio.move_on_after(0.05):
                    await attacker.receive_some(100)
                attacker.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await assert_still_serves(alice)


@asynccontextmanager
async def stream_to(victim: Libp2pNetwork) -> AsyncIterator[ControlStream]:
    """Open a control stream to a victim as anybody can who has no cluster key."""
    async with open_host(MALLORY.ed25519_seed, LOOPBACK, ignore) as host:
        stream = await host.dial(parse_address(victim.addresses[0]))
        yield stream
        await stream.aclose()


@pytest.mark.parametrize("ending", ["close", "reset"])
async def test_no_bytes_on_the_control_protocol_end_the_host(ending: str) -> None:
    async with network(ALICE) as alice, open_host(MALLORY.ed25519_seed, LOOPBACK, ignore) as host:

        async def attack(payload: bytes) -> None:
            stream = await host.dial(parse_address(alice.addresses[0]))
            await stream.send_all(payload)
            if ending == "reset":
                await stream._stream.reset()
            else:
                await stream.send_eof()
                with trio.move_on_after(0.2):
                    await stream.receive_some(100)
            await stream.aclose()

        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                for payload in PAYLOADS:
                    nursery.start_soon(attack, payload)
        await assert_still_serves(alice)


@asynccontextmanager
async def yamux_to(victim: Libp2pNetwork | HardenedHost) -> AsyncIterator[Any]:
    """Yield a connection with Noise done and yamux agreed on, to write frames of our own to."""
    address = parse_address(victim.addresses[0])
    port = int(Multiaddr(address.transport).value_for_protocol("tcp"))
    upgrader = hardened._make_swarm(MALLORY.ed25519_seed).upgrader
    raw = RawConnection(TrioTCPStream(await trio.open_tcp_stream("127.0.0.1", port)), True)
    try:
        secured = await upgrader.upgrade_security(raw, True, ID.from_string(address.peer))
        await upgrader.muxer_multistream.select_transport(secured)
        yield secured
    finally:
        await raw.close()


def frame(kind: int, flags: int, stream: int, length: int, version: int = 0) -> bytes:
    return YAMUX_HEADER.pack(version, kind, flags, stream, length)


YAMUX_PAYLOADS = [
    b"\x00",
    frame(DATA, 0, 99, 4) + b"data",
    frame(DATA, SYN, 1, 0) + frame(DATA, SYN, 1, 0),
    frame(DATA, SYN | FIN | RST | ACK, 1, 3) + b"abc",
    frame(DATA, SYN, 0, 0),
    frame(WINDOW, SYN, 1, 0) + frame(WINDOW, 0, 1, 2**32 - 1) * 3,
    frame(WINDOW, SYN, 1, 0) + frame(DATA, 0, 1, 3) + b"\xff\xff\xff" + frame(WINDOW, RST, 1, 0),
    frame(PING, SYN, 0, 7) + frame(PING, ACK, 0, 7) + frame(PING, 0, 9, 7),
    frame(9, 0xFFFF, 2**32 - 1, 2**32 - 1, 255),
    frame(DATA, SYN, 1, 2**32 - 1),
    frame(GO_AWAY, 0, 0, 77),
    frame(WINDOW, SYN, 2, 0) + frame(DATA, FIN, 2, 0) + frame(DATA, 0, 2, 4) + b"more",
]


async def test_no_yamux_frames_end_the_host() -> None:
    async with network(ALICE) as alice:
        for payload in YAMUX_PAYLOADS:
            async with yamux_to(alice) as connection:
                await connection.write(payload)
                with trio.move_on_after(0.03):
                    await is_cut_off(connection)
        await assert_still_serves(alice)


async def is_cut_off(connection: Any) -> bool:
    """Return whether the other side closes within our patience."""
    with trio.move_on_after(PATIENCE_S):
        try:
            while await connection.read(12):
                pass
        except BaseLibp2pError:
            pass
        return True
    return False


@pytest.fixture
def patient_with_strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is cut off for taking long, so that whoever is was cut off for what the test is about."""
    monkeypatch.setattr(hardened, "STRANGER_DEADLINE_S", 10 * PATIENCE_S)


async def test_who_overruns_its_window_is_cut_off(patient_with_strangers: None) -> None:
    """The library logs, and buffers on; a stranger fills the memory."""
    opening = b"\x13/multistream/1.0.0\n" + bytes([len(CONTROL_PROTOCOL) + 1]) + CONTROL_PROTOCOL.encode() + b"\n"
    async with open_host(ALICE.ed25519_seed, LOOPBACK, ignore) as host, yamux_to(host) as connection:
        await connection.write(frame(WINDOW, SYN, 1, 0) + frame(DATA, 0, 1, len(opening)) + opening)
        with contextlib.suppress(BaseLibp2pError):
            for _ in range(hardened.MAX_UNREAD_BYTES // 65_000 + 1):
                await connection.write(frame(DATA, 0, 1, 65_000) + bytes(65_000))
        assert await is_cut_off(connection)


async def test_a_frame_over_the_window_is_not_waited_for(patient_with_strangers: None) -> None:
    async with network(ALICE) as alice, yamux_to(alice) as connection:
        await connection.write(frame(DATA, SYN, 1, 0) + frame(DATA, 0, 1, hardened.WINDOW_BYTES + 1))
        assert await is_cut_off(connection)


async def test_who_opens_streams_without_end_is_cut_off(patient_with_strangers: None) -> None:
    async with network(ALICE) as alice, yamux_to(alice) as connection:
        for number in range(hardened.MAX_STREAMS_PER_CONNECTION + 1):
            await connection.write(frame(WINDOW, SYN, 2 * number + 1, 0))
        assert await is_cut_off(connection)
        await assert_still_serves(alice)


async def test_who_connects_and_proves_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardened, "STRANGER_DEADLINE_S", 0.2)
    async with network(ALICE) as alice, yamux_to(alice) as connection:
        assert await is_cut_off(connection)


async def test_who_opens_a_stream_and_says_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module, "ADMISSION_DEADLINE_S", 0.2)
    async with network(ALICE) as alice, stream_to(alice) as stream:
        with trio.fail_after(PATIENCE_S):
            assert await stream.receive_some(1) == b""
        await until(lambda: "did not prove itself" in alice.refusals.get(MALLORY.peer_id, ""))


@pytest.mark.parametrize("error", [RuntimeError("boom"), ExceptionGroup("group", [ValueError("boom")])])
async def test_an_exception_in_a_handler_does_not_end_the_host(error: Exception) -> None:
    calls: list[str] = []

    async def fail_once(stream: ControlStream) -> None:
        calls.append(stream.peer)
        await stream.receive_some(1)
        if len(calls) == 1:
            raise error
        await stream.send_all(b"fine")
        await stream.receive_some(1)

    async with (
        open_host(ALICE.ed25519_seed, LOOPBACK, fail_once) as host,
        open_host(BOB.ed25519_seed, LOOPBACK, ignore) as other,
    ):
        address = parse_address(host.addresses[0])
        first = await other.dial(address)
        await first.send_all(b"1")
        assert await first.receive_some(10) == b""
        await first.aclose()
        second = await other.dial(address)
        await second.send_all(b"2")
        assert await second.receive_some(10) == b"fine"
        await second.aclose()
    assert calls == [BOB.peer_id] * 2


# -- slots, delays, stalls --


async def test_inbound_slots_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library keeps one per inbound connection for ever: 250 strangers in a row shut the listener for good."""
    monkeypatch.setattr(host_module, "HANDSHAKES_BESIDE", 1)
    async with network(ALICE, max_peers=1) as alice:
        swarm = host_of(alice)._swarm
        for _ in range(5):
            async with yamux_to(alice) as connection:
                await connection.write(frame(PING, SYN, 0, 1))
                assert await connection.read(12)
            await until(lambda: not swarm.get_connections() and swarm._inbound_limiter.borrowed_tokens == 0)
        await assert_still_serves(alice)


async def test_a_dial_does_not_wait_for_happy_eyeballs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's delay is cut to 20 ms, and our own dials do not go through it at all."""

    async def unexpected(*args: object) -> None:
        raise AssertionError("dialled with the library's delay")

    async def greet(stream: ControlStream) -> None:
        await stream.send_all(b"hello")
        await stream.receive_some(1)

    async with (
        open_host(ALICE.ed25519_seed, LOOPBACK, greet) as host,
        open_host(BOB.ed25519_seed, LOOPBACK, ignore) as other,
    ):
        assert swarm_module._HAPPY_EYEBALLS_DELAY == hardened.HAPPY_EYEBALLS_DELAY_S
        monkeypatch.setattr(swarm_module.Swarm, "dial_peer", unexpected)
        stream = await other.dial(parse_address(host.addresses[0]))
        assert await stream.receive_some(10) == b"hello"
        await stream.aclose()


async def test_eof_is_empty_bytes_and_a_cut_is_an_error() -> None:
    """The library raises `StreamEOF` where every other stream returns nothing."""

    async def say_goodbye(stream: ControlStream) -> None:
        await stream.send_all(b"bye")
        await stream.send_eof()
        await stream.receive_some(1)

    async with (
        open_host(ALICE.ed25519_seed, LOOPBACK, say_goodbye) as host,
        open_host(BOB.ed25519_seed, LOOPBACK, ignore) as other,
    ):
        stream = await other.dial(parse_address(host.addresses[0]))
        assert await stream.receive_some(100) == b"bye"
        assert await stream.receive_some(100) == b""
        await stream.aclose()
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(b"anybody?")


async def test_both_ends_of_a_connection_know_its_handshake_hash_and_nobody_else_does() -> None:
    bindings: list[bytes] = []

    async def remember(stream: ControlStream) -> None:
        bindings.append(stream.binding)
        await stream.receive_some(1)

    async with (
        open_host(ALICE.ed25519_seed, LOOPBACK, remember) as host,
        open_host(BOB.ed25519_seed, LOOPBACK, ignore) as other,
    ):
        for _ in range(2):
            stream = await other.dial(parse_address(host.addresses[0]))
            await until(lambda: bindings)
            assert stream.binding == bindings.pop()
            other_binding = stream.binding
            await stream.aclose()
        again = await other.dial(parse_address(host.addresses[0]))
        assert again.binding != other_binding
        await again.aclose()


class ImpatientTrio:
    """The trio module, but yamux's 5 s of patience with a reader are 0.2 s."""

    def __getattr__(self, name: str) -> Any:
        return getattr(trio, name)

    def move_on_after(self, seconds: float) -> trio.CancelScope:
        return trio.move_on_after(0.2 if seconds == 5.0 else seconds)


async def test_an_application_that_reads_late_does_not_stall_yamux(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than yamux's window is under way, and nobody reads for longer than yamux waits: our reader drains."""
    assert "move_on_after(5.0)" in inspect.getsource(yamux_module.YamuxStream.write)
    monkeypatch.setattr(yamux_module, "trio", ImpatientTrio())
    count = 3 * 2**20 // MAX_MESSAGE_BYTES
    async with network(ALICE) as alice, network(BOB, bootstrap=alice.addresses) as bob:
        assert isinstance(await next_event(alice), PeerUp)
        assert isinstance(await next_event(bob), PeerUp)
        for number in range(count):
            await bob.send(ALICE.peer_id, number.to_bytes(MAX_MESSAGE_BYTES, "little"))
        await trio.sleep(1.0)
        for number in range(count):
            event = await next_event(alice)
            assert event == Received(peer=BOB.peer_id, message=number.to_bytes(MAX_MESSAGE_BYTES, "little"))


async def test_no_message_of_the_largest_size_is_lost_to_a_slow_reader() -> None:
    count = 150

    async def send(network: Libp2pNetwork) -> None:
        for number in range(count):
            await network.send(ALICE.peer_id, number.to_bytes(MAX_MESSAGE_BYTES, "little"))

    async with network(ALICE) as alice, network(BOB, bootstrap=alice.addresses) as bob:
        assert isinstance(await next_event(alice), PeerUp)
        assert isinstance(await next_event(bob), PeerUp)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, bob)
            for number in range(count):
                await trio.sleep(0.002)
                event = await next_event(alice)
                assert event == Received(peer=BOB.peer_id, message=number.to_bytes(MAX_MESSAGE_BYTES, "little"))


async def test_a_dead_address_is_dialled_again_without_a_negative_cache() -> None:
    """The library refuses for 60 s to dial a peer that it once failed to reach."""
    async with open_host(BOB.ed25519_seed, LOOPBACK, ignore) as other:
        with socket.socket() as reserved:
            reserved.bind(("127.0.0.1", 0))
            transport = f"/ip4/127.0.0.1/tcp/{reserved.getsockname()[1]}"
        address = PeerAddress(peer=ALICE.peer_id, text=f"{transport}/p2p/{ALICE.peer_id}")
        with pytest.raises(Unavailable):
            await other.dial(address)
        async with open_host(ALICE.ed25519_seed, transport, ignore):
            stream = await other.dial(address)
            assert stream.peer == ALICE.peer_id
            await stream.aclose()


async def test_the_root_logger_is_left_alone() -> None:
    async with open_host(ALICE.ed25519_seed, LOOPBACK, ignore):
        assert isinstance(vars(swarm_connection)["logging"], logging.Logger)
        assert not logging.getLogger("libp2p.network.swarm").isEnabledFor(logging.ERROR)
        assert not logging.getLogger("libp2p").isEnabledFor(logging.INFO)


async def test_an_unknown_protocol_is_refused_and_harms_nobody() -> None:
    async with network(ALICE) as alice, stream_to(alice) as stream:
        extra = await stream._connection.new_stream()
        with pytest.raises(BaseLibp2pError):
            await MultiselectClient().select_one_of([TProtocol("/nope")], MultiselectCommunicator(extra), 5)
        await extra.reset()
        await assert_still_serves(alice)
