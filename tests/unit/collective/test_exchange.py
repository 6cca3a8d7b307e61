"""The exchange with every number of contributors and onlookers, its bytes, and what happens when somebody dies."""

import random
from collections.abc import Callable, Sequence

import pytest

from barnraise.collective.exchange import Aggregate, Complete, Effect, Exchange, SendAggregate, SendUpdate
from barnraise.collective.shards import MAX_SHARDS
from barnraise.ids import PeerId


def peers(count: int) -> tuple[PeerId, ...]:
    return tuple(PeerId(f"peer-{number}") for number in range(count))


class Swarm:
    """Members that exchange over links which deliver in any order."""

    def __init__(self, num_contributors: int, num_onlookers: int, num_shards: int, seed: int = 0) -> None:
        self.members = peers(num_contributors + num_onlookers)
        self.contributors = self.members[:num_contributors]
        self.machines = {
            me: Exchange(contributors=self.contributors, members=self.members, num_shards=num_shards, me=me)
            for me in self.members
        }
        self.rng = random.Random(seed)
        self.under_way: list[tuple[PeerId, Effect]] = []
        self.sent: list[tuple[PeerId, SendUpdate | SendAggregate]] = []
        self.aggregated: list[tuple[PeerId, int]] = []
        self.completed: list[PeerId] = []
        self.dead: set[PeerId] = set()

    def begin(self) -> None:
        for me, machine in self.machines.items():
            self.take(me, machine.begin())

    def take(self, me: PeerId, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Complete):
                self.completed.append(me)
            else:
                self.under_way.append((me, effect))

    def step(self) -> None:
        me, effect = self.under_way.pop(self.rng.randrange(len(self.under_way)))
        if me in self.dead and not isinstance(effect, SendUpdate):
            return  # its update had left before it died
        match effect:
            case Aggregate():
                self.aggregated.append((me, effect.shard))
                self.take(me, self.machines[me].aggregated(effect.shard))
            case SendUpdate() | SendAggregate():
                self.sent.append((me, effect))
                if effect.to not in self.dead:
                    self.take(effect.to, self.arrive(me, effect))

    def arrive(self, sender: PeerId, effect: SendUpdate | SendAggregate) -> list[Effect]:
        machine = self.machines[effect.to]
        if isinstance(effect, SendUpdate):
            return machine.update_arrived(sender, effect.shard)
        return machine.aggregate_arrived(effect.shard)

    def run(self, until: Callable[[], bool] = lambda: False) -> None:
        while self.under_way and not until():
            self.step()

    def kill(self, peer: PeerId) -> None:
        self.dead.add(peer)
        for other in self.members:
            if other not in self.dead:
                self.take(other, self.machines[other].peer_down(peer))


@pytest.mark.parametrize("num_contributors", range(1, 9))
@pytest.mark.parametrize("num_onlookers", [0, 1, 3])
@pytest.mark.parametrize("num_shards", [1, 3, 8, MAX_SHARDS])
def test_everybody_gets_every_shard_once(num_contributors: int, num_onlookers: int, num_shards: int) -> None:
    swarm = Swarm(num_contributors, num_onlookers, num_shards, seed=num_shards)
    swarm.begin()
    swarm.run()
    assert sorted(swarm.completed) == sorted(swarm.members)
    assert sorted(shard for _, shard in swarm.aggregated) == list(range(num_shards))
    assert len(swarm.sent) == len(set(swarm.sent))
    assert not any(machine.owing for machine in swarm.machines.values())


@pytest.mark.parametrize("count", range(1, 9))
def test_each_peer_sends_two_vectors_less_two_parts(count: int) -> None:
    # 2 (n-1)/n of the vector, the least that an all-reduce can do (Patarasuk and Yuan 2009).
    swarm = Swarm(count, 0, count)
    swarm.begin()
    swarm.run()
    for peer in swarm.members:
        assert sum(sender == peer for sender, _ in swarm.sent) == 2 * (count - 1)


