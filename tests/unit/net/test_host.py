"""The control plane over libp2p beyond what every network promises: who is let in, who finds whom, what restarts do."""

import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio

from barnraise.errors import ConfigError, LocalError
from barnraise.identity import ClusterKey, Identity
from barnraise.ids import PeerId
from barnraise.net import host as host_module
from barnraise.net.addresses import encode_peers
from barnraise.net.host import Libp2pNetwork, open_network
from barnraise.net.seam import NetworkEvent, PeerDown, PeerUp, Received

PATIENCE_S = 20
KEY = ClusterKey(bytes(32))
ALICE, BOB, CAROL, DAVE = sorted((Identity(bytes([n]) * 32, bytes(32)) for n in range(4)), key=lambda one: one.peer_id)


@asynccontextmanager
async def network(identity: Identity, *, key: ClusterKey = KEY, **options: Any) -> AsyncIterator[Libp2pNetwork]:
    options = {"run": b"run", "rng": random.Random(1), **options}
    async with open_network(identity, key, **options) as opened:
        yield opened


async def next_event(network: Libp2pNetwork) -> NetworkEvent:
    with trio.fail_after(PATIENCE_S):
        return await network.events.receive()


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(PATIENCE_S):
        while not condition():  # noqa: ASYNC110  # what is waited for sets no event
            await trio.sleep(0.01)


def nothing_happened(network: Libp2pNetwork) -> bool:
    try:
        network.events.receive_nowait()
    except trio.WouldBlock:
        return True
    return False


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"key": ClusterKey(b"x" * 32)}, "different cluster keys"), ({"run": b"other"}, "is in run 6f74686572")],
)
async def test_who_has_another_key_or_run_is_refused_in_plain_words_on_both_sides(
    changes: dict[str, Any], words: str
) -> None:
    async with network(ALICE) as alice, network(BOB, bootstrap=alice.addresses, **changes) as bob:
        await until(lambda: alice.refusals and bob.refusals)
        assert words in alice.refusals[BOB.peer_id]
        assert words in bob.refusals[ALICE.peer_id]
        assert nothing_happened(alice)
        assert nothing_happened(bob)


@pytest.mark.parametrize("side", ["listener", "dialler"])
async def test_who_is_not_authorised_is_refused_with_the_right_key(side: str) -> None:
    authorised: set[PeerId] = set()
    strict: dict[str, Any] = {"authorise": authorised.__contains__}
    alice_options, bob_options = (strict, {}) if side == "listener" else ({}, strict)
    async with network(ALICE, **alice_options) as alice, network(BOB, bootstrap=alice.addresses, **bob_options) as bob:
        if side == "listener":
            await until(lambda: bob.refusals)
            assert "does not authorise" in bob.refusals[ALICE.peer_id]
        assert nothing_happened(alice)
        authorised |= {ALICE.peer_id, BOB.peer_id}
        assert isinstance(await next_event(alice), PeerUp)
        assert not bob.refusals


async def test_a_full_mesh_forms_from_one_address() -> None:
    async with AsyncExitStack() as stack:
        networks = [await stack.enter_async_context(network(ALICE))]
        for identity in (BOB, CAROL, DAVE):
            last = networks[-1].addresses  # each knows only the one that came before it
            networks.append(await stack.enter_async_context(network(identity, bootstrap=last)))
        for one in networks:
            ups = [await next_event(one) for _ in range(3)]
            assert {type(event) for event in ups} == {PeerUp}
            assert len({event.peer for event in ups}) == 3


async def test_two_that_dial_each_other_at_once_settle_on_one_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module, "YIELD_S", 0.0)
    for _ in range(3):
        async with network(ALICE) as alice, network(BOB) as bob:
            alice._learn(BOB.peer_id, encode_peers({BOB.peer_id: bob.addresses}))
            bob._learn(ALICE.peer_id, encode_peers({ALICE.peer_id: alice.addresses}))
            assert isinstance(await next_event(alice), PeerUp)
            assert isinstance(await next_event(bob), PeerUp)
            await until(lambda: len(connections(alice)) == 1 and len(connections(bob)) == 1)
            await alice.send(BOB.peer_id, b"hello")
            assert await next_event(bob) == Received(peer=ALICE.peer_id, message=b"hello")
            assert nothing_happened(alice)
            assert nothing_happened(bob)
            assert not alice.refusals
            assert not bob.refusals


def connections(network: Libp2pNetwork) -> list[object]:
    assert network._host is not None
    return list(network._host._swarm.get_connections())


@pytest.mark.parametrize(("identity", "other"), [(ALICE, BOB), (BOB, ALICE)], ids=["arbiter stays", "arbiter restarts"])
async def test_a_restarted_peer_takes_the_place_of_the_link_that_it_lost(identity: Identity, other: Identity) -> None:
    """The old process is still connected as far as anybody can tell, as after a power cut."""
    async with network(identity) as stays, network(other, hello=b"old", bootstrap=stays.addresses) as old:
        assert await next_event(stays) == PeerUp(peer=other.peer_id, hello=b"old")
        old._leaving = True  # it dials no more, and takes nobody
        async with network(other, hello=b"new", bootstrap=stays.addresses):
            assert isinstance(await next_event(stays), PeerDown)
            assert await next_event(stays) == PeerUp(peer=other.peer_id, hello=b"new")


