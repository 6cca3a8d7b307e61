"""Casts: each element a number of its own."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from barnraise.codec.casts import cast_of
from barnraise.codec.codec import PIECE, Codec, Malformed
from barnraise.codec.grid import LIMIT, Float32, Int16
from barnraise.errors import LocalError

from .through import decoded, encoded, through

FLOAT, GRID = np.dtype(np.float32), np.dtype(np.int16)
FLOATS = [cast_of(name, FLOAT) for name in ("fp32", "fp16", "bf16")]
GRIDS = [cast_of(name, GRID) for name in ("grid16", "fp16", "bf16")]
every_codec = pytest.mark.parametrize("codec", FLOATS + GRIDS, ids=lambda codec: f"{codec.name}-{codec.dtype}")
every_float = pytest.mark.parametrize("codec", FLOATS, ids=lambda codec: codec.name)
every_grid = pytest.mark.parametrize("codec", GRIDS, ids=lambda codec: codec.name)
ALL_INTEGERS: Int16 = np.arange(-32768, 32768).astype(np.int16)


def test_the_names_are_the_configurations() -> None:
    assert [codec.name for codec in FLOATS + GRIDS] == ["fp32", "fp16", "bf16", "grid16", "fp16", "bf16"]
    assert [codec.is_lossless for codec in FLOATS + GRIDS] == [True, False, False] * 2
    assert all(codec.is_exact for codec in FLOATS + GRIDS)


@pytest.mark.parametrize(("name", "dtype"), [("grid16", FLOAT), ("fp32", GRID), ("fp64", FLOAT)])
def test_there_are_no_others(name: str, dtype: np.dtype[np.float32]) -> None:
    with pytest.raises(LocalError, match=name):
        cast_of(name, dtype)


@every_codec
def test_an_element_has_its_size_and_a_mean_travels_alike(codec: Codec) -> None:
    assert codec.bound_bytes(1000) == (4000 if codec.name == "fp32" else 2000)
    assert codec.for_aggregate(9) is codec


@settings(deadline=None)
@given(
    values=arrays.arrays(
        np.float32, st.integers(0, 50), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
    )
)
def test_fp32_is_the_memory_and_the_others_are_the_nearest(values: Float32) -> None:
    fp32, fp16, bf16 = FLOATS
    assert encoded(fp32, values).tobytes() == values.astype("<f4").tobytes()
    assert through(fp32, values).tobytes() == values.tobytes()
    assert np.array_equal(through(fp16, values), values.clip(-65504, 65504).astype(np.float16).astype(np.float32))
    largest = float(np.uint32(0x7F7F0000).view(np.float32))
    for value, arrived in zip(values.tolist(), through(bf16, values).tolist(), strict=True):
        below = float((np.float32(value).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32))
        above = min(largest, float((np.float32(abs(below)).view(np.uint32) + np.uint32(0x10000)).view(np.float32)))
        assert arrived in (below, np.copysign(above, value))
        assert abs(arrived - value) <= min(abs(below - value), abs(above - abs(value)))


@pytest.mark.parametrize(
    ("value", "bits"),
    [
        (1.0, 0x3F80),
        (-0.0, 0x8000),
        (1 + 2.0**-8, 0x3F80),
        (1 + 3 * 2.0**-8, 0x3F82),
        (3.4e38, 0x7F7F),
        (-3.4e38, 0xFF7F),
    ],
)
def test_bf16_rounds_ties_to_even_and_stays_finite(value: float, bits: int) -> None:
    assert encoded(FLOATS[2], np.array([value], np.float32)).view("<u2").tolist() == [bits]


def test_all_finite_halves_come_back() -> None:
    words = np.arange(1 << 16, dtype=np.uint16)
    halves = words[(words & 0x7C00) != 0x7C00]
    values = halves.view(np.float16).astype(np.float32)
    assert encoded(FLOATS[1], values).tobytes() == halves.tobytes()
    assert decoded(FLOATS[1], halves.view(np.uint8), len(halves)).tobytes() == values.tobytes()


@every_grid
def test_grid_integers_become_whole_numbers_near_them(codec: Codec) -> None:
    arrived = through(codec, ALL_INTEGERS).astype(np.int32)
    assert np.abs(arrived).max() == LIMIT
    precision = {"grid16": 16, "fp16": 11, "bf16": 8}[codec.name]
    lost = np.abs(arrived - ALL_INTEGERS)
    assert (lost <= np.abs(ALL_INTEGERS.astype(np.int32)) / 2.0**precision + (ALL_INTEGERS == -32768)).all()
    small = np.abs(ALL_INTEGERS.astype(np.int32)) <= 2**precision
    assert not lost[small & (ALL_INTEGERS != -32768)].any()


@every_grid
def test_any_bytes_stand_for_whole_numbers_or_are_refused(codec: Codec) -> None:
    words = np.arange(1 << 16, dtype=np.uint16)
    exponent = {"fp16": 0x7C00, "bf16": 0x7F80}.get(codec.name)
    finite = words if exponent is None else words[(words & exponent) != exponent]
    arrived = decoded(codec, finite.view(np.uint8), len(finite)).astype(np.float64)
    wire = finite.view(np.int16) if exponent is None else FLOATS[1 if codec.name == "fp16" else 2]
    plain = wire if isinstance(wire, np.ndarray) else decoded(wire, finite.view(np.uint8), len(finite))
    assert np.array_equal(arrived, np.rint(plain.astype(np.float64)).clip(-LIMIT, LIMIT))


@pytest.mark.parametrize(
    "codec", [codec for codec in FLOATS + GRIDS if codec.name != "grid16"], ids=lambda codec: codec.name
)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, PIECE, PIECE + 4])
def test_what_is_not_finite_is_malformed_wherever_it_is(codec: Codec, value: float, place: int) -> None:
    data = np.zeros(codec.bound_bytes(PIECE + 5), np.uint8)
    if codec.name == "bf16":
        data.view("<u2")[place] = np.float32(value).view(np.uint32) >> 16
    else:
        data.view("<f4" if codec.name == "fp32" else "<f2")[place] = value
    with pytest.raises(Malformed, match="not finite"):
        codec.reader(data, PIECE + 5)


@every_codec
@pytest.mark.parametrize("delta", [-1, 1])
def test_another_length_is_malformed(codec: Codec, delta: int) -> None:
    with pytest.raises(Malformed, match="bytes instead of"):
        codec.reader(np.zeros(codec.bound_bytes(9) + delta, np.uint8), 9)


@every_codec
def test_data_may_lie_at_any_address(codec: Codec) -> None:
    values = np.random.default_rng(2).integers(-3000, 3000, 100).astype(codec.dtype)
    data = encoded(codec, values)
    room = np.empty(len(data) + 1, np.uint8)
    room[1:] = data
    assert np.array_equal(decoded(codec, room[1:], 100), decoded(codec, data, 100))
