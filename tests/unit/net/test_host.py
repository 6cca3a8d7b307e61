"""The control plane over libp2p beyond what every network promises: who is let in, who finds whom, what restarts do."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio
import trio.testing

from barnraise.errors import ConfigError, LocalError, Unavailable
from barnraise.identity import ClusterKey, Identity
from barnraise.ids import PeerId
from barnraise.net import host as host_module
from barnraise.net import places as places_module
from barnraise.net.addresses import encode_peers, parse_address
from barnraise.net.host import Libp2pNetwork
from barnraise.net.seam import PeerDown, PeerUp, Received, Refused

from .hosts import PATIENCE_S, network, next_event, until

ALICE, BOB, CAROL, DAVE = sorted((Identity(bytes([n]) * 32, bytes(32)) for n in range(4)), key=lambda one: one.peer_id)


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
        for one, other in ((alice, BOB), (bob, ALICE)):
            event = await next_event(one)
            assert isinstance(event, Refused)
            assert event.peer == other.peer_id
            assert words in event.reason
            assert event.address.startswith("127.0.0.1:")


@pytest.mark.parametrize("side", ["listener", "dialler"])
async def test_who_is_not_authorised_is_refused_with_the_right_key(side: str) -> None:
    authorised: set[PeerId] = set()
    strict: dict[str, Any] = {"authorise": authorised.__contains__}
    alice_options, bob_options = (strict, {}) if side == "listener" else ({}, strict)
    async with network(ALICE, **alice_options) as alice, network(BOB, bootstrap=alice.addresses, **bob_options) as bob:
        if side == "listener":
            await until(lambda: bob.refusals)
            assert "does not authorise" in bob.refusals[ALICE.peer_id]
            event = await next_event(alice)
            assert isinstance(event, Refused)
            assert event.peer == BOB.peer_id
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
    async with network(ALICE) as loopback:
        assert len(loopback.addresses) == 1
        assert loopback.addresses[0].startswith("/ip4/127.0.0.1/tcp/")
        assert loopback.addresses[0].endswith(f"/p2p/{ALICE.peer_id}")


@pytest.mark.parametrize("listen", ["/ip4/0.0.0.0/tcp/0", "/ip6/::/tcp/0", "/ip6/0:0:0:0:0:0:0:0/tcp/0"])
async def test_every_interface_at_once_is_refused_with_the_alternative(listen: str) -> None:
    with pytest.raises(ConfigError, match="say --listen lan"):
        async with network(ALICE, listen=listen):
            raise AssertionError("listened")


@pytest.mark.parametrize("options", [{"max_peers": 0}, {"connection_timeout_s": 0.0}, {"connection_timeout_s": 1e9}])
async def test_a_limit_out_of_range_is_the_users_error(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        async with network(ALICE, **options):
            raise AssertionError("opened")


async def test_who_comes_when_all_seats_are_taken_is_refused_and_let_in_when_one_is_free() -> None:
    async with network(ALICE, max_peers=1) as alice, network(CAROL) as carol:
        async with network(BOB, bootstrap=alice.addresses) as bob:
            assert isinstance(await next_event(alice), PeerUp)
            carol.meet([parse_address(alice.addresses[0])])
            refused = await next_event(carol)
            assert isinstance(refused, Refused)
            assert "has all the 1 peers" in refused.reason
            assert list(bob._links) == [ALICE.peer_id]
        while not isinstance(event := await next_event(alice), PeerUp):
            pass
        assert event.peer == CAROL.peer_id


async def test_of_several_that_come_for_the_last_seat_at_once_one_gets_it() -> None:
    async with network(DAVE, max_peers=1) as dave, AsyncExitStack() as stack:
        for identity in (ALICE, BOB, CAROL):
            await stack.enter_async_context(network(identity, bootstrap=dave.addresses))
        await until(lambda: len(dave.refusals) == 2)
        assert len(dave._links) == 1


async def test_a_full_peer_dials_nobody() -> None:
    async with network(ALICE) as alice, network(BOB) as bob, network(CAROL, max_peers=1) as carol:
        carol.meet([parse_address(alice.addresses[0])])
        assert isinstance(await next_event(carol), PeerUp)
        carol.meet([parse_address(bob.addresses[0])])
        await trio.testing.wait_all_tasks_blocked(0.2)
        assert nothing_happened(bob)
        assert not carol._refusals.attempts(BOB.peer_id)


SILENT = "/ip4/127.0.0.1/tcp/{}/p2p/" + BOB.peer_id


async def test_nobody_there_is_told_in_plain_words_for_each_address_after_so_many_attempts() -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    silent = SILENT.format(listeners[0].socket.getsockname()[1])
    refusing = f"/ip4/127.0.0.1/tcp/1/p2p/{CAROL.peer_id}"
    async with listeners[0], network(DAVE) as dave:
        wrong = dave.addresses[0].replace(DAVE.peer_id, Identity(b"e" * 32, bytes(32)).peer_id)
        async with network(ALICE, bootstrap=[silent, refusing, wrong], connection_timeout_s=0.2) as alice:
            with trio.fail_after(PATIENCE_S), pytest.raises(Unavailable) as caught:
                await alice.find_anybody(2)
    words = str(caught.value)
    assert f"{silent}: no answer within 0.2 s" in words
    assert f"{refusing}: connection refused" in words
    assert "another peer answers there" in words
    assert "(tried 2 times)" in words
    assert "--listen lan" in words


async def test_nobody_who_has_the_same_key_or_run_is_told_as_such() -> None:
    async with network(ALICE) as alice:
        async with network(BOB, key=ClusterKey(b"x" * 32), bootstrap=alice.addresses) as bob:
            with (
                trio.fail_after(PATIENCE_S),
                pytest.raises(Unavailable, match=r"different cluster keys.*new invitation"),
            ):
                await bob.find_anybody(1)
        async with network(CAROL, run=b"other", bootstrap=alice.addresses) as carol:
            with trio.fail_after(PATIENCE_S), pytest.raises(Unavailable, match=r"is in run.*new invitation"):
                await carol.find_anybody(1)


async def test_with_no_address_at_all_the_search_ends_as_well() -> None:
    async with network(ALICE, connection_timeout_s=0.1) as alice:
        with trio.fail_after(PATIENCE_S), pytest.raises(Unavailable, match="no address of one is known"):
            await alice.find_anybody(2)


async def test_an_invitation_by_oneself_says_that_the_key_was_copied() -> None:
    async with network(ALICE) as alice, network(ALICE, bootstrap=alice.addresses, connection_timeout_s=0.1) as copy:
        with trio.fail_after(PATIENCE_S), pytest.raises(Unavailable, match="this peer's own"):
            await copy.find_anybody(1)


async def test_a_peer_that_starts_a_moment_later_is_found_all_the_same() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        listen = f"/ip4/127.0.0.1/tcp/{free.getsockname()[1]}"
    async with network(BOB, bootstrap=[f"{listen}/p2p/{ALICE.peer_id}"], connection_timeout_s=15.0) as bob:
        await until(lambda: bob._refusals.attempts(ALICE.peer_id) >= 3)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bob.find_anybody, 3)
            async with network(ALICE, listen=listen):
                assert isinstance(await next_event(bob), PeerUp)


async def test_what_is_met_while_leaving_is_left_alone() -> None:
    async with network(ALICE) as alice:
        pass
    alice.meet([parse_address(SILENT.format(1))])
    assert not alice._courted


async def test_the_search_ends_with_the_first_link() -> None:
    async with (
        network(ALICE) as alice,
        network(BOB, bootstrap=[SILENT.format(1).replace(BOB.peer_id, CAROL.peer_id)]) as bob,
    ):
        bob.meet([parse_address(alice.addresses[0])])
        with trio.fail_after(PATIENCE_S):
            await bob.find_anybody(10**6)
        assert isinstance(await next_event(bob), PeerUp)


async def test_a_peer_met_in_vain_is_forgotten_and_can_be_met_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module, "MET_ATTEMPTS", 2)
    nobody = parse_address(SILENT.format(1))
    async with network(ALICE) as alice, network(BOB) as bob:
        alice.meet([nobody])
        assert alice._courted
        await until(lambda: not alice._courted)
        assert not alice._places.seen
        alice.meet([parse_address(bob.addresses[0])])
        assert isinstance(await next_event(alice), PeerUp)


async def test_no_more_peers_are_met_than_the_limit_and_never_oneself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places_module, "MAX_SEEN_PEERS", 3)
    others = [Identity(bytes([100 + n]) * 32, bytes(32)).peer_id for n in range(5)]
    async with network(ALICE) as alice:
        alice.meet(parse_address(f"/ip4/127.0.0.1/tcp/1/p2p/{peer}") for peer in (ALICE.peer_id, *others))
        assert list(alice._places.seen) == others[:3]


async def test_what_was_met_is_not_passed_on() -> None:
    """Anybody on the local network can announce anything."""
    async with network(ALICE) as alice, network(BOB, bootstrap=alice.addresses) as bob:
        alice.meet([parse_address(f"/ip4/127.0.0.1/tcp/1/p2p/{CAROL.peer_id}")])
        assert isinstance(await next_event(bob), PeerUp)
        await until(lambda: ALICE.peer_id in bob._places.told)
        assert CAROL.peer_id not in bob._places.told


@pytest.mark.parametrize("first", [1, 2])
@pytest.mark.parametrize("observer", [ALICE, CAROL], ids=["arbiter", "not the arbiter"])
async def test_two_processes_with_one_key_are_both_told_and_one_stays(observer: Identity, first: int) -> None:
    async with network(observer) as member, AsyncExitStack() as stack:
        twins = [
            await stack.enter_async_context(network(BOB, hello=name, bootstrap=member.addresses))
            for name in (b"one", b"two")
        ]
        for twin, number in zip(twins, (first, 3 - first), strict=True):
            twin._instance = bytes([number]) * 16
        told: list[str] = []
        for twin in twins:
            while not isinstance(event := await next_event(twin), Refused):
                pass
            told.append(event.reason)
        assert all("two processes run with the key of peer " + BOB.peer_id in words for words in told)
        winner, loser = sorted(twins, key=lambda twin: twin._instance)
        link = member._links[BOB.peer_id]
        attempts = loser._refusals.attempts(observer.peer_id)
        await until(lambda: loser._refusals.attempts(observer.peer_id) > attempts + 1)
        assert member._links[BOB.peer_id] is link
        assert list(winner._links) == [observer.peer_id]
        assert not loser._links


async def test_idle_connections_are_probed_on_both_sides() -> None:
    async with network(ALICE) as alice, network(BOB, bootstrap=alice.addresses) as bob:
        for one in (alice, bob):
            assert isinstance(await next_event(one), PeerUp)
            (connection,) = connections(one)
            raw: Any = connection
            sock = raw.muxed_conn.secured_conn.conn.conn.stream.stream.socket
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 5


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


async def test_the_kernels_round_trip_is_told_while_the_connection_lives() -> None:
    async with network(ALICE) as alice, network(BOB, bootstrap=alice.addresses) as bob:
        assert isinstance(await next_event(bob), PeerUp)
        link = bob._links[ALICE.peer_id]
        await until(lambda: bob.latency_s(ALICE.peer_id))
        shortest_s = link._shortest_s()
        if hasattr(socket, "TCP_INFO"):
            assert shortest_s is not None
            assert 0 < shortest_s < PATIENCE_S
            assert (bob.latency_s(ALICE.peer_id) or 0) <= shortest_s / 2
    assert link._shortest_s() in (None, shortest_s)