async def test_what_was_sent_last_arrives_before_a_peer_leaves() -> None:
    async with network(ALICE) as alice:
        async with network(BOB, bootstrap=alice.addresses) as bob:
            assert isinstance(await next_event(bob), PeerUp)
            for number in range(50):
                await bob.send(ALICE.peer_id, bytes([number]) * 10_000)
        assert isinstance(await next_event(alice), PeerUp)
        for number in range(50):
            assert await next_event(alice) == Received(peer=BOB.peer_id, message=bytes([number]) * 10_000)
        assert isinstance(await next_event(alice), PeerDown)


EVERYWHERE = "/ip4/0.0.0.0/tcp/0"
DOOMED = """
import sys, trio
from barnraise.identity import ClusterKey, Identity
from barnraise.net.host import open_network
async def main():
    async with open_network(Identity.generate(), ClusterKey(bytes(32)), run=b"run", bootstrap=sys.argv[1:]):
        await trio.sleep_forever()
trio.run(main)
"""


async def test_a_killed_process_is_down_at_once() -> None:
    async with network(ALICE) as alice:
        command = [sys.executable, "-c", DOOMED, *alice.addresses]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        doomed = subprocess.Popen(  # noqa: ASYNC220  # it returns at once
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        try:
            up = await next_event(alice)
            assert isinstance(up, PeerUp)
            doomed.send_signal(signal.SIGKILL)
            down = await next_event(alice)
            assert isinstance(down, PeerDown)
            assert down.peer == up.peer
        finally:
            doomed.kill()
            doomed.wait()


async def test_an_address_under_which_somebody_else_answers_is_not_the_peer() -> None:
    async with network(ALICE) as alice:
        wrong = alice.addresses[0].replace(ALICE.peer_id, CAROL.peer_id)
        async with network(BOB, bootstrap=[wrong, *alice.addresses]) as bob:
            up = await next_event(bob)
            assert isinstance(up, PeerUp)
            assert up.peer == ALICE.peer_id


@pytest.mark.parametrize("listen", ["", "nonsense", "/ip4/127.0.0.1", "/ip4/127.0.0.1/udp/0", "/dns4/localhost/tcp/0"])
async def test_a_listen_address_that_cannot_be_is_the_users_error(listen: str) -> None:
    with pytest.raises(ConfigError, match="listen address"):
        async with network(ALICE, listen=listen):
            raise AssertionError("listened")


async def test_an_address_of_another_machine_is_the_users_error() -> None:
    with pytest.raises(ConfigError, match="cannot listen"):
        async with network(ALICE, listen="/ip4/192.0.2.1/tcp/0"):
            raise AssertionError("listened")


async def test_a_taken_port_is_the_users_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="taken"):
            async with network(ALICE, listen=f"/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}"):
                raise AssertionError("listened")


async def test_a_bootstrap_address_without_a_peer_id_is_the_users_error() -> None:
    with pytest.raises(ConfigError, match=r"bootstrap address: '/ip4/127\.0\.0\.1/tcp/1' is not"):
        async with network(ALICE, bootstrap=["/ip4/127.0.0.1/tcp/1"]):
            raise AssertionError("opened")


async def test_its_addresses_are_dialable_and_its_own() -> None:
    async with network(ALICE) as loopback, network(BOB, listen=EVERYWHERE) as anywhere:
        assert len(loopback.addresses) == 1
        assert loopback.addresses[0].startswith("/ip4/127.0.0.1/tcp/")
        assert loopback.addresses[0].endswith(f"/p2p/{ALICE.peer_id}")
        assert anywhere.addresses
        assert not any("/0.0.0.0/" in address for address in anywhere.addresses)


async def test_a_node_that_stops_reading_ends_its_links_and_nothing_else() -> None:
    async with network(ALICE) as alice, network(BOB, bootstrap=alice.addresses) as bob:
        assert isinstance(await next_event(alice), PeerUp)
        assert isinstance(await next_event(bob), PeerUp)
        alice.events.close()
        await bob.send(ALICE.peer_id, b"anybody?")
        assert isinstance(await next_event(bob), PeerDown)


async def test_leaving_does_not_wait_for_ever_for_a_node_that_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module, "LEAVE_DEADLINE_S", 0.2)
    async with network(BOB) as bob:
        with trio.fail_after(PATIENCE_S):
            async with network(ALICE, bootstrap=bob.addresses) as alice:
                assert isinstance(await next_event(bob), PeerUp)
                for _ in range(100):
                    await bob.send(ALICE.peer_id, b"more than the events hold")
        assert [event async for event in alice.events]  # and they end


async def test_what_is_too_long_is_our_own_fault() -> None:
    with pytest.raises(LocalError, match="8193 and 3 bytes"):
        async with network(ALICE, hello=bytes(8193)):
            raise AssertionError("opened")
