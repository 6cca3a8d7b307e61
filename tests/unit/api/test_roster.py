"""How strangers agree on a group: each sees what it has heard, in any order, and nobody ends in two groups."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from barnraise.api.roster import DiscoveredRoster, Formed, StaticRoster, Want
from barnraise.errors import BarnraiseError, ConfigError, PeerError, Unavailable
from barnraise.ids import PeerId

ADA, BOB, EVE, ZOE = PEERS = tuple(PeerId(name) for name in ("ada", "bob", "eve", "zoe"))


def waiting(me: PeerId, count: int) -> DiscoveredRoster:
    roster = DiscoveredRoster(me)
    roster.want(count)
    return roster


def test_the_smallest_forms_the_group_and_the_others_follow() -> None:
    ada, bob = waiting(ADA, 2), waiting(BOB, 2)
    assert ada.statement == Want(2)
    bob.heard(ADA, Want(2))
    bob.settle([ADA])
    assert bob.group is None, "that is for the smaller one to say"
    ada.heard(BOB, Want(2))
    ada.settle([BOB])
    assert ada.statement == Formed((ADA, BOB))
    bob.heard(ADA, Formed((ADA, BOB)))
    bob.settle([ADA])
    assert bob.group == ada.group
    assert bob.statement == ada.statement


def test_any_member_may_tell_of_the_group() -> None:
    eve = waiting(EVE, 3)
    eve.heard(BOB, Formed((ADA, BOB, EVE)))
    eve.settle([BOB])
    assert eve.group == (ADA, BOB, EVE)


def test_who_is_not_linked_does_not_count() -> None:
    ada = waiting(ADA, 2)
    ada.heard(BOB, Want(2))
    ada.settle([])
    assert ada.group is None
    ada.lost(BOB)
    ada.settle([BOB])
    assert ada.group is None


def test_nothing_happens_before_the_user_waits() -> None:
    ada = DiscoveredRoster(ADA)
    assert ada.statement is None
    ada.heard(BOB, Formed((BOB, EVE)))
    ada.settle([BOB])
    ada.want(2)
    with pytest.raises(Unavailable, match="complete without this peer"):
        ada.settle([BOB])


def test_a_group_stands_whoever_else_has_found_each_other() -> None:
    ada = waiting(ADA, 2)
    ada.heard(BOB, Want(2))
    ada.settle([BOB])
    ada.heard(ZOE, Formed((EVE, ZOE)))
    ada.heard(EVE, Want(2))
    ada.settle([BOB, EVE, ZOE])
    assert ada.group == (ADA, BOB)


def test_two_groups_with_one_peer_are_a_mistake() -> None:
    ada = waiting(ADA, 2)
    ada.heard(BOB, Want(2))
    ada.settle([BOB])
    ada.heard(EVE, Formed((ADA, EVE)))
    with pytest.raises(ConfigError, match="not the one it waited for"):
        ada.settle([BOB, EVE])


def test_a_group_of_another_size_is_a_mistake() -> None:
    ada = waiting(ADA, 3)
    ada.heard(BOB, Formed((ADA, BOB)))
    with pytest.raises(ConfigError, match="not the one it waited for"):
        ada.settle([BOB])


@pytest.mark.parametrize("members", [(ADA, EVE), (BOB, ADA), (BOB, BOB)])
def test_a_group_that_cannot_be_is_refused(members: tuple[str, ...]) -> None:
    with pytest.raises(PeerError, match="cannot be"):
        waiting(ADA, 2).heard(BOB, Formed(members))


@pytest.mark.parametrize("count", [None, 0, -1, 257])
def test_impossible_numbers_are_refused(count: int | None) -> None:
    with pytest.raises(ConfigError, match="say for how many peers"):
        DiscoveredRoster(ADA).want(count)


def test_a_list_has_nothing_to_agree_on() -> None:
    roster = StaticRoster([EVE, ADA])
    assert roster.group == (EVE, ADA)
    assert (roster.want(None), roster.want(1)) == (2, 1)
    with pytest.raises(ConfigError, match="0 peers cannot come"):
        roster.want(0)
    with pytest.raises(ConfigError, match="Start all the same way"):
        roster.heard(ADA, Want(2))


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 1 << 32), num_peers=st.integers(1, 5), data=st.data())
def test_in_whatever_order_news_arrive_nobody_is_in_two_groups(seed: int, num_peers: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, num_peers))
    rng = random.Random(seed)
    peers: Sequence[PeerId] = [PeerId(f"peer-{number}") for number in range(num_peers)]
    rosters = {peer: DiscoveredRoster(peer) for peer in peers}
    queues: dict[tuple[PeerId, PeerId], list[Want | Formed]] = {}
    failed: set[PeerId] = set()

    def settle(peer: PeerId, before: Want | Formed | None) -> None:
        try:
            rosters[peer].settle([other for other in peers if other != peer])
        except BarnraiseError:
            failed.add(peer)
        statement = rosters[peer].statement
        if statement is not None and statement != before:
            for other in peers:
                if other != peer:
                    queues.setdefault((peer, other), []).append(statement)

    starting = list(peers)
    while starting or any(queues.values()):
        ready = [pair for pair, queue in queues.items() if queue]
        if starting and (not ready or rng.random() < 0.3):
            peer = starting.pop(rng.randrange(len(starting)))
            rosters[peer].want(count)
            settle(peer, None)
        else:
            sender, to = rng.choice(ready)
            rosters[to].heard(sender, queues[sender, to].pop(0))
            settle(to, rosters[to].statement)
    for peer, roster in rosters.items():
        if roster.group is None:
            assert peer in failed or num_peers < count
        else:
            assert len(roster.group) == count
            assert peer in roster.group
    whole = [peer for peer in peers if peer not in failed]
    for peer in whole:
        group = rosters[peer].group
        assert group is not None
        assert all(rosters[PeerId(member)].group in (group, None) or member in failed for member in group)
    if count == num_peers:
        assert not failed
        assert len({roster.group for roster in rosters.values()}) == 1
