"""A group's collectives on the memory network: same bits on all ranks, and nobody hangs whoever goes away."""

import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import pytest
import trio
from trio.testing import MockClock

from barnraise.api.backend import Vector
from barnraise.api.mesh import Mesh
from barnraise.api.roster import DiscoveredRoster, Formed, Roster, StaticRoster, Want
from barnraise.api.statements import Enter, GaveUp, Header
from barnraise.errors import BarnraiseError, ConfigError, PeerError, Unavailable
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

    def add(self, identity: Identity, roster: Roster, port_seen: int | None = None) -> Party:
        peer = identity.peer_id
        mesh = Mesh(peer, roster)
        bulk = self.medium.bulk(peer, mesh.sink, mesh.arrived)
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
        yield Ring(medium, nursery)
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


def reducing(
    party: Party, vector: Vector, op: str = "mean", timeout_s: float = 30.0
) -> Callable[[], Awaitable[object]]:
    return lambda: party.mesh.all_reduce(vector, op, timeout_s)  # type: ignore[arg-type]


async def gather(parties: Sequence[Party], count: int | None = None) -> None:
    found = await outcomes(*(lambda party=party: party.mesh.wait_for_peers(count, 20.0) for party in parties))
    assert found == [None] * len(parties)


def vectors(count: int, size: int, dtype: type = np.float32) -> list[Vector]:
    rng = np.random.default_rng(size)
    return [rng.normal(0, 1, size).astype(dtype) for _ in range(count)]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [0, 1, 63, 1000, 70000])
async def test_all_ranks_get_the_same_bits_summed_in_the_order_of_ranks(
    autojump_clock: MockClock, ring: Ring, count: int, size: int
) -> None:
    parties = ring.listed(count)
    given = vectors(count, size)
    kept = [vector.copy() for vector in given]
    expected = np.zeros(size, np.float32)
    for vector in given:
        expected = expected + vector
    sums = await outcomes(*(reducing(party, given[rank], "sum") for rank, party in enumerate(parties)))
    means = await outcomes(*(reducing(party, given[rank]) for rank, party in enumerate(parties)))
    for total, mean in zip(sums, means, strict=True):
        assert isinstance(total, np.ndarray)
        assert isinstance(mean, np.ndarray)
        assert total.tobytes() == expected.tobytes()
        assert mean.tobytes() == (expected / np.float32(count)).tobytes()
    assert all((vector == copy).all() for vector, copy in zip(given, kept, strict=True))


async def test_float64_travels_as_float64(autojump_clock: MockClock, ring: Ring) -> None:
    parties, given = ring.listed(2), vectors(2, 100, np.float64)
    first, second = await outcomes(*(reducing(party, given[rank], "sum") for rank, party in enumerate(parties)))
    assert isinstance(first, np.ndarray)
    assert isinstance(second, np.ndarray)
    assert first.tobytes() == second.tobytes() == (given[0] + given[1]).tobytes()


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
    found = await outcomes(*(reducing(party, np.ones(3, np.float32), "sum") for party in parties[1:3]))
    assert [part.tolist() for part in found if isinstance(part, np.ndarray)] == [[2, 2, 2]] * 2


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


async def test_a_barrier_holds_until_the_last_one_comes(autojump_clock: MockClock, ring: Ring) -> None:
    parties = ring.listed(3)
    await gather(parties)
    passed: list[float] = []

    async def pass_barrier(party: Party, after_s: float) -> None:
        await trio.sleep(after_s)
        await party.mesh.barrier(30.0)
        passed.append(trio.current_time())

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for party, after_s in zip(parties, (0.0, 9.0, 4.0), strict=True):
            nursery.start_soon(pass_barrier, party, after_s)
    assert len(passed) == 3
    assert min(passed) - began >= 9.0


async def test_collectives_in_a_row_do_not_get_mixed_up(autojump_clock: MockClock, ring: Ring) -> None:
    parties = ring.listed(3)
    rng = random.Random(2)

    async def work(party: Party) -> list[float]:
        sums = []
        for number in range(10):
            await trio.sleep(rng.uniform(0, 0.5))
            total = await party.mesh.all_reduce(np.full(200 + number, number, np.float32), "sum", 30.0)
            sums.append(float(total[-1]))
            if number % 3 == 0:
                await party.mesh.barrier(30.0)
        return sums

    found = await outcomes(*(lambda party=party: work(party) for party in parties))
    assert found == [[3.0 * number for number in range(10)]] * 3


