"""A hundred simulated peers, some of whom come and go: rounds are agreed, and cost each of them what they may.

The seed is pinned: a crowd of this size takes half a minute. `python bench/swarm.py` runs others.
"""

from typing import Literal

import pytest

from barnraise.sim.books import check_exactly_once, log_of
from barnraise.sim.crowd import KINDS, Crowd, RoundFigures
from barnraise.swarm.records import Result

MAX_VOTE_BYTES = 1.5e6
"""What a peer of a hundred may send in votes in a round, and what it may get."""


def run(num_peers: int, profile: Literal["home", "open"], *, rounds: int = 3, seed: int = 1) -> Crowd:
    crowd = Crowd(seed=seed, num_peers=num_peers, rounds=rounds, profile=profile)
    crowd.run()
    check_exactly_once(crowd)
    return crowd


@pytest.mark.timeout(600)  # some 30 s of a core, of which a busy machine gives little
def test_a_hundred_peers_agree_while_some_come_and_some_go() -> None:
    crowd = run(100, "open")
    figures = crowd.figures()
    assert [row.round for row in figures] == [0, 1, 2]
    assert sum(isinstance(event, Result) for event in log_of(crowd)) == 3
    assert sum(row.num_left for row in figures) >= 5
    assert sum(row.num_joined for row in figures) >= 5
    for row in figures:
        check_costs(row)


def check_costs(row: RoundFigures) -> None:
    """What a round may cost each peer that sees it from its beginning to its end, without a void."""
    if row.num_voids or row.num_passed_over:
        return
    assert row.votes.size_bytes / row.num_members <= MAX_VOTE_BYTES
    assert row.member_bytes <= 50_000 * row.num_members


@pytest.mark.parametrize("profile", ["home", "open"])
def test_a_small_crowd_says_each_thing_once(profile: Literal["home", "open"]) -> None:
    crowd = Crowd(seed=1, num_peers=10, rounds=2, churn=0.0, profile=profile)
    crowd.run()
    for row in crowd.figures():
        others = row.num_members - 1
        votes_each = {"home": 1, "open": 2}[profile]
        for kind in KINDS[:2]:
            assert 0 < row.flows[kind].num_messages <= votes_each * row.num_members * others


def test_the_same_seed_is_the_same_crowd() -> None:
    one, other = (run(8, "open", seed=5) for _ in range(2))
    assert one.decided == other.decided
    assert [row.flows for row in one.figures()] == [row.flows for row in other.figures()]
