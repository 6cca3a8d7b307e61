"""Who is in a group, on the memory network; and collectives among its members, in threads, whoever goes away."""

import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import pytest
import trio
from trio.testing import MockClock

from barnraise.api.mesh import Mesh
from barnraise.api.plans import Input
from barnraise.api.roster import DiscoveredRoster, Formed, Roster, StaticRoster, Want
from barnraise.api.statements import GaveUp
from barnraise.api.streams import Call
from barnraise.collective.buffers import Vector
from barnraise.errors import BarnraiseError, ConfigError, Unavailable
from barnraise.identity import Identity
from barnraise.ids import PeerId
from barnraise.net.memory import MemoryBulk, MemoryMedium, MemoryNetwork, open_medium
from barnraise.peer.keyring import Hello
from barnraise.swarm import records

IDENTITIES = sorted((Identity.generate() for _ in range(5)), key=lambda identity: identity.peer_id)
encode = msgspec.msgpack.Encoder().encode


@dataclass
class Party:
    """One peer of a test."""

    mesh: Mesh
    network: MemoryNetwork
    bulk: MemoryBulk

    @property
    def peer(self) -> PeerId:
        return self.network.peer_id


class Ring:
    """Peers on one medium."""

    def __init__(self, medium: MemoryMedium, nursery: trio.Nursery) -> None:
        self.medium, self._nursery = medium, nursery
        self.meshes: list[Mesh] = []

    def add(self, identity: Identity, roster: Roster, port_seen: int | None = None) -> Party:
        peer = identity.peer_id
        mesh = Mesh(peer, roster)
        self.meshes.append(mesh)
        bulk = self.medium.bulk(peer, lambda *_: None, lambda *_: None, mesh.streams.take)
        hello = Hello(records.VERSION, identity.public.encode(), "127.0.0.1", port_seen or bulk.address[1])
        network = self.medium.join(peer, encode(hello))
        mesh.begin(network, bulk, self._nursery)
        return Party(mesh, network, bulk)

    def listed(self, count: int) -> list[Party]:
        members = tuple(identity.peer_id for identity in IDENTITIES[:count])
        return [self.add(identity, StaticRoster(members)) for identity in IDENTITIES[:count]]

    def strangers(self, count: int) -> list[Party]:
        return [self.add(identity, DiscoveredRoster(identity.peer_id)) for identity in IDENTITIES[:count]]


@pytest.fixture
async def ring() -> AsyncIterator[Ring]:
    async with open_medium(random.Random(5), bytes_per_s=1e6) as medium, trio.open_nursery() as nursery:
        made = Ring(medium, nursery)
        yield made
        for mesh in made.meshes:
            await mesh.close()
        nursery.cancel_scope.cancel()


async def outcomes(*calls: Callable[[], Awaitable[object]]) -> list[object]:
    """Make calls at once; return what each returned or raised."""
    found: list[object] = [None] * len(calls)

    async def make(index: int) -> None:
        try:
            found[index] = await calls[index]()
        except BarnraiseError as error:
            found[index] = error

    async with trio.open_nursery() as nursery:
        for index in range(len(calls)):
            nursery.start_soon(make, index)
    return found


def barrier(party: Party) -> None:
    nothing: Vector = np.empty(0, np.float32)
    party.mesh.collectives.carry_out(Call("barrier", "float32", 0), Input(vector=nothing), nothing, 20.0)


def summing(party: Party, vector: Vector, timeout_s: float = 20.0) -> Callable[[], Awaitable[object]]:
    """Return what adds a vector up, in a thread, and returns the sum."""

    def work() -> Vector:
        call, out = Call("sum", "float32", len(vector)), vector.copy()
        party.mesh.collectives.carry_out(call, Input(vector=vector), out, timeout_s)
        return out

    return lambda: trio.to_thread.run_sync(work)


async def gather(parties: Sequence[Party], count: int | None = None) -> None:
    found = await outcomes(*(lambda party=party: party.mesh.wait_for_peers(count, 20.0) for party in parties))
    assert found == [None] * len(parties)


