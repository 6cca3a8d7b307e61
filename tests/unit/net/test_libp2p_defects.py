"""Each defect of py-libp2p 0.8.1 that our host would inherit, tried on our host; where cheap, on the library as well.

The controls on the library say when a workaround may go: they fail once the library is mended.
"""

import inspect
import logging
import socket
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
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID, InsecureTransport
from multiaddr import Multiaddr  # type: ignore[import-untyped]  # the package has no py.typed

from barnraise.errors import Unavailable
from barnraise.identity import Identity
from barnraise.net import hardened
from barnraise.net import host as host_module
from barnraise.net.addresses import PeerAddress, parse_address
from barnraise.net.hardened import CONTROL_PROTOCOL, ControlStream, open_host
from barnraise.net.host import Libp2pNetwork
from barnraise.net.seam import MAX_MESSAGE_BYTES, PeerUp, Received

from .hostile_libp2p import ALICE, BOB, LOOPBACK, PING, SYN, assert_still_serves, frame, host_of, ignore, yamux_to
from .hosts import PATIENCE_S, network, next_event, until

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
