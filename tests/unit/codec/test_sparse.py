"""Indices, top-k and random-k: what is chosen, in how many bytes, and what a hostile choice looks like."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from barnraise.codec import indices
from barnraise.codec.chain import codec_of
from barnraise.codec.codec import Malformed, Place, Values
from barnraise.codec.draws import below, draw, mixed
from barnraise.codec.grid import Bytes
from barnraise.codec.randomk import drawn
from barnraise.codec.topk import CHUNK, largest, largest_of_all, magnitudes


@st.composite
def choices(draw: st.DrawFn) -> tuple[int, list[int]]:
    """Return a number of entries and some of them."""
    size = draw(st.one_of(st.integers(1, 40), st.integers(1, 100_000)))
    return size, sorted(draw(st.sets(st.integers(0, size - 1), max_size=60)))


def written(places: list[int], size: int) -> Bytes:
    out = np.full(indices.size_bytes(size, len(places)) + 1, 0xEE, np.uint8)
    used = indices.write(np.array(places, np.int64), size, out)
    assert used == len(out) - 1
    assert out[-1] == 0xEE
    return out[:used]


@given(choice=choices())
def test_indices_come_back(choice: tuple[int, list[int]]) -> None:
    size, places = choice
    assert indices.read(written(places, size), size, len(places)).tolist() == places


@given(size=st.integers(1, 10**7), data=st.data())
def test_indices_take_no_more_than_a_bitmap_and_three_bits_over_the_logarithm(size: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, size))
    taken = 8 * indices.size_bytes(size, count)
    assert taken <= size + 7
    assert taken <= count * (2 + math.log2(size / count)) + 17


@given(choice=choices(), seed=st.integers(0, 1 << 32))
def test_any_other_bytes_are_other_indices_or_refused(choice: tuple[int, list[int]], seed: int) -> None:
    size, places = choice
    data = written(places, size)
    generator = np.random.default_rng(seed)
    if len(data):
        data[generator.integers(len(data))] ^= np.uint8(1 << generator.integers(8))
    try:
        found = indices.read(data, size, len(places))
    except Malformed:
        return
    assert len(found) == len(places)
    assert (np.diff(found) > 0).all()
    assert not len(found) or (found[0] >= 0 and found[-1] < size)
    assert len(data) == 0 or found.tolist() != places, "one choice has one encoding"


@given(places=st.lists(st.integers(0, 4095), max_size=20))
def test_twelve_bits_come_back_two_in_three_bytes(places: list[int]) -> None:
    out = np.zeros(100, np.uint8)
    used = indices.pack_twelve(np.array(places, np.int64), out)
    assert used == -(-12 * len(places) // 8)
    assert indices.unpack_twelve(out[:used], len(places)).tolist() == places


def test_twelve_bits_by_hand() -> None:
    out = np.zeros(5, np.uint8)
    assert indices.pack_twelve(np.array([0x123, 0xABC, 0xFED]), out) == 5
    assert out.tobytes().hex() == "23c1abed0f"
    with pytest.raises(Malformed, match="mean nothing"):
        indices.unpack_twelve(np.frombuffer(bytes.fromhex("23c1abedff"), np.uint8), 3)
    with pytest.raises(Malformed, match="take 5 bytes, not 4"):
        indices.unpack_twelve(out[:4], 3)


def by_sorting(values: Values, count: int) -> list[int]:
    """Return the places of the largest, by the definition: sorted by magnitude, then by place."""
    order = sorted(range(len(values)), key=lambda place: (-abs(int(values[place])), place))
    return sorted(order[:count])


@settings(deadline=None)
@given(
    seed=st.integers(0, 1 << 32), size=st.integers(1, 3000), spread=st.sampled_from([1, 3, 1000, 40000]), data=st.data()
)
def test_the_largest_are_chosen_and_of_equal_ones_the_first(
    seed: int, size: int, spread: int, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, size))
    generator = np.random.default_rng(seed)
    values = np.clip(generator.integers(-spread, spread + 1, size), -32768, 32767)
    expected = by_sorting(values, count)
    for dtype in (np.int16, np.float32):
        keys = magnitudes(values.astype(dtype))
        assert largest_of_all(keys, count).tolist() == expected
        assert np.flatnonzero(largest(keys[None], count)).tolist() == expected


def test_the_sample_may_be_all_wrong() -> None:
    keys = np.zeros(67 * 400, np.uint32)
    keys[1::67] = 5  # never looked at first
    assert largest_of_all(keys, 400).tolist() == list(range(1, 67 * 400, 67))
    keys[::67] = 9  # looked at only
    assert largest_of_all(keys, 500).tolist() == sorted([*range(0, 67 * 400, 67), *range(1, 67 * 100, 67)])


def test_each_chunk_has_its_own_largest() -> None:
    generator = np.random.default_rng(2)
    values = np.concatenate([generator.standard_normal(CHUNK) * 1000, generator.standard_normal(CHUNK), [5, 6, 7]])
    values = values.astype(np.float32)
    codec = codec_of("topkc:0.015625+fp32", np.float32)
    out = np.empty(codec.bound_bytes(len(values)), np.uint8)
    size = codec.encode(values, out)
    found = np.empty_like(values)
    codec.reader(out[:size], len(values)).read(0, len(values), found)
    for start in (0, CHUNK):
        part = values[start : start + CHUNK]
        kept = np.flatnonzero(found[start : start + CHUNK])
        assert len(kept) == 64
        assert np.array_equal(kept, np.sort(np.argsort(-np.abs(part))[:64]))
        assert np.array_equal(found[start : start + CHUNK][kept], part[kept])
    assert found[-3:].tolist() == [0, 6, 7]


def test_sparselocos_size_is_what_its_formula_says() -> None:
    """64 of 4096 entries, 12 bits for the index and 2 for the value: 0.219 bits an entry, 146 times less than float32."""
    codec, count = codec_of("topkc:0.015625+int2", np.float32), 1000 * CHUNK
    size = codec.bound_bytes(count)
    codes_and_indices = 1000 * 64 * (12 + 2) // 8
    assert size == codes_and_indices + 8 * 1000 * 64 // 256  # two levels, float32, for 256 values
    assert 8 * codes_and_indices / count == pytest.approx(0.219, abs=0.001)
    assert 4 * count / codes_and_indices == pytest.approx(146, abs=0.5)
    assert codec_of("topk:0.015625+int2", np.float32).bound_bytes(count) < 0.8 * size


@pytest.mark.parametrize(("width", "expected"), [(1, 1), (2, 2), (3, 2), (100, 2), (500, 8), (4095, 64), (4096, 64)])
def test_a_chunk_sends_an_even_number_if_it_can(width: int, expected: int) -> None:
    codec = codec_of("topkc:0.015625+grid16", np.int16)
    assert codec.bound_bytes(width) == 2 * expected + -(-12 * expected // 8)


@pytest.mark.parametrize("spec", ["topk:0.000001+grid16", "randomk:0.000001+grid16"])
def test_at_least_one_entry_is_sent(spec: str) -> None:
    codec, values = codec_of(spec, np.int16), np.array([3, -9, 4], np.int16)
    out = np.empty(codec.bound_bytes(3), np.uint8)
    size = codec.encode(values, out)
    found = np.empty(3, np.int16)
    codec.reader(out[:size], 3).read(0, 3, found)
    assert np.count_nonzero(found) == 1
    assert spec.startswith("randomk") or found.tolist() == [0, -9, 0]


def test_an_entry_named_twice_is_refused() -> None:
    codec = codec_of("topkc:0.0005+grid16", np.int16)
    values = np.zeros(CHUNK, np.int16)
    values[[7, 9]] = 1
    out = np.empty(codec.bound_bytes(CHUNK), np.uint8)
    codec.encode(values, out)
    codec.reader(out, CHUNK)
    for pair in ((9, 7), (7, 7)):
        indices.pack_twelve(np.array(pair), out)
        with pytest.raises(Malformed, match="not ascending"):
            codec.reader(out, CHUNK)
    short = np.empty(codec.bound_bytes(10), np.uint8)
    codec.encode(values[:10], short)
    indices.pack_twelve(np.array([3, 10]), short)
    with pytest.raises(Malformed, match="beyond the end"):
        codec.reader(short, 10)


@given(size=st.integers(1, 5000), seed=st.integers(0, 1 << 64), index=st.integers(0, 1000), data=st.data())
def test_drawn_entries_are_ascending_and_in_range(size: int, seed: int, index: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, size))
    found = drawn(size, count, Place(seed, index))
    assert len(found) == count
    assert (np.diff(found) > 0).all()
    assert found[0] >= 0
    assert found[-1] < size


def test_every_entry_is_as_likely_as_any_other() -> None:
    size, count, rounds = 10, 4, 5000
    hits = np.zeros(size)
    for seed in range(rounds):
        hits[drawn(size, count, Place(seed, 0))] += 1
    assert np.abs(hits / rounds - count / size).max() < 0.03  # four standard deviations


def test_draws_are_for_ever() -> None:
    """SplitMix64 of seed 0 in its published form, and the streams that peers of all versions draw from."""
    assert mixed(0) == 0xE220A8397B1DCDAF
    start = mixed(mixed(7) ^ 3)
    assert draw(7, 3, 3).tolist() == [mixed(start + step * 0x9E3779B97F4A7C15) for step in range(3)]
    assert draw(0, 0, 2).tolist() == [2558736989570252433, 17913671590881668180]
    assert below(np.array([0, 1 << 63, (1 << 64) - 1], np.uint64), np.full(3, 10, np.uint64)).tolist() == [0, 5, 9]
    assert drawn(1000, 5, Place(1, 2)).tolist() != drawn(1000, 5, Place(2, 2)).tolist()
    assert drawn(1000, 5, Place(1, 2)).tolist() != drawn(1000, 5, Place(1, 3)).tolist()


def test_random_k_sends_values_alone_and_needs_the_same_place() -> None:
    codec, values = codec_of("randomk:0.1+grid16", np.int16), np.arange(1, 1001, dtype=np.int16)
    out = np.empty(codec.bound_bytes(1000), np.uint8)
    assert codec.encode(values, out, Place(1, 1)) == 200
    found = np.empty(1000, np.int16)
    codec.reader(out, 1000, Place(1, 1)).read(0, 1000, found)
    places = np.flatnonzero(found)
    assert np.array_equal(found[places], values[places])
    codec.reader(out, 1000, Place(2, 1)).read(0, 1000, found)
    assert not np.array_equal(np.flatnonzero(found), places)
