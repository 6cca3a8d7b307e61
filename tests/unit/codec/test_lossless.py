"""Lossless compression: what comes back, what is refused, and that a bomb is refused before anything is allocated."""

import tracemalloc

import cramjam
import numpy as np
import pytest

from barnraise.codec.chain import codec_of
from barnraise.codec.codec import Codec, Malformed
from barnraise.codec.grid import Bytes
from barnraise.codec.lossless import LIBRARIES, Lossless

COUNT = 5000
LEVELS = [*(f"zstd:{level}" for level in range(1, 10)), *(f"lz4:{level}" for level in range(1, 10)), "snappy"]


def smooth(count: int = COUNT) -> np.ndarray:
    return (np.sin(np.arange(count) / 50) * 1000).astype(np.int16)


def encoded(codec: Codec, values: np.ndarray) -> Bytes:
    out = np.empty(codec.bound_bytes(len(values)), np.uint8)
    return out[: codec.encode(values, out)].copy()


@pytest.mark.parametrize("stage", LEVELS)
def test_every_level_gives_back_what_was_there(stage: str) -> None:
    codec, values = codec_of(stage, np.int16), smooth()
    wire, found = encoded(codec, values), np.empty(COUNT, np.int16)
    codec.reader(wire, COUNT).read(0, COUNT, found)
    assert np.array_equal(found, values)
    assert len(wire) < 2 * COUNT


@pytest.mark.parametrize("stage", ["zstd", "lz4", "snappy"])
def test_noise_takes_four_bytes_more_and_no_longer(stage: str) -> None:
    values = np.random.default_rng(1).integers(-32767, 32768, COUNT).astype(np.int16)
    wire = encoded(codec_of(stage, np.int16), values)
    assert len(wire) == 2 * COUNT + 4
    assert wire[4:].tobytes() == values.tobytes(), "as it is, not shuffled"


def test_shuffled_bytes_compress_better() -> None:
    values = np.random.default_rng(2).standard_normal(200_000).astype(np.float32)
    plain = codec_of("fp32", np.float32)
    shuffled, scattered = (len(encoded(Lossless(plain, "zstd", 3, width), values)) for width in (4, 1))
    assert shuffled < scattered
    assert codec_of("zstd", np.float32).name == "fp32+zstd:3"
    assert len(encoded(codec_of("zstd", np.float32), values)) == shuffled


def bomb(library: str, size: int) -> bytes:
    """Return so many zeros, compressed."""
    compressed = LIBRARIES[library].compress(memoryview(bytes(size)), LIBRARIES[library].default_level)
    return bytes(compressed)


@pytest.mark.parametrize("library", ["zstd", "lz4", "snappy"])
@pytest.mark.parametrize("is_honest", [True, False])
def test_a_bomb_is_refused_by_its_declared_size_and_stopped_at_it(library: str, is_honest: bool) -> None:
    codec, size = codec_of(f"grid16+{library}", np.int16), 1 << 26
    said = size if is_honest else 2 * COUNT
    data = np.frombuffer(said.to_bytes(4, "little") + bomb(library, size)[: 2 * COUNT - 1], np.uint8)
    tracemalloc.start()
    try:
        with pytest.raises(Malformed, match="decompresses to 67108864 bytes, and 5000" if is_honest else r"\w"):
            codec.reader(data, COUNT)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("library", ["zstd", "lz4", "snappy"])
def test_what_decompresses_to_less_than_it_says_is_refused(library: str) -> None:
    codec = codec_of(f"grid16+{library}", np.int16)
    data = np.frombuffer((2 * COUNT).to_bytes(4, "little") + bomb(library, 2 * COUNT - 2), np.uint8)
    with pytest.raises(Malformed, match=r"not 10000|says 9998"):
        codec.reader(data, COUNT)


@pytest.mark.parametrize(
    ("frame", "complaint"),
    [
        ("", "no frame of Zstandard"),
        ("28b52ffd", "no frame of Zstandard"),
        ("28b52ffe2001000000", "no frame of Zstandard"),
        ("28b52ffd21051027000000", "dictionary"),
        ("28b52ffd60102800010000", "says 10512 bytes, not 10000"),
        ("28b52ffd00680100000000", r"window of 8388608 bytes|cannot be decompressed"),
        ("28b52ffd0069010000", "wants a window of 9437184 bytes"),
        ("28b52ffd00f8010000", "wants a window of"),
    ],
)
def test_a_frame_of_zstandard_is_looked_at_first(frame: str, complaint: str) -> None:
    codec = codec_of("grid16+zstd", np.int16)
    data = np.frombuffer((2 * COUNT).to_bytes(4, "little") + bytes.fromhex(frame), np.uint8)
    with pytest.raises(Malformed, match=complaint):
        codec.reader(data, COUNT)


def test_older_writers_leave_the_length_out_of_the_frame() -> None:
    writer = cramjam.zstd.Compressor(level=3)
    writer.compress(smooth().view(np.uint8).reshape(-1, 2).T.tobytes())
    frame = bytes(writer.finish())
    found = np.empty(COUNT, np.int16)
    data = np.frombuffer((2 * COUNT).to_bytes(4, "little") + frame, np.uint8)
    codec_of("grid16+zstd", np.int16).reader(data, COUNT).read(0, COUNT, found)
    assert np.array_equal(found, smooth())


@pytest.mark.parametrize("data", [b"", b"abc", (100_000).to_bytes(4, "little"), (4).to_bytes(4, "little") + b"12345"])
def test_lengths_that_cannot_be_are_refused(data: bytes) -> None:
    with pytest.raises(Malformed):
        codec_of("grid16+lz4", np.int16).reader(np.frombuffer(data, np.uint8), COUNT)
