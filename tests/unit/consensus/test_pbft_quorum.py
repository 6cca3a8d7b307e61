"""The arithmetic of Byzantine quorums, and what the kind makes of it."""

import pytest

from barnraise.consensus import quorum
from barnraise.consensus.pbft_kind import PBFT

from .pbft_cast import peers


@pytest.mark.parametrize("size", range(1, 301))
def test_two_quorums_share_an_honest_member_and_the_honest_are_a_quorum(size: int) -> None:
    faulty, enough = quorum.num_faulty(size), quorum.quorum(size)
    assert 3 * faulty < size <= 3 * (faulty + 1)
    assert 2 * enough - size >= faulty + 1
    assert enough <= size - faulty


@pytest.mark.parametrize(
    ("size", "enough"), [(1, 1), (2, 2), (3, 3), (4, 3), (5, 4), (6, 4), (7, 5), (10, 7), (100, 67)]
)
def test_a_quorum_is_so_many(size: int, enough: int) -> None:
    members = peers(size)
    assert PBFT.is_quorum(members, members[:enough])
    assert not PBFT.is_quorum(members, members[1:enough])
    assert PBFT.is_cut(members, (), members[-enough:])


def test_nobody_is_no_quorum_of_nobody() -> None:
    assert not PBFT.is_quorum((), ())


def test_strangers_do_not_count() -> None:
    assert not PBFT.is_quorum(peers(4), peers(10)[2:])


def test_the_most_senior_hundred_vote() -> None:
    members = peers(150)
    assert PBFT.committee(members) == members[:100]
    assert PBFT.committee(members, 7) == members[:7]
    assert PBFT.committee(members[:4], 7) == members[:4]


@pytest.mark.parametrize(
    ("size", "present", "why"),
    [
        (3, 3, "3 of 3 members are reachable, and where members may lie it takes 4: waiting for 1 more to join"),
        (7, 3, "3 of 7 members are reachable, and with up to 2 that may lie it takes 5: waiting for 2 more"),
    ],
)
def test_a_missing_quorum_is_explained(size: int, present: int, why: str) -> None:
    assert PBFT.explain(peers(size), peers(size)[:present]) == why
