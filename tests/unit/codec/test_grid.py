"""The grid: what is sent and what is fed back add up, whatever the update."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from barnraise.codec.grid import (
    LIMIT,
    MAX_EXPONENT,
    MIN_EXPONENT,
    Float32,
    Int16,
    decode,
    next_exponent,
    peak_of,
    segments,
)
from barnraise.codec.rounding import remainder, to_grid
from barnraise.errors import LocalError

EXPONENTS = st.integers(MIN_EXPONENT, MAX_EXPONENT)


def vectors(size: int, largest: float) -> st.SearchStrategy[Float32]:
    bound = float(np.float32(largest))
    elements = st.floats(-bound, bound, width=32, allow_subnormal=False)
    return arrays.arrays(np.float32, size, elements=elements)


def encoded(update: Float32, residual: Float32, exponent: int) -> tuple[Int16, Float32, Float32]:
    """Return the integers, the float32 values they stand for, and the new residual."""
    integers, rest, values = np.empty(len(update), np.int16), np.empty_like(update), np.empty_like(update)
    wanted = update.copy()
    to_grid(wanted, residual, exponent, integers)
    remainder(wanted, integers, exponent, rest)
    decode(integers, exponent, values)
    return integers, values, rest


@settings(deadline=None)
@given(data=st.data(), exponent=EXPONENTS)
def test_what_is_sent_and_what_is_kept_make_up_the_update_exactly(data: st.DataObject, exponent: int) -> None:
    # Exact as long as update + residual, as a float32, is below 2**24 grid units: 512 times what saturates.
    largest = 2.0 ** (23 - exponent) * 0.99
    update, residual = data.draw(vectors(8, largest)), data.draw(vectors(8, largest))
    total = update + residual
    _, values, rest = encoded(update, residual, exponent)
    for whole, sent, kept in zip(total.tolist(), values.tolist(), rest.tolist(), strict=True):
        assert Fraction(sent) + Fraction(kept) == Fraction(whole)


@settings(deadline=None)
@given(update=vectors(8, 1e38), exponent=EXPONENTS)
def test_beyond_that_the_remainder_is_off_by_its_last_bit_at_most(update: Float32, exponent: int) -> None:
    _, values, rest = encoded(update, np.zeros_like(update), exponent)
    for whole, sent, kept in zip(update.tolist(), values.tolist(), rest.tolist(), strict=True):
        assert abs(Fraction(sent) + Fraction(kept) - Fraction(whole)) <= abs(Fraction(kept)) / 2**24


@settings(deadline=None)
@given(data=st.data(), exponent=st.integers(0, 30))
def test_what_is_kept_is_at_most_half_a_grid_unit_unless_it_saturated(data: st.DataObject, exponent: int) -> None:
    update = data.draw(vectors(8, LIMIT * 2.0**-exponent))
    integers, _, rest = encoded(update, np.zeros_like(update), exponent)
    assert (np.abs(rest) <= 2.0 ** -(exponent + 1)).all()
    assert integers.tolist() == [round(Fraction(value) * 2**exponent) for value in update.tolist()]


def test_saturation_lands_in_the_residual_and_is_sent_later() -> None:
    update, residual = np.array([3.0, -3.0], np.float32), np.zeros(2, np.float32)
    integers, values, rest = encoded(update, residual, 14)
    assert integers.tolist() == [LIMIT, -LIMIT]
    sent = values.copy()
    for _ in range(2):
        _, values, rest = encoded(np.zeros(2, np.float32), rest, 14)
        sent += values
    assert sent.tolist() == [3.0, -3.0]
    assert not rest.any()


def test_a_value_whose_scaled_form_overflows_saturates_without_a_warning() -> None:
    integers, _, rest = encoded(np.array([3e38, -3e38], np.float32), np.zeros(2, np.float32), MAX_EXPONENT)
    assert integers.tolist() == [LIMIT, -LIMIT]
    assert np.isfinite(rest).all()


def test_error_feedback_loses_nothing_over_many_rounds() -> None:
    generator = np.random.default_rng(3)
    rest, sent, wanted = np.zeros(50, np.float32), np.zeros(50), np.zeros(50)
    for _ in range(30):
        update = generator.normal(0, 1e-3, 50).astype(np.float32)
        wanted += update
        _, values, rest = encoded(update, rest, 10)
        sent += values
    assert np.abs(sent + rest - wanted).max() < 30 * 2.0**-24


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 4, 8])
def test_what_is_not_finite_is_refused_wherever_it_is(value: float, place: int) -> None:
    update = np.zeros(9, np.float32)
    update[place] = value
    with pytest.raises(LocalError, match="not finite"):
        to_grid(update, np.zeros_like(update), 16, np.empty(9, np.int16))


def test_nothing_is_encoded_too() -> None:
    integers, values, rest = encoded(np.empty(0, np.float32), np.empty(0, np.float32), 16)
    assert len(integers) == len(values) == len(rest) == peak_of(integers) == 0


# ---- the blocks ----------------------------------------------------------------------------------------------------


def test_segments_are_the_parts_of_the_blocks_without_the_empty_ones() -> None:
    blocks = ((0, 2), (2, 2), (2, 5), (5, 5), (5, 9), (9, 9))
    assert list(segments(blocks, 0, 9)) == [(0, 0, 2), (2, 2, 5), (4, 5, 9)]
    assert list(segments(blocks, 1, 6)) == [(0, 1, 2), (2, 2, 5), (4, 5, 6)]
    assert list(segments(blocks, 2, 5)) == [(2, 2, 5)]
    assert list(segments(blocks, 3, 4)) == [(2, 3, 4)]
    assert list(segments(blocks, 4, 4)) == list(segments((), 0, 0)) == []


@given(data=st.data(), sizes=st.lists(st.integers(0, 5), min_size=1, max_size=8))
def test_the_segments_of_pieces_that_tile_the_vector_are_the_blocks(data: st.DataObject, sizes: list[int]) -> None:
    stops = np.cumsum(sizes).tolist()
    blocks = list(zip([0, *stops], stops, strict=False))
    cuts = sorted(data.draw(st.sets(st.integers(0, stops[-1]))) | {0, stops[-1]})
    found = [part for first, last in itertools.pairwise(cuts) for part in segments(blocks, first, last)]
    elements = [(block, element) for block, low, high in found for element in range(low, high)]
    assert elements == [(block, element) for block, bounds in enumerate(blocks) for element in range(*bounds)]


# ---- the next grid -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, 18),  # nothing moved: two bits finer
        (1, 27),
        (-1, 27),
        (2047, 17),
        (2048, 16),  # an eighth of the range, give or take a bit: stays
        (4095, 16),
        (4096, 15),
        (32767, 13),
        (-32768, 12),
    ],
)
def test_the_next_grid_leaves_three_bits_of_room(value: int, expected: int) -> None:
    assert next_exponent(16, peak_of(np.array([0, value, 0], np.int16))) == expected


def test_the_next_grid_stays_within_its_limits() -> None:
    assert next_exponent(MAX_EXPONENT, 0) == MAX_EXPONENT
    assert next_exponent(MIN_EXPONENT, 32768) == MIN_EXPONENT


@given(one=st.integers(1, 32767), other=st.integers(1, 32767), exponent=EXPONENTS)
def test_a_larger_aggregate_never_gives_a_finer_grid(one: int, other: int, exponent: int) -> None:
    grids = [next_exponent(exponent, peak) for peak in sorted((one, other))]
    assert grids[0] >= grids[1]