@pytest.mark.parametrize("size", [10, 200_000])
async def test_a_peer_that_dies_in_a_collective_is_named_by_all_others(
    autojump_clock: MockClock, ring: Ring, size: int
) -> None:
    parties = ring.listed(3)
    await gather(parties)
    began = trio.current_time()

    async def die() -> None:
        if size == 10:
            await trio.sleep(0.3)  # it has not entered; else it is in the midst of moving 0.8 MB at 1 MB/s
        ring.medium.crash(parties[1].peer)

    async def enter_and_die() -> None:
        async with trio.open_nursery() as nursery:
            if size > 10:
                nursery.start_soon(outcomes, reducing(parties[1], np.ones(size, np.float32)))
                await trio.sleep(0.2)
            await die()
            nursery.cancel_scope.cancel()

    others = [reducing(parties[rank], np.ones(size, np.float32)) for rank in (0, 2)]
    first, _, last = await outcomes(others[0], enter_and_die, others[1])
    for found in (first, last):
        assert isinstance(found, Unavailable)
        assert "rank 1" in str(found)
    assert trio.current_time() - began < 10
    for party in (parties[0], parties[2]):
        with pytest.raises(Unavailable, match="the group has ended"):
            await party.mesh.barrier(30.0)


async def test_a_rank_that_never_comes_is_named_when_time_is_up(autojump_clock: MockClock, ring: Ring) -> None:
    parties = ring.listed(3)
    began = trio.current_time()
    calls = [reducing(parties[rank], np.ones(4, np.float32), timeout_s=5.0) for rank in (0, 2)]
    found = await outcomes(*calls)
    assert all(isinstance(error, Unavailable) for error in found)
    assert any("did not end within 5 s; it waited for rank 1" in str(error) for error in found)
    assert trio.current_time() - began < 8


async def test_a_connection_that_breaks_and_comes_back_is_no_loss(autojump_clock: MockClock, ring: Ring) -> None:
    parties = ring.listed(3)
    await gather(parties)

    async def cut() -> None:
        for _ in range(4):
            await trio.sleep(0.3)
            ring.medium.cut(parties[0].peer, parties[1].peer)

    calls = [reducing(party, np.full(200_000, rank, np.float32), "sum") for rank, party in enumerate(parties)]
    *found, _ = await outcomes(*calls, cut)
    assert all(isinstance(total, np.ndarray) and (total == 3).all() for total in found)


async def test_who_leaves_after_the_last_collective_fails_nobody(autojump_clock: MockClock, ring: Ring) -> None:
    parties = ring.listed(3)
    await gather(parties)

    async def work(party: Party) -> float:
        total = await party.mesh.all_reduce(np.ones(300, np.float32), "sum", 30.0)
        await party.mesh.leave()
        ring.medium.crash(party.peer)
        return float(total[0])

    assert await outcomes(*(lambda party=party: work(party) for party in parties)) == [3.0] * 3


async def test_who_has_left_is_named_at_once(autojump_clock: MockClock, ring: Ring) -> None:
    parties = ring.listed(2)
    await gather(parties)
    await parties[1].mesh.leave()
    began = trio.current_time()
    with pytest.raises(Unavailable, match=r"rank 1 .* went away: it closed its context"):
        await parties[0].mesh.barrier(30.0)
    assert trio.current_time() - began < 1


async def test_ranks_that_call_different_things_are_told_so(autojump_clock: MockClock, ring: Ring) -> None:
    parties = ring.listed(2)
    calls = [reducing(parties[0], np.ones(4, np.float32)), reducing(parties[1], np.ones(5, np.float32))]
    found = await outcomes(*calls)
    assert any(isinstance(error, ConfigError) for error in found)
    for error in found:
        assert isinstance(error, ConfigError | Unavailable)
        assert "of 4 float32 elements" in str(error)
        assert "of 5 float32 elements" in str(error)


async def test_a_barrier_is_no_reduction(autojump_clock: MockClock, ring: Ring) -> None:
    parties = ring.listed(2)
    found = await outcomes(lambda: parties[0].mesh.barrier(9.0), reducing(parties[1], np.ones(0, np.float32)))
    assert all("barrier()" in str(error) and "op='mean'" in str(error) for error in found)


async def test_a_second_process_of_a_rank_is_told_of_with_both_addresses(autojump_clock: MockClock, ring: Ring) -> None:
    members = tuple(identity.peer_id for identity in IDENTITIES[:2])
    first = ring.add(IDENTITIES[0], StaticRoster(members))
    second = ring.add(IDENTITIES[1], StaticRoster(members))
    await gather([first, second])
    ring.medium.crash(second.peer)
    await trio.sleep(1.0)  # the medium takes its old connection down
    third = ring.add(IDENTITIES[1], StaticRoster(members), port_seen=9999)
    calls = [lambda party=party: party.mesh.barrier(30.0) for party in (first, third)]
    for found in await outcomes(*calls):
        assert isinstance(found, ConfigError)
        assert re.search(r"two processes claim rank 1: one at 127.0.0.1:\d+, one at 127.0.0.1:9999", str(found))


