"""Every codec by its name: the promises that all of them make, and what names are refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from barnraise.codec.chain import MAX_SPEC_LENGTH, codec_of
from barnraise.codec.codec import PIECE, Codec, Malformed, Place, Values
from barnraise.codec.grid import LIMIT, Bytes
from barnraise.errors import ConfigError

SPECS = (
    *("fp16", "bf16", "int8", "int8s", "int4", "int4s", "int2"),
    *("topk:0.1", "topk:0.01+int4", "topk:0.5+int8", "topk:1", "topk:0.016+int2+zstd", "topk:0.3+int4+snappy"),
    *("topkc:0.016+int2", "topkc:0.1", "topkc:0.9+int8+lz4:9"),
    *("randomk:0.1", "randomk:0.7+int8", "randomk:1+int4+zstd:1"),
    *("powersgd:1", "powersgd:4+fp16", "powersgd:2+int8+zstd"),
    *("zstd", "zstd:9", "lz4", "lz4:9", "snappy", "int8+zstd", "bf16+lz4:3", "int2+snappy"),
)
PAIRS = [(spec, dtype) for dtype in ("int16", "float32") for spec in (*SPECS, {"int16": "grid16"}.get(dtype, "fp32"))]
every_codec = pytest.mark.parametrize(("spec", "dtype"), PAIRS)
SIZES = st.one_of(st.integers(0, 70), st.sampled_from([1023, 1024, 1025, 4095, 4096, 4097, 9000]))


@st.composite
def vectors(draw: st.DrawFn, dtype: str) -> Values:
    """Return values of very different magnitudes, with ties and zeros."""
    size, seed = draw(SIZES), draw(st.integers(0, 1 << 32))
    generator = np.random.default_rng(seed)
    values = generator.standard_normal(size) * 2.0 ** generator.integers(-3, 15, size)
    values[generator.random(size) < draw(st.sampled_from([0.0, 0.5, 1.0]))] = draw(st.sampled_from([0.0, 1.0, -7.0]))
    return np.clip(np.rint(values), -LIMIT, LIMIT).astype(np.int16) if dtype == "int16" else values.astype(np.float32)


def encoded(codec: Codec, values: Values, place: Place = Place()) -> Bytes:
    """Return an encoding; nothing beyond the bound may be written."""
    bound = codec.bound_bytes(len(values))
    out = np.full(bound + 16, 0xEE, np.uint8)
    size = codec.encode(values, out, place)
    assert size <= bound
    assert (out[bound:] == 0xEE).all()
    return out[:size].copy()


def decoded(codec: Codec, data: Bytes, count: int, place: Place = Place()) -> Values:
    out = np.full(count, 99, codec.dtype)
    reader = codec.reader(data, count, place)
    for start in range(0, count, PIECE):
        reader.read(start, min(start + PIECE, count), out[start : start + PIECE])
    return out


@every_codec
@settings(deadline=None, max_examples=12)
@given(data=st.data(), seed=st.integers(0, 1 << 70), index=st.integers(0, 1 << 20))
def test_the_same_bytes_are_the_same_values(spec: str, dtype: str, data: st.DataObject, seed: int, index: int) -> None:
    values, place = data.draw(vectors(dtype)), Place(seed, index)
    before = values.copy()
    codec = codec_of(spec, dtype)
    wire = encoded(codec, values, place)
    assert np.array_equal(values, before)
    assert np.array_equal(wire, encoded(codec_of(codec.name, dtype), values, place))
    found = decoded(codec, wire, len(values), place)
    assert np.array_equal(found.view(np.uint8), decoded(codec_of(spec, dtype), wire, len(values), place).view(np.uint8))
    assert found.dtype == codec.dtype == np.dtype(dtype)
    assert np.isfinite(found).all()
    if codec.is_lossless:
        assert np.array_equal(found, values)


@every_codec
def test_a_long_vector_is_read_in_pieces_added_and_smaller_than_its_error(spec: str, dtype: str) -> None:
    count = PIECE + 4096 + 77
    generator = np.random.default_rng(3)
    values = np.rint(generator.laplace(size=count) * 300).astype(dtype)
    codec = codec_of(spec, dtype)
    wire = encoded(codec, values, Place(5, 1))
    found = decoded(codec, wire, count, Place(5, 1))
    whole = np.empty(count, codec.dtype)
    codec.reader(wire, count, Place(5, 1)).read(0, count, whole)
    assert np.array_equal(whole, found)
    lost = np.linalg.norm(values.astype(np.float64) - found) / np.linalg.norm(values.astype(np.float64))
    assert lost < 1, "error feedback needs a contraction"
    if dtype == "float32":
        base = generator.standard_normal(count).astype(np.float32)
        apart, same = np.empty_like(base), base.copy()
        codec.reader(wire, count, Place(5, 1)).add(0, count, base, apart)
        codec.reader(wire, count, Place(5, 1)).add(0, count, same, same)
        assert np.array_equal(apart, same)
        assert np.array_equal(apart, base + found)


@every_codec
@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 1 << 32), count=SIZES, is_grown=st.booleans())
def test_hostile_bytes_are_refused_or_stand_for_values(
    spec: str, dtype: str, seed: int, count: int, is_grown: bool
) -> None:
    codec, generator = codec_of(spec, dtype), np.random.default_rng(seed)
    data = np.frombuffer(generator.bytes(codec.bound_bytes(count) + is_grown), np.uint8)
    try:
        found = decoded(codec, data, count)
    except Malformed:
        return
    assert np.isfinite(found).all()
    assert dtype == "float32" or np.abs(found.astype(np.int32)).max(initial=0) <= LIMIT


@every_codec
def test_an_encoding_that_is_cut_or_grown_is_refused(spec: str, dtype: str) -> None:
    codec = codec_of(spec, dtype)
    wire = encoded(codec, np.arange(3000).astype(dtype))
    grown = (
        [] if "lz4" in spec or "zstd" in spec else [np.append(wire, np.uint8(0))]
    )  # what follows a frame is not read
    for wrong in (wire[:-1], wire[:0], *grown):
        with pytest.raises(Malformed):
            codec.reader(wrong, 3000)


@pytest.mark.parametrize(
    ("spec", "grid", "floats"),
    [
        ("int8", "int8", "int8"),
        ("topk:1e-3", "topk:0.001+grid16", "topk:0.001+bf16"),
        ("topk:.5+int4", "topk:0.5+int4", "topk:0.5+int4"),
        ("zstd", "grid16+zstd:3", "fp32+zstd:3"),
        ("topk:0.016+int2+zstd", "topk:0.016+int2+zstd:3", "topk:0.016+int2+zstd:3"),
        ("powersgd:4", "powersgd:4+fp32", "powersgd:4+fp32"),
        ("randomk:1+lz4", "randomk:1.0+grid16+lz4:1", "randomk:1.0+bf16+lz4:1"),
        ("int4+snappy", "int4+snappy", "int4+snappy"),
    ],
)
def test_a_name_in_full_says_what_was_left_out(spec: str, grid: str, floats: str) -> None:
    assert (codec_of(spec, np.int16).name, codec_of(spec, np.float32).name) == (grid, floats)


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("", "there is no stage ''.*topk:R"),
        ("gzip", "there is no stage 'gzip'.*zstd:1"),
        ("int8+", "there is no stage ''"),
        ("INT8", "no stage 'INT8'"),
        ("int8:3", "int8 takes no number"),
        ("topk", "topk takes a share"),
        ("topk:0", "topk takes a share"),
        ("topk:1.5", "topk takes a share"),
        ("topk:1.2.3", "topk takes a share"),
        ("topk:nan", "no stage 'topk:nan'"),
        ("topk:-1", "no stage 'topk:-1'"),
        ("randomk:2", "randomk takes a share"),
        ("powersgd", "powersgd takes a whole number"),
        ("powersgd:0", "powersgd takes a whole number, 1 to 256"),
        ("powersgd:257", "powersgd takes a whole number, 1 to 256"),
        ("powersgd:1.5", "powersgd takes a whole number"),
        ("zstd:0", "zstd takes a whole number, 1 to 9"),
        ("zstd:22", "zstd takes a whole number, 1 to 9"),
        ("snappy:3", "snappy has no levels"),
        ("int8+int4", "'int4' does not go after"),
        ("zstd+int8", "'int8' does not go after"),
        ("int8+topk:0.1", "'topk:0.1' does not go after"),
        ("zstd+zstd", "'zstd' does not go after"),
        ("int8+" * 13, f"{MAX_SPEC_LENGTH} are the most"),
    ],
)
def test_what_is_no_codec_is_refused_with_what_there_is(spec: str, complaint: str) -> None:
    for dtype in ("int16", "float32"):
        with pytest.raises(ConfigError, match=complaint):
            codec_of(spec, dtype)


def test_each_type_has_its_own_plain_codec() -> None:
    with pytest.raises(ConfigError, match=r"fp32 is not for int16 values\. Write 'grid16'"):
        codec_of("topk:0.1+fp32", np.int16)
    with pytest.raises(ConfigError, match=r"grid16 is not for float32 values\. Write 'fp32'"):
        codec_of("grid16+zstd", np.float32)


@pytest.mark.parametrize(
    ("spec", "peers", "aggregate"),
    [
        ("int4", 4, "int8"),
        ("int4+zstd:6", 4, "int8+zstd:6"),
        ("topk:0.01+int2", 4, "topk:0.04+int8"),
        ("topk:0.016+int2+zstd", 4, "topk:0.064+int8+zstd:3"),
        ("topk:0.3+int4", 4, "int8"),
        ("topkc:0.01+int2", 2, "topkc:0.02+int8"),
        ("topkc:0.4+int2", 2, "int8"),
        ("randomk:0.1+int4", 8, "randomk:0.1+int8"),
        ("powersgd:4", 4, "int8"),
        ("grid16", 4, "grid16"),
        ("zstd", 4, "grid16+zstd:3"),
    ],
)
def test_a_mean_travels_with_8_bits_and_all_its_entries(spec: str, peers: int, aggregate: str) -> None:
    assert codec_of(spec, np.int16).for_aggregate(peers).name == aggregate


@pytest.mark.parametrize("spec", ["powersgd:2", "powersgd:2+int8+zstd"])
def test_only_powersgd_is_not_exact(spec: str) -> None:
    assert not codec_of(spec, np.int16).is_exact
    assert all(codec_of(other, dtype).is_exact for other, dtype in PAIRS if "powersgd" not in other)
