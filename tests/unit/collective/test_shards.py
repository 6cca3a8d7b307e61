"""Shards tile the vector, and their hashes tell them apart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from barnraise.collective.shards import ALIGNMENT, MAX_SHARDS, bounds, leaf, owners, root


@given(size=st.integers(0, 1 << 40), num_shards=st.integers(1, MAX_SHARDS))
def test_shards_tile_the_vector_in_order(size: int, num_shards: int) -> None:
    found = bounds(size, num_shards)
    assert len(found) == num_shards
    assert [start for start, _ in found] == [0, *(stop for _, stop in found[:-1])]
    assert found[-1][1] == size


@given(size=st.integers(0, 1 << 40), num_shards=st.integers(1, MAX_SHARDS))
def test_shards_are_aligned_and_no_longer_than_need_be(size: int, num_shards: int) -> None:
    for start, stop in bounds(size, num_shards):
        assert start <= stop
        assert start % ALIGNMENT == 0 or start == size
        assert (stop - start - ALIGNMENT) * num_shards < size or stop == start


@pytest.mark.parametrize(
    ("size", "num_shards", "expected"),
    [
        (256, 4, ((0, 64), (64, 128), (128, 192), (192, 256))),
        (200, 4, ((0, 64), (64, 128), (128, 192), (192, 200))),
        (100, 3, ((0, 64), (64, 100), (100, 100))),
        (1, 2, ((0, 1), (1, 1))),
    ],
)
def test_the_bounds_of_some_sizes(size: int, num_shards: int, expected: tuple[tuple[int, int], ...]) -> None:
    assert bounds(size, num_shards) == expected


def test_owners_take_turns() -> None:
    assert owners(("a", "b", "c"), 4) == ("a", "b", "c", "a")
    assert owners(("a", "b", "c"), 2) == ("a", "b")


def test_hashes_depend_on_every_byte_and_on_the_order() -> None:
    leaves = [leaf(memoryview(data)) for data in (b"", b"\0", b"\0\0", b"\1")]
    assert len(set(leaves)) == 4
    assert root(leaves) != root(leaves[::-1])
    assert leaf(memoryview(b"")).hex() == "0b6af5d313b706cc90b5dad5e3e115cd0ffaf479ab195e9208c10fe6581be597"
    assert root(leaves).hex() == "494de065b5abdf2d7339be7ed83d297d3f19367ca481d66708c58adec4fd7036"