async def test_nothing_comes_in_that_is_not_owed(autojump_clock: MockClock, ring: Ring) -> None:
    parties = ring.listed(2)
    await gather(parties)
    me, other, stranger = parties[0].mesh, parties[1].peer, IDENTITIES[4].peer_id
    part = encode(Header(1, "part"))
    assert me.sink(other, part, 4) is None  # no collective is under way

    async def look() -> None:
        await trio.sleep(0.1)
        assert me.sink(other, part, 256 * 4) is not None
        assert me.sink(other, part, 256 * 4 + 4) is None
        assert me.sink(other, part, 0) is None
        assert me.sink(other, encode(Header(2, "part")), 256 * 4) is None
        assert me.sink(stranger, part, 256 * 4) is None
        assert me.sink(parties[0].peer, part, 256 * 4) is None
        assert me.sink(other, b"\xc1", 256 * 4) is None
        assert me.sink(other, encode([1, "else"]), 256 * 4) is None
        me.arrived(other, b"\xc1")
        me.arrived(stranger, part)
        assert await outcomes(reducing(parties[1], np.ones(512, np.float32), "sum")) != []

    mine, _ = await outcomes(reducing(parties[0], np.ones(512, np.float32), "sum"), look)
    assert isinstance(mine, np.ndarray)
    assert (mine == 2).all()


async def test_what_is_here_already_may_come_again_and_goes_nowhere(autojump_clock: MockClock, ring: Ring) -> None:
    parties = ring.listed(2)
    found, _ = await outcomes(*(reducing(party, np.ones(512, np.float32), "sum") for party in parties))
    again = parties[0].mesh.sink(parties[1].peer, encode(Header(1, "total")), 256 * 4)
    assert again is not None
    again[:] = bytes(len(again))
    assert isinstance(found, np.ndarray)
    assert (found == 2).all()


@pytest.mark.parametrize(
    "message",
    [
        b"\xc1",
        encode(["Want", 0]),
        encode(["Want", 10**6]),
        encode(["Formed", []]),
        encode(["Formed", ["x" * 65]]),
        encode(["GaveUp", False, "x" * 401]),
        encode(["Enter", -1, b"", "sum", "float32", 1]),
        encode(["Enter", 1, b"", "sum", "int8", 1]),
        encode(["\xff"]),
        encode(Formed(("somebody else",))),
        encode(Want(2)),
    ],
)
async def test_nonsense_from_a_peer_ends_the_group_and_names_it(
    autojump_clock: MockClock, ring: Ring, message: bytes
) -> None:
    parties = ring.listed(2)
    await gather(parties)
    await parties[1].network.send(parties[0].peer, message)
    with pytest.raises(PeerError, match=str(parties[1].peer)):
        await parties[0].mesh.barrier(30.0)


async def test_who_is_not_in_the_group_cannot_end_it(autojump_clock: MockClock, ring: Ring) -> None:
    parties = ring.strangers(3)
    await gather(parties[:2], 2)
    for message in (b"\xc1", encode(Want(3)), encode(GaveUp(False, "mine")), encode(Formed((parties[2].peer,)))):
        await parties[2].network.send(parties[0].peer, message)
    await trio.sleep(1.0)
    found = await outcomes(*(reducing(party, np.ones(3, np.float32), "sum") for party in parties[:2]))
    assert all(isinstance(total, np.ndarray) and (total == 2).all() for total in found)


async def test_a_reason_from_elsewhere_is_fit_for_a_terminal(autojump_clock: MockClock, ring: Ring) -> None:
    parties = ring.listed(2)
    await gather(parties)
    await parties[1].network.send(parties[0].peer, encode(GaveUp(False, "\x1b[2J my reason")))
    with pytest.raises(Unavailable, match=r"rank 1 .* gave up: \?\[2J my reason"):
        await parties[0].mesh.barrier(30.0)


async def test_an_entry_of_another_group_is_refused(autojump_clock: MockClock, ring: Ring) -> None:
    parties = ring.listed(2)
    await gather(parties)
    entry = Enter(1, b"another", "barrier", "float32", 0)
    await parties[1].network.send(parties[0].peer, encode(entry))
    with pytest.raises(ConfigError, match="another group of the same name"):
        await parties[0].mesh.barrier(30.0)
