"""Quorums by seniority, for every committee of up to six members."""

import itertools
from collections.abc import Iterator

import pytest

from barnraise.consensus.seniority import explain, is_quorum
from barnraise.ids import PeerId

SIZES = range(1, 7)


def committee(size: int) -> tuple[PeerId, ...]:
    return tuple(PeerId(f"peer-{number}") for number in range(size))


def quorums(members: tuple[PeerId, ...]) -> Iterator[frozenset[PeerId]]:
    for count in range(len(members) + 1):
        for chosen in itertools.combinations(members, count):
            if is_quorum(members, chosen):
                yield frozenset(chosen)


@pytest.mark.parametrize("size", SIZES)
def test_any_two_quorums_share_a_member(size: int) -> None:
    for one, other in itertools.product(quorums(committee(size)), repeat=2):
        assert one & other


@pytest.mark.parametrize("size", SIZES)
def test_of_two_halves_exactly_one_can_go_on(size: int) -> None:
    members = committee(size)
    for count in range(size + 1):
        for chosen in itertools.combinations(members, count):
            assert is_quorum(members, chosen) != is_quorum(members, set(members) - set(chosen))


@pytest.mark.parametrize("size", SIZES)
def test_whoever_is_added_to_a_quorum_leaves_it_one(size: int) -> None:
    members = committee(size)
    for quorum in quorums(members):
        assert all(is_quorum(members, quorum | {member}) for member in members)


def test_of_two_machines_the_senior_goes_on_alone() -> None:
    senior, junior = committee(2)
    assert is_quorum((senior, junior), {senior})
    assert not is_quorum((senior, junior), {junior})


def test_strangers_and_an_empty_committee_are_no_quorum() -> None:
    assert not is_quorum(committee(3), {PeerId("stranger"), PeerId("other"), PeerId("third")})
    assert not is_quorum((), ())
    assert not is_quorum(committee(2), ())


def test_an_explanation_names_the_counts_and_what_is_awaited() -> None:
    members = committee(4)
    assert explain(members, members[3:]) == "1 of 4 members are reachable, fewer than half: waiting for 2 more"
    half = explain(members, members[2:])
    assert "exactly half" in half
    assert "peer-0" in half
