"""Samples are given out exactly once, whoever comes, goes or fails."""

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from barnraise.ids import PeerId
from barnraise.swarm.slots import Segment, assign

PEERS = tuple(PeerId(f"peer-{number}") for number in range(5))


def samples_of(segments: Sequence[Segment]) -> list[int]:
    return [sample for segment in segments for sample in range(segment.first, segment.first + segment.count)]


ROUNDS = st.lists(
    st.tuples(st.sets(st.sampled_from(PEERS), min_size=1), st.sets(st.sampled_from(PEERS)), st.integers(1, 7)),
    min_size=1,
    max_size=12,
)
"""Who is there, who of them makes it, and how many samples each is given."""


@settings(deadline=None)
@given(rounds=ROUNDS)
def test_over_any_rounds_each_sample_is_trained_on_once_or_waits(
    rounds: list[tuple[set[PeerId], set[PeerId], int]],
) -> None:
    queue: tuple[Segment, ...] = ()
    cursor, trained = 0, list[int]()
    for present, made_it, count in rounds:
        given_out = assign(queue, cursor, sorted(present), count)
        assert all(len(samples_of(slot)) == count for slot in given_out.slots.values())
        contributed = present & made_it
        trained += [sample for peer in contributed for sample in samples_of(given_out.slots[peer])]
        queue, cursor = given_out.rest(dict.fromkeys(contributed, count)), given_out.cursor
        assert sorted(trained + samples_of(queue)) == list(range(cursor))


def test_the_queue_goes_first_and_is_taken_from_its_front() -> None:
    given_out = assign((Segment(3, 2), Segment(10, 4)), 20, PEERS[:2], 4)
    assert given_out.slots == {PEERS[0]: (Segment(3, 2), Segment(10, 2)), PEERS[1]: (Segment(12, 2), Segment(20, 2))}
    assert (given_out.requeued, given_out.cursor) == ((), 22)


def test_what_comes_back_is_joined_with_its_neighbours() -> None:
    given_out = assign((), 0, PEERS[:3], 4)
    assert given_out.rest({PEERS[0]: 4}) == (Segment(4, 8),)
    assert given_out.rest({PEERS[1]: 4}) == (Segment(0, 4), Segment(8, 4))
    assert given_out.rest(dict.fromkeys(PEERS[:3], 4)) == ()


def test_nobody_to_give_to_changes_nothing() -> None:
    given_out = assign((Segment(1, 2),), 9, (), 4)
    assert (given_out.slots, given_out.requeued, given_out.cursor) == ({}, (Segment(1, 2),), 9)


def test_what_comes_back_of_a_slot_is_what_is_behind_the_samples_that_were_used() -> None:
    given_out = assign((Segment(3, 2), Segment(10, 1)), 20, PEERS[:2], 4)
    assert given_out.slots[PEERS[0]] == (Segment(3, 2), Segment(10, 1), Segment(20, 1))
    assert given_out.rest({PEERS[0]: 1, PEERS[1]: 4}) == (Segment(4, 1), Segment(10, 1), Segment(20, 1))
    assert given_out.rest({PEERS[0]: 3, PEERS[1]: 3}) == (Segment(20, 1), Segment(24, 1))
    assert given_out.rest({PEERS[0]: 100, PEERS[1]: 100}) == ()
    assert given_out.rest({}) == (Segment(3, 2), Segment(10, 1), Segment(20, 5))