@pytest.mark.parametrize("seed", range(30))
def test_the_others_stand_in_for_an_owner_that_died_half_way_through_telling(seed: int) -> None:
    swarm = Swarm(4, 1, 4, seed)
    owner = swarm.members[seed % 4]
    swarm.begin()
    swarm.run(until=lambda: any(s == owner and isinstance(sent, SendAggregate) for s, sent in swarm.sent))
    swarm.kill(owner)
    swarm.run()
    assert set(swarm.completed) >= set(swarm.members) - {owner}


def test_an_owner_that_died_before_aggregating_is_what_the_others_wait_for() -> None:
    swarm = Swarm(3, 0, 3)
    owner = swarm.members[1]
    swarm.dead.add(owner)
    swarm.begin()
    swarm.run()
    assert swarm.completed == []
    assert all(swarm.machines[peer].owing == {owner} for peer in swarm.members if peer != owner)


def test_an_owner_is_not_blamed_while_a_contribution_is_missing() -> None:
    machine = Exchange(contributors=peers(3), members=peers(3), num_shards=3, me=peers(3)[0])
    machine.update_arrived(PeerId("peer-1"), 0)
    assert machine.owing == {PeerId("peer-2")}
    machine.update_arrived(PeerId("peer-2"), 0)
    assert machine.owing == {PeerId("peer-1"), PeerId("peer-2")}


@pytest.mark.parametrize("seed", range(20))
def test_a_connection_that_broke_and_came_back_costs_only_repetition(seed: int) -> None:
    swarm = Swarm(3, 1, 3, seed)
    swarm.begin()
    one, other = swarm.rng.sample(swarm.members, 2)
    for _ in range(swarm.rng.randrange(len(swarm.under_way) + 1)):
        if swarm.under_way:
            swarm.step()
    lost = {one, other}
    swarm.under_way = [
        (me, effect)
        for me, effect in swarm.under_way
        if isinstance(effect, Aggregate | Complete) or {me, effect.to} != lost
    ]
    for me, peer in ((one, other), (other, one)):
        swarm.take(me, swarm.machines[me].peer_down(peer))
        swarm.take(me, swarm.machines[me].peer_up(peer))
    swarm.run()
    assert sorted(swarm.completed) == sorted(swarm.members)
    assert len(swarm.aggregated) == len(set(swarm.aggregated))


def test_what_an_owner_told_us_before_it_died_is_passed_on_though_it_comes_after_the_news() -> None:
    one, two, three = peers(3)
    machine = Exchange(contributors=peers(3), members=peers(3), num_shards=3, me=two)
    assert machine.peer_down(one) == []
    assert machine.aggregate_arrived(0) == [SendAggregate(shard=0, to=three)]
    assert machine.aggregate_arrived(0) == []
    assert machine.aggregate_arrived(2) == []


def test_duplicates_strangers_and_shards_of_others_change_nothing() -> None:
    me = PeerId("peer-0")
    machine = Exchange(contributors=peers(2), members=peers(3), num_shards=2, me=me)
    assert machine.update_arrived(PeerId("stranger"), 0) == []
    assert machine.update_arrived(PeerId("peer-2"), 0) == []  # a member that did not contribute
    assert machine.update_arrived(PeerId("peer-1"), 1) == []  # not ours
    assert machine.update_arrived(PeerId("peer-1"), 9) == []
    assert machine.aggregated(0) == []  # not all contributions are here
    assert machine.update_arrived(PeerId("peer-1"), 0) == [Aggregate(shard=0)]
    assert machine.update_arrived(PeerId("peer-1"), 0) == []
    assert machine.aggregate_arrived(1) == []
    assert machine.aggregate_arrived(1) == []
    assert Complete() in machine.aggregated(0)
    assert machine.aggregated(0) == []
    assert machine.peer_up(PeerId("stranger")) == []