async def test_peers_that_find_each_other_get_ranks_by_their_ids(autojump_clock: MockClock, ring: Ring) -> None:
    parties = ring.strangers(4)
    with pytest.raises(ConfigError, match="Call wait_for_peers"):
        _ = parties[0].mesh.group
    await gather(parties, 4)
    assert [party.mesh.rank for party in parties] == [0, 1, 2, 3]
    assert len({party.mesh.group for party in parties}) == 1
    await gather(parties, 4)  # again: the group stands
    with pytest.raises(ConfigError, match="has 4 peers"):
        await parties[0].mesh.wait_for_peers(3, 1.0)


async def test_who_comes_when_the_group_is_complete_is_told_so(autojump_clock: MockClock, ring: Ring) -> None:
    parties = ring.strangers(4)
    await gather(parties[1:3], 2)
    await trio.sleep(1.0)
    late = [lambda p=p: p.mesh.wait_for_peers(2, 20.0) for p in (parties[0], parties[3])]
    for found in await outcomes(*late):
        assert isinstance(found, Unavailable)
        assert "complete without this peer" in str(found)
    assert parties[1].mesh.group == (parties[1].peer, parties[2].peer)


async def test_two_that_wait_for_different_numbers_are_told_so(autojump_clock: MockClock, ring: Ring) -> None:
    parties = ring.strangers(2)
    calls = [lambda n=n, p=p: p.mesh.wait_for_peers(n, 20.0) for n, p in zip((2, 3), parties, strict=True)]
    for found in await outcomes(*calls):
        assert isinstance(found, ConfigError)
        assert "the same number everywhere" in str(found)


async def test_a_wait_ends_in_time_and_may_be_repeated(autojump_clock: MockClock, ring: Ring) -> None:
    parties = ring.strangers(1)
    began = trio.current_time()
    with pytest.raises(Unavailable, match=r"0 of 2 peers, this one included, are here after 7 s \(found: nobody"):
        await parties[0].mesh.wait_for_peers(2, 7.0)
    assert trio.current_time() - began == pytest.approx(7.0)
    other = ring.add(IDENTITIES[1], DiscoveredRoster(IDENTITIES[1].peer_id))
    await gather([*parties, other], 2)


async def test_a_list_knows_how_many_can_come(autojump_clock: MockClock, ring: Ring) -> None:
    parties = ring.listed(2)
    with pytest.raises(ConfigError, match="3 peers cannot come: the list names 2"):
        await parties[0].mesh.wait_for_peers(3, 1.0)
    await gather(parties)


async def test_who_is_started_again_before_anything_began_takes_its_place(ring: Ring) -> None:
    parties = ring.listed(3)
    await gather(parties)
    ring.medium.crash(parties[1].peer)
    await trio.sleep(0.1)
    again = ring.add(IDENTITIES[1], StaticRoster(tuple(party.peer for party in parties)))
    parties = [parties[0], again, parties[2]]
    await gather(parties)
    found = await outcomes(*(summing(party, np.ones(4, np.float32)) for party in parties))
    assert [total.tolist() for total in found if isinstance(total, np.ndarray)] == [[3.0] * 4] * 3


async def test_a_second_process_of_a_rank_is_refused_and_the_others_go_on(ring: Ring) -> None:
    parties = ring.listed(3)
    await gather(parties)
    await outcomes(*(summing(party, np.ones(4, np.float32)) for party in parties))
    ring.medium.crash(parties[1].peer)
    await trio.sleep(0.1)
    again = ring.add(IDENTITIES[1], StaticRoster(tuple(party.peer for party in parties)), port_seen=9999)
    with trio.fail_after(20):
        first, refused, last = await outcomes(
            *(summing(party, np.ones(4, np.float32)) for party in (parties[0], again, parties[2]))
        )
    assert isinstance(refused, ConfigError)
    assert re.search(r"two processes claim rank 1: .* 127.0.0.1:\d+, this one is at 127.0.0.1:9999", str(refused))
    assert all(isinstance(total, np.ndarray) and (total == 2).all() for total in (first, last))
    assert [party.mesh.collectives.members for party in (parties[0], parties[2])] == [(0, 2)] * 2


