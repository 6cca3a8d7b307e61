"""A blob's name commits to its size and to every chunk, however its bytes were handed in."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from barnraise.ids import EMPTY_DIGEST
from barnraise.swarm.manifest import (
    CHUNK_BYTES,
    HASH_BYTES,
    Hasher,
    Manifest,
    chunk_hash,
    manifest_bytes,
    manifest_of,
)

DATA = bytes(range(251)) * (3 * CHUNK_BYTES // 251)  # a little short of three chunks
SIZES = (0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES, len(DATA))


@pytest.mark.parametrize("size", SIZES)
def test_each_chunk_is_checked_by_itself(size: int) -> None:
    data = DATA[:size]
    manifest = manifest_of(data)
    assert (manifest.size_bytes, len(manifest.encode())) == (size, manifest_bytes(size))
    assert len(manifest.hashes) == HASH_BYTES * manifest.num_chunks
    bounds = [manifest.bounds(index) for index in range(manifest.num_chunks)]
    assert b"".join(data[start:stop] for start, stop in bounds) == data
    for index, (start, stop) in enumerate(bounds):
        assert manifest.holds(index, memoryview(data)[start:stop])
        assert not manifest.holds(index, data[start : stop - 1])
        assert not manifest.holds(index, data[start : stop - 1] + bytes([data[stop - 1] ^ 1]))
        assert not manifest.holds(index, data[start:stop] + b"\x00")


@settings(deadline=None, max_examples=30)
@given(size=st.sampled_from(SIZES), cuts=st.lists(st.integers(0, len(DATA)), max_size=8))
def test_it_does_not_matter_in_which_pieces_it_is_hashed(size: int, cuts: list[int]) -> None:
    hasher, data = Hasher(), memoryview(DATA)[:size]
    borders = [0, *sorted(min(cut, size) for cut in cuts), size]
    for start, stop in itertools.pairwise(borders):
        hasher.update(data[start:stop])
    assert hasher.manifest() == manifest_of(data)
    assert hasher.name() == manifest_of(data).name


def test_names_tell_blobs_apart() -> None:
    swapped = DATA[CHUNK_BYTES : 2 * CHUNK_BYTES] + DATA[:CHUNK_BYTES]
    blobs = [*(DATA[:size] for size in SIZES), b"\x01", bytes(CHUNK_BYTES), bytes(2 * CHUNK_BYTES), swapped]
    assert len({manifest_of(blob).name for blob in blobs}) == len(blobs)


def test_a_manifest_is_not_taken_for_a_chunk() -> None:
    manifest = manifest_of(DATA)
    assert chunk_hash(manifest.encode()) != manifest.name
    assert manifest_of(manifest.encode()).name != manifest.name


@pytest.mark.parametrize("size", SIZES)
def test_a_manifest_is_read_back(size: int) -> None:
    manifest = manifest_of(DATA[:size])
    assert Manifest.decode(manifest.encode(), manifest.name, size) == manifest


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda data: data[:-1], "bytes instead of"),
        (lambda data: data + b"\x00", "bytes instead of"),
        (lambda data: b"", "bytes instead of"),
        (lambda data: bytes(8) + data[8:], "of a blob of 0 bytes instead of"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "the manifest of"),
        (lambda data: data[:8] + data[40:72] + data[8:40] + data[72:], "the manifest of"),
    ],
)
def test_another_manifest_is_refused(change: "object", complaint: str) -> None:
    manifest = manifest_of(DATA)
    with pytest.raises(ValueError, match=complaint):
        Manifest.decode(change(manifest.encode()), manifest.name, len(DATA))  # type: ignore[operator]
    with pytest.raises(ValueError, match="the manifest of"):
        Manifest.decode(manifest.encode(), EMPTY_DIGEST, len(DATA))
