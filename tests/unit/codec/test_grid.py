"""The grid: what is sent and what is fed back add up, whatever the update."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from barnraise.codec.grid import (
    CHUNK,
    LIMIT,
    MAX_EXPONENT,
    MIN_EXPONENT,
    Float32,
    Int16,
    decode,
    encode,
    next_exponents,
)
from barnraise.errors import LocalError

EXPONENTS = st.integers(MIN_EXPONENT, MAX_EXPONENT)


def vectors(size: int, largest: float) -> st.SearchStrategy[Float32]:
    bound = float(np.float32(largest))
    elements = st.floats(-bound, bound, width=32, allow_subnormal=False)
    return arrays.arrays(np.float32, size, elements=elements)


def encoded(update: Float32, residual: Float32, exponent: int) -> tuple[Int16, Float32, Float32]:
    """Return the integers, the float32 values they stand for, and the new residual."""
    blocks = ((0, len(update)),)
    integers, rest, values = np.empty(len(update), np.int16), residual.copy(), np.empty_like(update)
    encode(update.copy(), blocks, (exponent,), integers, rest)
    decode(integers, blocks, (exponent,), values)
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
@pytest.mark.parametrize("place", [0, CHUNK, CHUNK + 4])
def test_what_is_not_finite_is_refused_wherever_it_is(value: float, place: int) -> None:
    update = np.zeros(CHUNK + 5, np.float32)
    update[place] = value
    with pytest.raises(LocalError, match="not finite"):
        encode(update, ((0, len(update)),), (16,), np.empty(len(update), np.int16), np.zeros_like(update))


@pytest.mark.parametrize("size", [CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3])
def test_chunks_change_nothing(size: int) -> None:
    update = (np.random.default_rng(size).normal(0, 0.1, size)).astype(np.float32)
    integers, values, rest = encoded(update, np.zeros(size, np.float32), 12)
    assert np.array_equal(integers, np.rint(update * np.float32(4096)).astype(np.int16))
    assert np.array_equal(values + rest, update)


def test_each_block_has_its_own_grid_and_may_be_empty() -> None:
    update, residual = np.full(5, 0.75, np.float32), np.zeros(5, np.float32)
    blocks, exponents = ((0, 2), (2, 2), (2, 5)), (2, 9, 0)
    integers, values = np.empty(5, np.int16), np.empty(5, np.float32)
    encode(update, blocks, exponents, integers, residual)
    decode(integers, blocks, exponents, values)
    assert integers.tolist() == [3, 3, 1, 1, 1]
    assert values.tolist() == [0.75, 0.75, 1.0, 1.0, 1.0]
    assert residual.tolist() == [0.0, 0.0, -0.25, -0.25, -0.25]


@pytest.mark.parametrize(
    ("peak", "expected"),
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
def test_the_next_grid_leaves_three_bits_of_room(peak: int, expected: int) -> None:
    aggregate = np.array([0, peak, 0], np.int16)
    assert next_exponents(aggregate, ((0, 3),), (16,)) == (expected,)


def test_the_next_grid_stays_within_its_limits() -> None:
    quiet, loud = np.zeros(1, np.int16), np.full(1, -32768, np.int16)
    assert next_exponents(quiet, ((0, 1), (1, 1)), (MAX_EXPONENT, MAX_EXPONENT)) == (MAX_EXPONENT, MAX_EXPONENT)
    assert next_exponents(loud, ((0, 1),), (MIN_EXPONENT,)) == (MIN_EXPONENT,)


@given(one=st.integers(1, 32767), other=st.integers(1, 32767), exponent=EXPONENTS)
def test_a_larger_aggregate_never_gives_a_finer_grid(one: int, other: int, exponent: int) -> None:
    grids = [next_exponents(np.array([peak], np.int16), ((0, 1),), (exponent,))[0] for peak in sorted((one, other))]
    assert grids[0] >= grids[1]
