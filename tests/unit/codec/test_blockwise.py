"""8, 4 and 2 bits: what is lost, what travels, and what hostile bytes can do."""

import contextlib
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from barnraise.codec.blockwise import Blockwise
from barnraise.codec.codec import PIECE, Malformed, Place
from barnraise.codec.grid import LIMIT, Float32, Int16
from barnraise.errors import LocalError

from .through import decoded, encoded, through

FLOAT, GRID = np.dtype(np.float32), np.dtype(np.int16)
CODECS = [
    Blockwise(bits, dtype, rounding)
    for dtype in (FLOAT, GRID)
    for bits, rounding in ((8, "nearest"), (4, "nearest"), (2, "nearest"), (8, "stochastic"), (4, "stochastic"))
]  # type: ignore[arg-type]
every_codec = pytest.mark.parametrize("codec", CODECS, ids=lambda codec: f"{codec.name}-{codec.dtype}")
STEPS = [codec for codec in CODECS if codec.bits > 2]
every_codec_of_steps = pytest.mark.parametrize("codec", STEPS, ids=lambda codec: f"{codec.name}-{codec.dtype}")
SIZES = st.one_of(st.integers(0, 12), *(st.integers(size - 3, size + 3) for size in (128, 256, 1024, 2048)))
LARGEST = {8: 127, 4: 7}


