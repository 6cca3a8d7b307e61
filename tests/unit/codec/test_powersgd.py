"""PowerSGD: what has low rank is found, what has not is paid back, and small shards travel as they are."""

import numpy as np
import pytest

from barnraise.codec.chain import codec_of
from barnraise.codec.codec import Codec, Malformed, Place, Values
from barnraise.codec.feedback import Feedback
from barnraise.codec.grid import LIMIT, Bytes, Float32
from barnraise.codec.powersgd import shape_of

COUNT = 64 * 128 - 5
"""The last row is not full."""


def of_rank(rank: int, scale: float = 1.0) -> Float32:
    """Return a vector that is a matrix of some rank in PowerSGD's layout."""
    rows, columns = shape_of(COUNT)
    generator = np.random.default_rng(rank)
    left, right = generator.standard_normal((rows, rank)), generator.standard_normal((rank, columns))
    left[-1] = 0
    return ((left @ right) * scale).astype(np.float32).reshape(-1)[:COUNT]


def sent(codec: Codec, values: Values, place: Place = Place()) -> tuple[Values, Bytes]:
    out = np.empty(codec.bound_bytes(len(values)), np.uint8)
    wire = out[: codec.encode(values, out, place)]
    found = np.empty(len(values), codec.dtype)
    codec.reader(wire, len(values), place).read(0, len(values), found)
    return found, wire


def lost(values: Values, found: Values) -> float:
    return float(np.linalg.norm(values - found.astype(np.float64)) / np.linalg.norm(values.astype(np.float64)))


@pytest.mark.parametrize("rank", [1, 3])
def test_what_has_the_rank_is_recovered_after_two_iterations(rank: int) -> None:
    codec, values = codec_of(f"powersgd:{rank}", np.float32), of_rank(rank)
    sent(codec, values)
    assert lost(values, sent(codec, values)[0]) < 1e-5


def test_on_the_grid_it_is_recovered_to_the_last_integer() -> None:
    codec, values = codec_of("powersgd:2", np.int16), np.rint(of_rank(2, 300)).astype(np.int16)
    sent(codec, values)
    found = sent(codec, values)[0]
    assert found.dtype == np.int16
    assert np.abs(found.astype(int) - values).max() <= 2  # rounding made the matrix's rank full


def test_the_start_is_warm_and_each_place_has_its_own() -> None:
    generator = np.random.default_rng(4)
    values = (of_rank(2) * 4 + generator.standard_normal(COUNT)).astype(np.float32)
    codec = codec_of("powersgd:2", np.float32)
    losses = [lost(values, sent(codec, values, Place(0, 1))[0]) for _ in range(4)]
    assert losses[-1] < losses[0]
    other = codec_of("powersgd:2", np.float32)
    assert lost(values, sent(other, values, Place(0, 1))[0]) == losses[0]
    assert np.array_equal(sent(codec, values, Place(9, 2))[1], sent(other, values, Place(0, 2))[1])


def test_with_feedback_what_is_sent_and_what_is_owed_add_up() -> None:
    codec = codec_of("powersgd:1", np.float32)
    feedback = Feedback(codec, COUNT)
    generator = np.random.default_rng(5)
    total, arrived = np.zeros(COUNT), np.zeros(COUNT)
    out = np.empty(codec.bound_bytes(COUNT), np.uint8)
    found = np.empty(COUNT, np.float32)
    owed = []
    for _ in range(30):
        update = (of_rank(1) + 0.3 * generator.standard_normal(COUNT)).astype(np.float32)
        size = feedback.encode(update, out)
        feedback.commit()
        codec.reader(out[:size], COUNT).read(0, COUNT, found)
        total += update
        arrived += found
        owed.append(float(np.linalg.norm(feedback.residual)))
    assert np.abs(arrived + feedback.residual - total).max() < 1e-3
    assert owed[-1] < 0.2 * np.linalg.norm(total)


def test_small_shards_travel_as_they_are() -> None:
    for dtype, width in ((np.int16, 2), (np.float32, 4)):
        codec, values = codec_of("powersgd:4", dtype), np.arange(100).astype(dtype)
        found, wire = sent(codec, values)
        assert np.array_equal(found, values)
        assert len(wire) == 100 * width
    codec = codec_of("powersgd:4", np.float32)
    for count in (1000, 10_000, 1_000_000):
        rows, columns = shape_of(count)
        is_worth_it = (rows + columns) * 4 <= 0.5 * count
        assert codec.bound_bytes(count) == (4 + 4 * 4 * (rows + columns) if is_worth_it else 4 * count)
        assert max(rows, columns) <= 2 * min(rows, columns)


def test_zeros_and_large_values_stay_finite() -> None:
    codec = codec_of("powersgd:2", np.float32)
    assert not sent(codec, np.zeros(COUNT, np.float32))[0].any()
    assert np.isfinite(sent(codec, np.full(COUNT, 3e38, np.float32))[0]).all()
    assert np.isfinite(sent(codec, np.full(COUNT, 1e-44, np.float32))[0]).all()
    grid = codec_of("powersgd:2", np.int16)
    sent(grid, np.full(COUNT, LIMIT, np.int16))
    assert np.abs(sent(grid, np.full(COUNT, LIMIT, np.int16))[0].astype(int)).max() <= LIMIT


def test_factors_that_overflow_or_do_not_fit_are_refused() -> None:
    codec, values = codec_of("powersgd:1", np.float32), of_rank(1)
    wire = sent(codec, values)[1].copy()
    for start in (4, len(wire) - 4):
        wire[start : start + 4] = np.array([1e25], "<f4").view(np.uint8)
    with pytest.raises(Malformed, match="multiply to"):
        codec.reader(wire, COUNT)
    wire[:4] = 255
    with pytest.raises(Malformed, match="is said to take 4294967295 bytes"):
        codec.reader(wire, COUNT)
    with pytest.raises(Malformed, match="no room for a length"):
        codec.reader(wire[:3], COUNT)
