"""The weighted mean against exact fractions."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from barnraise.aggregate.mean import CHUNK, MAX_TOTAL_WEIGHT, Int16, weighted_mean
from barnraise.errors import LocalError

SIZE = 6
VALUES = st.lists(st.integers(-32768, 32767), min_size=SIZE, max_size=SIZE)
SMALL = st.integers(0, 64)
LARGE = st.integers(0, MAX_TOTAL_WEIGHT // 8)
"""Eight of them are within the limit."""
TERMS = st.one_of(
    st.lists(st.tuples(SMALL, VALUES), min_size=1, max_size=8),
    st.lists(st.tuples(LARGE, VALUES), min_size=1, max_size=8),
).filter(lambda terms: any(weight for weight, _ in terms))
Terms = list[tuple[int, list[int]]]


def mean_of(terms: Terms) -> Int16:
    out = np.empty(len(terms[0][1]), np.int16)
    weighted_mean([np.array(values, np.int16) for _, values in terms], [weight for weight, _ in terms], out)
    return out


def exact_mean_of(terms: Terms) -> list[int]:
    total = sum(weight for weight, _ in terms)
    sums = [sum(weight * values[i] for weight, values in terms) for i in range(len(terms[0][1]))]
    return [round(Fraction(value, total)) for value in sums]  # to the nearest, ties to even


@settings(deadline=None)
@given(terms=TERMS)
def test_it_is_the_exact_mean_rounded_once(terms: Terms) -> None:
    assert mean_of(terms).tolist() == exact_mean_of(terms)


@settings(deadline=None)
@given(terms=TERMS, data=st.data())
def test_the_order_does_not_matter(terms: Terms, data: st.DataObject) -> None:
    assert mean_of(data.draw(st.permutations(terms))).tobytes() == mean_of(terms).tobytes()


@pytest.mark.parametrize("size", [1, CHUNK, CHUNK + 1])
def test_chunks_change_nothing(size: int) -> None:
    generator = np.random.default_rng(size)
    updates = [generator.integers(-32768, 32768, size).astype(np.int16) for _ in range(3)]
    out = np.empty(size, np.int16)
    weighted_mean(updates, [1, 2, 4], out)
    total = sum(update.astype(np.int64) * weight for update, weight in zip(updates, (1, 2, 4), strict=True))
    assert np.array_equal(out, np.rint(total / 7).astype(np.int16))


def test_ties_go_to_the_even_neighbour() -> None:
    assert mean_of([(1, [0, 1, -1, 2]), (1, [1, 2, -2, 3])]).tolist() == [0, 2, -2, 2]


def test_nearly_a_tie_is_told_from_a_tie_at_the_largest_weight() -> None:
    half = MAX_TOTAL_WEIGHT // 2
    assert mean_of([(half, [32766]), (half - 1, [32767])]).tolist() == [32766]
    assert mean_of([(half - 1, [32766]), (half, [32767])]).tolist() == [32767]


def test_a_weight_of_zero_takes_an_update_out() -> None:
    assert mean_of([(0, [32767]), (5, [-7]), (0, [1])]).tolist() == [-7]


def test_of_equal_updates_the_mean_is_the_update() -> None:
    assert mean_of([(3, [-32768, 32767]), (1 << 34, [-32768, 32767])]).tolist() == [-32768, 32767]


@pytest.mark.parametrize("weights", [[], [0], [0, 0], [1, -1], [-1, -2], [MAX_TOTAL_WEIGHT, 1]])
def test_weights_without_a_sum_in_range_are_refused(weights: list[int]) -> None:
    updates = [np.zeros(1, np.int16)] * len(weights)
    with pytest.raises(LocalError):
        weighted_mean(updates, weights, np.zeros(1, np.int16))