def arrays_of(codec: Blockwise, size: int, seed: int) -> Float32 | Int16:
    """Return blocks of very different magnitude, some of them all zero."""
    generator = np.random.default_rng(seed)
    octaves = generator.integers(-40 if codec.dtype == FLOAT else -15, 1, -(-size // 128)).repeat(128)[:size]
    values = generator.standard_t(2, size) * 8000 * 2.0**octaves
    values *= generator.integers(0, 5, -(-size // 128)).repeat(128)[:size] > 0
    if codec.dtype == FLOAT:
        return values.astype(np.float32)
    return values.clip(-32768, 32767).astype(np.int16)


def blocks_of(codec: Blockwise, size: int) -> list[slice]:
    return [slice(start, min(start + codec.block, size)) for start in range(0, size, codec.block)]


def steps_of(codec: Blockwise, data: np.ndarray, size: int) -> list[Fraction]:
    """Return what one unit of each block's codes stands for."""
    kind = "<f4" if codec.dtype == FLOAT else "<u2"
    used = -(-size // codec.block) * codec.scale_bytes
    return [Fraction(float(step)) for step in data[:used].view(kind)]


def test_the_names_are_the_configurations() -> None:
    assert [codec.name for codec in CODECS[:5]] == ["int8", "int4", "int2", "int8s", "int4s"]
    assert all(codec.is_exact and not codec.is_lossless for codec in CODECS)


@pytest.mark.parametrize(
    ("bits", "count", "floats", "integers"),
    [
        (8, 0, 0, 0),
        (8, 1, 4 + 1, 2 + 1),
        (8, 1024, 4 + 1024, 2 + 1024),
        (8, 1025, 8 + 1025, 4 + 1025),
        (4, 0, 0, 0),
        (4, 1, 4 + 1, 2 + 1),
        (4, 129, 8 + 65, 4 + 65),
        (2, 0, 0, 0),
        (2, 1, 8 + 1, 4 + 1),
        (2, 257, 16 + 65, 8 + 65),
    ],
)
def test_the_size_follows_from_the_number_of_elements(bits: int, count: int, floats: int, integers: int) -> None:
    for dtype, size in ((FLOAT, floats), (GRID, integers)):
        codec = Blockwise(bits, dtype)  # type: ignore[arg-type]
        assert codec.bound_bytes(count) == size
        assert len(encoded(codec, np.ones(count, dtype))) == size


@every_codec
@settings(deadline=None)
@given(size=SIZES, seed=st.integers(0, 1 << 32))
def test_every_byte_is_written_and_the_same_values_give_the_same_bytes(codec: Blockwise, size: int, seed: int) -> None:
    values = arrays_of(codec, size, seed)
    before = values.copy()
    data = encoded(codec, values, Place(seed=7, index=3))
    assert len(data) == codec.bound_bytes(size)
    assert np.array_equal(data, encoded(codec, values.copy(), Place(seed=7, index=3)))
    assert np.array_equal(values, before)


@every_codec_of_steps
@settings(deadline=None)
@given(size=SIZES, seed=st.integers(0, 1 << 32))
def test_of_a_block_an_element_loses_at_most_its_share_of_the_largest(codec: Blockwise, size: int, seed: int) -> None:
    values = arrays_of(codec, size, seed)
    data = encoded(codec, values)
    arrived = decoded(codec, data, size)
    share = 1.0 if codec.rounding == "stochastic" else 0.5
    for part, step in zip(blocks_of(codec, size), steps_of(codec, data, size), strict=True):
        block, found = values[part].astype(np.float64), arrived[part].astype(np.float64)
        peak = np.abs(block).max()
        if codec.dtype == GRID:
            assert step == -(-int(peak) // LARGEST[codec.bits])
        elif peak >= 2.0**-100:
            assert float(step) == pytest.approx(peak / LARGEST[codec.bits], rel=1e-6)
        allowed = share * float(step) * (1 + 1e-5) + (peak > LIMIT and codec.dtype == GRID)
        assert np.abs(block - found).max() <= allowed
        assert codec.dtype == FLOAT or np.abs(found).max() <= LIMIT


@settings(deadline=None)
@given(size=SIZES, seed=st.integers(0, 1 << 32))
def test_int8_on_the_grid_is_what_its_formula_says(size: int, seed: int) -> None:
    codec = Blockwise(8, GRID)
    values = arrays_of(codec, size, seed)
    expected: list[int] = []
    for part in blocks_of(codec, size):
        block = values[part].tolist()
        step = max(1, -(-max(map(abs, block)) // 127))
        expected += [max(-LIMIT, min(LIMIT, round(Fraction(value, step)) * step)) for value in block]
    arrived = through(codec, values).tolist()
    # A quotient next to a tie may fall to either side of it: both are as near.
    for value, want, have in zip(values.tolist(), expected, arrived, strict=True):
        assert want == have or abs(value - want) == abs(value - have)


@settings(deadline=None)
@given(seed=st.integers(0, 1 << 32), size=st.integers(0, 40))
def test_what_fits_into_eight_bits_is_left_as_it_is(seed: int, size: int) -> None:
    values = np.random.default_rng(seed).integers(-127, 128, size).astype(np.int16)
    assert np.array_equal(through(Blockwise(8, GRID), values), values)
    assert np.array_equal(through(Blockwise(8, GRID, "stochastic"), values), values)


@pytest.mark.parametrize(
    ("values", "wire"),
    [
        ([0], "0000 00"),
        ([127], "0100 7f"),
        ([-127], "0100 81"),
        ([128], "0200 40"),
        ([254, 1, 3, 5], "0200 7f 00 02 02"),  # 0.5, 1.5, 2.5: to the even neighbour
        ([32767], "0301 7f"),  # 126.5: 259 is the first whole step that reaches
        ([-32768], "0301 81"),
    ],
)
def test_int8_by_hand(values: list[int], wire: str) -> None:
    assert encoded(Blockwise(8, GRID), np.array(values, np.int16)).tobytes() == bytes.fromhex(wire)


def test_int4_by_hand() -> None:
    # Three elements are two bytes: elements 0 and 2 share the first, 1 and the filling the second.
    data = encoded(Blockwise(4, GRID), np.array([14, -4, -14], np.int16))
    assert data.tobytes() == bytes.fromhex("0200 97 0e")
    assert decoded(Blockwise(4, GRID), data, 3).tolist() == [14, -4, -14]
    floats = encoded(Blockwise(4, FLOAT), np.array([3.5, -1.0, -3.5], np.float32))
    assert floats.tobytes() == bytes.fromhex("0000003f 97 0e")


def test_int2_by_hand() -> None:
    # The mean magnitude is 4, 1.4 times that is 5.6: low is the mean of 1, 1 and 2, high is 12.
    data = encoded(Blockwise(2, GRID), np.array([1, -12, -1, 2], np.int16))
    assert data.tobytes() == bytes.fromhex("0100 0c00 1c")
    assert decoded(Blockwise(2, GRID), data, 4).tolist() == [1, -12, -1, 1]


@settings(deadline=None)
@given(size=st.integers(1, 600), seed=st.integers(0, 1 << 32), dtype=st.sampled_from([FLOAT, GRID]))
def test_int2_contracts_whatever_the_data(size: int, seed: int, dtype: np.dtype[np.float32]) -> None:
    codec = Blockwise(2, dtype)
    values = arrays_of(codec, size, seed)
    arrived = through(codec, values).astype(np.float64)
    wanted = values.astype(np.float64)
    for part in blocks_of(codec, size):
        before, after = (wanted[part] ** 2).sum(), ((wanted - arrived)[part] ** 2).sum()
        if dtype == FLOAT:  # but for magnitudes rounded to 1/32767 of the largest before they are averaged
            assert after == pytest.approx(before - (arrived[part] ** 2).sum(), abs=1e-3 * before + 1e-30)
        else:  # but for levels rounded to whole numbers
            assert after <= before + 0.26 * (part.stop - part.start)


@pytest.mark.parametrize("dtype", [FLOAT, GRID], ids=str)
def test_one_outlier_does_not_blow_its_blocks_others_up(dtype: np.dtype[np.float32]) -> None:
    values = np.full(256, 10, dtype)
    values[7] = 10000
    arrived = through(Blockwise(2, dtype), values)
    assert np.abs(arrived - values).max() < 1


@pytest.mark.parametrize(("bits", "lost"), [(8, 7e-5), (4, 0.015), (2, 0.125)])
@pytest.mark.parametrize("dtype", [FLOAT, GRID], ids=str)
def test_of_normal_values_so_much_of_the_energy_is_lost(bits: int, lost: float, dtype: np.dtype[np.float32]) -> None:
    values = (np.random.default_rng(0).standard_normal(1 << 16) * 3000).astype(dtype)
    arrived = through(Blockwise(bits, dtype), values).astype(np.float64)  # type: ignore[arg-type]
    assert 0.9 * lost < ((arrived - values) ** 2).sum() / (values.astype(np.float64) ** 2).sum() < lost


# ---- stochastic rounding -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [FLOAT, GRID], ids=str)
@pytest.mark.parametrize("bits", [8, 4])
def test_stochastic_rounding_is_right_on_average(bits: int, dtype: np.dtype[np.float32]) -> None:
    codec = Blockwise(bits, dtype, "stochastic")  # type: ignore[arg-type]
    values = (np.random.default_rng(1).standard_normal(512) * 3000).astype(dtype)
    mean = sum(through(codec, values, Place(seed=seed)).astype(np.float64) for seed in range(400)) / 400
    step = np.abs(values.astype(np.float64)).max() / LARGEST[bits]
    # The error of one is below a step, its deviation at most half; 400 of them leave a twentieth of that.
    assert np.abs(mean - values).max() < 5 * step / 40
    assert abs((mean - values).mean()) < 5 * step / 40 / 512**0.5


def test_the_noise_goes_by_round_shard_and_values() -> None:
    codec = Blockwise(4, FLOAT, "stochastic")
    values = np.linspace(-1, 1, 3 * PIECE + 5, dtype=np.float32)
    places = [Place(0, 0), Place(1, 0), Place(0, 1)]
    assert len({encoded(codec, values, place).tobytes() for place in places}) == 3
    # Two peers with nearly the same update: with the same noise, their errors would be the same, and so would the mean's.
    other = values * np.float32(1 + 1e-6)
    errors = [through(codec, mine) - mine for mine in (values, other)]
    assert abs(np.corrcoef(*errors)[0, 1]) < 0.5


def test_two_bits_are_not_rounded_stochastically() -> None:
    with pytest.raises(LocalError, match="use 4 or 8"):
        Blockwise(2, GRID, "stochastic")


# ---- what is refused -----------------------------------------------------------------------------------------------


@every_codec
@pytest.mark.parametrize("delta", [-1, 1, 4])
def test_another_length_is_malformed(codec: Blockwise, delta: int) -> None:
    data = np.zeros(codec.bound_bytes(1000) + delta, np.uint8)
    with pytest.raises(Malformed, match=f"{len(data)} bytes instead of"):
        codec.reader(data, 1000)


@every_codec
@settings(deadline=None)
@given(size=SIZES, seed=st.integers(0, 1 << 32))
def test_hostile_bytes_are_refused_or_stand_for_finite_values(codec: Blockwise, size: int, seed: int) -> None:
    data = np.frombuffer(np.random.default_rng(seed).bytes(codec.bound_bytes(size)), np.uint8).copy()
    if seed % 2:  # scales of which most are in range
        data[: -(-size // codec.block) * codec.scale_bytes] &= 0x3F if codec.dtype == FLOAT else 0x01
    with contextlib.suppress(Malformed):
        values = decoded(codec, data, size)
        assert np.isfinite(values).all()
        assert codec.dtype == FLOAT or np.abs(values.astype(np.int32)).max(initial=0) <= LIMIT


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf, -1.0, -0.0, 3.4e38])
def test_a_float_scale_that_is_none_is_malformed(bits: int, scale: float) -> None:
    codec = Blockwise(bits, FLOAT)  # type: ignore[arg-type]
    data = np.full(codec.bound_bytes(3000), 0x88, np.uint8)
    data[: -(-3000 // codec.block) * codec.scale_bytes] = 0
    place = -(-3000 // codec.block) * codec.scale_bytes - 4
    data[place : place + 4] = np.frombuffer(np.float32(scale).tobytes(), np.uint8)
    if scale == 3.4e38 and bits == 2:
        assert np.isfinite(decoded(codec, data, 3000)).all()
        return
    with pytest.raises(Malformed, match="out of range"):
        codec.reader(data, 3000)


@pytest.mark.parametrize(("bits", "largest", "code"), [(8, 259, 0x80), (4, 4682, 0x88), (2, 32767, 0xFF)])
def test_the_largest_step_saturates_and_a_larger_one_is_malformed(bits: int, largest: int, code: int) -> None:
    codec = Blockwise(bits, GRID)  # type: ignore[arg-type]
    data = np.full(codec.bound_bytes(8), code, np.uint8)
    data[: codec.scale_bytes].view("<u2")[...] = largest
    assert decoded(codec, data, 8).tolist() == [-LIMIT] * 8
    data[: codec.scale_bytes].view("<u2")[...] = largest + 1
    with pytest.raises(Malformed, match=f"{largest + 1} .int{bits}. is out of range"):
        codec.reader(data, 8)


@pytest.mark.parametrize("codec", [codec for codec in CODECS if codec.dtype == FLOAT], ids=lambda codec: codec.name)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 2.0**127, -3e38])
@pytest.mark.parametrize("place", [0, 1500, 2999])
def test_what_cannot_be_sent_is_our_error(codec: Blockwise, value: float, place: int) -> None:
    values = np.ones(3000, np.float32)
    values[place] = value
    with pytest.raises(LocalError, match="not finite, or"):
        encoded(codec, values)


@pytest.mark.parametrize("codec", [codec for codec in CODECS if codec.dtype == FLOAT], ids=lambda codec: codec.name)
def test_the_largest_and_the_smallest_floats_survive(codec: Blockwise) -> None:
    largest = np.float32(1.7e38)
    assert through(codec, np.full(5, largest)).tolist() == pytest.approx([float(largest)] * 5, rel=1e-5)
    assert through(codec, np.full(5, 2.0**-99, np.float32)).tolist() == pytest.approx([2.0**-99] * 5, rel=1e-4)
    assert not through(codec, np.full(5, 2.0**-101, np.float32)).any()


@every_codec
def test_a_mean_travels_with_eight_bits_rounded_to_the_nearest(codec: Blockwise) -> None:
    assert codec.for_aggregate(5).name == "int8"
    assert codec.for_aggregate(5).dtype == codec.dtype


@every_codec
def test_data_may_lie_at_any_address(codec: Blockwise) -> None:
    values = arrays_of(codec, 2000, 5)
    data = encoded(codec, values)
    room = np.empty(len(data) + 3, np.uint8)
    room[3:] = data
    assert np.array_equal(decoded(codec, room[3:], 2000), decoded(codec, data, 2000))
    out = np.zeros(len(data) + 3, np.uint8)
    codec.encode(values, out[3:])
    assert np.array_equal(out[3:], data)
