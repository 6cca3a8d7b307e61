"""The codecs: what travels, what it decodes to, and what hostile bytes can do."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from barnraise.codec.codec import PIECE, Codec, codec_of
from barnraise.codec.grid import Bytes, Int16
from barnraise.codec.grid16 import Grid16
from barnraise.codec.int8 import BLOCK, MAX_SHIFT, Int8
from barnraise.config import RoundConfig, RunConfig
from barnraise.errors import LocalError

CODECS: list[Codec] = [Grid16(), Int8()]
every_codec = pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
VALUES = st.one_of(st.integers(-32768, 32767), st.integers(-200, 200))
SIZES = st.one_of(st.integers(0, 12), st.integers(BLOCK - 2, BLOCK + 2), st.just(3 * BLOCK))


@st.composite
def shards(draw: st.DrawFn) -> Int16:
    """Return some blocks of values of very different magnitude."""
    size, seed = draw(SIZES), draw(st.integers(0, 1 << 32))
    generator = np.random.default_rng(seed)
    values = (
        generator.integers(-32768, 32768, size) >> generator.integers(0, 16, -(-size // BLOCK)).repeat(BLOCK)[:size]
    )
    for place in draw(st.lists(st.integers(0, max(0, size - 1)), max_size=4)):
        values[place : place + 1] = draw(VALUES)
    return values.astype(np.int16)


def encoded(codec: Codec, values: Int16) -> Bytes:
    data = np.full(codec.size_bytes(len(values)), 0xEE, np.uint8)
    for start in range(0, len(values), PIECE):
        codec.encode(values[start : start + PIECE], start, data)
    return data


def decoded(codec: Codec, data: Bytes, count: int) -> Int16:
    pieces = [
        codec.decode(data, start, min(start + PIECE, count), np.full(PIECE, 99, np.int16)).copy()
        for start in range(0, count, PIECE)
    ]
    return np.concatenate([np.empty(0, np.int16), *pieces])


def by_hand(values: list[int]) -> list[int]:
    """Return what int8 makes of a shard, element by element."""
    made = []
    for first in range(0, len(values), BLOCK):
        block = values[first : first + BLOCK]
        shift = min(MAX_SHIFT, max(0, max(map(abs, block)).bit_length() - 7))
        made += [min(127, round(value / 2**shift)) * 2**shift for value in block]
    return made


@pytest.mark.parametrize("name", ["grid16", "int8"])
def test_the_configurations_name_is_the_codecs(name: str) -> None:
    assert codec_of(RunConfig(round=RoundConfig(codec=name))).name == name  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("count", "sizes"),
    [
        (0, (0, 0)),
        (1, (2, 2)),
        (1023, (2046, 1024)),
        (1024, (2048, 1025)),
        (1025, (2050, 1027)),
        (10240, (20480, 10250)),
    ],
)
def test_a_shards_size_follows_from_its_number_of_elements(count: int, sizes: tuple[int, int]) -> None:
    assert tuple(codec.size_bytes(count) for codec in CODECS) == sizes


@every_codec
@settings(deadline=None)
@given(values=shards())
def test_every_byte_is_written_and_decodes_to_the_same_again(codec: Codec, values: Int16) -> None:
    data = encoded(codec, values)
    assert not codec.complaint(data)
    once = decoded(codec, data, len(values))
    assert np.array_equal(data, encoded(codec, values.copy()))
    assert np.array_equal(once, values) or not codec.is_exact
    if codec.is_exact:
        assert data.tobytes() == values.astype("<i2").tobytes()


@settings(deadline=None)
@given(values=shards())
def test_int8_is_what_its_formula_says(values: Int16) -> None:
    data = encoded(Int8(), values)
    assert decoded(Int8(), data, len(values)).tolist() == by_hand(values.tolist())


@settings(deadline=None)
@given(values=shards())
def test_int8_takes_at_most_a_127th_of_the_blocks_largest(values: Int16) -> None:
    lost = values.astype(np.int32) - decoded(Int8(), encoded(Int8(), values), len(values))
    for first in range(0, len(values), BLOCK):
        part = slice(first, first + BLOCK)
        assert 127 * np.abs(lost[part]).max() <= np.abs(values[part].astype(np.int32)).max()


@settings(deadline=None)
@given(values=arrays.arrays(np.int16, st.integers(0, 40), elements=st.integers(-127, 127)))
def test_what_fits_into_eight_bits_is_left_as_it_is(values: Int16) -> None:
    assert np.array_equal(decoded(Int8(), encoded(Int8(), values), len(values)), values)


@pytest.mark.parametrize(
    ("value", "wire", "shift"),
    [
        (0, 0, 0),
        (127, 127, 0),
        (-127, -127, 0),
        (128, 64, 1),
        (255, 127, 1),  # 127.5 goes to 128, which does not fit
        (-255, -128, 1),
        (129, 64, 1),  # 64.5: a tie, to the even neighbour
        (131, 66, 1),
        (32767, 127, 8),
        (-32767, -128, 8),
        (-32768, -128, 8),
    ],
)
def test_one_element_by_hand(value: int, wire: int, shift: int) -> None:
    assert encoded(Int8(), np.array([value], np.int16)).tobytes() == bytes([wire & 0xFF, shift])


def test_pieces_change_nothing() -> None:
    count = 2 * PIECE + BLOCK + 5
    values = np.random.default_rng(4).integers(-32768, 32768, count).astype(np.int16)
    assert decoded(Int8(), encoded(Int8(), values), count).tolist() == by_hand(values.tolist())


@every_codec
def test_a_piece_touches_nothing_but_its_own_bytes(codec: Codec) -> None:
    values = np.random.default_rng(5).integers(-32768, 32768, 2 * PIECE + 7).astype(np.int16)
    data = encoded(codec, values)
    again = data.copy()
    codec.encode(values[PIECE : 2 * PIECE], PIECE, again)
    assert np.array_equal(again, data)


@every_codec
@settings(deadline=None)
@given(data=st.data(), count=SIZES)
def test_hostile_bytes_are_refused_or_stand_for_values(codec: Codec, data: st.DataObject, count: int) -> None:
    size, seed = codec.size_bytes(count), data.draw(st.integers(0, 1 << 32))
    received = np.frombuffer(np.random.default_rng(seed).bytes(size), np.uint8).copy()
    if data.draw(st.booleans()) and count:
        received[count:] = data.draw(st.integers(0, MAX_SHIFT + 2))
    if codec.complaint(received):
        with pytest.raises(LocalError, match="was not checked"):
            decoded(codec, received, count)
    else:
        values = decoded(codec, received, count)
        assert values.dtype == np.int16
        assert len(values) == count


def test_no_byte_decodes_to_more_than_an_int16_holds() -> None:
    for wire in (-128, 127):
        data = np.array([wire & 0xFF, MAX_SHIFT], np.uint8)
        assert decoded(Int8(), data, 1).tolist() == [wire * 2**MAX_SHIFT]


@pytest.mark.parametrize("shift", [MAX_SHIFT + 1, 15, 16, 255])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_shift_out_of_range_is_named(shift: int, place: int) -> None:
    count = 2 * BLOCK + 3
    data = encoded(Int8(), np.zeros(count, np.int16))
    data[count + place] = shift
    assert Int8().complaint(data) == f"it shifts a block by {shift} bits, over {MAX_SHIFT}"