@pytest.mark.parametrize(
    "message",
    [
        b"\xc1",
        encode(["Want", 0]),
        encode(["Want", 10**6]),
        encode(["Formed", []]),
        encode(["Formed", ["x" * 65]]),
        encode(["GaveUp", False, "x" * 401]),
        encode(["Left", -1]),
        encode(["Word", b"\xc1"]),
        encode(["Word", encode(["Alarm", -1])]),
        encode(["OfLinks", b"\xc1"]),
        encode(["\xff"]),
    ],
)
async def test_who_keeps_talking_nonsense_is_left_out(ring: Ring, message: bytes) -> None:
    parties = ring.listed(3)
    await gather(parties)
    await outcomes(*(summing(party, np.ones(4, np.float32)) for party in parties))
    with trio.fail_after(20):
        for _ in range(2):
            epoch = parties[0].mesh.collectives.epoch
            await parties[1].network.send(parties[0].peer, message)
            while parties[0].mesh.collectives.epoch == epoch:  # noqa: ASYNC110  # worker threads set no trio event
                await trio.sleep(0.01)
        found = await outcomes(*(summing(party, np.ones(4, np.float32)) for party in parties))
    assert isinstance(found[1], Unavailable)
    assert all(isinstance(total, np.ndarray) and (total == 2).all() for total in (found[0], found[2]))
    assert "malformed statement" in parties[2].mesh.collectives.lost[1]
    await parties[1].network.send(parties[0].peer, message)
    found = await outcomes(*(summing(parties[rank], np.ones(4, np.float32)) for rank in (0, 2)))
    assert all(isinstance(total, np.ndarray) and (total == 2).all() for total in found)


async def test_nonsense_is_forgiven_once(ring: Ring) -> None:
    parties = ring.listed(2)
    await gather(parties)
    await parties[1].network.send(parties[0].peer, b"\xc1")
    found = await outcomes(*(summing(party, np.ones(4, np.float32)) for party in parties))
    assert [total.tolist() for total in found if isinstance(total, np.ndarray)] == [[2.0] * 4] * 2


@pytest.mark.parametrize("statement", [Want(2), Formed(("somebody else",))])
async def test_who_looks_for_a_group_where_there_is_a_list_is_told_what_to_do(
    autojump_clock: MockClock, ring: Ring, statement: Want | Formed
) -> None:
    parties = ring.listed(2)
    await gather(parties)
    await parties[1].network.send(parties[0].peer, encode(statement))
    await trio.sleep(1.0)
    for party in parties:
        with pytest.raises(Unavailable, match="Start all the same way"):
            barrier(party)


async def test_who_is_not_in_the_group_cannot_end_it(autojump_clock: MockClock, ring: Ring) -> None:
    parties = ring.strangers(3)
    await gather(parties[:2], 2)
    for message in (b"\xc1", encode(Want(3)), encode(GaveUp(False, "mine")), encode(Formed((parties[2].peer,)))):
        await parties[2].network.send(parties[0].peer, message)
    await trio.sleep(1.0)
    assert [party.mesh.group for party in parties[:2]] == [tuple(party.peer for party in parties[:2])] * 2
    assert all(party.mesh.collectives.members == (0, 1) for party in parties[:2])


async def test_a_reason_from_elsewhere_is_fit_for_a_terminal(autojump_clock: MockClock, ring: Ring) -> None:
    parties = ring.listed(2)
    await gather(parties)
    await parties[1].network.send(parties[0].peer, encode(GaveUp(False, "\x1b[2J my reason")))
    await trio.sleep(1.0)
    with pytest.raises(Unavailable, match=r"rank 1 .* gave up: \?\[2J my reason"):
        barrier(parties[0])


# ---- collectives: in threads, and by the real clock ---------------------------------------------------------------


async def test_members_add_up_over_streams(ring: Ring) -> None:
    parties = ring.listed(3)
    await gather(parties)
    for size in (0, 5, 70_000):
        found = await outcomes(*(summing(party, np.full(size, rank, np.float32)) for rank, party in enumerate(parties)))
        assert all(isinstance(total, np.ndarray) and len(total) == size and (total == 3).all() for total in found)


