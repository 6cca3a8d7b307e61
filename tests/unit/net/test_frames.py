"""The record layer: what is sealed opens once, in order, unchanged; nothing else does."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from barnraise.net.frames import (
    HEADER_BYTES,
    MAX_FRAME_BYTES,
    MAX_PAYLOAD_BYTES,
    TAG_BYTES,
    Kind,
    Opener,
    Sealer,
    Suite,
    agree_suite,
    cut,
    preferred_suite,
    read_header,
)

KEY = bytes(range(32))
AES, CHACHA = Suite.AES_256_GCM, Suite.CHACHA20_POLY1305


def seal(sealer: Sealer, payload: bytes, kind: Kind = Kind.PAYLOAD) -> bytes:
    frame = memoryview(bytearray(HEADER_BYTES + len(payload) + TAG_BYTES))
    assert sealer.seal_into(kind, payload, frame) == len(frame)
    return bytes(frame)


def open_frame(opener: Opener, frame: bytes, kind: Kind = Kind.PAYLOAD) -> bytes:
    """Open a frame as from a stream in which zeros follow it."""
    header = frame[:HEADER_BYTES]
    payload = bytearray(read_header(header, kind, MAX_PAYLOAD_BYTES))
    size = len(payload) + TAG_BYTES
    opener.open_into(header, memoryview(frame[HEADER_BYTES:].ljust(size, b"\0")[:size]), memoryview(payload))
    return bytes(payload)


@pytest.mark.parametrize("suite", Suite)
@pytest.mark.parametrize("size", [0, 1, 1000, MAX_PAYLOAD_BYTES])
def test_frame_opens_to_what_was_sealed(suite: Suite, size: int) -> None:
    payload = bytes(i % 251 for i in range(size))
    frame = seal(Sealer(suite, KEY), payload)
    assert len(frame) == size + HEADER_BYTES + TAG_BYTES <= MAX_FRAME_BYTES
    assert open_frame(Opener(suite, KEY), frame) == payload


@given(st.lists(st.binary(max_size=50), max_size=20), st.integers(1, 5))
def test_keys_change_in_step_on_both_sides(payloads: list[bytes], rekey_frames: int) -> None:
    sealer, opener = Sealer(AES, KEY, rekey_frames), Opener(AES, KEY, rekey_frames)
    assert [open_frame(opener, seal(sealer, payload)) for payload in payloads] == payloads


def test_key_after_a_change_is_another() -> None:
    sealer, opener = Sealer(AES, KEY, rekey_frames=1), Opener(AES, KEY, rekey_frames=2)
    assert open_frame(opener, seal(sealer, b"first")) == b"first"
    with pytest.raises(ValueError, match="not authentic"):
        open_frame(opener, seal(sealer, b"second"))


@given(st.integers(0, HEADER_BYTES + 20 + TAG_BYTES - 1), st.integers(1, 255))
def test_frame_with_one_byte_changed_is_refused(position: int, change: int) -> None:
    frame = bytearray(seal(Sealer(AES, KEY), bytes(20)))
    frame[position] ^= change
    # A changed header announces another kind or length, or does not fit the tag.
    with pytest.raises(ValueError, match="a frame of"):
        open_frame(Opener(AES, KEY), bytes(frame))


def test_replayed_and_reordered_frames_are_refused() -> None:
    sealer = Sealer(AES, KEY)
    first, second = seal(sealer, b"first"), seal(sealer, b"second")
    replayed = Opener(AES, KEY)
    assert open_frame(replayed, first) == b"first"
    with pytest.raises(ValueError, match="not authentic"):
        open_frame(replayed, first)
    with pytest.raises(ValueError, match="not authentic"):
        open_frame(Opener(AES, KEY), second)


def test_frame_of_the_other_direction_or_suite_is_refused() -> None:
    frame = seal(Sealer(AES, KEY), b"payload")
    for opener in (Opener(AES, bytes(32)), Opener(CHACHA, KEY)):
        with pytest.raises(ValueError, match="not authentic"):
            open_frame(opener, frame)


def test_header_over_the_limit_is_refused() -> None:
    header = (MAX_PAYLOAD_BYTES + 1).to_bytes(4, "little") + bytes([Kind.PAYLOAD])
    with pytest.raises(ValueError, match="over the limit of 524288"):
        read_header(header, Kind.PAYLOAD, MAX_PAYLOAD_BYTES)


@given(st.binary(min_size=HEADER_BYTES, max_size=HEADER_BYTES), st.sampled_from(Kind), st.integers(0, 2**33))
def test_header_is_a_length_within_the_limit_or_refused(header: bytes, kind: Kind, limit: int) -> None:
    length = int.from_bytes(header[:4], "little")
    if length <= limit and header[4] == kind:
        assert read_header(header, kind, limit) == length
    else:
        with pytest.raises(ValueError, match="a frame of"):
            read_header(header, kind, limit)


@given(st.lists(st.binary(max_size=20), max_size=8), st.data(), st.integers(1, 16))
def test_cut_pieces_are_the_concatenation(parts: list[bytes], data: st.DataObject, piece_bytes: int) -> None:
    whole = b"".join(parts)
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    views: Sequence[memoryview] = [memoryview(part) for part in parts]
    pieces = [bytes(piece) for piece in cut(views, start, stop, memoryview(bytearray(piece_bytes)))]
    assert b"".join(pieces) == whole[start:stop]
    assert all(len(piece) == piece_bytes for piece in pieces[:-1])


def test_cut_does_not_copy_within_a_part() -> None:
    part = memoryview(bytearray(b"abcdef"))
    (piece,) = cut([part], 1, 4, memoryview(bytearray(10)))
    part[1] = ord("x")
    assert bytes(piece) == b"xcd"


def test_suite_is_aes_only_where_both_prefer_it() -> None:
    assert agree_suite(AES, AES) is AES
    assert {agree_suite(AES, CHACHA), agree_suite(CHACHA, AES), agree_suite(CHACHA, CHACHA)} == {CHACHA}
    assert preferred_suite() in Suite