async def test_a_collective_may_begin_before_all_are_connected(ring: Ring) -> None:
    parties = ring.listed(2)
    found = await outcomes(*(summing(party, np.ones(10, np.float32)) for party in parties))
    assert all(isinstance(total, np.ndarray) and (total == 2).all() for total in found)


async def test_who_crashes_is_lost_and_the_others_finish_without_it(ring: Ring) -> None:
    parties = ring.listed(3)
    await gather(parties)

    async def crash() -> None:
        ring.medium.crash(parties[1].peer)

    others = [summing(parties[rank], np.full(500, 1 + rank, np.float32)) for rank in (0, 2)]
    *found, _ = await outcomes(*others, crash)
    assert all(isinstance(total, np.ndarray) and (total == 4).all() for total in found)
    for party in (parties[0], parties[2]):
        assert party.mesh.collectives.members == (0, 2)
        assert list(party.mesh.collectives.lost) == [1]


async def test_of_two_halves_the_one_with_the_lowest_rank_goes_on(ring: Ring) -> None:
    parties = ring.listed(2)
    await gather(parties)
    await parties[1].mesh.leave()
    found = await outcomes(summing(parties[0], np.ones(5, np.float32)))
    assert isinstance(found[0], np.ndarray)
    assert (found[0] == 1).all()


async def test_ranks_that_call_different_things_are_told_so(ring: Ring) -> None:
    parties = ring.listed(3)
    await gather(parties)
    sizes = (4, 4, 5)
    found = await outcomes(*(summing(party, np.ones(sizes[rank], np.float32)) for rank, party in enumerate(parties)))
    assert any(isinstance(error, ConfigError) for error in found)
    for error in found:
        assert isinstance(error, ConfigError | Unavailable)
        assert "of 4 float32 elements" in str(error)
        assert "of 5 float32 elements" in str(error)
    for party in parties:
        with pytest.raises(Unavailable, match="the group has ended: "):
            barrier(party)


async def test_a_rank_whose_user_does_not_call_is_lost_in_time(ring: Ring) -> None:
    parties = ring.listed(3)
    await gather(parties)
    found = await outcomes(*(summing(parties[rank], np.ones(4, np.float32), timeout_s=0.3) for rank in (0, 2)))
    assert all(isinstance(total, np.ndarray) and (total == 2).all() for total in found)
    assert "has not called collective 1" in parties[0].mesh.collectives.lost[1]


async def test_a_call_under_way_ends_when_the_mesh_is_closed(ring: Ring) -> None:
    parties = ring.listed(2)
    await gather(parties)

    async def close_it() -> None:
        await trio.sleep(0.1)
        await parties[0].mesh.close()

    found, _ = await outcomes(summing(parties[0], np.ones(4, np.float32)), close_it)
    assert isinstance(found, Unavailable)
    assert "was closed" in str(found)


async def test_members_agree_on_what_their_links_are_like(ring: Ring) -> None:
    parties = ring.listed(3)
    await gather(parties)
    call = Call("sum", "float32", 70_000)
    with trio.fail_after(20):
        while any(party.mesh.collectives.choice(call).predicted_s is None for party in parties):  # noqa: ASYNC110
            await trio.sleep(0.05)
    found = await outcomes(*(summing(party, np.full(70_000, rank, np.float32)) for rank, party in enumerate(parties)))
    assert all(isinstance(total, np.ndarray) and (total == 3).all() for total in found)


async def test_who_hangs_before_it_begins_is_lost_though_its_connections_stand(
    ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    parties = ring.listed(3)
    await gather(parties)

    async def say_nothing(peer: PeerId, message: bytes) -> None:
        pass

    monkeypatch.setattr(parties[1].network, "send", say_nothing)
    for rank in (0, 2):
        silence = {parties[1].peer: 5.0}
        monkeypatch.setattr(parties[rank].network, "silent_s", lambda peer, silence=silence: silence.get(peer, 0.0))
    with trio.fail_after(20):
        found = await outcomes(*(summing(parties[rank], np.ones(4, np.float32), 60.0) for rank in (0, 2)))
    assert all(isinstance(total, np.ndarray) and (total == 2).all() for total in found)
    assert "answered no heartbeat for 4 s" in parties[0].mesh.collectives.lost[1]
